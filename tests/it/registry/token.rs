//! Bearer tokens: Debian's registry trusts a token server, which is the test's own.
//!
//! distribution's "Token Authentication Specification" and its JSON Web Tokens (ES256, x5c).

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ring::signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair};

use super::*;

/// What the token server knows.
struct Tokens {
    key: Vec<u8>,
    certificate: String,
    /// Requests: method, query or form, Authorization.
    asked: Mutex<Vec<(String, String, String)>>,
}

impl Tokens {
    /// Answers requests on `listener` for ever, with the key and certificate of the registry in `dir`.
    fn serve(listener: TcpListener, dir: &Path) -> Arc<Self> {
        let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
        let (pem, der) = (path("server.key"), path("token.der"));
        sh(
            "openssl",
            &["pkcs8", "-topk8", "-nocrypt", "-in", &pem, "-outform", "DER", "-out", &der],
        );
        let certificate = path("token.crt.der");
        sh(
            "openssl",
            &["x509", "-in", &path("server.crt"), "-outform", "DER", "-out", &certificate],
        );
        let tokens = Arc::new(Self {
            key: std::fs::read(der).unwrap(),
            certificate: STANDARD.encode(std::fs::read(certificate).unwrap()),
            asked: Mutex::default(),
        });
        let shared = Arc::clone(&tokens);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                shared.answer(client);
            }
        });
        tokens
    }

    fn answer(&self, mut client: TcpStream) -> Option<()> {
        let mut reader = BufReader::new(client.try_clone().ok()?);
        let mut first = String::new();
        reader.read_line(&mut first).ok()?;
        let (mut length, mut authorization) = (0, String::new());
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).ok()?;
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            match name.to_lowercase().as_str() {
                "content-length" => length = value.parse().ok()?,
                "authorization" => authorization = value.to_owned(),
                _ => {}
            }
        }
        let mut form = vec![0; length];
        reader.read_exact(&mut form).ok()?;
        let mut words = first.split(' ');
        let (method, target) = (words.next()?.to_owned(), words.next()?.to_owned());
        let query = target.split_once('?').map_or(String::new(), |(_, query)| query.to_owned());
        let query = if method == "POST" { String::from_utf8(form).ok()? } else { query };
        let query = query.replace("%3A", ":").replace("%2F", "/").replace("%2C", ",");
        let password = format!("Basic {}", STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1)));
        let known = authorization == password || query.contains("refresh_token=the-token");
        self.asked.lock().unwrap().push((method, query.clone(), authorization));
        let (status, body) = if known {
            ("200 OK", json!({ "token": self.token(&query) }).to_string())
        } else {
            ("401 Unauthorized", "{}".to_owned())
        };
        let head = format!(
            "HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
            body.len()
        );
        client.write_all(format!("{head}{body}").as_bytes()).ok()
    }

    /// A token for every `scope=repository:NAME:ACTIONS` of the query.
    fn token(&self, query: &str) -> String {
        let scopes = query.split('&').filter_map(|pair| pair.strip_prefix("scope="));
        let access: Vec<Value> = scopes
            .flat_map(|text| text.split("%20"))
            .filter_map(|scope| {
                let (rest, actions) = scope.rsplit_once(':')?;
                let actions: Vec<&str> = actions.split(',').collect();
                Some(json!({ "type": "repository", "name": rest.split_once(':')?.1, "actions": actions }))
            })
            .collect();
        let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
        let header = json!({ "typ": "JWT", "alg": "ES256", "x5c": [self.certificate] });
        let claims = json!({
            "iss": "slim tests", "aud": "tests", "sub": LOGIN.0, "jti": "1", "access": access,
            "iat": now - 10, "nbf": now - 10, "exp": now + 300,
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let text = format!("{}.{}", part(&header), part(&claims));
        let random = ring::rand::SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &self.key, &random);
        let signature = pair.unwrap().sign(&random, text.as_bytes()).unwrap();
        format!("{text}.{}", URL_SAFE_NO_PAD.encode(signature))
    }
}

#[test]
fn a_token_server_is_asked_for_what_is_needed_and_no_more() {
    if !have(&NEEDS) {
        return;
    }
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let realm = format!("http://{}/token", listener.local_addr().unwrap());
    let auth = format!(
        "auth:\n  token:\n    realm: {realm}\n    service: tests\n    issuer: slim tests\n    \
         rootcertbundle: {{dir}}/ca.crt\n"
    );
    let registry = Registry::start("", &auth);
    let tokens = Tokens::serve(listener, registry.dir.path());
    let dir = tempfile::tempdir().unwrap();
    let layout = small(dir.path(), "a");
    let host = registry.host();
    let file = |entry: Value| {
        let text = json!({ "auths": { &host: entry } }).to_string();
        put(&dir.path().join("auth.json"), text).to_str().unwrap().to_owned()
    };
    let password = STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1));
    let authfile = file(json!({ "auth": password }));
    let with = ["--plain-http", "--authfile", &authfile];
    let names = [format!("{host}/team/app:1"), format!("{host}/copy:1")];
    let layout = layout.to_str().unwrap();
    let push = [&["push", layout, &names[0], &names[1]][..], &with].concat();
    let (code, text) = run(dir.path(), &push, &[]);
    assert!(code == 0 && text.contains("3 sent") && text.contains("3 mounted"), "{code} {text}");
    let asked: Vec<String> =
        tokens.asked.lock().unwrap().iter().map(|(_, query, _)| query.clone()).collect();
    // One token for a repository, one more to mount from the other: not one for each call.
    assert_eq!(
        asked,
        [
            "service=tests&scope=repository:team/app:pull,push",
            "service=tests&scope=repository:copy:pull,push",
            "service=tests&scope=repository:copy:pull,push&scope=repository:team/app:pull"
        ],
    );
    let image = format!("docker://{}", names[0]);
    let inspect = [&["inspect", &image][..], &with].concat();
    let (code, text) = run(dir.path(), &inspect, &[]);
    assert_eq!(code, 0, "{text}");
    let last = tokens.asked.lock().unwrap().last().cloned().unwrap();
    assert_eq!(last.1, "service=tests&scope=repository:team/app:pull");

    // An identity token is exchanged by POST, and never goes to the registry.
    file(json!({ "identitytoken": "the-token" }));
    let (code, text) = run(dir.path(), &inspect, &[]);
    assert_eq!(code, 0, "{text}");
    let (method, form, authorization) = tokens.asked.lock().unwrap().last().cloned().unwrap();
    assert!(method == "POST" && form.contains("grant_type=refresh_token"), "{method} {form}");
    assert_eq!(authorization, "");

    let wrong = STANDARD.encode("tester:wrong horse");
    for entry in [json!({ "auth": wrong }), json!({})] {
        file(entry);
        let (code, text) = run(dir.path(), &inspect, &[]);
        assert!(code == 3 && text.contains("refuses a token"), "{code} {text}");
        assert!(!text.contains("horse"), "{text}");
    }
}
