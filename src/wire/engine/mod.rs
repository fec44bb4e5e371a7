//! Docker's engine: its HTTP API, over the socket it listens on.
//!
//! Which engine is meant is found as Docker's client finds it: `DOCKER_HOST`, the context
//! (`DOCKER_CONTEXT`, `~/.docker/config.json`), the host's socket, the user's own.

use std::io::Read;
use std::path::PathBuf;
use std::time::Duration;

use ureq::http::{Response, header};
use ureq::unversioned::resolver::DefaultResolver;
use ureq::{Agent, Body, SendBody};

mod host;
mod unix;

pub use host::Host;

/// An engine packs an image before it sends the first byte of it, and unpacks it before it answers.
const ANSWER: Duration = Duration::from_secs(1800);
const CONNECT: Duration = Duration::from_secs(10);
/// More than any answer that is read whole, bytes.
const MAX_JSON: u64 = 64 << 20;

/// Why the engine did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    #[error(
        "Docker's engine at {at} cannot be reached ({why}): is it running, and may you use it? DOCKER_HOST says where it is"
    )]
    Unreachable { at: String, why: String },
    #[error("DOCKER_HOST or the context says {at:?}, which slim cannot reach: {why}")]
    Host { at: String, why: String },
    #[error("Docker's engine at {at} does not have {what}")]
    NotFound { at: String, what: String },
    #[error("Docker's engine at {at} answers {what} with status {status}: {message}")]
    Status { at: String, what: String, status: u16, message: String },
    #[error("Docker's engine at {at} broke off {what}")]
    Broken { at: String, what: String, source: std::io::Error },
}

impl EngineError {
    /// Whose fault it is.
    pub fn fault(&self) -> super::Fault {
        match self {
            Self::NotFound { .. } => super::Fault::Image,
            Self::Host { .. } => super::Fault::Usage,
            _ => super::Fault::Host,
        }
    }
}

/// A connection to an engine.
pub struct Engine {
    agent: Agent,
    /// What URLs begin with.
    base: String,
    /// Where it is, as `DOCKER_HOST` has it.
    pub at: String,
}

impl Engine {
    /// The engine that the environment means; nothing is sent yet.
    ///
    /// # Errors
    /// The environment names one that cannot be reached from here.
    pub fn open() -> Result<Self, EngineError> {
        Self::of(Host::find()?)
    }

    fn of(host: Host) -> Result<Self, EngineError> {
        let at = host.to_string();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .proxy(None)
            .accept_encoding("identity")
            .user_agent(concat!("slim/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(CONNECT))
            .timeout_recv_response(Some(ANSWER));
        let (agent, base) = match host {
            Host::Unix(path) => {
                let connector = unix::UnixConnector::new(path);
                let resolver = unix::NoResolver;
                (Agent::with_parts(config.build(), connector, resolver), "http://docker".to_owned())
            }
            Host::Tcp { authority, tls: None } => {
                (config.build().new_agent(), format!("http://{authority}"))
            }
            Host::Tcp { authority, tls: Some(folder) } => {
                let tls = super::tls::docker(&folder).map_err(|error| EngineError::Host {
                    at: at.clone(),
                    why: error.to_string(),
                })?;
                let config = config.tls_config(tls).https_only(true).build();
                let connector = ureq::unversioned::transport::DefaultConnector::new();
                let agent = Agent::with_parts(config, connector, DefaultResolver::default());
                (agent, format!("https://{authority}"))
            }
        };
        Ok(Self { agent, base, at })
    }

    /// An answer in JSON; `what` is asked for, as messages have it.
    ///
    /// # Errors
    /// The engine cannot be reached, does not have it or refuses.
    pub fn json(&self, path: &str, what: &str) -> Result<serde_json::Value, EngineError> {
        let mut bytes = Vec::new();
        let broken = |source| self.broken(what, source);
        self.stream(path, what)?.take(MAX_JSON).read_to_end(&mut bytes).map_err(broken)?;
        serde_json::from_slice(&bytes).map_err(|error| broken(error.into()))
    }

    /// An answer as a stream.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn stream(
        &self,
        path: &str,
        what: &str,
    ) -> Result<Box<dyn Read + Send + Sync>, EngineError> {
        let answer = self.agent.get(format!("{}{path}", self.base)).call();
        Ok(Box::new(self.good(what, answer)?.into_body().into_reader()))
    }

    /// Sends `body` and returns what the engine says, whole.
    ///
    /// # Errors
    /// As [`Self::json`].
    pub fn post(
        &self,
        path: &str,
        what: &str,
        body: Option<Box<dyn Read + Send + Sync>>,
    ) -> Result<String, EngineError> {
        let request = self.agent.post(format!("{}{path}", self.base));
        let answer = match body {
            Some(body) => request
                .header(header::CONTENT_TYPE, "application/x-tar")
                .send(SendBody::from_owned_reader(body)),
            None => request.send_empty(),
        };
        let mut said = Vec::new();
        let mut from = self.good(what, answer)?.into_body().into_reader().take(MAX_JSON);
        from.read_to_end(&mut said).map_err(|source| self.broken(what, source))?;
        Ok(String::from_utf8_lossy(&said).into_owned())
    }

    /// Where it is, and why it did not do what it was asked.
    pub fn broken(&self, what: &str, source: std::io::Error) -> EngineError {
        EngineError::Broken { at: self.at.clone(), what: what.to_owned(), source }
    }

    fn good(
        &self,
        what: &str,
        answer: Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>, EngineError> {
        let answer = answer.map_err(|error| EngineError::Unreachable {
            at: self.at.clone(),
            why: match error {
                ureq::Error::Io(error) => error.to_string(),
                other => other.to_string(),
            },
        })?;
        let status = answer.status().as_u16();
        let (at, what) = (self.at.clone(), what.to_owned());
        match status {
            200..300 => Ok(answer),
            404 => Err(EngineError::NotFound { at, what }),
            _ => Err(EngineError::Status { at, what, status, message: message(answer) }),
        }
    }
}

/// What the engine says of an error: `{"message": …}`.
fn message(answer: Response<Body>) -> String {
    let mut said = String::new();
    let _ = answer.into_body().into_reader().take(4096).read_to_string(&mut said);
    let json: serde_json::Value = serde_json::from_str(&said).unwrap_or_default();
    json["message"].as_str().map_or(said.trim().to_owned(), str::to_owned)
}

/// The socket of containerd, as its client `ctr` finds it.
pub fn containerd_socket() -> PathBuf {
    let set = std::env::var("CONTAINERD_ADDRESS").ok().filter(|address| !address.is_empty());
    let set = set.as_deref().unwrap_or("/run/containerd/containerd.sock");
    set.strip_prefix("unix://").unwrap_or(set).into()
}

/// Sees whether containerd listens: `ctr` tries for ten seconds where it does not.
///
/// # Errors
/// Why it does not, and what helps.
pub fn containerd() -> Result<(), String> {
    let socket = containerd_socket();
    let tried = std::os::unix::net::UnixStream::connect(&socket);
    tried.map(drop).map_err(|error| {
        let why = match error.kind() {
            std::io::ErrorKind::NotFound => format!("there is no {}", socket.display()),
            _ => format!("{} cannot be reached: {error}", socket.display()),
        };
        format!("{why} (CONTAINERD_ADDRESS says where it is)")
    })
}

/// The diffIDs of an image, lowest first, as the engine's answer about it has them (`RootFS.Layers`).
pub fn layers(known: &serde_json::Value) -> Vec<&str> {
    let layers = known["RootFS"]["Layers"].as_array().into_iter().flatten();
    layers.filter_map(serde_json::Value::as_str).collect()
}

/// A name as a part of a path; slashes stay, since the engine's routes take them.
pub fn in_path(name: &str) -> String {
    const ESCAPED: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
        .remove(b'/')
        .remove(b':')
        .remove(b'@')
        .remove(b'.')
        .remove(b'_')
        .remove(b'-');
    percent_encoding::utf8_percent_encode(name, ESCAPED).to_string()
}
