//! Whether the name that a signature vouches for is the name that was asked for.

use serde::Deserialize;

use crate::wire::Reference;

use super::Origin;

/// `signedIdentity` of containers-policy.json(5).
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(tag = "type", rename_all = "camelCase", deny_unknown_fields)]
pub(super) enum Identity {
    MatchExact,
    #[default]
    MatchRepoDigestOrExact,
    MatchRepository,
    #[serde(rename_all = "camelCase")]
    ExactReference {
        docker_reference: String,
    },
    #[serde(rename_all = "camelCase")]
    ExactRepository {
        docker_repository: String,
    },
    #[serde(rename_all = "camelCase")]
    #[serde(rename = "remapIdentity")]
    Remap {
        prefix: String,
        signed_prefix: String,
    },
}

impl Identity {
    /// Compares `signed`, as the signature has it, with the image's own name.
    pub fn matches(&self, origin: &Origin, signed: &str) -> Result<(), String> {
        let claimed: Reference =
            signed.parse().map_err(|_| format!("it names {signed:?}, which is no image"))?;
        let own = || {
            origin.reference().ok_or_else(|| {
                "the image has no name there: the policy needs exactReference or exactRepository"
                    .to_owned()
            })
        };
        let fits = match self {
            Self::MatchExact => exact(own()?, &claimed),
            Self::MatchRepoDigestOrExact => repo_digest_or_exact(own()?, &claimed),
            Self::MatchRepository => own()?.name() == claimed.name(),
            Self::ExactReference { docker_reference } => exact(&parse(docker_reference)?, &claimed),
            Self::ExactRepository { docker_repository } => {
                parse(docker_repository)?.name() == claimed.name()
            }
            Self::Remap { prefix, signed_prefix } => {
                repo_digest_or_exact(&remapped(own()?, prefix, signed_prefix)?, &claimed)
            }
        };
        if fits {
            return Ok(());
        }
        let bare = claimed.tag.is_none() && claimed.digest.is_none();
        let cosign =
            if bare { " (cosign signs repositories: matchRepository takes that)" } else { "" };
        Err(format!("it is for {claimed}, another name{cosign}"))
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    text.parse().map_err(|error: crate::wire::WireError| error.to_string())
}

/// The same, tag or digest included; a bare repository is never exact.
fn exact(own: &Reference, claimed: &Reference) -> bool {
    let bare = |r: &Reference| r.tag.is_none() && r.digest.is_none();
    // With both given the digest decides what is fetched, so it is the image's identity.
    let own = match own.digest {
        Some(_) => Reference { tag: None, ..own.clone() },
        None => own.clone(),
    };
    !bare(&own) && !bare(claimed) && own == *claimed
}

fn repo_digest_or_exact(own: &Reference, claimed: &Reference) -> bool {
    if own.digest.is_some() { own.name() == claimed.name() } else { exact(own, claimed) }
}

/// `own` with `prefix` replaced, if it has it.
fn remapped(own: &Reference, prefix: &str, signed_prefix: &str) -> Result<Reference, String> {
    let name = own.name();
    let rest = name.strip_prefix(prefix).filter(|rest| rest.is_empty() || rest.starts_with('/'));
    let Some(rest) = rest else { return Ok(own.clone()) };
    let named = parse(&format!("{signed_prefix}{rest}"))?;
    Ok(Reference { host: named.host, repository: named.repository, ..own.clone() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fits(identity: &str, own: &str, signed: &str) -> bool {
        let identity: Identity = serde_json::from_str(identity).unwrap();
        identity.matches(&Origin::Docker(own.parse().unwrap()), signed).is_ok()
    }

    #[test]
    fn the_kinds_of_identity_are_those_of_the_man_page() {
        let pinned = format!("r.io/a@{}", crate::model::Digest::of(b"x"));
        let exact = r#"{"type":"matchExact"}"#;
        let usual = r#"{"type":"matchRepoDigestOrExact"}"#;
        let repository = r#"{"type":"matchRepository"}"#;
        let reference = r#"{"type":"exactReference","dockerReference":"r.io/b:1"}"#;
        let one = r#"{"type":"exactRepository","dockerRepository":"r.io/b"}"#;
        let remap = r#"{"type":"remapIdentity","prefix":"mirror:5000/x","signedPrefix":"r.io"}"#;
        for (identity, own, signed, want) in [
            (exact, "r.io/a:1", "r.io/a:1", true),
            (exact, "r.io/a:1", "r.io/a:2", false),
            (exact, "r.io/a:1", "r.io/a", false),
            (exact, pinned.as_str(), "r.io/a:1", false),
            (usual, "r.io/a:1", "r.io/a:1", true),
            (usual, "r.io/a:1", "r.io/a:2", false),
            (usual, pinned.as_str(), "r.io/a:2", true),
            (usual, pinned.as_str(), "r.io/b:2", false),
            (repository, "r.io/a:1", "r.io/a", true),
            (repository, "r.io/a:1", "r.io/ab", false),
            (reference, "r.io/a:1", "r.io/b:1", true),
            (reference, "r.io/a:1", "r.io/b:2", false),
            (one, "r.io/a:1", "r.io/b:2", true),
            (one, "r.io/a:1", "r.io/c:2", false),
            (remap, "mirror:5000/x/a:1", "r.io/a:1", true),
            (remap, "mirror:5000/x/a:1", "r.io/a:2", false),
            (remap, "mirror:5000/xy/a:1", "r.io/y/a:1", false),
            (remap, "r.io/a:1", "r.io/a:1", true),
        ] {
            assert_eq!(fits(identity, own, signed), want, "{identity} {own} {signed}");
        }
    }

    #[test]
    fn an_image_without_a_name_needs_a_fixed_one() {
        let path = Origin::Unnamed { transport: "docker-archive", shown: "x".into() };
        assert!(Identity::MatchRepository.matches(&path, "r.io/a").is_err());
        let fixed = Identity::ExactRepository { docker_repository: "r.io/a".into() };
        assert!(fixed.matches(&path, "r.io/a").is_ok());
    }
}
