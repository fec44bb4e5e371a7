//! Names of images in registries: `[host[:port]/]repository[:tag][@digest]`.
//!
//! The grammar is that of the distribution project's references; what Docker leaves out (its own
//! registry, `library/`) is filled in, so that two names of one image are equal.

use std::fmt;
use std::str::FromStr;

use crate::model::Digest;

use super::WireError;

/// Where an image is meant to be, written in full.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// `host[:port]` as in a name; Docker's registry is `docker.io`.
    pub host: String,
    /// Path in the registry, `library/` filled in.
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl Reference {
    /// `host/repository`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.host, self.repository)
    }

    /// What a registry is asked for: the digest, which decides where there is one, or the tag.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }

    /// The same, with the tag `latest` where neither tag nor digest is there.
    #[must_use]
    pub fn or_latest(mut self) -> Self {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some("latest".to_owned());
        }
        self
    }

    /// As people write it: without what Docker fills in.
    pub fn familiar(&self) -> String {
        let text = Self { digest: None, ..self.clone() }.to_string();
        let short = text.strip_prefix("docker.io/").unwrap_or(&text);
        short.strip_prefix("library/").unwrap_or(short).to_owned()
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        self.digest.as_ref().map_or(Ok(()), |digest| write!(f, "@{digest}"))
    }
}

impl FromStr for Reference {
    type Err = WireError;

    fn from_str(text: &str) -> Result<Self, WireError> {
        let bad = |why: &str| WireError::Reference { text: text.to_owned(), why: why.to_owned() };
        let (named, digest) = match text.split_once('@') {
            None => (text, None),
            Some((named, digest)) => {
                let digest = digest.parse::<Digest>().map_err(|error| bad(&error.to_string()))?;
                (named, Some(digest))
            }
        };
        let (name, tag) = match named.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (named, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad("its tag is not letters, digits, _, . and -, at most 128"));
        }
        let (host, path) = match name.split_once('/') {
            Some((host, path)) if is_host(host) => (host, path),
            _ => ("docker.io", name),
        };
        let host = if host == "index.docker.io" { "docker.io" } else { host };
        if path.is_empty() || name.len() > 255 || !path.split('/').all(is_component) {
            return Err(bad(
                "its name is not lower-case letters and digits, parted by . _ __ or -",
            ));
        }
        let official = host == "docker.io" && !path.contains('/');
        let repository = if official { format!("library/{path}") } else { path.to_owned() };
        Ok(Self { host: host.to_owned(), repository, tag: tag.map(str::to_owned), digest })
    }
}

/// The first part of a name is a host if it cannot be the part of a path.
fn is_host(text: &str) -> bool {
    let dotted = text.contains(['.', ':']) || text == "localhost";
    let form = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    dotted && !text.starts_with('.') && text.chars().all(form)
}

/// Letters, digits, `_`, `.` and `-`, at most 128, beginning with none of the last two.
pub fn is_tag(text: &str) -> bool {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=128).contains(&text.len())
        && text.starts_with(word)
        && text.chars().all(|c| word(c) || matches!(c, '.' | '-'))
}

/// A part of a repository's path: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
pub fn is_component(text: &str) -> bool {
    let part = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let parted = |run: &str| matches!(run, "." | "_" | "__" | "") || run.chars().all(|c| c == '-');
    text.starts_with(part) && text.ends_with(part) && text.split(part).all(parted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_written_in_full() {
        let digest = Digest::of(b"x");
        for (text, want) in [
            ("nginx", "docker.io/library/nginx"),
            ("nginx:1", "docker.io/library/nginx:1"),
            ("a/b", "docker.io/a/b"),
            ("index.docker.io/a/b", "docker.io/a/b"),
            ("localhost/a", "localhost/a"),
            ("localhost:5000/a:b", "localhost:5000/a:b"),
            ("[::1]:5000/a", "[::1]:5000/a"),
            ("r.example/a/b-c__d:V1.2-x", "r.example/a/b-c__d:V1.2-x"),
        ] {
            assert_eq!(text.parse::<Reference>().unwrap().to_string(), want, "{text}");
        }
        let both: Reference = format!("localhost:5000/a:b@{digest}").parse().unwrap();
        assert_eq!((both.tag.as_deref(), both.digest), (Some("b"), Some(digest)));
        assert_eq!(both.wanted(), digest.to_string());
        assert_eq!(both.familiar(), "localhost:5000/a:b");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for text in
            ["", "a:", "A", "a//b", "/a", "a/", "a:b c", "a@sha256:0", "a@md5:0", "../etc", "a._b"]
        {
            assert!(text.parse::<Reference>().is_err(), "{text}");
        }
    }
}
