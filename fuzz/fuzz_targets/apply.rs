//! Layers of few names, one on the other: whiteouts, links, replaced kinds. The tree must stay one.
#![no_main]

use libfuzzer_sys::fuzz_target;
use slim::model::{DiffId, Digest, NodeKind, RootPath};
use slim::oci::apply::Stack;
use slim::oci::layer::{Entry, EntryKind, Meta};

/// A path of at most three one-letter names, out of one byte.
fn path(byte: u8) -> RootPath {
    let names = [byte & 3, byte >> 2 & 3, byte >> 4 & 3];
    let names = names.iter().take(1 + usize::from(byte >> 6) % 3);
    let text: Vec<u8> = names.flat_map(|n| [b'/', b'a' + n]).collect();
    RootPath::parse(&text).expect("letters")
}

fuzz_target!(|data: &[u8]| {
    let mut stack = Stack::default();
    stack.begin_layer(DiffId(Digest::from_raw([0; 32])));
    for bytes in data.chunks_exact(3).take(200) {
        let other = path(bytes[2]);
        let kind = match bytes[0] % 9 {
            0 => {
                stack.begin_layer(DiffId(Digest::from_raw([bytes[1]; 32])));
                continue;
            }
            1 => EntryKind::File { size: 0, content: None, facts: None },
            2 => EntryKind::Dir,
            3 => EntryKind::Symlink { target: other.as_bytes().to_vec() },
            4 => EntryKind::Symlink { target: [b"../", other.relative()].concat() },
            5 => EntryKind::HardLink { target: other },
            6 => EntryKind::Whiteout,
            7 => EntryKind::Opaque,
            _ => EntryKind::Fifo,
        };
        let _ = stack.apply(&Entry { path: path(bytes[1]), kind, meta: Meta::default() });
    }
    let tree = stack.into_tree();
    for path in tree.nodes.keys() {
        for parent in path.ancestors().filter(|p| !p.is_root()) {
            let node = tree.get(&parent).unwrap_or_else(|| panic!("{path} has no {parent}"));
            assert_eq!(node.kind, NodeKind::Dir, "{path} lies in {parent}");
        }
    }
});
