//! Layers of entries whose names are all the fuzzer's: which are whiteouts, what they take away, what stays.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use slim::model::{DiffId, Digest, NodeKind, RootPath};
use slim::oci::apply::Stack;
use slim::oci::layer::{Entry, EntryKind, TarReader};

/// Paths, and whether they are folders.
type Model = BTreeMap<RootPath, bool>;

/// The entries of a layer of empty files and folders (a name that ends in a slash), a name a line.
fn entries(names: &[u8]) -> Option<Vec<Entry>> {
    let mut tar = Vec::new();
    for name in names.split(|b| *b == b'\n').filter(|n| !n.is_empty()).take(16) {
        tar.extend(slim_fuzz::header(b'L', name.len()));
        tar.extend(name);
        tar.resize(tar.len().next_multiple_of(512), 0);
        tar.extend(slim_fuzz::header(if name.ends_with(b"/") { b'5' } else { b'0' }, 0));
    }
    let mut tar = TarReader::new(&tar[..], 0, DiffId(Digest::from_raw([0; 32])));
    let mut all = Vec::new();
    while let Some(entry) = tar.next_entry().ok()? {
        all.push(entry);
    }
    Some(all)
}

fn is_whiteout(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::Whiteout | EntryKind::Opaque)
}

/// What image-spec's layer.md says, told in the order that it asks for: whiteouts come first.
fn told(model: &mut Model, entries: &[Entry]) {
    for entry in entries.iter().filter(|e| is_whiteout(e)) {
        let itself = entry.kind == EntryKind::Whiteout;
        model.retain(|path, _| !path.is_within(&entry.path) || *path == entry.path && !itself);
    }
    for entry in entries.iter().filter(|e| !is_whiteout(e) && !e.path.is_root()) {
        for parent in entry.path.ancestors().filter(|p| !p.is_root()) {
            model.insert(parent, true);
        }
        let dir = entry.kind == EntryKind::Dir;
        if !dir {
            model.retain(|path, _| !path.is_within(&entry.path));
        }
        model.insert(entry.path.clone(), dir);
    }
}

fn found(stack: &Stack) -> Model {
    let nodes = stack.tree().nodes.iter();
    nodes.map(|(path, node)| (path.clone(), node.kind == NodeKind::Dir)).collect()
}

fuzz_target!(|data: &[u8]| {
    let (mut asked, mut mixed, mut model) = (Stack::default(), Stack::default(), Model::new());
    // Layers are divided by a byte that names do not need.
    for (n, names) in (1..).zip(data.split(|b| *b == 0xff).take(4)) {
        let Some(entries) = entries(names) else { return };
        for entry in &entries {
            let mut names = entry.path.components();
            assert!(!names.any(|name| name.starts_with(b".wh.")), "{}", entry.path);
        }
        let (first, then): (Vec<&Entry>, _) = entries.iter().partition(|e| is_whiteout(e));
        asked.begin_layer(DiffId(Digest::from_raw([n; 32])));
        mixed.begin_layer(DiffId(Digest::from_raw([n; 32])));
        for entry in first.into_iter().chain(then) {
            asked.apply(entry).expect("no links, few names");
        }
        for entry in &entries {
            mixed.apply(entry).expect("no links, few names");
        }
        told(&mut model, &entries);
        assert_eq!(found(&asked), model, "{entries:?}");
        assert_eq!(found(&mixed), model, "whiteouts are of the layers below, wherever they stand");
    }
});
