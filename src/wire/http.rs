//! One HTTP call at a time, and what became of it.

use std::io::{self, Read};
use std::net::IpAddr;
use std::time::Duration;

use ureq::config::RedirectAuthHeaders;
use ureq::http::{Method, Request, Response, header};
use ureq::{Agent, Body, Proxy, SendBody};

use super::{Options, WireError, tls};

/// Registries hash what was uploaded before they answer.
const ANSWER: Duration = Duration::from_secs(300);
/// Longer than this no byte may take.
const PER_READ: Duration = Duration::from_secs(60);
const CONNECT: Duration = Duration::from_secs(20);

/// What goes up with a call; a stream is opened anew for each try.
pub(super) enum Payload<'a> {
    Empty,
    Bytes(&'a [u8]),
    Stream { open: &'a dyn Fn() -> io::Result<Box<dyn Read + Send>>, len: u64 },
}

/// A call in the making.
pub(super) struct Call<'a> {
    pub method: Method,
    pub url: String,
    pub headers: Vec<(header::HeaderName, String)>,
    pub payload: Payload<'a>,
}

impl<'a> Call<'a> {
    pub fn new(method: Method, url: impl Into<String>) -> Self {
        Self { method, url: url.into(), headers: Vec::new(), payload: Payload::Empty }
    }

    pub fn header(mut self, name: header::HeaderName, value: impl Into<String>) -> Self {
        self.headers.push((name, value.into()));
        self
    }

    pub fn payload(mut self, payload: Payload<'a>) -> Self {
        self.payload = payload;
        self
    }
}

/// Connections to a host under one set of certificates.
pub(super) fn agent(host: &str, options: &Options, unchecked: bool) -> Result<Agent, WireError> {
    // As Go's clients do it: what is on this machine is not reached through a proxy.
    let proxy = if is_local(host) { None } else { Proxy::try_from_env() };
    let config = Agent::config_builder()
        .proxy(proxy)
        .tls_config(tls::config(host, options, unchecked)?)
        // A redirect from TLS to plain HTTP is no better than plain HTTP.
        .https_only(!options.plain_http && !unchecked)
        .http_status_as_error(false)
        .redirect_auth_headers(RedirectAuthHeaders::SameHost)
        .accept_encoding("identity")
        .user_agent(concat!("slim/", env!("CARGO_PKG_VERSION")))
        .timeout_connect(Some(CONNECT))
        .timeout_recv_response(Some(ANSWER))
        .timeout_per_read(Some(PER_READ))
        .build();
    Ok(config.new_agent())
}

fn is_local(host: &str) -> bool {
    let port = host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok());
    let name = port.map_or(host, |(name, _)| name).trim_matches(['[', ']']);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// Sends a call once. `Ok(Err(_))` is a network that failed, `Err(_)` content that cannot be read.
pub(super) fn send(
    agent: &Agent,
    call: &Call<'_>,
    authorization: Option<&str>,
) -> io::Result<Result<Response<Body>, ureq::Error>> {
    let mut request = Request::builder().method(call.method.clone()).uri(&call.url);
    for (name, value) in &call.headers {
        request = request.header(name, value);
    }
    if let Some(value) = authorization {
        request = request.header(header::AUTHORIZATION, value);
    }
    let body = match &call.payload {
        Payload::Empty if takes_body(&call.method) => {
            request = request.header(header::CONTENT_LENGTH, "0");
            SendBody::none()
        }
        Payload::Empty => SendBody::none(),
        Payload::Bytes(bytes) => {
            request = request.header(header::CONTENT_LENGTH, bytes.len().to_string());
            SendBody::from_owned_reader(io::Cursor::new(bytes.to_vec()))
        }
        Payload::Stream { open, len } => {
            request = request.header(header::CONTENT_LENGTH, len.to_string());
            SendBody::from_owned_reader(open()?.take(*len))
        }
    };
    Ok(request.body(body).map_err(ureq::Error::Http).and_then(|request| agent.run(request)))
}

fn takes_body(method: &Method) -> bool {
    matches!(*method, Method::POST | Method::PUT | Method::PATCH)
}

/// A header as text.
pub(super) fn text<'r>(response: &'r Response<Body>, name: &header::HeaderName) -> Option<&'r str> {
    response.headers().get(name)?.to_str().ok()
}

/// What went wrong with the network, with a way out.
pub(super) fn reach(host: &str, url: &str, source: ureq::Error) -> WireError {
    let said = format!("{source:?} {source}");
    let certificate = ["UnknownIssuer", "NotValidForName", "InvalidCertificate", "Expired"];
    let hint = if certificate.iter().any(|word| said.contains(word)) {
        format!(
            "if you trust it, put the certificate of its authority into /etc/containers/certs.d/{host}/ca.crt or give --cert-dir"
        )
    } else if said.contains("InvalidMessage") || said.contains("corrupt message") {
        "it does not speak TLS; if it is meant to speak plain HTTP, give --plain-http".to_owned()
    } else if url.starts_with("http://") {
        "is it running, and without TLS as --plain-http says?".to_owned()
    } else {
        "check the name and the network; a registry without TLS needs --plain-http".to_owned()
    };
    WireError::Reach {
        host: host.to_owned(),
        what: url.split('?').next().unwrap_or(url).to_owned(),
        hint,
        source: Box::new(source),
    }
}

/// True if the same call may work when it is made again.
pub(super) fn passing(error: &ureq::Error) -> bool {
    use io::ErrorKind::{
        BrokenPipe, ConnectionAborted, ConnectionReset, Interrupted, TimedOut, UnexpectedEof,
    };
    match error {
        ureq::Error::Timeout(_) => true,
        ureq::Error::Io(error) => matches!(
            error.kind(),
            BrokenPipe
                | ConnectionAborted
                | ConnectionReset
                | Interrupted
                | TimedOut
                | UnexpectedEof
        ),
        _ => false,
    }
}
