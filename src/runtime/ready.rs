//! skeleton
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Ready, RuntimeError};

/// Whether a TCP socket that others can reach listens on `port`; `None` is this process's namespace.
pub fn listening(_netns: Option<BorrowedFd<'_>>, _port: u16) -> bool {
    todo!()
}

/// GETs `http://ADDRESS:PORT/PATH`; true for 2xx and 3xx. Wants 127.0.0.1 and the forwarded port, or
/// (private) the container's address with its namespace.
pub fn http_answers(
    _netns: Option<BorrowedFd<'_>>,
    _address: Ipv4Addr,
    _port: u16,
    _path: &str,
    _timeout: Duration,
) -> bool {
    todo!()
}

/// Follows a growing file and looks for a matching line.
pub struct LogWatch {
    _path: PathBuf,
}

impl LogWatch {
    pub fn new(_path: &Path, _regex: &regex::Regex) -> Self {
        todo!()
    }
    /// Reads what is new; true once a line matched (also an unfinished last line).
    pub fn matched(&mut self) -> io::Result<bool> {
        todo!()
    }
}

/// Parses `--ready`.
pub fn parse_ready(_text: &str) -> Result<Ready, RuntimeError> {
    todo!()
}
