//! A registry of the test's own: Debian's `docker-registry`, on a free port of 127.0.0.1.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use slim::source::Access;
use slim::wire::Options;

use super::sh;

/// Name and password at a registry that asks for them.
pub const LOGIN: (&str, &str) = ("tester", "correct horse");

/// A running registry; ended, and its files removed, when it is dropped.
pub struct Registry {
    pub dir: tempfile::TempDir,
    pub port: u16,
    child: Child,
}

impl Registry {
    /// Without TLS, open to everybody.
    pub fn plain() -> Self {
        Self::start("", "")
    }

    /// With a certificate of its own authority (`ca.crt` in the folder) and a password.
    pub fn secure() -> Self {
        Self::start(
            "    certificate: {dir}/server.crt\n    key: {dir}/server.key\n",
            "auth:\n  htpasswd:\n    realm: tests\n    path: {dir}/htpasswd\n",
        )
    }

    /// With what stands below `tls` and at the top of its configuration; `{dir}` is its folder.
    pub fn start(tls: &str, auth: &str) -> Self {
        let dir = tempfile::Builder::new().prefix("slim-registry-").tempdir_in("/var/tmp").unwrap();
        make_certificates(dir.path());
        let (name, password) = LOGIN;
        let line = sh("htpasswd", &["-Bbn", name, password]);
        std::fs::write(dir.path().join("htpasswd"), line.trim()).unwrap();
        for _ in 0..5 {
            let port = free_port();
            let tls = if tls.is_empty() { String::new() } else { format!("  tls:\n{tls}") };
            let text = format!(
                "version: 0.1\nlog: {{level: info}}\nstorage:\n  filesystem: {{rootdirectory: {{dir}}/data}}\n  \
                 delete: {{enabled: true}}\nhttp:\n  addr: 127.0.0.1:{port}\n  secret: tests\n{tls}{auth}"
            );
            let text = text.replace("{dir}", dir.path().to_str().unwrap());
            let config = dir.path().join("config.yml");
            std::fs::write(&config, text).unwrap();
            let log = File::create(dir.path().join("log")).unwrap();
            let mut child = Command::new("docker-registry")
                .arg("serve")
                .arg(&config)
                .stdin(Stdio::null())
                .stdout(log.try_clone().unwrap())
                .stderr(log)
                .spawn()
                .unwrap();
            if answers(&mut child, port) {
                return Self { dir, port, child };
            }
            let _ = child.kill();
            let _ = child.wait();
        }
        panic!("docker-registry does not start: {}", read(&dir.path().join("log")));
    }

    /// `127.0.0.1:PORT`.
    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// What a library call needs to reach a registry without TLS.
    pub fn access() -> Access {
        let wire = Options { plain_http: true, ..Options::default() };
        Access { wire, ..Access::platform("linux/amd64") }
    }

    /// Lines of the access log that hold `text`.
    pub fn requests(&self, text: &str) -> usize {
        let log = read(&self.dir.path().join("log"));
        log.lines().filter(|line| line.starts_with("127.0.0.1 ") && line.contains(text)).count()
    }

    /// Copies an image in with skopeo.
    pub fn fill(&self, from: &str, name: &str) {
        let to = format!("docker://{}/{name}", self.host());
        sh(
            "skopeo",
            &["copy", "-q", "--all", "--preserve-digests", "--dest-tls-verify=false", from, &to],
        );
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

pub fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}

/// False if it ended instead (somebody else took the port).
fn answers(child: &mut Child, port: u16) -> bool {
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(20) {
        if child.try_wait().unwrap().is_some() {
            return false;
        }
        if TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    false
}

/// An authority, and a certificate of it for 127.0.0.1 and localhost.
fn make_certificates(dir: &Path) {
    let path = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let config = "[req]\ndistinguished_name = name\n[name]\n[ca]\nbasicConstraints = critical, CA:TRUE\n\
                  [server]\nbasicConstraints = critical, CA:FALSE\n\
                  subjectAltName = IP:127.0.0.1, DNS:localhost\n";
    let config = put(&dir.join("openssl.cnf"), config);
    let new = |name: &str, more: &[&str]| {
        let (key, out) = (path(&format!("{name}.key")), path(&format!("{name}.crt")));
        let curve = "ec_paramgen_curve:P-256";
        let fixed = ["req", "-x509", "-newkey", "ec", "-pkeyopt", curve, "-nodes", "-days", "2"];
        let subject = format!("/CN=slim tests {name}");
        let named = ["-keyout", &key, "-out", &out, "-subj", &subject, "-extensions", name];
        let config = ["-config", config.to_str().unwrap()];
        sh("openssl", &[&fixed[..], &named, &config, more].concat());
    };
    new("ca", &[]);
    new("server", &["-CA", &path("ca.crt"), "-CAkey", &path("ca.key")]);
}

/// When a wire breaks.
#[derive(Clone, Copy)]
pub enum Cut {
    /// A connection has brought so many bytes from the registry.
    Down(u64),
    /// A connection has brought so many bytes to the registry.
    Up(u64),
    /// The second part of an upload is about to begin.
    SecondPart,
}

/// A wire that breaks: forwards to a port and cuts connections, as often as told.
pub struct Breaking {
    pub port: u16,
    state: Arc<Wire>,
}

struct Wire {
    cut: Cut,
    left: AtomicI64,
    parts: AtomicU64,
    sent: AtomicU64,
}

impl Breaking {
    /// Cuts connections, `times` of them.
    pub fn new(to: u16, cut: Cut, times: i64) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let (left, parts, sent) = (AtomicI64::new(times), AtomicU64::new(0), AtomicU64::new(0));
        let state = Arc::new(Wire { cut, left, parts, sent });
        let shared = Arc::clone(&state);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect((Ipv4Addr::LOCALHOST, to)) else { return };
                let pair = || (client.try_clone().unwrap(), server.try_clone().unwrap());
                let ((from, into), (back_into, back_from)) = (pair(), pair());
                let (up, down) = (Arc::clone(&shared), Arc::clone(&shared));
                std::thread::spawn(move || up.carry(from, into, true));
                std::thread::spawn(move || down.carry(back_from, back_into, false));
            }
        });
        Self { port, state }
    }

    pub fn host(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// True if it cut as often as it was told to.
    pub fn is_done(&self) -> bool {
        self.state.left.load(Ordering::SeqCst) <= 0
    }

    /// Bytes that went to the registry.
    pub fn sent(&self) -> u64 {
        self.state.sent.load(Ordering::SeqCst)
    }
}

impl Wire {
    fn carry(&self, mut from: TcpStream, mut into: TcpStream, up: bool) {
        let mut buf = [0; 16 << 10];
        let mut carried = 0;
        loop {
            let n = match from.read(&mut buf) {
                Ok(0) | Err(_) => break,
                Ok(n) => n,
            };
            carried += n as u64;
            if self.breaks(&buf[..n], carried, up) && self.left.fetch_sub(1, Ordering::SeqCst) > 0 {
                let _ = from.shutdown(Shutdown::Both);
                let _ = into.shutdown(Shutdown::Both);
                return;
            }
            if into.write_all(&buf[..n]).is_err() {
                break;
            }
            if up {
                self.sent.fetch_add(n as u64, Ordering::SeqCst);
            }
        }
        let _ = into.shutdown(Shutdown::Write);
    }

    fn breaks(&self, bytes: &[u8], carried: u64, up: bool) -> bool {
        match self.cut {
            Cut::Down(limit) => !up && carried >= limit,
            Cut::Up(limit) => up && carried >= limit,
            Cut::SecondPart if up && bytes.starts_with(b"PATCH ") => {
                let head = String::from_utf8_lossy(&bytes[..bytes.len().min(4096)]).to_lowercase();
                let second = head.contains("content-range: 16777216-");
                second && self.parts.fetch_add(1, Ordering::SeqCst) == 0
            }
            Cut::SecondPart => false,
        }
    }
}

/// Bytes that do not compress: 64 KiB of noise, and again with a number added.
pub fn noise(len: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let block: Vec<u64> = (0..8192).map(|_| next()).collect();
    let mut bytes = Vec::with_capacity(len + (64 << 10));
    for round in 0u64.. {
        if bytes.len() >= len {
            break;
        }
        let factor = round * 2 + 1;
        bytes.extend(block.iter().flat_map(|word| word.wrapping_mul(factor).to_le_bytes()));
    }
    bytes.truncate(len);
    bytes
}

/// Writes a file, its folder too.
pub fn put(path: &Path, text: impl AsRef<[u8]>) -> PathBuf {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, text).unwrap();
    path.to_owned()
}

/// Reads to the end.
pub fn drain(mut from: impl io::Read) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    from.read_to_end(&mut all).map(|_| all)
}
