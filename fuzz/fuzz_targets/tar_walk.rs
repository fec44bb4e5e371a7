//! The walk over a tar: names, numbers, sparse maps, contents.
#![no_main]

use std::io::Read as _;

use libfuzzer_sys::fuzz_target;
use slim::model::{DiffId, Digest};
use slim::oci::layer::{EntryKind, TarReader};

fuzz_target!(|data: &[u8]| {
    let data = slim_fuzz::mend(data);
    let mut tar = TarReader::new(&data[..], 0, DiffId(Digest::from_raw([0; 32])));
    while let Ok(Some(entry)) = tar.next_entry() {
        assert!(!entry.path.components().any(|name| matches!(name, b"." | b"..")));
        let EntryKind::File { size, .. } = entry.kind else { continue };
        if size > 1 << 20 {
            return; // a hole of any size; limits are `LayerStream`'s
        }
        let mut content = Vec::new();
        if tar.read_to_end(&mut content).is_ok() {
            assert_eq!(content.len() as u64, size);
        }
    }
});
