//! What is said about an image, beside it: OCI 1.1 referrers.
//!
//! Distribution spec 1.1, "Listing Referrers" and "Pushing Manifests with Subject": a registry that
//! keeps referrers says so with `OCI-Subject`; for any other the client keeps an index of them under
//! the tag `sha256-HEX` of the subject.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use ureq::http::{Method, StatusCode, header};

use crate::model::Digest;

use super::http::Call;
use super::repository::{Repository, Scope};
use super::{Fetched, WireError};

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MAX: u64 = 16 << 20;
/// Times that the fallback index is written again because somebody else's write came between.
const RACES: u32 = 5;

/// A manifest that refers to another one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Referrer {
    pub media_type: String,
    pub digest: String,
    /// Bytes.
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    #[serde(flatten)]
    pub rest: Map<String, Value>,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    schema_version: u32,
    #[serde(default)]
    media_type: Option<String>,
    #[serde(default)]
    manifests: Vec<Referrer>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

impl Repository {
    /// What refers to `subject`, from the API or, where there is none, from the fallback tag.
    ///
    /// # Errors
    /// The registry cannot be reached or answers with something else.
    pub fn referrers(self: &Arc<Self>, subject: &Digest) -> Result<Vec<Referrer>, WireError> {
        let call = Call::new(Method::GET, self.url(&format!("referrers/{subject}")))
            .header(header::ACCEPT, INDEX);
        let mut response = self.call(&call, &Scope::Pull)?;
        if response.status() == StatusCode::OK {
            let body = response.body_mut().with_config().limit(MAX).read_to_vec();
            let bytes = body.map_err(|source| super::http::reach(&self.host, &call.url, source))?;
            return Ok(self.index(&bytes)?.manifests);
        }
        let fallback = self.find_manifest(&fallback_tag(subject), &[INDEX])?;
        fallback.map_or(Ok(Vec::new()), |found| Ok(self.index(&found.bytes)?.manifests))
    }

    /// Pushes a manifest that has `subject`, and lists it under the fallback tag unless the registry
    /// keeps referrers itself.
    ///
    /// # Errors
    /// The registry refuses it or cannot be reached.
    pub fn attach(
        self: &Arc<Self>,
        subject: &Digest,
        referrer: &Referrer,
        manifest: &[u8],
    ) -> Result<(), WireError> {
        let (_, kept) = self.put_manifest(&referrer.digest, &referrer.media_type, manifest)?;
        if kept {
            return Ok(());
        }
        let tag = fallback_tag(subject);
        for _ in 0..RACES {
            let found = self.find_manifest(&tag, &[INDEX])?;
            if self.listed(found.as_ref(), referrer)? {
                return Ok(());
            }
            let mut index = match &found {
                Some(found) => self.index(&found.bytes)?,
                None => Index {
                    schema_version: 2,
                    media_type: Some(INDEX.to_owned()),
                    manifests: Vec::new(),
                    rest: Map::new(),
                },
            };
            index.manifests.push(referrer.clone());
            let bytes = serde_json::to_vec(&index).expect("plain data");
            self.push_manifest(&tag, INDEX, &bytes)?;
        }
        let found = self.find_manifest(&tag, &[INDEX])?;
        if self.listed(found.as_ref(), referrer)? {
            return Ok(());
        }
        Err(WireError::Answer {
            host: self.host.clone(),
            what: format!("the push of {}:{tag}", self.full_name()),
            why: "others change this tag all the time; push again when they are done".to_owned(),
        })
    }

    fn listed(&self, found: Option<&Fetched>, referrer: &Referrer) -> Result<bool, WireError> {
        let Some(found) = found else { return Ok(false) };
        Ok(self.index(&found.bytes)?.manifests.iter().any(|one| one.digest == referrer.digest))
    }

    fn index(&self, bytes: &[u8]) -> Result<Index, WireError> {
        serde_json::from_slice(bytes).map_err(|_| WireError::Answer {
            host: self.host.clone(),
            what: format!("the list of referrers in {}", self.full_name()),
            why: "it is no index".to_owned(),
        })
    }
}

/// The tag that stands for the referrers API.
fn fallback_tag(subject: &Digest) -> String {
    format!("sha256-{}", subject.hex())
}
