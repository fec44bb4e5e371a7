//! Names resolved inside a root file system, the way a process chrooted there sees them.
//!
//! Nothing runs in the container yet, so walking by name is safe: nobody swaps a component meanwhile.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Component, Path, PathBuf};

/// As many links as Linux follows (path_resolution(7)).
const MOST_LINKS: usize = 40;

/// Where `path` leads inside `root`, symlinks followed, never leaving it; a tail that does not exist
/// is kept as it is. `ELOOP` for too many links.
pub fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut todo = VecDeque::new();
    push_front(&mut todo, path);
    let (mut here, mut links) = (Vec::<OsString>::new(), 0);
    while let Some(name) = todo.pop_front() {
        if name == ".." {
            here.pop();
            continue;
        }
        let at = join(root, &here).join(&name);
        let Ok(target) = std::fs::read_link(&at) else {
            here.push(name);
            continue;
        };
        links += 1;
        if links > MOST_LINKS {
            return Err(io::Error::from_raw_os_error(libc::ELOOP));
        }
        if target.is_absolute() {
            here.clear();
        }
        push_front(&mut todo, &target);
    }
    Ok(join(root, &here))
}

/// Makes the directory `path` inside `root` (0755, root's) with its parents, if it is not there; where
/// it is, without `root`.
pub fn ensure_dir(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let at = resolve(root, path)?;
    std::fs::DirBuilder::new().recursive(true).mode(0o755).create(&at)?;
    Ok(at.strip_prefix(root).unwrap_or(&at).to_owned())
}

/// The text of a file inside `root`; `None` if it cannot be read.
pub fn read(root: &Path, path: &str) -> Option<String> {
    let bytes = std::fs::read(resolve(root, Path::new(path)).ok()?).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

fn push_front(todo: &mut VecDeque<OsString>, path: &Path) {
    let names = path.components().filter_map(|component| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        _ => None,
    });
    for name in names.collect::<Vec<_>>().into_iter().rev() {
        todo.push_front(name);
    }
}

fn join(root: &Path, names: &[OsString]) -> PathBuf {
    names.iter().fold(root.to_owned(), |path, name| path.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_inside_the_root() {
        let dir = tempfile::tempdir().expect("a folder");
        let root = dir.path();
        std::fs::create_dir_all(root.join("srv/data")).expect("a directory");
        for (target, link) in [
            ("/srv/data", "absolute"),
            ("../../../../srv", "climbing"),
            ("loop", "loop"),
            ("data/new", "srv/dangling"),
        ] {
            symlink(target, root.join(link)).expect("a link");
        }
        for (path, want) in [
            ("/absolute/x", "srv/data/x"),
            ("climbing/data", "srv/data"),
            ("/../../etc", "etc"),
            ("/srv/dangling/deep", "srv/data/new/deep"),
            ("/", ""),
        ] {
            let got = resolve(root, Path::new(path)).expect(path);
            assert_eq!(got, if want.is_empty() { root.into() } else { root.join(want) }, "{path}");
        }
        let error = resolve(root, Path::new("/loop")).expect_err("a loop");
        assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
        ensure_dir(root, Path::new("/srv/dangling/deep")).expect("made");
        assert!(root.join("srv/data/new/deep").is_dir());
    }
}
