//! What is written stands under a name of its own until it is whole, and is swept away where its writer
//! was killed.
//!
//! A lock says that the writer lives. Between making and locking a sweeper may come; what it took has
//! no name any more, and is made again.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::FlockOperation;
use tempfile::{Builder, NamedTempFile, TempDir};

/// How the temporary folders and files are called.
const FOLDER: &str = ".slim-image-";
const FILE: &str = ".slim-part-";
/// Sweepers that come one after the other just then; more than any honest number.
const TRIES: usize = 16;

/// Makes a temporary folder in `parent`, locked as long as the file is open: [`sweep`] leaves it alone.
///
/// # Errors
/// Whatever making and locking it meets.
pub fn unfinished(parent: &Path) -> io::Result<(TempDir, File)> {
    locked(|| {
        let folder = Builder::new().prefix(FOLDER).tempdir_in(parent)?;
        let lock = File::open(folder.path())?;
        Ok((folder, lock))
    })
}

/// Makes a temporary file in `parent`, which [`sweep`] leaves alone as long as it is open.
///
/// # Errors
/// Whatever making and locking it meets.
pub fn part(parent: &Path) -> io::Result<NamedTempFile> {
    let made = locked(|| {
        let file = Builder::new().prefix(FILE).tempfile_in(parent)?;
        let lock = file.as_file().try_clone()?;
        Ok((file, lock))
    });
    made.map(|(file, _)| file)
}

fn locked<T>(make: impl Fn() -> io::Result<(T, File)>) -> io::Result<(T, File)> {
    for _ in 0..TRIES {
        let (made, lock) = match make() {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            made => made?,
        };
        let free = rustix::fs::flock(&lock, FlockOperation::NonBlockingLockShared);
        if free != Err(rustix::io::Errno::WOULDBLOCK) {
            free?;
            if lock.metadata()?.nlink() > 0 {
                return Ok((made, lock));
            }
        }
    }
    make()
}

/// Removes what killed processes left half-made in `folder`.
pub fn sweep(folder: &Path) {
    let Ok(entries) = std::fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let (name, path) = (entry.file_name(), entry.path());
        let is = |prefix: &str| name.as_encoded_bytes().starts_with(prefix.as_bytes());
        let Ok(kind) = entry.file_type() else { continue };
        if !(is(FOLDER) && kind.is_dir() || is(FILE) && kind.is_file()) {
            continue;
        }
        // Held until it is gone: whoever waits for it sees that it has no name.
        let Ok(lock) = File::open(&path) else { continue };
        if rustix::fs::flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            continue;
        }
        let gone = match kind.is_dir() {
            true => std::fs::remove_dir_all(&path),
            false => std::fs::remove_file(&path),
        };
        if let Err(error) = gone {
            tracing::info!("{} of a run that was killed stays: {error}", path.display());
        }
    }
}
