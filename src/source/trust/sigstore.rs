//! Signatures as cosign and skopeo leave them: a payload of JSON, signed with a key.
//!
//! containers/image's "containers-signature(5)" for the payload; sigstore's signature spec for the
//! attachment: an image under the tag `sha256-HEX.sig`, one layer for each signature.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;

use crate::model::Digest;
use crate::oci::manifest::{Manifest, OCI_MANIFEST};
use crate::wire::{Repository, WireError};

use super::policy::KeySource;

const PAYLOAD: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
/// More than any payload, bytes.
const MAX_PAYLOAD: u64 = 4 << 20;
/// More signatures than anybody gives an image.
const MAX_SIGNATURES: usize = 64;

/// A public key for ECDSA over P-256, as `cosign generate-key-pair` and skopeo make them.
pub(in crate::source) struct PublicKey {
    point: Vec<u8>,
}

/// DER of a SubjectPublicKeyInfo for P-256 (RFC 5480), up to the point.
const P256: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a,
    0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

impl PublicKey {
    pub(super) fn load(source: &KeySource) -> Result<Self, String> {
        match source {
            KeySource::Data(bytes) => Self::parse(bytes).map_err(|why| format!("keyData {why}")),
            KeySource::Path(path) => {
                let bytes = std::fs::read(path).map_err(|error| {
                    format!("its key {} cannot be read: {error}", path.display())
                })?;
                Self::parse(&bytes).map_err(|why| format!("its key {} {why}", path.display()))
            }
        }
    }

    fn parse(pem: &[u8]) -> Result<Self, String> {
        let der = SubjectPublicKeyInfoDer::from_pem_slice(pem)
            .map_err(|_| "is no public key in PEM form".to_owned())?;
        match der.strip_prefix(&P256[..]) {
            Some(point) if point.len() == 65 => Ok(Self { point: point.to_vec() }),
            _ => Err("is no ECDSA key over P-256, the only kind that slim checks".to_owned()),
        }
    }

    fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        let key = UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point);
        key.verify(message, signature).is_ok()
    }
}

/// A signature that was found, not checked yet.
pub(in crate::source) struct Signature {
    payload: Vec<u8>,
    /// DER, as signed.
    signature: Vec<u8>,
}

/// What a signature vouches for.
#[derive(Debug)]
pub(in crate::source) struct Claim {
    pub digest: Digest,
    /// The name that was signed.
    pub reference: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    critical: Critical,
    #[serde(rename = "optional", default)]
    _optional: serde_json::Value,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Critical {
    #[serde(rename = "type")]
    kind: String,
    image: SignedImage,
    identity: SignedIdentity,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SignedImage {
    docker_manifest_digest: Digest,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct SignedIdentity {
    docker_reference: String,
}

impl Signature {
    /// What it vouches for, if one of the keys made it.
    pub fn verify(&self, keys: &[PublicKey]) -> Result<Claim, String> {
        if !keys.iter().any(|key| key.verifies(&self.payload, &self.signature)) {
            return Err("it is not by the key that the policy names".to_owned());
        }
        let payload: Payload = serde_json::from_slice(&self.payload)
            .map_err(|error| format!("what it signs is no claim about an image ({error})"))?;
        if payload.critical.kind != "cosign container image signature" {
            return Err(format!("it is of the type {:?}", payload.critical.kind));
        }
        Ok(Claim {
            digest: payload.critical.image.docker_manifest_digest,
            reference: payload.critical.identity.docker_reference,
        })
    }

    /// The signatures that are attached to `digest`.
    ///
    /// # Errors
    /// The registry cannot be reached, or gives something else.
    pub fn attached(repository: &Arc<Repository>, digest: &Digest) -> Result<Vec<Self>, WireError> {
        let tag = format!("sha256-{}.sig", digest.hex());
        let Some(found) = repository.find_manifest(&tag, &[OCI_MANIFEST])? else {
            return Ok(Vec::new());
        };
        // Anything else under that tag is no signature, and so counts as none.
        let Ok(manifest) = serde_json::from_slice::<Manifest>(&found.bytes) else {
            return Ok(Vec::new());
        };
        let mut signatures = Vec::new();
        let fitting = manifest.layers.iter().filter(|layer| layer.media_type == PAYLOAD);
        for layer in fitting.take(MAX_SIGNATURES) {
            let text = layer.annotations.get(ANNOTATION).map(String::as_str).unwrap_or_default();
            let (Ok(signature), Ok(blob)) = (STANDARD.decode(text), layer.digest.parse()) else {
                continue;
            };
            let payload = repository.small_blob(&blob, layer.size, MAX_PAYLOAD)?;
            signatures.push(Self { payload, signature });
        }
        Ok(signatures)
    }
}
