//! Paths as a container sees them: bytes, absolute, without `.` and `..`.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A path inside a root file system, without `.` or `..`; never a path on the host.
///
/// Always starts with `/`, has no empty component and no trailing slash (the root itself is `/`).
/// Bytes other than NUL are all allowed, so names need not be UTF-8. Clones share them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RootPath(Arc<[u8]>);

impl RootPath {
    /// The root directory.
    pub fn root() -> Self {
        Self(b"/"[..].into())
    }

    /// Takes `raw` relative to the root: leading `/` and `./`, doubled slashes and inner `.` vanish.
    ///
    /// `None` for a path with `..` or NUL: only a walk that knows the symlinks may resolve `..`.
    pub fn parse(raw: &[u8]) -> Option<Self> {
        if raw.contains(&0) {
            return None;
        }
        let is_clean = |path: &[u8]| {
            path.split(|b| *b == b'/').skip(1).all(|name| !matches!(name, b"" | b"." | b".."))
        };
        if raw.first() == Some(&b'/') && is_clean(raw) {
            return Some(Self(raw.into()));
        }
        let mut path = Vec::with_capacity(raw.len() + 1);
        for name in raw.split(|b| *b == b'/') {
            match name {
                b"" | b"." => {}
                b".." => return None,
                name => {
                    path.push(b'/');
                    path.extend_from_slice(name);
                }
            }
        }
        Some(if path.is_empty() { Self::root() } else { Self(path.into()) })
    }

    /// `==`, at once where one is a clone of the other.
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0) || self == other
    }

    /// The bytes, with the leading slash.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The bytes without the leading slash, as a path relative to a root descriptor (`""` for `/`).
    pub fn relative(&self) -> &[u8] {
        &self.0[1..]
    }

    /// True for `/`.
    pub fn is_root(&self) -> bool {
        *self.0 == *b"/"
    }

    /// The directory that holds this path; `None` for the root.
    pub fn parent(&self) -> Option<Self> {
        if self.is_root() {
            return None;
        }
        match self.0.iter().rposition(|b| *b == b'/') {
            Some(0) | None => Some(Self::root()),
            Some(at) => Some(Self(self.0[..at].into())),
        }
    }

    /// The last component; empty for the root.
    pub fn file_name(&self) -> &[u8] {
        let at = self.0.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        &self.0[at..]
    }

    /// This path and one component below it. `name` must be a plain name: no slash, not `..`.
    pub fn join(&self, name: &[u8]) -> Self {
        debug_assert!(!name.is_empty() && !name.contains(&b'/') && name != b"..");
        let mut path = self.0.to_vec();
        if !self.is_root() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        Self(path.into())
    }

    /// The components, from the root down.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|b| *b == b'/').filter(|n| !n.is_empty())
    }

    /// True if this is `other` or lies below it.
    pub fn is_within(&self, other: &Self) -> bool {
        other.is_root()
            || self.0 == other.0
            || (self.0.starts_with(other.as_bytes()) && self.0.get(other.0.len()) == Some(&b'/'))
    }

    /// True if this lies in the directory `other` itself.
    pub fn is_in(&self, other: &Self) -> bool {
        let at = self.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        !self.is_root() && self.0[..at.max(1)] == *other.0
    }

    /// True if both lie in one directory.
    pub fn is_beside(&self, other: &Self) -> bool {
        let folder = |path: &Self| path.0.iter().rposition(|b| *b == b'/').unwrap_or(0);
        let at = folder(self);
        at == folder(other) && self.0[..at] == other.0[..at]
    }

    /// The parents, nearest first, the root last.
    pub fn ancestors(&self) -> impl Iterator<Item = Self> {
        std::iter::successors(self.parent(), Self::parent)
    }

    /// What [`fmt::Display`] writes; borrowed where nothing is to be escaped.
    pub fn escaped(&self) -> Cow<'_, str> {
        let plain = self.0.iter().all(|b| matches!(b, b' '..=b'~') && *b != b'\\');
        match std::str::from_utf8(&self.0) {
            Ok(text) if plain => Cow::Borrowed(text),
            _ => Cow::Owned(escape(&self.0)),
        }
    }

    /// Reads the escaped form that [`fmt::Display`] writes; `None` if it is not one.
    pub fn from_escaped(text: &str) -> Option<Self> {
        Self::parse(&unescape(text)?)
    }
}

/// Writes bytes as text, the one escape of profiles and reports: a backslash is `\\`, a byte that
/// is no part of printable UTF-8 (control characters included) is `\xHH`.
pub fn escape(raw: &[u8]) -> String {
    let mut out = String::with_capacity(raw.len());
    for chunk in raw.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\\' => out.push_str("\\\\"),
                c if c.is_control() => {
                    let mut buf = [0; 4];
                    c.encode_utf8(&mut buf).bytes().for_each(|b| push_hex(&mut out, b));
                }
                c => out.push(c),
            }
        }
        chunk.invalid().iter().for_each(|b| push_hex(&mut out, *b));
    }
    out
}

fn push_hex(out: &mut String, byte: u8) {
    use std::fmt::Write as _;
    let _ = write!(out, "\\x{byte:02x}");
}

/// The inverse of [`escape`]; `None` for a backslash that starts no escape.
pub fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        if byte != b'\\' {
            out.push(byte);
            continue;
        }
        match rest {
            [b'\\', tail @ ..] => {
                out.push(b'\\');
                rest = tail;
            }
            [b'x', high, low, tail @ ..] => {
                let digit = |b: u8| char::from(b).to_digit(16);
                out.push(u8::try_from(digit(*high)? * 16 + digit(*low)?).ok()?);
                rest = tail;
            }
            _ => return None,
        }
    }
    Some(out)
}

impl fmt::Display for RootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.escaped())
    }
}

impl fmt::Debug for RootPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RootPath({self})")
    }
}

impl Serialize for RootPath {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for RootPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        Self::from_escaped(&text)
            .ok_or_else(|| serde::de::Error::custom(format!("{text:?} is no escaped root path")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_keeps_paths_inside_the_root() {
        for (raw, want) in [
            (&b"./usr//lib/"[..], Some("/usr/lib")),
            (b"/", Some("/")),
            (b"", Some("/")),
            (b"a..b/c", Some("/a..b/c")), // dots inside a name are ordinary
            (b"../etc/shadow", None),
            (b"/a/\0b", None),
        ] {
            let got = RootPath::parse(raw).map(|p| p.to_string());
            assert_eq!(got.as_deref(), want, "parse({raw:?})");
        }
    }

    #[test]
    fn escaping_is_undone_for_any_bytes() {
        for raw in [&b"/a\\b"[..], b"/\xff\xfe", "/\u{e9}t\u{e9}\u{85}".as_bytes(), b"/a\nb\x1b["] {
            let text = escape(raw);
            assert!(text.chars().all(|c| !c.is_control()), "{text:?}");
            assert_eq!(unescape(&text).as_deref(), Some(raw));
        }
        assert_eq!(unescape("\\q"), None);
    }

    #[test]
    fn within_goes_by_components() {
        let path = |s: &str| RootPath::parse(s.as_bytes()).unwrap();
        assert!(path("/usr/lib").is_within(&path("/usr")));
        assert!(!path("/usrx").is_within(&path("/usr")));
        assert!(path("/usr").is_within(&RootPath::root()));
    }
}
