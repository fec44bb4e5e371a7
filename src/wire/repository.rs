//! A repository in a registry: calls with authorization, tried again where that can help.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tracing::debug;
use ureq::http::{Method, Response, StatusCode, header};
use ureq::{Agent, Body};

use super::auth::{Challenge, basic, bearer, challenge};
use super::credentials::{self, Credentials};
use super::http::{Call, agent, passing, reach, send, text};
use super::{Location, Options, Reference, WireError, registries};

/// Tries of a call before a passing failure counts.
const TRIES: u32 = 5;

/// A repository that is read from or written to.
pub struct Repository {
    /// `host[:port]` as in names.
    pub(super) host: String,
    pub(super) name: String,
    base: String,
    agent: Agent,
    credentials: Option<Credentials>,
    pub(super) options: Options,
    /// Authorization by scope, as far as registries asked for it.
    tokens: Mutex<HashMap<String, String>>,
    /// Held while a token is asked for: the others wait for it and take the same.
    asking: Mutex<()>,
}

impl std::fmt::Debug for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Repository({}/{})", self.base, self.name)
    }
}

/// What a call is allowed to do, in the words of token servers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Scope<'a> {
    Pull,
    Push,
    /// Push, with blobs mounted from another repository.
    Mount(&'a str),
}

impl Repository {
    /// Where to read `reference`: mirrors first, then the registry itself.
    ///
    /// # Errors
    /// A configuration file that is wrong or forbids the image.
    pub fn sources(reference: &Reference) -> Result<Vec<Location>, WireError> {
        registries::locations(reference)
    }

    /// Where to push `reference` to: never to a mirror.
    ///
    /// # Errors
    /// A configuration file that is wrong.
    pub fn target(reference: &Reference) -> Result<Location, WireError> {
        registries::target(reference)
    }

    /// Gets ready for a repository. Nothing is sent yet, unless the location is marked insecure:
    /// then TLS without checks is tried before plain HTTP.
    ///
    /// # Errors
    /// Files with credentials or certificates that are wrong.
    pub fn open(location: &Location, options: &Options) -> Result<Self, WireError> {
        let host = location.host.clone();
        let credentials = credentials::find(&host, &location.repository, options)?;
        let agent = agent(&host, options, location.insecure)?;
        let server = if host == "docker.io" { "registry-1.docker.io" } else { host.as_str() };
        let mut base = format!("{}://{server}", if options.plain_http { "http" } else { "https" });
        if location.insecure && !options.plain_http {
            let ping = Call::new(Method::GET, format!("{base}/v2/"));
            if !matches!(send(&agent, &ping, None), Ok(Ok(_))) {
                base = format!("http://{server}");
            }
        }
        debug!(%base, repository = %location.repository, ?credentials, "registry");
        let (tokens, asking) = (Mutex::default(), Mutex::default());
        let name = location.repository.clone();
        let options = options.clone();
        Ok(Self { host, name, base, agent, credentials, options, tokens, asking })
    }

    /// Says, where there is one, that the work is to end.
    pub fn stop(&self) -> Option<fn() -> bool> {
        self.options.stop
    }

    /// `host/repository`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.host, self.name)
    }

    pub(super) fn url(&self, rest: &str) -> String {
        format!("{}/v2/{}/{rest}", self.base, self.name)
    }

    /// An address out of a `Location` header, which may lack the host (RFC 9110, 10.2.2).
    pub(super) fn absolute(&self, location: &str) -> String {
        if location.starts_with('/') {
            format!("{}{location}", self.base)
        } else {
            location.to_owned()
        }
    }

    /// True if `url` is on the registry itself: nobody else is told who we are.
    fn own(&self, url: &str) -> bool {
        url.strip_prefix(&self.base).is_some_and(|rest| rest.starts_with('/'))
    }

    /// Makes a call, with authorization if it is asked for; again if it failed in passing.
    pub(super) fn call(
        &self,
        call: &Call<'_>,
        scope: &Scope<'_>,
    ) -> Result<Response<Body>, WireError> {
        self.tried(call, scope, TRIES)
    }

    /// Makes a call that must not simply be made again.
    pub(super) fn call_once(
        &self,
        call: &Call<'_>,
        scope: &Scope<'_>,
    ) -> Result<Response<Body>, WireError> {
        self.tried(call, scope, 1)
    }

    fn tried(
        &self,
        call: &Call<'_>,
        scope: &Scope<'_>,
        tries: u32,
    ) -> Result<Response<Body>, WireError> {
        let scopes = self.scopes(scope);
        let key = scopes.join(" ");
        let own = self.own(&call.url);
        let mut asked = false;
        let mut tried = 0;
        loop {
            tried += 1;
            let token = self.lock().get(&key).cloned().filter(|_| own);
            let sent = send(&self.agent, call, token.as_deref())
                .map_err(|source| WireError::Content { host: self.host.clone(), source })?;
            let response = match sent {
                Ok(response) => response,
                Err(error) if tried < tries && passing(&error) && !self.options.stopped() => {
                    debug!(%error, url = %call.url, "again");
                    pause(tried, None);
                    continue;
                }
                Err(error) => return Err(reach(&self.host, &call.url, error)),
            };
            match response.status() {
                StatusCode::UNAUTHORIZED if own && !asked => {
                    asked = true;
                    let _alone = self.asking.lock().unwrap_or_else(PoisonError::into_inner);
                    let others = self.lock().get(&key).cloned();
                    if others == token {
                        let Some(token) = self.authorize(&response, &scopes)? else {
                            return Ok(response);
                        };
                        self.lock().insert(key.clone(), token);
                    }
                    tried = 0;
                }
                status if tried < tries && is_passing(status) => {
                    pause(tried, text(&response, &header::RETRY_AFTER));
                }
                _ => return Ok(response),
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, String>> {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The authorization that an answer with status 401 asks for; `None` if there is none to give.
    fn authorize(
        &self,
        response: &Response<Body>,
        scopes: &[String],
    ) -> Result<Option<String>, WireError> {
        let asked = response.headers().get_all(header::WWW_AUTHENTICATE);
        let mut challenges = asked.iter().filter_map(|value| challenge(value.to_str().ok()?));
        let credentials = self.credentials.as_ref();
        match challenges.next() {
            Some(Challenge::Bearer { realm, service, .. }) => {
                bearer(&self.agent, &self.host, &realm, &service, scopes, credentials).map(Some)
            }
            Some(Challenge::Basic) => Ok(credentials.and_then(basic)),
            None => Ok(None),
        }
    }

    fn scopes(&self, scope: &Scope<'_>) -> Vec<String> {
        let own = |actions: &str| format!("repository:{}:{actions}", self.name);
        match scope {
            Scope::Pull => vec![own("pull")],
            Scope::Push => vec![own("pull,push")],
            Scope::Mount(from) => vec![own("pull,push"), format!("repository:{from}:pull")],
        }
    }

    /// The error that an answer without success is.
    pub(super) fn failure(&self, mut response: Response<Body>, what: &str) -> WireError {
        let status = response.status().as_u16();
        let body = response.body_mut().with_config().limit(64 << 10).read_to_vec();
        let message = message(&body.unwrap_or_default());
        let (host, what) = (self.host.clone(), what.to_owned());
        match status {
            401 | 403 => {
                let who = self.credentials.as_ref();
                let who = who.map_or("an anonymous user", Credentials::who).to_owned();
                WireError::Denied { host, what, who, message }
            }
            404 => WireError::NotFound { host, what, message },
            _ => WireError::Status { host, what, status, message },
        }
    }
}

/// Statuses that may pass.
fn is_passing(status: StatusCode) -> bool {
    matches!(status.as_u16(), 429 | 502 | 503 | 504)
}

/// Waits before a call is made again, as long as the registry says but no longer than 20 s.
fn pause(tried: u32, retry_after: Option<&str>) {
    let told = retry_after.and_then(|text| text.trim().parse::<u64>().ok());
    let own = Duration::from_millis(100 << tried.min(6));
    std::thread::sleep(told.map_or(own, |seconds| Duration::from_secs(seconds.min(20))));
}

/// The message in an error's body (distribution spec, "Error Codes"), fit for a terminal.
fn message(body: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(errors) = json["errors"].as_array() else {
        // Servers before the registry, and Go's TLS server when it is spoken to in plain HTTP.
        let text = String::from_utf8_lossy(body);
        let line = text.lines().next().unwrap_or_default();
        let line = if line.contains('<') { "" } else { line };
        return line.chars().filter(|c| !c.is_control()).take(200).collect();
    };
    let one = |error: &serde_json::Value| {
        let text = |key: &str| error[key].as_str().unwrap_or_default().to_owned();
        let (code, message) = (text("code"), text("message"));
        if message.is_empty() { code } else { message }
    };
    let all = errors.iter().map(one).filter(|text| !text.is_empty()).collect::<Vec<_>>().join("; ");
    all.chars().filter(|c| !c.is_control()).take(200).collect()
}
