//! Where Docker's engine is.

use std::fmt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::model::Digest;
use crate::wire::credentials::home;

use super::EngineError;

const SOCKET: &str = "/var/run/docker.sock";

/// What `DOCKER_HOST` may say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Host {
    Unix(PathBuf),
    /// `tls` is the folder with `ca.pem`, `cert.pem` and `key.pem`.
    Tcp {
        authority: String,
        tls: Option<PathBuf>,
    },
}

impl Host {
    /// The one that the environment means.
    ///
    /// # Errors
    /// It is named in a way that slim cannot follow (`ssh://`).
    pub fn find() -> Result<Self, EngineError> {
        let var = |name| std::env::var(name).ok().filter(|value| !value.is_empty());
        if let Some(host) = var("DOCKER_HOST") {
            let tls = var("DOCKER_TLS_VERIFY").map(|_| {
                let own = || docker_folder().unwrap_or_default();
                var("DOCKER_CERT_PATH").map_or_else(own, PathBuf::from)
            });
            return Self::parse(&host, tls);
        }
        if let Some((host, tls)) = var("DOCKER_CONTEXT").or_else(current).and_then(|c| context(&c))
        {
            return Self::parse(&host, tls);
        }
        let own = var("XDG_RUNTIME_DIR").map(|folder| Path::new(&folder).join("docker.sock"));
        let found = own.filter(|own| !Path::new(SOCKET).exists() && own.exists());
        Ok(Self::Unix(found.unwrap_or_else(|| SOCKET.into())))
    }

    fn parse(text: &str, tls: Option<PathBuf>) -> Result<Self, EngineError> {
        if let Some(path) = text.strip_prefix("unix://") {
            return Ok(Self::Unix(path.into()));
        }
        let tcp = |rest: &str| rest.trim_end_matches('/').to_owned();
        if let Some(rest) = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("http://")) {
            let port = if tls.is_some() { 2376 } else { 2375 };
            let authority = tcp(rest);
            let named = authority.rsplit(']').next().is_some_and(|last| last.contains(':'));
            let authority = if named { authority } else { format!("{authority}:{port}") };
            return Ok(Self::Tcp { authority, tls });
        }
        let why = "it can use unix:// and tcp://; forward the socket, for instance with `ssh -L`, \
                   or `docker save` the image";
        Err(EngineError::Host { at: text.to_owned(), why: why.to_owned() })
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { authority, .. } => write!(f, "tcp://{authority}"),
        }
    }
}

fn docker_folder() -> Option<PathBuf> {
    let set = std::env::var_os("DOCKER_CONFIG").filter(|v| !v.is_empty()).map(PathBuf::from);
    set.or_else(|| Some(home()?.join(".docker")))
}

fn read(path: &Path) -> Option<Value> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

fn current() -> Option<String> {
    let config = read(&docker_folder()?.join("config.json"))?;
    config["currentContext"].as_str().map(str::to_owned)
}

/// The host of a context, and the folder of its certificates: both named by the hash of its name.
fn context(name: &str) -> Option<(String, Option<PathBuf>)> {
    if name == "default" {
        return None;
    }
    let folder = docker_folder()?.join("contexts");
    let hash = Digest::of(name.as_bytes());
    let meta = read(&folder.join("meta").join(hash.hex()).join("meta.json"))?;
    let host = meta["Endpoints"]["docker"]["Host"].as_str()?.to_owned();
    let tls = folder.join("tls").join(hash.hex()).join("docker");
    Some((host, tls.is_dir().then_some(tls)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn docker_host_may_be_a_socket_or_an_address() {
        let tls = || Some(PathBuf::from("/c"));
        for (text, tls, want) in [
            ("unix:///run/x.sock", None, Some("unix:///run/x.sock")),
            ("tcp://h:1/", None, Some("tcp://h:1")),
            ("tcp://h", None, Some("tcp://h:2375")),
            ("tcp://h", tls(), Some("tcp://h:2376")),
            ("tcp://[::1]", None, Some("tcp://[::1]:2375")),
            ("tcp://[::1]:9", None, Some("tcp://[::1]:9")),
            ("ssh://h", None, None),
        ] {
            let got = Host::parse(text, tls).ok().map(|host| host.to_string());
            assert_eq!(got.as_deref(), want, "{text}");
        }
    }
}
