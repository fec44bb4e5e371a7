//! Engines on this host: which there are, and how an image comes into one.

use std::fmt;
use std::io::{self, Read, Write};
use std::process::{Command, Output, Stdio};
use std::str::FromStr;

use super::archive::Parcel;
use super::{SinkError, containerd, docker, podman};

/// Where an image is loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Docker,
    Podman,
    /// In a namespace; `ctr`'s own default where it is not given.
    Containerd(Option<String>),
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "docker" => Ok(Self::Docker),
            None if text == "podman" => Ok(Self::Podman),
            None if text == "containerd" => Ok(Self::Containerd(None)),
            Some(("containerd", space)) if !space.is_empty() => {
                Ok(Self::Containerd(Some(space.to_owned())))
            }
            _ => Err("give docker, podman or containerd[:NAMESPACE]".to_owned()),
        }
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Docker => f.write_str("Docker"),
            Self::Podman => f.write_str("Podman"),
            Self::Containerd(None) => f.write_str("containerd"),
            Self::Containerd(Some(space)) => write!(f, "containerd, namespace {space}"),
        }
    }
}

/// Loads an image into an engine and checks that what it has then is that image. Returns its id there.
///
/// # Errors
/// The engine is not there, does not take the image, or makes another of it.
pub fn load(parcel: Parcel<'_>, target: &Target) -> Result<String, SinkError> {
    match target {
        Target::Docker => docker::load(parcel),
        Target::Podman => podman::load(parcel),
        Target::Containerd(space) => containerd::load(parcel, space.as_deref()),
    }
}

/// Writes the archive on a thread of its own while `take` reads it; what went wrong with the image
/// counts before what that made of the engine.
pub(super) fn piped<T>(
    parcel: Parcel<'_>,
    readable: fn(&str) -> bool,
    take: impl FnOnce(io::PipeReader) -> Result<T, SinkError>,
) -> Result<T, SinkError> {
    let unread = |source| SinkError::Read { what: "the layers".to_owned(), source };
    let (reader, writer) = io::pipe().map_err(unread)?;
    std::thread::scope(|scope| {
        let writing = scope.spawn(move || {
            let mut to = io::BufWriter::with_capacity(1 << 20, writer);
            parcel.write(&mut to, &readable)?;
            to.flush()
        });
        let taken = take(reader);
        match writing.join().unwrap_or_else(|_| Err(io::Error::other("the writer panicked"))) {
            // Who stops reading has said why.
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(unread(error)),
            _ => taken,
        }
    })
}

/// A program of the engine.
pub(super) struct Program {
    pub name: &'static str,
    /// What comes before every command.
    pub before: Vec<String>,
    /// The Debian package that has it.
    pub package: &'static str,
    pub engine: &'static str,
}

impl Program {
    /// Runs it; what it prints on success.
    pub fn run(&self, args: &[&str], input: Option<io::PipeReader>) -> Result<String, SinkError> {
        let mut command = Command::new(self.name);
        command.args(&self.before).args(args);
        command.stdin(input.map_or_else(Stdio::null, Stdio::from));
        let output = command.output().map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => {
                self.error(format!("there is no program {}; install {}", self.name, self.package))
            }
            _ => self.error(format!("{} cannot be run: {error}", self.name)),
        })?;
        self.said(args, &output)
    }

    fn said(&self, args: &[&str], output: &Output) -> Result<String, SinkError> {
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned());
        }
        let mut why = String::new();
        let _ = (&output.stderr[..]).take(2000).read_to_string(&mut why);
        let told = [&[self.name][..], args].concat().join(" ");
        Err(self.error(format!("`{told}` failed: {}", why.trim())))
    }

    pub fn error(&self, why: String) -> SinkError {
        SinkError::Engine { engine: self.engine, why }
    }
}

/// Any layer.
pub(super) fn any(_media_type: &str) -> bool {
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_engines() {
        for (text, want) in [
            ("docker", Some(Target::Docker)),
            ("podman", Some(Target::Podman)),
            ("containerd", Some(Target::Containerd(None))),
            ("containerd:k8s.io", Some(Target::Containerd(Some("k8s.io".into())))),
            ("containerd:", None),
            ("docker:x", None),
            ("rkt", None),
        ] {
            assert_eq!(text.parse::<Target>().ok(), want, "{text}");
        }
    }
}
