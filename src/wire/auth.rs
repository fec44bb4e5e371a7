//! How a registry is told who we are: Basic (RFC 7617), or Bearer with a token server.
//!
//! distribution's "Token Authentication Specification" and "Token OAuth2".

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::Agent;
use ureq::http::{Method, header};

use super::WireError;
use super::credentials::Credentials;
use super::http::{Call, Payload, reach, send};

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Challenge {
    Basic,
    Bearer { realm: String, service: String, scope: String },
}

/// The first challenge of a header that slim can meet.
pub(super) fn challenge(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.trim().split_once(' ').unwrap_or((header.trim(), ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    let parameters = parameters(rest);
    let get = |name: &str| {
        let found = parameters.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.clone())
    };
    let bearer = scheme.eq_ignore_ascii_case("bearer");
    bearer.then_some(())?;
    Some(Challenge::Bearer {
        realm: get("realm")?,
        service: get("service").unwrap_or_default(),
        scope: get("scope").unwrap_or_default(),
    })
}

/// `key="value", key=value`; commas and escaped quotes may stand inside quotes (RFC 9110, 5.6.4).
fn parameters(text: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((key, after)) = rest.split_once('=') {
        let mut value = String::new();
        let mut chars = after.char_indices();
        let quoted = after.starts_with('"');
        if quoted {
            chars.next();
        }
        let mut end = after.len();
        while let Some((at, c)) = chars.next() {
            match c {
                '\\' if quoted => value.extend(chars.next().map(|(_, c)| c)),
                '"' if quoted => {
                    end = at + 1;
                    break;
                }
                ',' if !quoted => {
                    end = at;
                    break;
                }
                _ => value.push(c),
            }
        }
        found.push((key.trim_matches([' ', ',', '\t']).to_owned(), value.trim().to_owned()));
        rest = &after[end..];
    }
    found
}

/// The header of Basic authentication; an identity token cannot be used so.
pub(super) fn basic(credentials: &Credentials) -> Option<String> {
    let Credentials::Password { user, password } = credentials else { return None };
    Some(format!("Basic {}", STANDARD.encode(format!("{user}:{password}"))))
}

#[derive(Deserialize)]
struct Token {
    #[serde(default)]
    token: String,
    #[serde(default)]
    access_token: String,
}

/// All but what a URL may hold as it is (RFC 3986, 2.3).
const RESERVED: AsciiSet = NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// More than any token.
const MAX: u64 = 1 << 20;

/// Gets the header with a token for `scopes` from the token server.
pub(super) fn bearer(
    agent: &Agent,
    host: &str,
    realm: &str,
    service: &str,
    scopes: &[String],
    credentials: Option<&Credentials>,
) -> Result<String, WireError> {
    let answer = |why: String| WireError::Answer {
        host: host.to_owned(),
        what: format!("the request for a token at {realm}"),
        why,
    };
    let pair = |key: &str, value: &str| format!("{key}={}", utf8_percent_encode(value, &RESERVED));
    let mut query = vec![pair("service", service)];
    let form;
    let call = if let Some(Credentials::Identity { token }) = credentials {
        query.push(pair("grant_type", "refresh_token"));
        query.push(pair("client_id", "slim"));
        query.push(pair("refresh_token", token));
        query.push(pair("scope", &scopes.join(" ")));
        form = query.join("&");
        Call::new(Method::POST, realm)
            .header(header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .payload(Payload::Bytes(form.as_bytes()))
    } else {
        query.extend(scopes.iter().map(|scope| pair("scope", scope)));
        let joint = if realm.contains('?') { '&' } else { '?' };
        Call::new(Method::GET, format!("{realm}{joint}{}", query.join("&")))
    };
    let sent = send(agent, &call, credentials.and_then(basic).as_deref());
    let sent = sent.map_err(|source| WireError::Content { host: host.to_owned(), source })?;
    let mut response = sent.map_err(|source| reach(host, realm, source))?;
    let status = response.status().as_u16();
    if !response.status().is_success() {
        let who = credentials.map_or("an anonymous user", Credentials::who).to_owned();
        let what = format!("a token for {}", scopes.join(", "));
        return Err(match status {
            401 | 403 => {
                WireError::Denied { host: host.to_owned(), what, who, message: String::new() }
            }
            _ => WireError::Status { host: host.to_owned(), what, status, message: String::new() },
        });
    }
    let body = response.body_mut().with_config().limit(MAX).read_to_vec();
    let body = body.map_err(|source| reach(host, realm, source))?;
    let token: Token =
        serde_json::from_slice(&body).map_err(|_| answer("no JSON with a token".to_owned()))?;
    let token = if token.token.is_empty() { token.access_token } else { token.token };
    if token.is_empty() || !token.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(answer("it holds no token".to_owned()));
    }
    Ok(format!("Bearer {token}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_are_read_as_rfc_9110_writes_them() {
        let bearer = |realm: &str, service: &str, scope: &str| {
            Some(Challenge::Bearer {
                realm: realm.into(),
                service: service.into(),
                scope: scope.into(),
            })
        };
        for (header, want) in [
            (r#"Basic realm="x""#, Some(Challenge::Basic)),
            ("basic", Some(Challenge::Basic)),
            (
                r#"Bearer realm="https://a/t",service="r",scope="repository:a/b:pull,push""#,
                bearer("https://a/t", "r", "repository:a/b:pull,push"),
            ),
            (r#"bearer service=r , realm="a\"b""#, bearer("a\"b", "r", "")),
            (r#"Bearer service="r""#, None),
            ("Negotiate", None),
            ("", None),
        ] {
            assert_eq!(challenge(header), want, "{header}");
        }
    }
}
