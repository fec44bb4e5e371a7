//! Names inside layers, taken relative to the root (OCI image-spec, layer.md; FACTS of engines).

use crate::model::{RootPath, escape};

/// Bytes of a path that the kernel takes in one call (`PATH_MAX` with its NUL), and of one name in it.
pub(super) const MAX_PATH: usize = 4095;
const MAX_NAME: usize = 255;

/// What an entry's name says, before its type is looked at.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Name {
    Plain(RootPath),
    Whiteout(RootPath),
    Opaque(RootPath),
    /// Bookkeeping of aufs (`.wh..wh.plnk` and the like), which no engine unpacks.
    Ignored,
}

/// Reads an entry's name. A leading `/` or `./` is dropped; `..` is resolved by name, as engines do,
/// and must not climb above the root.
pub(super) fn parse_name(raw: &[u8]) -> Result<Name, String> {
    let path = clean(raw)?;
    // All that follows is about names that begin so.
    if !path.components().any(|name| name.starts_with(b".wh.")) {
        return Ok(Name::Plain(path));
    }
    let last = path.file_name();
    if path.components().any(is_bookkeeping) {
        return Ok(Name::Ignored);
    }
    // Written again, the folder alone would be one: engines would remove what it names.
    let folders = path.components().count().saturating_sub(1);
    if path.components().take(folders).any(|name| name.starts_with(b".wh.")) {
        return Err("a folder named as a whiteout".into());
    }
    let parent = || path.parent().unwrap_or_else(RootPath::root);
    if last == b".wh..wh..opq" {
        return Ok(Name::Opaque(parent()));
    }
    match last.strip_prefix(b".wh.") {
        None => Ok(Name::Plain(path)),
        Some(b"") => Err("a whiteout that names nothing".into()),
        Some(name @ (b"." | b"..")) => {
            Err(format!("a whiteout of `{}`, which leaves its directory", escape(name)))
        }
        Some(name) => Ok(Name::Whiteout(parent().join(name))),
    }
}

fn is_bookkeeping(name: &[u8]) -> bool {
    name.starts_with(b".wh..wh.") && name != b".wh..wh..opq"
}

/// True for a sound name that [`parse_name`] finds to be ignored.
pub(super) fn is_ignored(raw: &[u8]) -> bool {
    raw.split(|b| *b == b'/').any(is_bookkeeping) && parse_name(raw) == Ok(Name::Ignored)
}

/// A path relative to the root, `..` resolved by name; an error says how it leaves the root.
pub(super) fn clean(raw: &[u8]) -> Result<RootPath, String> {
    // `parse` refuses only `..` and NUL.
    let path = RootPath::parse(raw).map_or_else(|| climb(raw), Ok)?;
    let raw = path.as_bytes();
    let long = raw.len() > MAX_NAME && path.components().any(|name| name.len() > MAX_NAME);
    if long || raw.len() > MAX_PATH {
        return Err(format!(
            "a name of more than {MAX_NAME} bytes, or {MAX_PATH} with its folders"
        ));
    }
    Ok(path)
}

/// A name in which `..` takes the name before it away.
fn climb(raw: &[u8]) -> Result<RootPath, String> {
    if raw.contains(&0) {
        return Err("a name with a NUL byte".into());
    }
    let mut names = Vec::new();
    for name in raw.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                let above = || format!("`{}` climbs above the root", escape(raw));
                names.pop().ok_or_else(above)?;
            }
            name => names.push(name),
        }
    }
    RootPath::parse(&names.join(&b'/')).ok_or_else(|| "a name that is no path".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(text: &str) -> RootPath {
        RootPath::parse(text.as_bytes()).unwrap()
    }

    #[test]
    fn names_are_taken_relative_to_the_root() {
        for (raw, want) in [
            ("./usr/bin/", Ok(Name::Plain(path("/usr/bin")))),
            ("/etc/passwd", Ok(Name::Plain(path("/etc/passwd")))),
            ("./", Ok(Name::Plain(path("/")))),
            ("a/../b", Ok(Name::Plain(path("/b")))),
            ("..a/...", Ok(Name::Plain(path("/..a/...")))),
            ("etc/.wh.motd", Ok(Name::Whiteout(path("/etc/motd")))),
            ("etc/.wh..hidden", Ok(Name::Whiteout(path("/etc/.hidden")))),
            ("etc/.wh....", Ok(Name::Whiteout(path("/etc/...")))),
            ("etc/.wh..wh..opq", Ok(Name::Opaque(path("/etc")))),
            (".wh..wh..opq", Ok(Name::Opaque(path("/")))),
            (".wh..wh.plnk/1.2", Ok(Name::Ignored)),
        ] {
            assert_eq!(parse_name(raw.as_bytes()), want, "{raw}");
        }
    }

    #[test]
    fn names_that_leave_the_root_are_refused() {
        for raw in ["..", "../x", "/../x", "a/../../x", "a/.wh..", "a/.wh...", ".wh.", "a\0b"] {
            assert!(parse_name(raw.as_bytes()).is_err(), "{raw:?}");
        }
    }
}
