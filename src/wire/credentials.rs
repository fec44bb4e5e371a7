//! Who we are at a registry: Docker's config.json and Podman's auth.json, and their helpers.
//!
//! containers-auth.json(5); Docker's "docker login" and "Credential helper protocol". Passwords are
//! never logged and never part of an error.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

use super::{Options, WireError};

/// What proves who we are.
#[derive(Clone, PartialEq, Eq)]
pub(super) enum Credentials {
    Password {
        user: String,
        password: String,
    },
    /// An OAuth2 refresh token, for registries with a token server.
    Identity {
        token: String,
    },
}

impl Credentials {
    /// For messages: the user, never the secret.
    pub fn who(&self) -> &str {
        match self {
            Self::Password { user, .. } => user,
            Self::Identity { .. } => "the holder of an identity token",
        }
    }
}

impl std::fmt::Debug for Credentials {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Credentials({:?})", self.who())
    }
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    #[serde(default)]
    auths: BTreeMap<String, Entry>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    #[serde(default)]
    creds_store: String,
}

#[derive(Default, Deserialize)]
struct Entry {
    #[serde(default)]
    auth: String,
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    identitytoken: String,
}

/// The key under which Docker keeps what belongs to docker.io.
const DOCKER_KEY: &str = "https://index.docker.io/v1/";

/// What the first file that knows `host/repository` says; `None` is anonymous.
///
/// # Errors
/// A file that cannot be parsed, an `--authfile` that is not there, a helper that fails.
pub(super) fn find(
    host: &str,
    repository: &str,
    options: &Options,
) -> Result<Option<Credentials>, WireError> {
    if let Some(path) = &options.authfile {
        let missing = || WireError::Config { path: path.clone(), why: "no such file".to_owned() };
        return in_file(&read(path)?.ok_or_else(missing)?, host, repository, path);
    }
    for path in files() {
        let Some(file) = read(&path)? else { continue };
        if let Some(found) = in_file(&file, host, repository, &path)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

/// In Podman's order: its own file, the user's, Docker's.
fn files() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let own = variable("REGISTRY_AUTH_FILE").or_else(|| {
        let runtime = variable("XDG_RUNTIME_DIR").map(|dir| dir.join("containers/auth.json"));
        let uid = rustix::process::getuid().as_raw();
        runtime.or_else(|| Some(format!("/run/containers/{uid}/auth.json").into()))
    });
    let config = variable("XDG_CONFIG_HOME").or_else(|| Some(home()?.join(".config")));
    let docker = variable("DOCKER_CONFIG").or_else(|| Some(home()?.join(".docker")));
    let files = [
        own,
        config.map(|dir| dir.join("containers/auth.json")),
        docker.map(|dir| dir.join("config.json")),
    ];
    files.into_iter().flatten().collect()
}

/// The user's folder.
pub(super) fn home() -> Option<PathBuf> {
    std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from)
}

fn read(path: &Path) -> Result<Option<File>, WireError> {
    let config = |why: String| WireError::Config { path: path.to_owned(), why };
    let bytes = match std::fs::read(path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(config(format!("cannot be read ({error})"))),
    };
    if bytes.iter().all(u8::is_ascii_whitespace) {
        return Ok(Some(File::default()));
    }
    let parsed = serde_json::from_slice(&bytes);
    // serde_json's message may quote the file, which holds secrets: the place alone is told.
    parsed.map(Some).map_err(|e| {
        config(format!(
            "is no JSON of docker's or podman's kind (line {}, column {})",
            e.line(),
            e.column()
        ))
    })
}

fn in_file(
    file: &File,
    host: &str,
    repository: &str,
    path: &Path,
) -> Result<Option<Credentials>, WireError> {
    let key = if host == "docker.io" { DOCKER_KEY } else { host };
    let helper = file.cred_helpers.get(host).or_else(|| file.cred_helpers.get(key));
    if let Some(helper) = helper {
        return ask(helper, host, key);
    }
    if !file.creds_store.is_empty()
        && let Some(found) = ask(&file.creds_store, host, key)?
    {
        return Ok(Some(found));
    }
    // The most specific name first: host/a/b, host/a, host; then what Docker makes of the host.
    let mut name = format!("{host}/{repository}");
    loop {
        if let Some(entry) = file.auths.get(&name) {
            return credentials(entry, &name, path);
        }
        let Some((shorter, _)) = name.rsplit_once('/') else { break };
        name = shorter.to_owned();
    }
    let same = |(key, _): &(&String, &Entry)| bare(key) == bare_host(host);
    let found = file.auths.iter().find(same);
    found.map_or(Ok(None), |(name, entry)| credentials(entry, name, path))
}

fn bare_host(host: &str) -> &str {
    if host == "docker.io" { "index.docker.io" } else { host }
}

/// `https://host/v1/` is a key for the host.
fn bare(key: &str) -> &str {
    let rest = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://"));
    rest.map_or(key, |rest| rest.split('/').next().unwrap_or(rest))
}

fn credentials(entry: &Entry, name: &str, path: &Path) -> Result<Option<Credentials>, WireError> {
    if !entry.identitytoken.is_empty() {
        return Ok(Some(Credentials::Identity { token: entry.identitytoken.clone() }));
    }
    if entry.auth.is_empty() {
        let (user, password) = (entry.username.clone(), entry.password.clone());
        return Ok((!user.is_empty()).then_some(Credentials::Password { user, password }));
    }
    let decoded = STANDARD.decode(&entry.auth).ok().and_then(|raw| String::from_utf8(raw).ok());
    let pair = decoded.as_deref().and_then(|text| text.split_once(':'));
    let (user, password) = pair.ok_or_else(|| WireError::Config {
        path: path.to_owned(),
        why: format!("auths.{name:?}.auth is not the base64 form of USER:PASSWORD"),
    })?;
    // Docker pads old entries with NUL.
    let password = password.trim_matches('\0').to_owned();
    Ok(Some(Credentials::Password { user: user.to_owned(), password }))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Asks `docker-credential-NAME get`.
fn ask(name: &str, host: &str, key: &str) -> Result<Option<Credentials>, WireError> {
    let program = format!("docker-credential-{name}");
    let failed =
        |why: String| WireError::Helper { name: program.clone(), host: host.to_owned(), why };
    if name.contains('/') {
        return Err(failed("its name has a slash".to_owned()));
    }
    let mut child = Command::new(&program)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| failed(error.to_string()))?;
    if let Some(mut stdin) = child.stdin.take() {
        // A helper that reads nothing is no error of ours.
        let _ = writeln!(stdin, "{key}");
    }
    let output = child.wait_with_output().map_err(|error| failed(error.to_string()))?;
    if !output.status.success() {
        // The protocol has the message on stdout.
        let text = String::from_utf8_lossy(&output.stdout);
        let line = text.lines().next().unwrap_or_default().trim().to_owned();
        if line.contains("credentials not found") {
            return Ok(None);
        }
        let why = if line.is_empty() { output.status.to_string() } else { line };
        return Err(failed(why));
    }
    let answer: Answer = serde_json::from_slice(&output.stdout)
        .map_err(|_| failed("its answer is not {\"Username\", \"Secret\"}".to_owned()))?;
    Ok(match answer.username.as_str() {
        "" => None,
        "<token>" => Some(Credentials::Identity { token: answer.secret }),
        _ => Some(Credentials::Password { user: answer.username, password: answer.secret }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn who(file: &str, host: &str, repository: &str) -> Option<String> {
        let file: File = serde_json::from_str(file).unwrap();
        let found = in_file(&file, host, repository, Path::new("x")).unwrap();
        found.map(|credentials| credentials.who().to_owned())
    }

    #[test]
    fn the_most_specific_entry_counts() {
        // a:x, b:x, c:x, d:x
        let file = r#"{"auths": {
            "r.example": {"auth": "YTp4"}, "r.example/team": {"auth": "Yjp4"},
            "https://index.docker.io/v1/": {"auth": "Yzp4"}, "https://old.example/v1/": {"auth": "ZDp4"},
            "none.example": {}
        }}"#;
        for (host, repository, want) in [
            ("r.example", "app", Some("a")),
            ("r.example", "team/app", Some("b")),
            ("r.example", "teams", Some("a")),
            ("docker.io", "library/nginx", Some("c")),
            ("old.example", "a", Some("d")),
            ("none.example", "a", None),
            ("other.example", "a", None),
        ] {
            assert_eq!(who(file, host, repository).as_deref(), want, "{host}/{repository}");
        }
    }

    #[test]
    fn a_damaged_entry_is_named_and_not_shown() {
        let entry = Entry { auth: "c2VjcmV0".into(), ..Entry::default() };
        let error =
            credentials(&entry, "r.example", Path::new("auth.json")).unwrap_err().to_string();
        assert!(error.contains("auth.json") && error.contains("r.example"), "{error}");
        assert!(!error.contains("secret") && !error.contains("c2Vj"), "{error}");
    }
}
