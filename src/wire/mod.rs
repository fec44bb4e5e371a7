//! Registries: the OCI distribution API, and who we are there.
//!
//! A client of our own over a blocking HTTP crate, since slim is threads and not futures, and since
//! what it needs most is what the ready-made clients lack: streams that resume, Podman's files
//! (`auth.json`, `certs.d`, `registries.conf`) beside Docker's, mounts across repositories, uploads
//! that go on where they broke off, and the fallback tag for referrers.
//!
//! Knows blobs and manifests as bytes with a digest; what they mean is `oci`'s business.

use std::path::PathBuf;

use crate::model::Digest;

mod auth;
mod credentials;
pub mod engine;
mod http;
mod pull;
mod push;
mod reference;
mod referrers;
mod registries;
mod repository;
mod tls;

pub use pull::{BlobReader, Fetched};
pub use push::{Content, Pushed};
pub use reference::{Reference, is_component, is_tag};
pub use referrers::Referrer;
pub use registries::Location;
pub use repository::Repository;

/// How registries are reached; what is not said is looked up where Docker and Podman look.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// HTTP without TLS; never without being asked.
    pub plain_http: bool,
    /// Credentials from this file only.
    pub authfile: Option<PathBuf>,
    /// Certificates (`*.crt`, `*.cert`, `*.key`) from this folder, before those of `certs.d`.
    pub cert_dir: Option<PathBuf>,
    /// Asked before a broken call is made again: true gives up, since somebody pressed Ctrl-C.
    pub stop: Option<fn() -> bool>,
}

impl Options {
    fn stopped(&self) -> bool {
        self.stop.is_some_and(|stop| stop())
    }
}

/// Why a registry could not be used.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    #[error("{text:?} is no name of an image in a registry: {why}")]
    Reference { text: String, why: String },
    #[error("cannot reach {host} ({what}): {hint}")]
    Reach { host: String, what: String, hint: String, source: Box<ureq::Error> },
    #[error("{host} does not have {what}{}: check the name, or log in with `docker login {host}` if it is private", said(.message))]
    NotFound { host: String, what: String, message: String },
    #[error("{host} refuses {what} to {who}{}: log in with `docker login {host}` or `podman login {host}`, or give --authfile", said(.message))]
    Denied { host: String, what: String, who: String, message: String },
    #[error("{host} answers {what} with status {status}{}", said(.message))]
    Status { host: String, what: String, status: u16, message: String },
    #[error("{host} answers {what} in a way that the distribution API does not know: {why}")]
    Answer { host: String, what: String, why: String },
    #[error(
        "{host} gives {what} that hashes to {got}, not to {want}: somebody changed it on the way or in the registry"
    )]
    WrongDigest { host: String, what: String, want: Digest, got: Digest },
    #[error("{}: {why}", path.display())]
    Config { path: PathBuf, why: String },
    #[error(
        "the credential helper {name} for {host} failed: {why}; log in again, or give --authfile"
    )]
    Helper { name: String, host: String, why: String },
    #[error("{name} is blocked by {}: that file decides", path.display())]
    Blocked { name: String, path: PathBuf },
    #[error("interrupted")]
    Stopped,
    #[error("cannot read what is to be sent to {host}")]
    Content { host: String, source: std::io::Error },
}

/// Whose fault an error is, for exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// What was asked for is not there, or damaged.
    Image,
    /// The registry cannot be reached from here.
    Host,
    /// A file or an option is wrong.
    Usage,
    /// A file forbids it.
    Policy,
    /// Somebody pressed Ctrl-C.
    Interrupted,
}

impl WireError {
    pub fn fault(&self) -> Fault {
        match self {
            Self::Reach { .. } => Fault::Host,
            Self::Reference { .. } | Self::Config { .. } | Self::Helper { .. } => Fault::Usage,
            Self::Blocked { .. } => Fault::Policy,
            Self::Stopped => Fault::Interrupted,
            _ => Fault::Image,
        }
    }
}

/// What a registry said, as part of a sentence.
fn said(message: &str) -> String {
    if message.is_empty() { String::new() } else { format!(" ({message})") }
}
