//! Blobs and manifests up: nothing twice, nothing from the start again after a broken connection.
//!
//! Distribution spec, "Push" (mounting, chunked uploads, their status by GET).

use std::io::{self, Read};

use tracing::debug;
use ureq::Body;
use ureq::http::{Method, Response, StatusCode, header};

use crate::model::Digest;

use super::WireError;
use super::http::{Call, Payload, text};
use super::repository::{Repository, Scope};

/// Bytes of one part of a blob; after a break no more than this is sent again.
const CHUNK: u64 = 16 << 20;
/// Broken parts in a row before an upload gives up.
const BREAKS: u32 = 5;

/// Content by digest that can be read from anywhere in it.
pub trait Content: Send + Sync {
    /// The bytes of `digest` from `at` on.
    ///
    /// # Errors
    /// Whatever reading meets.
    fn open(&self, digest: &Digest, at: u64) -> io::Result<Box<dyn Read + Send>>;
}

/// How a blob got to where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pushed {
    /// It was there.
    Present,
    /// The registry took it from another repository of its own.
    Mounted,
    /// It was sent.
    Sent,
}

impl Repository {
    /// True if the repository has the blob.
    ///
    /// # Errors
    /// The registry cannot be reached or refuses to say.
    pub fn has_blob(&self, digest: &Digest) -> Result<bool, WireError> {
        let what = format!("the blob {}@{digest}", self.full_name());
        let call = Call::new(Method::HEAD, self.url(&format!("blobs/{digest}")));
        let response = self.call(&call, &Scope::Push)?;
        match response.status() {
            StatusCode::OK => Ok(true),
            StatusCode::NOT_FOUND => Ok(false),
            _ => Err(self.failure(response, &what)),
        }
    }

    /// Sees to it that the repository has a blob of `size` bytes: by a look, by a mount from `from`
    /// (another repository of this registry), or by sending it.
    ///
    /// # Errors
    /// The registry refuses it or cannot be reached, or the content cannot be read.
    pub fn push_blob(
        &self,
        digest: &Digest,
        size: u64,
        content: &dyn Content,
        from: Option<&str>,
    ) -> Result<Pushed, WireError> {
        if self.has_blob(digest)? {
            return Ok(Pushed::Present);
        }
        let what = format!("an upload to {}", self.full_name());
        let mount = from.map(|from| format!("?mount={digest}&from={from}")).unwrap_or_default();
        let call = Call::new(Method::POST, self.url(&format!("blobs/uploads/{mount}")));
        let scope = from.map_or(Scope::Push, Scope::Mount);
        let response = self.call(&call, &scope)?;
        // A registry may refuse the mount, since the blob is not there or not ours to see.
        if from.is_some() && response.status().is_client_error() {
            self.upload(digest, size, content, self.begin(&what)?)?;
            return Ok(Pushed::Sent);
        }
        match response.status() {
            StatusCode::CREATED => Ok(Pushed::Mounted),
            StatusCode::ACCEPTED => {
                self.upload(digest, size, content, self.session(&response, &what)?)?;
                Ok(Pushed::Sent)
            }
            _ => Err(self.failure(response, &what)),
        }
    }

    /// Starts an upload.
    fn begin(&self, what: &str) -> Result<String, WireError> {
        let call = Call::new(Method::POST, self.url("blobs/uploads/"));
        let response = self.call(&call, &Scope::Push)?;
        match response.status() {
            StatusCode::ACCEPTED => self.session(&response, what),
            _ => Err(self.failure(response, what)),
        }
    }

    /// Where an upload goes on.
    fn session(&self, response: &Response<Body>, what: &str) -> Result<String, WireError> {
        let location = text(response, &header::LOCATION).ok_or_else(|| WireError::Answer {
            host: self.host.clone(),
            what: what.to_owned(),
            why: "it has no Location".to_owned(),
        })?;
        Ok(self.absolute(location))
    }

    /// Sends a blob part by part, and closes the upload.
    fn upload(
        &self,
        digest: &Digest,
        size: u64,
        content: &dyn Content,
        mut session: String,
    ) -> Result<(), WireError> {
        let what = format!("the blob {}@{digest}", self.full_name());
        let (mut at, mut breaks) = (0, 0);
        while at < size {
            if self.options.stopped() {
                return Err(WireError::Stopped);
            }
            let len = CHUNK.min(size - at);
            let open = || content.open(digest, at);
            let call = Call::new(Method::PATCH, session.clone())
                .header(header::CONTENT_TYPE, "application/octet-stream")
                .header(header::CONTENT_RANGE, format!("{at}-{}", at + len - 1))
                .payload(Payload::Stream { open: &open, len });
            // Once: a second try must ask first how far the registry got.
            match self.call_once(&call, &Scope::Push) {
                Ok(response) if response.status() == StatusCode::ACCEPTED => {
                    session = self.session(&response, &what)?;
                    (at, breaks) = (at + len, 0);
                }
                Err(_) if self.options.stopped() => return Err(WireError::Stopped),
                // Out of step, or broken on the way: the registry says how far it got.
                Ok(response) if !out_of_step(response.status()) => {
                    return Err(self.failure(response, &what));
                }
                Err(error) if breaks == BREAKS || !matches!(error, WireError::Reach { .. }) => {
                    return Err(error);
                }
                broken => {
                    breaks += 1;
                    debug!(at, breaks, ok = broken.is_ok(), %digest, "resuming the upload");
                    if breaks > BREAKS || self.options.stopped() {
                        return Err(broken.map(|r| self.failure(r, &what)).unwrap_or_else(|e| e));
                    }
                    std::thread::sleep(std::time::Duration::from_millis(50 << breaks));
                    (session, at) = match self.progress(&session, &what) {
                        Err(WireError::Reach { .. }) => continue,
                        Ok(known) => known,
                        // Distribution 2.8 gives up an upload of which it holds part of a part.
                        Err(_) => (self.begin(&what)?, 0),
                    };
                }
            }
        }
        let joint = if session.contains('?') { '&' } else { '?' };
        let close = format!("{session}{joint}digest={}", digest.to_string().replace(':', "%3A"));
        let response = self.call(&Call::new(Method::PUT, close), &Scope::Push)?;
        match response.status() {
            StatusCode::CREATED | StatusCode::NO_CONTENT => Ok(()),
            // Its first answer may have got lost, and then there is no upload any more to close.
            StatusCode::NOT_FOUND if self.has_blob(digest)? => Ok(()),
            _ => Err(self.failure(response, &what)),
        }
    }

    /// Asks how much of an upload has arrived: the session's new address, and the bytes.
    fn progress(&self, session: &str, what: &str) -> Result<(String, u64), WireError> {
        let response = self.call(&Call::new(Method::GET, session), &Scope::Push)?;
        if response.status() != StatusCode::NO_CONTENT {
            return Err(self.failure(response, what));
        }
        // `0-N` counts the last byte in; nothing at all is `0-0` or no header.
        let range = text(&response, &header::RANGE).unwrap_or_default();
        let last = range.rsplit('-').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        let at = if last == 0 { 0 } else { last + 1 };
        let moved = text(&response, &header::LOCATION).map(|at| self.absolute(at));
        Ok((moved.unwrap_or_else(|| session.to_owned()), at))
    }

    /// Puts a manifest under a tag or its digest.
    ///
    /// # Errors
    /// The registry refuses it or cannot be reached.
    pub fn push_manifest(
        &self,
        wanted: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<Digest, WireError> {
        self.put_manifest(wanted, media_type, bytes).map(|(digest, _)| digest)
    }

    /// The same; also whether the registry said that it keeps referrers (`OCI-Subject`).
    pub(super) fn put_manifest(
        &self,
        wanted: &str,
        media_type: &str,
        bytes: &[u8],
    ) -> Result<(Digest, bool), WireError> {
        let what = format!("the manifest {} {wanted}", self.full_name());
        let call = Call::new(Method::PUT, self.url(&format!("manifests/{wanted}")))
            .header(header::CONTENT_TYPE, media_type)
            .payload(Payload::Bytes(bytes));
        let response = self.call(&call, &Scope::Push)?;
        if response.status() != StatusCode::CREATED {
            return Err(self.failure(response, &what));
        }
        Ok((Digest::of(bytes), response.headers().contains_key("OCI-Subject")))
    }
}

/// A part that does not begin where the last one ended (416), an upload that was changed (409) or
/// given up (404).
fn out_of_step(status: StatusCode) -> bool {
    matches!(status.as_u16(), 404 | 409 | 416 | 500..=599)
}
