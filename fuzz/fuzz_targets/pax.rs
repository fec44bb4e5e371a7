//! One entry after a PAX header that is all the fuzzer's.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slim::model::{DiffId, Digest};
use slim::oci::layer::TarReader;

fuzz_target!(|data: &[u8]| {
    let mut tar = slim_fuzz::header(b'x', data.len()).to_vec();
    tar.extend(data);
    tar.resize(tar.len().next_multiple_of(512), 0);
    tar.extend(slim_fuzz::header(b'0', 0));
    let mut tar = TarReader::new(&tar[..], 0, DiffId(Digest::from_raw([0; 32])));
    if let Ok(Some(entry)) = tar.next_entry() {
        let text = serde_json::to_vec(&entry).expect("an entry is plain data");
        let again: slim::oci::layer::Entry = serde_json::from_slice(&text).expect("it is read");
        assert_eq!(again, entry);
    }
});
