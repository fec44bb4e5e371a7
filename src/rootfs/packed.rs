//! Layers of results, packed: `packed/KEY/{blob,note,lock}`, for the next image that has the same ones.
//!
//! What is here can be made again, so nothing is synced, nothing is an error, and the oldest goes when
//! room is short. Whoever reads a blob checks it.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::model::Digest;
use crate::sys::temporary;

use super::RootfsError;
use super::housekeeping::{disk_bytes, remove_unused};
use super::store::{Store, TEMPORARY, new_locked};

pub(super) const PACKED: &str = "packed";
const BLOB: &str = "blob";
const NOTE: &str = "note";
/// All of them together take no more than this, nor than a tenth of what is free beside them.
const MOST: u64 = 4 << 30;

impl Store {
    /// The note and the blob that were kept under `key`.
    pub fn packed(&self, key: Digest) -> Option<(Vec<u8>, File)> {
        let folder = self.path.join(PACKED).join(key.hex());
        let blob = File::open(folder.join(BLOB)).ok()?;
        let note = std::fs::read(folder.join(NOTE)).ok()?;
        // The time says which one was of use last; whether it can be set matters to no one else.
        let _ = File::options()
            .append(true)
            .open(folder.join(NOTE))
            .map(|note| note.set_modified(SystemTime::now()));
        Some((note, blob))
    }

    /// Keeps a copy of `blob` under `key`, if there is room.
    pub fn keep_packed(&self, key: Digest, note: &[u8], blob: &Path) {
        if let Err(error) = self.try_to_keep(key, note, blob) {
            tracing::info!(%error, "a packed layer is not kept in the store");
        }
    }

    fn try_to_keep(&self, key: Digest, note: &[u8], blob: &Path) -> Result<(), RootfsError> {
        let Some(room) = self.room()? else { return Ok(()) };
        let found = std::fs::metadata(blob).map_err(|e| RootfsError::io("look at", blob, e))?;
        if found.len() > room {
            return Ok(());
        }
        let all = self.folder(PACKED)?;
        let (folder, lock) = {
            let _guard = self.lock_store()?;
            new_locked(&all, TEMPORARY)?
        };
        let copied = std::fs::copy(blob, folder.join(BLOB));
        let noted = copied.and_then(|_| std::fs::write(folder.join(NOTE), note));
        let _guard = self.lock_store()?;
        drop(lock);
        let last = all.join(key.hex());
        // One that is there already did not serve.
        remove_unused(&last)?;
        let named = noted.and_then(|()| std::fs::rename(&folder, &last));
        if let Err(error) = named {
            remove_unused(&folder)?;
            return Err(RootfsError::io("write", &folder, error));
        }
        self.make_room(room)
    }

    /// How many bytes packed layers may take; `None` where files are memory.
    fn room(&self) -> Result<Option<u64>, RootfsError> {
        let free = temporary::room(&self.path);
        let free = free.map_err(|e| RootfsError::io("look at the store", &self.path, e))?;
        Ok(free.map(|free| MOST.min(free / 10)))
    }

    /// Removes the ones whose last use is longest ago.
    fn make_room(&self, room: u64) -> Result<(), RootfsError> {
        let used = |folder: &PathBuf| folder.join(NOTE).metadata().and_then(|m| m.modified()).ok();
        let mut all: Vec<_> =
            self.list(PACKED)?.into_iter().filter_map(|f| Some((used(&f)?, f))).collect();
        all.sort_by_key(|(used, _)| std::cmp::Reverse(*used));
        let mut taken = 0;
        for (_, folder) in all {
            taken += disk_bytes(&folder);
            if taken > room {
                remove_unused(&folder)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn the_least_recently_used_go_first() {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let store = Store::open(Some(&folder.path().join("store"))).unwrap();
        let blob = folder.path().join("blob");
        std::fs::write(&blob, vec![7; 64 << 10]).unwrap();
        let [first, second, third] = [b"1", b"2", b"3"].map(|name| Digest::of(name));
        for key in [first, second, third] {
            store.keep_packed(key, b"note", &blob);
        }
        let note = |key: Digest| store.path.join(PACKED).join(key.hex()).join(NOTE);
        for (age, key) in [(300, first), (200, second), (100, third)] {
            let long_ago = SystemTime::now() - Duration::from_secs(age);
            File::options().append(true).open(note(key)).unwrap().set_modified(long_ago).unwrap();
        }
        let (said, mut found) = store.packed(first).unwrap();
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut found, &mut bytes).unwrap();
        assert_eq!((said, bytes), (b"note".to_vec(), vec![7; 64 << 10]));
        store.make_room(2 * disk_bytes(note(first).parent().unwrap())).unwrap();
        let left = [first, second, third].map(|key| store.packed(key).is_some());
        assert_eq!(left, [true, false, true], "the second one was of use longest ago");
        store.make_room(0).unwrap();
        assert_eq!(store.ls().unwrap(), []);
    }
}
