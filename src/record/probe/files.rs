//! fanotify, tried on a small overlay in a mount namespace of its own.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::path::Path;

use crate::model::{Lack, Offer};
use crate::record::{RecordError, fanotify_error};
use crate::sys::fanotify::{Group, Seen, seen};
use crate::sys::mount;

const COSTS: &str = "no recorder that sees every file: opens by io_uring, by the ELF loader and in the kernel \
                     would be missing";

/// What was seen of two opens of one file.
struct Watched {
    /// The first was reported.
    first: bool,
    /// The ignore mark was taken, and the second was not reported.
    once: Result<bool, io::Error>,
}

/// The offers `fanotify` and `ignore_marks`.
pub(super) fn probe(folder: &Path) -> (Offer, Offer) {
    let watched = Group::new()
        .map_err(|error| {
            let RecordError::Fanotify { way_out, source } = fanotify_error(error) else {
                unreachable!("it makes no other");
            };
            Lack::new(format!("fanotify_init: {source}"), COSTS, way_out)
        })
        .and_then(|group| watch(folder, &group));
    let (fanotify, marks) = match watched {
        Ok(Watched { first: true, once }) => {
            let found = "opens on an overlay are reported, on a queue without a bound";
            (Ok(found.to_owned()), once_only(once))
        }
        Ok(_) => {
            let why = "an open on an overlay was not reported";
            (Err(Lack::new(why, COSTS, "use Linux 5.0 or newer")), Err(untried()))
        }
        Err(lack) => (Err(lack), Err(untried())),
    };
    (Offer::new("fanotify", fanotify), Offer::new("ignore_marks", marks))
}

fn untried() -> Lack {
    Lack::new("not tried without fanotify", "see fanotify", "see fanotify")
}

fn once_only(once: Result<bool, io::Error>) -> Result<String, Lack> {
    let costs = "files that stay marked stay in memory as well until the run ends";
    let way_out = "use Linux 6.0 or newer; slim uses the older kind of mark meanwhile";
    match once {
        Ok(true) => Ok("a file is reported once, and its mark may be evicted".to_owned()),
        Ok(false) => Err(Lack::new("a marked file was reported again", costs, way_out)),
        Err(error) => Err(Lack::of(&error, costs, way_out)),
    }
}

fn watch(folder: &Path, group: &Group) -> Result<Watched, Lack> {
    let way_out = "see the row overlayfs";
    let told = |error: mount::MountError| Lack::of(&error, COSTS, way_out);
    let work = || {
        let base = mount_overlay(folder).map_err(|error| Lack::of(&error, COSTS, way_out))?;
        watch_file(group, &base.join("root"))
            .map_err(|error| Lack::of(&error, COSTS, "use Linux 5.0 or newer"))
    };
    mount::in_private(work).map_err(told)?
}

/// An overlay with one file, in memory: whether the store's file system takes one is another row.
fn mount_overlay(folder: &Path) -> io::Result<std::path::PathBuf> {
    let told = |error: mount::MountError| {
        io::Error::new(error.source.kind(), format!("{error}: {}", error.source))
    };
    mount::tmpfs(folder).map_err(told)?;
    for name in ["lower", "upper", "work", "root"] {
        std::fs::create_dir(folder.join(name))?;
    }
    std::fs::write(folder.join("lower/file"), "")?;
    let [lower, upper, work, root] = ["lower", "upper", "work", "root"].map(|n| folder.join(n));
    mount::overlay(&[lower], &upper, &work, &root).map_err(told)?;
    Ok(folder.to_path_buf())
}

fn watch_file(group: &Group, root: &Path) -> io::Result<Watched> {
    group.mark_filesystem(root)?;
    let path = root.join("file");
    drop(File::open(&path)?);
    let first = opens(group)?;
    let file = File::open(&path)?;
    group.read()?;
    let what = Seen { open: true, exec: false, dir: false, overflow: false, pid: 0 };
    let once = group.ignore_evictable(file.as_fd(), what).and_then(|()| {
        drop(File::open(&path)?);
        Ok(!opens(group)?)
    });
    Ok(Watched { first, once })
}

fn opens(group: &Group) -> io::Result<bool> {
    Ok(group.read()?.iter().any(|event| seen(event).open))
}
