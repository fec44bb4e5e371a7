//! Whether an image may be used at all, decided before anything of it is unpacked.
//!
//! The policy is containers-policy.json(5), as Podman, skopeo and CRI-O read it: `--policy FILE`, else
//! `~/.config/containers/policy.json`, else `/etc/containers/policy.json`; where there is none of
//! them everything is accepted. What slim cannot check (GPG's `signedBy`, Fulcio, Rekor) it refuses.

use std::path::{Path, PathBuf};

use super::{Access, SourceError};
use crate::model::Digest;

mod identity;
mod origin;
mod policy;
mod sigstore;

pub use origin::Origin;

use policy::{Policy, Requirement};
use sigstore::PublicKey;
pub(super) use sigstore::Signature;

/// What a policy asks of an image.
pub(super) struct Gate {
    file: PathBuf,
    scope: String,
    requirements: Vec<Requirement>,
}

/// Checks an image that lies where no signatures can be kept beside it.
///
/// # Errors
/// The policy refuses it, or is no policy.
pub fn admit(access: &Access, origin: &Origin) -> Result<(), SourceError> {
    match Gate::of(access, origin)? {
        Some(gate) if gate.wants_signatures() => Err(gate.refusal(
            origin,
            "it has to be signed, and signatures are kept in registries only: take it from there (docker://NAME)",
        )),
        _ => Ok(()),
    }
}

impl Gate {
    /// What the policy asks of an image there; `None` where there is no policy.
    ///
    /// # Errors
    /// It is refused whatever it holds, or the policy cannot be read.
    pub fn of(access: &Access, origin: &Origin) -> Result<Option<Self>, SourceError> {
        let Some(file) = file(access) else { return Ok(None) };
        let bytes = std::fs::read(&file).map_err(|error| unreadable(&file, &error.to_string()))?;
        let policy = Policy::parse(&bytes).map_err(|why| unreadable(&file, &why))?;
        let (scope, requirements) = policy.choose(origin);
        let gate = Self { file, scope, requirements };
        for requirement in &gate.requirements {
            if let Err(why) = requirement.possible() {
                return Err(gate.refusal(origin, &why));
            }
        }
        tracing::debug!(file = %gate.file.display(), scope = %gate.scope, "policy");
        Ok(Some(gate))
    }

    /// True if a signature decides.
    pub fn wants_signatures(&self) -> bool {
        self.requirements.iter().any(|one| matches!(one, Requirement::Sigstore { .. }))
    }

    /// Checks the signatures of one of `digests`: the manifest's, or that of the index it came from.
    ///
    /// # Errors
    /// A requirement that none of them meets.
    pub fn check(
        &self,
        origin: &Origin,
        digests: &[Digest],
        signatures: &[Signature],
    ) -> Result<(), SourceError> {
        for requirement in &self.requirements {
            let Requirement::Sigstore { keys, identity } = requirement else { continue };
            let keys: Result<Vec<PublicKey>, String> = keys.iter().map(PublicKey::load).collect();
            let keys = keys.map_err(|why| unreadable(&self.file, &why))?;
            if signatures.is_empty() {
                return Err(self.refusal(origin, "it has to be signed and has no signature"));
            }
            let tried = signatures.iter().map(|signature| {
                let claim = signature.verify(&keys)?;
                if !digests.contains(&claim.digest) {
                    return Err(format!("it signs {}, another image", claim.digest));
                }
                identity.matches(origin, &claim.reference)
            });
            let failed: Result<Vec<()>, Vec<String>> = {
                let results: Vec<_> = tried.collect();
                if results.iter().any(Result::is_ok) {
                    Ok(Vec::new())
                } else {
                    Err(results.into_iter().filter_map(Result::err).collect())
                }
            };
            if let Err(mut reasons) = failed {
                reasons.dedup();
                let why = format!("no signature of it counts: {}", reasons.join("; "));
                return Err(self.refusal(origin, &why));
            }
        }
        Ok(())
    }

    fn refusal(&self, origin: &Origin, why: &str) -> SourceError {
        SourceError::Refused {
            image: origin.to_string(),
            policy: self.file.clone(),
            scope: self.scope.clone(),
            why: why.to_owned(),
        }
    }
}

fn unreadable(path: &Path, why: &str) -> SourceError {
    SourceError::Policy { path: path.to_owned(), why: why.to_owned() }
}

/// The policy that counts.
fn file(access: &Access) -> Option<PathBuf> {
    if access.ours {
        return None;
    }
    if let Some(named) = &access.policy {
        return Some(named.clone());
    }
    let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
    let own = home.map(|home| home.join(".config/containers/policy.json"));
    let all = [own, Some(PathBuf::from("/etc/containers/policy.json"))];
    all.into_iter().flatten().find(|path| path.exists())
}
