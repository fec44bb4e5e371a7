//! Images in and out: sources, layers, store, index, emit.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use slim::emit::{ImageFormat, write_image};
use slim::model::{Facts, KeepSet, Node, NodeKind, Reason, Reasons, RootPath, Tree};
use slim::oci::Image;
use slim::oci::layer::EntryKind;
use slim::rootfs::{Rootfs, Store, changes, index};
use slim::source::{Access, SourceError};
use slim::sys::mount::overlay;

use crate::support::image::{Attr, ImageFixture, LayerFixture, Packed};

/// Everything stays.
pub fn keep_all(tree: &Tree) -> KeepSet {
    let reasons = Reasons::from(Reason::Policy("/**".into()));
    let paths = tree.nodes.keys().map(|path| (path.clone(), reasons.clone())).collect();
    KeepSet { paths, ..KeepSet::default() }
}

/// What an image must not lose: all but the numbers of layers and inodes, link groups as such.
fn essence(tree: &Tree) -> BTreeMap<RootPath, (Node, RootPath)> {
    let mut first: HashMap<u64, RootPath> = HashMap::new();
    let mut essence = BTreeMap::new();
    for (path, node) in &tree.nodes {
        let group = first.entry(node.inode).or_insert_with(|| path.clone()).clone();
        let node = Node { layer: 0, inode: 0, ..Node::clone(node) };
        essence.insert(path.clone(), (node, group));
    }
    essence
}

pub fn assert_same_tree(got: &Tree, want: &Tree, what: &str) {
    let (got, want) = (essence(got), essence(want));
    for (path, node) in &want {
        assert_eq!(got.get(path), Some(node), "{what}: {path}");
    }
    let extra: Vec<_> = got.keys().filter(|path| !want.contains_key(*path)).collect();
    assert!(extra.is_empty(), "{what}: {extra:?}");
}

/// Compares a tree with a folder that somebody else unpacked.
pub fn on_disk(tree: &Tree, root: &Path, what: &str) {
    let mut seen = BTreeMap::new();
    let mut inodes: HashMap<u64, u64> = HashMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.unwrap();
        let below = entry.path().strip_prefix(root).unwrap();
        let path = RootPath::parse(below.as_os_str().as_bytes()).unwrap();
        seen.insert(path, (entry.path().to_owned(), entry.metadata().unwrap()));
    }
    for (path, node) in &tree.nodes {
        let Some((host, meta)) = seen.remove(path) else { panic!("{what}: {path} is missing") };
        let kind = meta.file_type();
        match &node.kind {
            NodeKind::File { size, .. } => {
                assert!(kind.is_file(), "{what}: {path}");
                assert_eq!(meta.len(), *size, "{what}: {path}");
            }
            NodeKind::Dir => assert!(kind.is_dir(), "{what}: {path}"),
            NodeKind::Symlink { target } => {
                let got = std::fs::read_link(&host).unwrap();
                assert_eq!(got.as_os_str().as_bytes(), target, "{what}: {path}");
            }
            NodeKind::Fifo => assert!(kind.is_fifo(), "{what}: {path}"),
            NodeKind::Char { .. } => assert!(kind.is_char_device(), "{what}: {path}"),
            NodeKind::Block { .. } => assert!(kind.is_block_device(), "{what}: {path}"),
        }
        assert_eq!((meta.uid(), meta.gid()), (node.uid, node.gid), "{what}: owner of {path}");
        if !kind.is_symlink() {
            assert_eq!(meta.mode() & 0o7777, node.mode, "{what}: mode of {path}");
        }
        if !node.implied {
            assert_eq!(meta.mtime(), node.mtime.0, "{what}: time of {path}");
        }
        if !kind.is_dir() {
            let group = *inodes.entry(node.inode).or_insert(meta.ino());
            assert_eq!(group, meta.ino(), "{what}: links of {path}");
        }
    }
    assert!(seen.is_empty(), "{what}: {:?}", seen.keys());
}

fn open(layout: &Path) -> Result<Image, SourceError> {
    slim::source::open(&format!("oci:{}", layout.display()), &Access::platform("linux/amd64"))
}

/// A tree as lines: path, kind, layer, link group.
fn dump(tree: &Tree) -> String {
    let mut first: HashMap<u64, RootPath> = HashMap::new();
    let mut lines = String::new();
    for (path, node) in &tree.nodes {
        let kind = match &node.kind {
            NodeKind::File { size, .. } => format!("file {size}"),
            NodeKind::Dir if node.implied => "dir?".into(),
            NodeKind::Dir => "dir".into(),
            NodeKind::Symlink { target } => format!("-> {}", String::from_utf8_lossy(target)),
            NodeKind::Fifo => "fifo".into(),
            NodeKind::Char { major, minor } => format!("char {major}:{minor}"),
            NodeKind::Block { major, minor } => format!("block {major}:{minor}"),
        };
        lines += &format!("{path} {kind}");
        match first.get(&node.inode) {
            Some(group) => lines += &format!(" = {group}"),
            None => drop(first.insert(node.inode, path.clone())),
        }
        lines += "\n";
    }
    lines
}

/// Names that occur twice in a layer, hard links that leave it: what Docker 20.10 refuses.
fn assert_docker_takes_it(image: &Image, what: &str) {
    for at in 0..image.layers.len() {
        let mut stream = slim::oci::layer::open(image, at).unwrap();
        let mut names = BTreeSet::new();
        while let Some(entry) = stream.next_entry().unwrap() {
            match &entry.kind {
                EntryKind::HardLink { target } => {
                    assert!(names.contains(target), "{what}: {target} is not in layer {at}");
                }
                EntryKind::Whiteout | EntryKind::Opaque => panic!("{what}: a whiteout was left"),
                _ => {}
            }
            assert!(names.insert(entry.path.clone()), "{what}: {} twice", entry.path);
        }
        stream.finish().unwrap();
    }
    assert!(image.layers.len() <= 120, "{what}: {} layers", image.layers.len());
}

/// Unpacks, indexes, writes everything again and compares; mounts the layers where that is allowed.
fn round_trip(fixture: &ImageFixture, what: &str) -> Tree {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = open(&fixture.write(dir.path())).unwrap();
    let store = Store::open(Some(&dir.path().join("store"))).unwrap();
    let rootfs = store.unpack(&image, &|_, _| ()).unwrap();
    assert_same_tree(&index(&image).unwrap(), &rootfs.tree, what);
    assert_same_tree(&store.unpack(&image, &|_, _| ()).unwrap().tree, &rootfs.tree, what);
    as_mounted(&store, &rootfs, what);
    let target = dir.path().join("image.tar");
    let keep = keep_all(&rootfs.tree);
    write_image(&image, &rootfs.tree, &keep, "t:1", ImageFormat::Archive, &target).unwrap();
    let slim = slim::source::open(&target.display().to_string(), &Access::default()).unwrap();
    assert_same_tree(&index(&slim).unwrap(), &rootfs.tree, what);
    assert_docker_takes_it(&slim, what);
    rootfs.tree
}

/// Compares the tree with what the kernel's overlay shows of the folders.
pub fn as_mounted(store: &Store, rootfs: &Rootfs, what: &str) {
    mounted(store, &rootfs.lowers, |merged| on_disk(&rootfs.tree, merged, what));
}

/// Mounts unpacked layers for as long as somebody looks at them.
pub fn mounted(store: &Store, lowers: &[PathBuf], look: impl FnOnce(&Path)) {
    let run = store.new_run().unwrap();
    let make = |name: &str| {
        let path = run.path.join(name);
        std::fs::create_dir(&path).unwrap();
        path
    };
    let (upper, work, merged) = (make("upper"), make("work"), make("merged"));
    overlay(lowers, &upper, &work, &merged).unwrap();
    let _unmount = Unmount(&merged);
    look(&merged);
}

struct Unmount<'a>(&'a Path);

impl Drop for Unmount<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

fn layer() -> LayerFixture {
    LayerFixture::default()
}

fn image(layers: &[LayerFixture]) -> ImageFixture {
    layers.iter().cloned().fold(ImageFixture::default(), ImageFixture::layer)
}

#[test]
fn odd_layers_mean_what_engines_make_of_them() {
    let long = format!("{}/{}", "d".repeat(90), "f".repeat(90));
    let cases: Vec<(&str, Vec<LayerFixture>, String)> = vec![
        ("a name twice", vec![layer().file("a", "1").file("a", "22")], "/a file 2\n".into()),
        (
            "./ and / before names",
            vec![layer().file("./a", "1").file("/b", "1")],
            "/a file 1\n/b file 1\n".into(),
        ),
        ("a parent nobody names", vec![layer().file("a/b", "1")], "/a dir?\n/a/b file 1\n".into()),
        (
            "a GNU long name",
            vec![layer().file(&long, "1")],
            format!("/{} dir?\n/{long} file 1\n", "d".repeat(90)),
        ),
        (
            "a PAX name",
            vec![layer().pax(&[("path", b"x/y")]).file("short", "1")],
            "/x dir?\n/x/y file 1\n".into(),
        ),
        (
            "a name that is no UTF-8",
            vec![layer().raw(b'0', b"\xff", b"", b"1", &Attr::default())],
            "/\\xff file 1\n".into(),
        ),
        (
            "a whiteout before its folder's file",
            vec![layer().file("a/b", "1"), layer().whiteout("a").file("a/c", "1")],
            "/a dir?\n/a/c file 1\n".into(),
        ),
        (
            "a whiteout after",
            vec![layer().file("a/b", "1"), layer().file("a/c", "1").whiteout("a")],
            "/a dir?\n/a/c file 1\n".into(),
        ),
        (
            "a whiteout of nothing",
            vec![layer().file("a", "1"), layer().whiteout("x/y").file("b", "1")],
            "/a file 1\n/b file 1\n".into(),
        ),
        (
            "an opaque folder",
            vec![layer().dir("d").file("d/a", "1"), layer().dir("d").opaque("d").file("d/b", "1")],
            "/d dir\n/d/b file 1\n".into(),
        ),
        (
            "a folder in place of a file",
            vec![layer().file("a", "1"), layer().dir("a").file("a/b", "1")],
            "/a dir\n/a/b file 1\n".into(),
        ),
        (
            "a file in place of a folder",
            vec![layer().dir("a").file("a/b", "1"), layer().file("a", "1")],
            "/a file 1\n".into(),
        ),
        (
            "a folder cut and made again",
            vec![layer().dir("a").file("a/b", "1"), layer().file("a", "1").dir("a")],
            "/a dir\n".into(),
        ),
        (
            "a link into a lower layer",
            vec![layer().file("a", "1"), layer().link("b", "a")],
            "/a file 1\n/b file 1 = /a\n".into(),
        ),
        (
            "a link whose first name goes",
            vec![layer().file("a", "1").link("b", "a"), layer().whiteout("a")],
            "/b file 1\n".into(),
        ),
        (
            "a link into a name removed in the same layer",
            vec![layer().file("a", "1"), layer().link("b", "a").whiteout("a")],
            "/b file 1\n".into(),
        ),
        (
            "a link into a name removed before in the same layer",
            vec![layer().file("d/a", "1"), layer().whiteout("d").link("b", "d/a")],
            "/b file 1\n".into(),
        ),
        (
            "links between folders that a later entry removes",
            vec![layer().file("d/a", "1"), layer().link("b", "d/a").whiteout("d")],
            "/b file 1\n".into(),
        ),
        (
            "a link, then another file under the first name",
            vec![layer().file("a", "1").link("b", "a").file("a", "22")],
            "/a file 2\n/b file 1\n".into(),
        ),
        (
            "a linked symlink",
            vec![layer().symlink("a", "x").link("b", "a")],
            "/a -> x\n/b -> x = /a\n".into(),
        ),
        (
            "a FIFO and a device",
            vec![layer().fifo("f").raw(b'3', b"null", b"", &[1, 3], &Attr::default())],
            "/f fifo\n/null char 1:3\n".into(),
        ),
        ("an empty layer", vec![layer(), layer().file("a", "1"), layer()], "/a file 1\n".into()),
        (
            "a name through a symlink",
            vec![layer().dir("usr/lib").symlink("lib", "usr/lib"), layer().file("lib/a", "1")],
            "/lib -> usr/lib\n/usr dir?\n/usr/lib dir\n/usr/lib/a file 1\n".into(),
        ),
    ];
    for (what, layers, want) in cases {
        assert_eq!(dump(&round_trip(&image(&layers), what)), want, "{what}");
    }
}

#[test]
fn metadata_survives_to_the_bit() {
    let attr = Attr { mode: 0o6755, uid: 70_000, gid: 4_000_000_000, mtime: 1 };
    let caps: &[u8] =
        b"\x01\x00\x00\x02\n=\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let fixture = image(&[layer()
        .pax(&[("SCHILY.xattr.security.capability", caps), ("mtime", b"5.000000007")])
        .raw(b'0', b"su", b"", b"#!/bin/sh\n", &attr)]);
    let tree = round_trip(&fixture, "metadata");
    let node = tree.get(&RootPath::parse(b"/su").unwrap()).unwrap();
    assert_eq!((node.mode, node.uid, node.gid), (0o6755, 70_000, 4_000_000_000));
    assert_eq!(node.mtime, (5, 7));
    assert_eq!(node.xattrs["security.capability"], caps);
    let NodeKind::File { facts, .. } = &node.kind else { panic!("no file") };
    assert!(facts.is_some());
}

#[test]
fn a_large_program_is_looked_into_like_a_small_one() {
    let (attr, small) =
        (Attr { mode: 0o755, ..Attr::default() }, std::fs::read("/bin/sh").unwrap());
    let large = [&small[..], &vec![7; 20 << 20]].concat();
    let fixture = image(&[layer()
        .raw(b'0', b"small", b"", &small, &attr)
        .raw(b'0', b"large", b"", &large, &attr)]);
    let tree = round_trip(&fixture, "a large program");
    let facts = |path: &[u8]| {
        let node = tree.get(&RootPath::parse(path).unwrap()).unwrap();
        let NodeKind::File { facts, .. } = &node.kind else { panic!("no file") };
        facts.clone()
    };
    let Some(Facts::Elf(elf)) = facts(b"/small").map(|facts| *facts) else { panic!("no facts") };
    assert!(elf.interpreter.is_some() && !elf.needed.is_empty(), "{elf:?}");
    assert_eq!(facts(b"/large"), facts(b"/small"));
}

#[test]
fn layers_may_be_plain_or_zstd_and_many() {
    let mixed = ImageFixture::default()
        .packed(layer().file("a", "1"), Packed::Plain)
        .packed(layer().file("b", "1"), Packed::Zstd)
        .packed(layer().file("c", "1"), Packed::Gzip);
    assert_eq!(dump(&round_trip(&mixed, "mixed")), "/a file 1\n/b file 1\n/c file 1\n");
    let many: Vec<_> = (0..240).map(|n| layer().file(&format!("f{n}"), "1")).collect();
    assert_eq!(round_trip(&image(&many), "240 layers").nodes.len(), 240);
}

#[test]
fn what_leaves_the_root_is_refused_and_its_twin_is_not() {
    let cases: Vec<(&str, LayerFixture, LayerFixture)> = vec![
        ("..", layer().file("../x", "1"), layer().file("a/../x", "1")),
        ("deep ..", layer().file("a/../../x", "1"), layer().file("a/b/../../x", "1")),
        ("/..", layer().file("/../x", "1"), layer().file("/x", "1")),
        ("link", layer().link("b", "../../etc/shadow"), layer().file("a", "1").link("b", "/a")),
        (
            "deep link",
            layer().file("a", "1").link("b", "x/../../a"),
            layer().file("a", "1").link("b", "x/../a"),
        ),
        ("whiteout of .", layer().file("a/.wh..", ""), layer().file("a/.wh..x", "")),
        ("whiteout of ..", layer().file("a/.wh...", ""), layer().file("a/.wh....", "")),
        ("root replaced", layer().symlink(".", "/tmp"), layer().symlink("t", "/tmp")),
        (
            "symlink loop",
            layer().symlink("a", "b").symlink("b", "a").file("a/x", "1"),
            layer().symlink("a", "b").symlink("b", "c").file("a/x", "1"),
        ),
    ];
    for (what, bad, good) in cases {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let bad = open(&image(&[bad]).write(dir.path())).unwrap();
        let store = Store::open(Some(&dir.path().join("store"))).unwrap();
        for error in [index(&bad).err(), store.unpack(&bad, &|_, _| ()).err()] {
            let error = error.unwrap_or_else(|| panic!("{what} passed"));
            assert!(error.is_bad_image() && error.to_string().contains("layer 0"), "{error}");
        }
        assert_eq!(store.ls().unwrap(), [], "{what}: nothing half unpacked may look whole");
        round_trip(&image(&[good]), what);
    }
}

/// Symlinks that climb or are absolute are harmless; names through them stay inside.
#[test]
fn names_through_climbing_symlinks_stay_inside() {
    let outside = tempfile::tempdir_in("/var/tmp").unwrap();
    let target = outside.path().to_str().unwrap();
    for link in [target.to_owned(), format!("../../../../../../../..{target}")] {
        let layers = [layer().symlink("out", &link), layer().file("out/x", "1")];
        let tree = round_trip(&image(&layers), &link);
        let inside = RootPath::parse(format!("{target}/x").as_bytes()).unwrap();
        assert!(tree.has(&inside), "{}", dump(&tree));
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    }
}

#[test]
fn damage_is_named() {
    let fixture = image(&[layer().file("a", "1")]).tag("one");
    let blob = |layout: &Path, wanted: fn(&serde_json::Value) -> &serde_json::Value| {
        let read = |path: std::path::PathBuf| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
        };
        let path = |v: &serde_json::Value| {
            layout.join("blobs").join(v["digest"].as_str().unwrap().replace(':', "/"))
        };
        let index = read(layout.join("index.json"));
        let manifest = path(&index["manifests"][0]);
        path(wanted(&read(manifest)))
    };
    let dir = tempfile::tempdir().unwrap();
    let layout = fixture.write(dir.path());
    let stored = blob(&layout, |manifest| &manifest["layers"][0]);
    let whole = std::fs::read(&stored).unwrap();
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    for (bytes, want) in [(flipped, "hashes to"), (whole[1..].to_vec(), "bytes, its manifest says")]
    {
        std::fs::write(&stored, bytes).unwrap();
        let error = index(&open(&layout).unwrap()).unwrap_err();
        assert!(error.is_bad_image() && error.to_string().contains(want), "{error}");
    }
    std::fs::remove_file(&stored).unwrap();
    let error = open(&layout).err().unwrap().to_string();
    assert!(error.contains("layer 0"), "{error}");
    std::fs::write(&stored, &whole).unwrap();
    let config = blob(&layout, |manifest| &manifest["config"]);
    let text = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, text.replace("2020", "2021")).unwrap();
    let error = open(&layout).err().unwrap().to_string();
    assert!(error.contains("configuration") && error.contains("hashes to"), "{error}");
    let error = slim::source::open(&format!("oci:{}:two", layout.display()), &Access::default())
        .err()
        .unwrap();
    assert!(error.to_string().contains("one"), "{error}");
    let error = slim::source::open(&layout.display().to_string(), &Access::platform("linux/s390x"));
    assert!(error.err().unwrap().to_string().contains("linux/amd64"));
    assert!(matches!(
        slim::source::open("/no/such", &Access::default()),
        Err(SourceError::NotFound { .. })
    ));
}

#[test]
fn equal_builds_are_equal_bytes_and_configuration_stays_whole() {
    let config = serde_json::json!({
        "Healthcheck": { "Test": ["CMD", "x"] }, "OnBuild": ["RUN y"], "Shell": ["/bin/z"],
        "ArgsEscaped": true, "Cmd": ["/a"],
    });
    let layers = [layer().file("a", "1"), layer().file("b", "1"), layer().file("c", "1")];
    let fixture = image(&layers).config(config.clone());
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = open(&fixture.write(dir.path())).unwrap();
    let tree = index(&image).unwrap();
    let mut keep = keep_all(&tree);
    keep.paths.remove(&RootPath::parse(b"/b").unwrap());
    let write = |name: &str, format| {
        let target = dir.path().join(name);
        write_image(&image, &tree, &keep, "repo/x-slim:1", format, &target).unwrap();
        target
    };
    let one = write("1.tar", ImageFormat::Archive);
    let two = write("2.tar", ImageFormat::Archive);
    assert!(std::fs::read(&one).unwrap() == std::fs::read(two).unwrap());
    let layout = write("slim", ImageFormat::Layout);
    write("slim", ImageFormat::Layout); // over an older one
    let slim = open(&layout).unwrap();
    let archive = slim::source::open(&one.display().to_string(), &Access::default()).unwrap();
    assert_eq!(slim.manifest_digest, archive.manifest_digest);
    assert_eq!(slim.name.as_deref(), Some("repo/x-slim:1"));
    assert_eq!(dump(&index(&slim).unwrap()), "/a file 1\n/c file 1\n");
    assert_eq!(slim.config.0["config"], config);
    assert_eq!(slim.config.0["created"], image.config.0["created"]);
    let history = slim.config.0["history"].as_array().unwrap();
    let empty: Vec<bool> = history.iter().map(|h| h["empty_layer"] == true).collect();
    assert_eq!(empty, [false, true, false, true]);
    let left = std::fs::read_dir(dir.path())
        .unwrap()
        .filter(|e| e.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
    assert_eq!(left.count(), 0, "temporary folders were left");
}

#[test]
fn clean_leaves_the_living_alone_and_gc_what_is_used() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = open(&image(&[layer().file("a", "1")]).write(dir.path())).unwrap();
    let path = dir.path().join("store");
    let store = Store::open(Some(&path)).unwrap();
    store.unpack(&image, &|_, _| ()).unwrap();
    let run = store.new_run().unwrap();
    for dead in ["runs/deadbeef", "layers/.tmp-dead/fs"] {
        std::fs::create_dir_all(path.join(dead)).unwrap();
    }
    let other = Store::open(Some(&path)).unwrap();
    let cleaned = other.clean().unwrap();
    assert_eq!((cleaned.runs.len(), cleaned.layers.len()), (1, 1));
    assert!(run.path.exists());
    assert!(other.ls().unwrap()[0].in_use);
    assert_eq!(other.gc().unwrap().layers.len(), 0);
    drop(store);
    assert_eq!(other.gc().unwrap().layers.len(), 1);
    assert_eq!(other.ls().unwrap(), []);
    let ran = run.path.clone();
    drop(run);
    assert!(!ran.exists());
}

#[test]
fn the_upper_directory_tells_what_changed() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let layers =
        [layer().dir("d").file("d/a", "1").file("d/b", "1").file("e/x", "1").file("f", "1")];
    let image = open(&image(&layers).write(dir.path())).unwrap();
    let store = Store::open(Some(&dir.path().join("store"))).unwrap();
    let rootfs = store.unpack(&image, &|_, _| ()).unwrap();
    let run = store.new_run().unwrap();
    let make = |name: &str| {
        std::fs::create_dir(run.path.join(name)).unwrap();
        run.path.join(name)
    };
    let (upper, work, merged) = (make("upper"), make("work"), make("merged"));
    overlay(&rootfs.lowers, &upper, &work, &merged).unwrap();
    let unmount = Unmount(&merged);
    std::fs::write(merged.join("d/a"), "changed").unwrap();
    std::fs::remove_file(merged.join("d/b")).unwrap();
    std::fs::write(merged.join("d/new"), "1").unwrap();
    std::fs::remove_dir_all(merged.join("e")).unwrap();
    std::fs::create_dir(merged.join("e")).unwrap();
    drop(unmount);
    let changes = changes(&upper, &rootfs.tree).unwrap();
    let lines: Vec<_> = changes.iter().map(|(path, what)| format!("{path} {what:?}")).collect();
    assert_eq!(lines, ["/d/a Changed", "/d/b Removed", "/d/new Created", "/e/x Removed"]);
}

fn mount(kind: &str, at: &Path, data: &str) {
    let data = std::ffi::CString::new(data).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount(kind, at, kind, flags, Some(data.as_c_str())).unwrap();
}

#[test]
fn a_full_disk_is_named_and_leaves_nothing() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image =
        open(&image(&[layer().file("big", &"x".repeat(4 << 20))]).write(dir.path())).unwrap();
    let small = dir.path().join("small");
    std::fs::create_dir(&small).unwrap();
    mount("tmpfs", &small, "size=1m");
    let unmount = Unmount(&small);
    let store = Store::open(Some(&small)).unwrap();
    let error = store.unpack(&image, &|_, _| ()).err().unwrap();
    assert!(error.to_string().contains("no space left for"), "{error}");
    assert!(error.to_string().contains(small.to_str().unwrap()), "{error}");
    assert!(!error.is_bad_image());
    assert_eq!(std::fs::read_dir(small.join("layers")).unwrap().count(), 0);
    let tree = index(&image).unwrap();
    let target = small.join("image.tar");
    let big = write_image(&image, &tree, &keep_all(&tree), "t", ImageFormat::Archive, &target);
    assert!(big.is_ok(), "four megabytes of one letter pack well: {big:?}");
    drop(unmount);
}

#[test]
fn a_store_on_overlayfs_is_covered_with_a_tmpfs_and_says_so() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = open(&image(&[layer().file("a", "1")]).write(dir.path())).unwrap();
    let make = |name: &str| {
        std::fs::create_dir(dir.path().join(name)).unwrap();
        dir.path().join(name)
    };
    let (lower, upper, work, merged) = (make("l"), make("u"), make("w"), make("m"));
    overlay(&[lower], &upper, &work, &merged).unwrap();
    let outer = Unmount(&merged);
    let path = merged.join("store");
    let store = Store::open(Some(&path)).unwrap();
    let covered = Unmount(&path);
    let rootfs = store.unpack(&image, &|_, _| ()).unwrap();
    assert!(store.warnings()[0].contains("overlayfs"), "{:?}", store.warnings());
    let run = store.new_run().unwrap();
    let inside = |name: &str| {
        std::fs::create_dir(run.path.join(name)).unwrap();
        run.path.join(name)
    };
    let (upper, work, root) = (inside("u"), inside("w"), inside("m"));
    overlay(&rootfs.lowers, &upper, &work, &root).unwrap();
    let inner = Unmount(&root);
    on_disk(&rootfs.tree, &root, "on a tmpfs");
    drop((inner, covered, outer));
}

#[test]
fn archives_may_be_compressed_and_indexes_nest() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let layout = image(&[layer().file("a", "1")]).write(dir.path());
    let plain = open(&layout).unwrap();
    // An index in the index, beside another platform whose blobs are not there.
    let index_json = layout.join("index.json");
    let mut top: serde_json::Value =
        serde_json::from_slice(&std::fs::read(&index_json).unwrap()).unwrap();
    let mut other = top["manifests"][0].clone();
    other["platform"]["architecture"] = "arm64".into();
    other["digest"] = format!("sha256:{}", "0".repeat(64)).into();
    top["manifests"].as_array_mut().unwrap().insert(0, other);
    let nested = top.to_string();
    let digest = slim::model::Digest::of(nested.as_bytes());
    std::fs::write(layout.join("blobs/sha256").join(digest.hex()), &nested).unwrap();
    let outer = serde_json::json!({ "schemaVersion": 2, "manifests": [{
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": digest.to_string(), "size": nested.len() }] });
    std::fs::write(&index_json, outer.to_string()).unwrap();
    assert_eq!(open(&layout).unwrap().manifest_digest, plain.manifest_digest);
    let wanted =
        slim::source::open(&layout.display().to_string(), &Access::platform("linux/s390x"));
    let error = wanted.err().unwrap().to_string();
    assert!(error.contains("linux/amd64") && error.contains("linux/arm64"), "{error}");
    let tar = dir.path().join("image.tar.gz");
    let mut pack = std::process::Command::new("tar");
    pack.arg("-C").arg(&layout).arg("-czf").arg(&tar).arg(".");
    assert!(pack.status().unwrap().success());
    let packed =
        slim::source::open(&tar.display().to_string(), &Access::platform("linux/amd64")).unwrap();
    assert_same_tree(&index(&packed).unwrap(), &index(&plain).unwrap(), "gzip");
}

#[test]
fn sparse_files_of_gnu_tar_are_whole() {
    for format in
        [&["--format=gnu"][..], &["--format=posix"], &["--format=posix", "--sparse-version=0.1"]]
    {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("s");
        let file = std::fs::File::create(&path).unwrap();
        for at in [0, 1 << 20, 3 << 20] {
            std::os::unix::fs::FileExt::write_all_at(&file, b"data", at).unwrap();
        }
        file.set_len(5 << 20).unwrap();
        let mut pack = std::process::Command::new("tar");
        pack.arg("-C").arg(dir.path()).args(["--sparse", "-cf", "-"]).args(format).arg("s");
        let tar = pack.output().unwrap().stdout;
        assert!(tar.len() < 1 << 20, "not sparse: {format:?}");
        let tree = round_trip(&image(&[LayerFixture::of_tar(tar)]), "sparse");
        let node = tree.get(&RootPath::parse(b"/s").unwrap()).unwrap();
        let NodeKind::File { size, content, .. } = &node.kind else { panic!("no file") };
        let want = slim::model::Digest::of(&std::fs::read(&path).unwrap());
        assert_eq!((*size, *content), (5 << 20, want), "{format:?}");
    }
}

#[test]
fn two_processes_share_one_unpacked_layer() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image =
        open(&image(&[layer().file("a", "1"), layer().file("b", "1")]).write(dir.path())).unwrap();
    let path = dir.path().join("store");
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let store = Store::open(Some(&path)).unwrap();
                let rootfs = store.unpack(&image, &|_, _| ()).unwrap();
                assert!(rootfs.lowers.iter().all(|lower| lower.exists()));
            });
        }
    });
    let store = Store::open(Some(&path)).unwrap();
    assert_eq!(store.ls().unwrap().len(), 2);
    assert_eq!(store.clean().unwrap(), slim::rootfs::Cleaned::default());
}
