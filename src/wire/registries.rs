//! Mirrors, blocks and other locations: containers-registries.conf(5), version 2.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::{Reference, WireError};

/// One place where an image may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Location {
    pub host: String,
    pub repository: String,
    /// The file allows HTTP, and TLS with certificates that nobody vouches for.
    pub insecure: bool,
}

#[derive(Debug, Clone, Default, Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Registry>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Registry {
    prefix: Option<String>,
    #[serde(default)]
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    blocked: bool,
    #[serde(default)]
    mirror: Vec<Mirror>,
    #[serde(default)]
    mirror_by_digest_only: bool,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default)]
    pull_from_mirror: String,
}

impl Registry {
    fn prefix(&self) -> &str {
        self.prefix.as_deref().filter(|prefix| !prefix.is_empty()).unwrap_or(&self.location)
    }
}

impl Location {
    /// Where the name itself points.
    pub fn of(reference: &Reference) -> Self {
        let (host, repository) = (reference.host.clone(), reference.repository.clone());
        Self { host, repository, insecure: false }
    }
}

/// Where to look for an image, in order: mirrors, then the registry itself.
///
/// # Errors
/// The files forbid the image, or cannot be read.
pub fn locations(reference: &Reference) -> Result<Vec<Location>, WireError> {
    let read: Result<Vec<_>, _> = files().into_iter().map(read).collect();
    choose(reference, &read?)
}

/// Where to push to: the name itself. Of the files only `insecure` counts for that.
///
/// # Errors
/// The files cannot be read.
pub fn target(reference: &Reference) -> Result<Location, WireError> {
    let files: Vec<_> = files().into_iter().map(read).collect::<Result<_, _>>()?;
    let insecure = entry(reference, &files).is_some_and(|(_, entry)| entry.insecure);
    Ok(Location { insecure, ..Location::of(reference) })
}

/// A file with its entries.
type Read = (PathBuf, Vec<Registry>);

/// The entry that counts. A later file replaces an earlier one's entry of the same prefix; the
/// longest prefix counts.
fn entry<'a>(reference: &Reference, files: &'a [Read]) -> Option<(&'a PathBuf, &'a Registry)> {
    let full = reference.to_string();
    let all = files.iter().flat_map(|(path, list)| list.iter().map(move |entry| (path, entry)));
    let fitting = all.filter(|(_, entry)| covers(entry.prefix(), &full, &reference.host));
    fitting.max_by_key(|(_, entry)| entry.prefix().len())
}

fn choose(reference: &Reference, files: &[Read]) -> Result<Vec<Location>, WireError> {
    let Some((path, entry)) = entry(reference, files) else {
        return Ok(vec![Location::of(reference)]);
    };
    if entry.blocked {
        return Err(WireError::Blocked { name: reference.name(), path: path.clone() });
    }
    let by_digest = reference.digest.is_some();
    let used = entry.mirror.iter().filter(|mirror| match mirror.pull_from_mirror.as_str() {
        "digest-only" => by_digest,
        "tag-only" => !by_digest,
        _ => by_digest || !entry.mirror_by_digest_only,
    });
    let places = used.map(|mirror| (mirror.location.as_str(), mirror.insecure));
    let places = places.chain([(entry.location.as_str(), entry.insecure)]);
    places
        .map(|(place, insecure)| rewrite(reference, entry.prefix(), place, insecure, path))
        .collect()
}

/// The name with `prefix` replaced by `place`.
fn rewrite(
    reference: &Reference,
    prefix: &str,
    place: &str,
    insecure: bool,
    path: &Path,
) -> Result<Location, WireError> {
    if place.is_empty() {
        return Ok(Location { insecure, ..Location::of(reference) });
    }
    let name = reference.name();
    // A prefix may go as far as the tag, and then all of the name is replaced.
    let rest = if prefix.starts_with("*.") { "" } else { name.get(prefix.len()..).unwrap_or("") };
    let wild = prefix.starts_with("*.").then(|| format!("{place}/{}", reference.repository));
    let moved = wild.unwrap_or_else(|| format!("{}{rest}", place.trim_end_matches('/')));
    let (host, repository) = moved.split_once('/').ok_or_else(|| WireError::Config {
        path: path.to_owned(),
        why: format!(
            "the location {place:?} for {prefix:?} makes {moved:?}, which is no repository"
        ),
    })?;
    let (host, repository) = (host.to_owned(), repository.to_owned());
    Ok(Location { host, repository, insecure })
}

/// True if `name` begins with `prefix` and goes on with a separator.
fn covers(prefix: &str, name: &str, host: &str) -> bool {
    if let Some(domain) = prefix.strip_prefix('*') {
        let host = host.split(':').next().unwrap_or(host);
        return domain.starts_with('.') && host.ends_with(domain);
    }
    let Some(rest) = name.strip_prefix(prefix) else { return false };
    !prefix.is_empty() && (rest.is_empty() || rest.starts_with(['/', ':', '@']))
}

/// The files that count, the least important first.
fn files() -> Vec<PathBuf> {
    if let Some(named) = std::env::var_os("CONTAINERS_REGISTRIES_CONF") {
        return vec![named.into()];
    }
    let home = super::credentials::home().map(|home| home.join(".config/containers"));
    let folders = [Some(PathBuf::from("/etc/containers")), home];
    // The user's file stands instead of the host's; drop-ins add up.
    let mains = folders.iter().flatten().map(|folder| folder.join("registries.conf"));
    let main = mains.rfind_existing();
    let drops = folders.iter().flatten().flat_map(|f| drop_ins(&f.join("registries.conf.d")));
    main.into_iter().chain(drops).collect()
}

trait RfindExisting: Iterator<Item = PathBuf> + Sized {
    fn rfind_existing(self) -> Option<PathBuf> {
        self.filter(|path| path.exists()).last()
    }
}

impl<I: Iterator<Item = PathBuf>> RfindExisting for I {}

fn drop_ins(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let paths = entries.map(|entry| entry.path());
    let mut found: Vec<_> = paths.filter(|p| p.extension().is_some_and(|e| e == "conf")).collect();
    found.sort();
    found
}

fn read(path: PathBuf) -> Result<Read, WireError> {
    let config = |why: String| WireError::Config { path: path.clone(), why };
    let text = std::fs::read_to_string(&path).map_err(|error| config(error.to_string()))?;
    let file: File = toml::from_str(&text).map_err(|error| config(error.to_string()))?;
    Ok((path, file.registry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn places(name: &str, text: &str) -> Result<Vec<String>, WireError> {
        let file: File = toml::from_str(text).unwrap();
        let found = choose(&name.parse().unwrap(), &[("r.conf".into(), file.registry)])?;
        let show = |l: Location| {
            format!("{}/{}{}", l.host, l.repository, if l.insecure { " insecure" } else { "" })
        };
        Ok(found.into_iter().map(show).collect())
    }

    const FILE: &str = r#"
        [[registry]]
        prefix = "example.com/foo"
        location = "internal.example/bar"
        [[registry.mirror]]
        location = "mirror-0.local/mirror-for-foo"
        [[registry.mirror]]
        location = "mirror-1.local/foo"
        insecure = true
        pull-from-mirror = "digest-only"
        [[registry]]
        location = "registry.com"
        [[registry.mirror]]
        location = "mirror.registry.com"
        [[registry]]
        prefix = "*.wild.example"
        insecure = true
        [[registry]]
        location = "bad.example/team"
        blocked = true
    "#;

    #[test]
    fn the_longest_prefix_decides_where_to_look() {
        let digest = crate::model::Digest::of(b"");
        for (name, want) in [
            ("other.com/a:1", &["other.com/a"][..]),
            ("registry.com/a/b:1", &["mirror.registry.com/a/b", "registry.com/a/b"]),
            ("registry.com.evil/a", &["registry.com.evil/a"]),
            (
                "example.com/foo/image:1",
                &["mirror-0.local/mirror-for-foo/image", "internal.example/bar/image"],
            ),
            ("example.com/foobar:1", &["example.com/foobar"]),
            ("a.b.wild.example:5000/x", &["a.b.wild.example:5000/x insecure"]),
            ("bad.example/other", &["bad.example/other"]),
        ] {
            assert_eq!(places(name, FILE).unwrap(), want, "{name}");
        }
        let pinned = places(&format!("example.com/foo/image@{digest}"), FILE).unwrap();
        assert_eq!(pinned[1], "mirror-1.local/foo/image insecure");
        assert!(matches!(places("bad.example/team/a", FILE), Err(WireError::Blocked { .. })));
    }
}
