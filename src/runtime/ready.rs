//! Whether a container is ready: its listening sockets, its log, an HTTP answer; and `--ready`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Ready, RuntimeError};
use crate::sys::netns;

/// Whether a TCP socket that others can reach listens on `port`; `None` is this process's namespace.
///
/// Reads the kernel's tables and connects to nothing: a connection would be work of the program
/// that no coverage script asked for.
pub fn listening(netns: Option<BorrowedFd<'_>>, port: u16) -> bool {
    // A kernel without IPv6 has no tcp6.
    let tables = || {
        let read = |name| std::fs::read_to_string(format!("/proc/thread-self/net/{name}"));
        Ok(["tcp", "tcp6"].map(|name| read(name).unwrap_or_default()))
    };
    let tables = match netns {
        Some(netns) => netns::inside(netns, tables),
        None => tables(),
    };
    tables.is_ok_and(|tables| tables.iter().any(|table| table_listens(table, port)))
}

/// Finds a listener in the text of `/proc/net/tcp` or `tcp6` (proc_pid_net(5)).
fn table_listens(table: &str, port: u16) -> bool {
    const LISTEN: &str = "0A";
    table.lines().skip(1).any(|line| {
        let mut fields = line.split_ascii_whitespace().skip(1);
        let (local, state) = (fields.next(), fields.nth(1));
        let parsed = local.and_then(|text| text.split_once(':'));
        let matches = parsed.is_some_and(|(address, number)| {
            u16::from_str_radix(number, 16) == Ok(port) && !is_loopback(address)
        });
        matches && state == Some(LISTEN)
    })
}

/// The address as the tables print it: 32-bit words in the machine's byte order.
fn is_loopback(address: &str) -> bool {
    let word = |text: &str| u32::from_str_radix(text, 16).map(u32::to_ne_bytes);
    let bytes: Vec<u8> = (0..address.len() / 8)
        .filter_map(|n| word(address.get(n * 8..n * 8 + 8)?).ok())
        .flatten()
        .collect();
    match bytes[..] {
        [127, ..] if bytes.len() == 4 => true,
        _ => <[u8; 16]>::try_from(bytes).is_ok_and(|bytes| match IpAddr::from(bytes) {
            IpAddr::V6(six) => six.to_canonical().is_loopback(),
            IpAddr::V4(_) => false,
        }),
    }
}

/// GETs `http://ADDRESS/PATH`; true for 2xx and 3xx. Wants the forwarded port on 127.0.0.1, or, with
/// the container's namespace, the container's own address.
pub fn http_answers(
    netns: Option<BorrowedFd<'_>>,
    address: SocketAddr,
    path: &str,
    timeout: Duration,
) -> bool {
    let get = || http_status(address, path, timeout);
    let status = match netns {
        Some(netns) => netns::inside(netns, get),
        None => get(),
    };
    status.is_ok_and(|status| (200..400).contains(&status))
}

fn http_status(address: SocketAddr, path: &str, timeout: Duration) -> io::Result<u16> {
    let mut stream = TcpStream::connect_timeout(&address, timeout)?;
    stream.set_read_timeout(Some(timeout))?;
    stream.set_write_timeout(Some(timeout))?;
    let head = "User-Agent: slim\r\nAccept: */*\r\nConnection: close";
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\n{head}\r\n\r\n")?;
    let mut start = Vec::new();
    stream.take(64).read_to_end(&mut start).or_else(|error| match start.len() {
        0..12 => Err(error),
        _ => Ok(0), // a server that keeps the connection open has answered all the same
    })?;
    parse_status(&start).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// The number in `HTTP/1.1 200 OK` (RFC 9112, 4).
fn parse_status(start: &[u8]) -> Option<u16> {
    let text = std::str::from_utf8(start.get(..12)?).ok()?;
    let (version, status) = text.split_once(' ')?;
    version.starts_with("HTTP/1.").then(|| status.parse().ok())?
}

/// Follows a growing file and looks for a matching line.
pub struct LogWatch {
    path: PathBuf,
    regex: regex::bytes::Regex,
    file: Option<File>,
    /// The last line as far as it was written.
    line: Vec<u8>,
}

/// A line longer than this is looked at in pieces.
const LONGEST_LINE: usize = 1 << 20;

impl LogWatch {
    /// Looks from the file's start; it need not exist yet.
    pub fn new(path: &Path, regex: &regex::Regex) -> Self {
        // Programs log in other encodings too; the pattern is the same, so it compiles.
        let bytes = regex::bytes::Regex::new(regex.as_str()).expect("compiled as a text pattern");
        Self { path: path.to_owned(), regex: bytes, file: None, line: Vec::new() }
    }

    /// Reads what is new; true once a line matched (also an unfinished last line).
    pub fn matched(&mut self) -> io::Result<bool> {
        if self.file.is_none() {
            match File::open(&self.path) {
                Ok(file) => self.file = Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                Err(error) => return Err(error),
            }
        }
        let Some(file) = &mut self.file else { return Ok(false) };
        let mut buffer = vec![0_u8; 64 * 1024];
        loop {
            let length = file.read(&mut buffer)?;
            if length == 0 {
                return Ok(false);
            }
            self.line.extend_from_slice(&buffer[..length]);
            let mut lines = self.line.split(|byte| *byte == b'\n');
            if lines.any(|line| self.regex.is_match(line.strip_suffix(b"\r").unwrap_or(line))) {
                return Ok(true);
            }
            let rest = self.line.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at + 1);
            self.line.drain(..rest);
            if self.line.len() > LONGEST_LINE {
                self.line.clear();
            }
        }
    }
}

/// Parses `--ready tcp:PORT|http:PATH|log:REGEX|healthy|exec:CMD|none`.
pub fn parse_ready(text: &str) -> Result<Ready, RuntimeError> {
    let no = |why: String| RuntimeError::Option {
        option: "--ready".to_owned(),
        value: text.to_owned(),
        why,
    };
    let (kind, rest) = text.split_once(':').unwrap_or((text, ""));
    match kind {
        "healthy" if text == kind => Ok(Ready::Healthy),
        "none" if text == kind => Ok(Ready::None),
        "tcp" => match rest.parse() {
            Ok(port) if port > 0 => Ok(Ready::Tcp(port)),
            _ => Err(no("tcp: wants a port from 1 to 65535, as in tcp:8080".into())),
        },
        "http" if rest.starts_with('/') && !rest.starts_with("//") => {
            match rest.bytes().all(|byte| byte.is_ascii_graphic()) {
                true => Ok(Ready::Http(rest.to_owned())),
                false => Err(no("an HTTP path has no spaces or control characters".into())),
            }
        }
        "http" => {
            Err(no("http: wants a path, as in http:/health; the host and the lowest exposed \
             port are known"
                .into()))
        }
        "log" if rest.is_empty() => {
            Err(no("log: wants a pattern, as in log:ready to accept".into()))
        }
        "log" => match regex::Regex::new(rest) {
            Ok(regex) => Ok(Ready::Log(regex)),
            Err(error) => Err(no(error.to_string())),
        },
        "exec" if rest.trim().is_empty() => {
            Err(no("exec: wants a command, as in exec:pg_isready".into()))
        }
        "exec" => Ok(Ready::Exec(rest.to_owned())),
        _ => Err(no("know tcp:PORT, http:PATH, log:REGEX, healthy, exec:CMD and none".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_searched_for_reachable_listeners() {
        let head = "  sl  local_address rem_address   st tx_queue rx_queue\n";
        for (line, want) in [
            ("0: 00000000:0050 00000000:0000 0A 0:0", true),
            ("0: 020011AC:0050 00000000:0000 0A 0:0", true),
            ("0: 0100007F:0050 00000000:0000 0A 0:0", false), // loopback
            ("0: 00000000:0050 0100007F:1234 01 0:0", false), // a connection
            ("0: 00000000:0051 00000000:0000 0A 0:0", false), // another port
            ("0: 00000000000000000000000000000000:0050 0:0 0A 0:0", true),
            ("0: 00000000000000000000000001000000:0050 0:0 0A 0:0", false), // ::1
            ("0: 0000000000000000FFFF00000100007F:0050 0:0 0A 0:0", false), // ::ffff:127.0.0.1
            ("0: 0000000000000000FFFF0000020011AC:0050 0:0 0A 0:0", true),
            ("garbage", false),
        ] {
            assert_eq!(table_listens(&format!("{head}{line}\n"), 80), want, "{line}");
        }
    }

    #[test]
    fn ready_takes_the_documented_forms_only() {
        for good in
            ["tcp:80", "http:/", "http:/a?b=c", "log:a:b", "healthy", "exec:a b", "exec:x", "none"]
        {
            assert!(parse_ready(good).is_ok(), "{good}");
        }
        for bad in [
            "",
            "tcp",
            "tcp:0",
            "tcp:65536",
            "http:",
            "http:x",
            "http://host/",
            "http:/a b",
            "log:",
            "log:(",
            "healthy:",
            "none:1",
            "exec:",
            "exec: ",
            "udp:53",
        ] {
            let error = parse_ready(bad).expect_err(bad).to_string();
            assert!(error.starts_with(&format!("--ready {bad:?}: ")), "{error}");
        }
    }

    #[test]
    fn a_status_line_is_read() {
        for (start, want) in [
            (&b"HTTP/1.1 200 OK\r\n"[..], Some(200)),
            (b"HTTP/1.0 503 No", Some(503)),
            (b"HTTP/1.1 20", None),
            (b"SSH-2.0-OpenSSH", None),
        ] {
            assert_eq!(parse_status(start), want);
        }
    }

    #[test]
    fn a_log_is_followed_across_writes() {
        let dir = tempfile::tempdir().expect("a folder");
        let path = dir.path().join("log");
        let regex = regex::Regex::new("^ready: [0-9]+$").expect("a pattern");
        let mut watch = LogWatch::new(&path, &regex);
        assert!(!watch.matched().expect("no file yet"));
        let mut file = File::create(&path).expect("a log");
        file.write_all(b"\xff not ready: 1\nrea").expect("written");
        assert!(!watch.matched().expect("read"));
        file.write_all(b"dy: 12\r\nmore").expect("written");
        assert!(watch.matched().expect("read"));
    }
}
