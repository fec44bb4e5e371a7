//! What the written image is like: whole layers, compression, names, edits.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{BufRead as _, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use slim::emit::{
    Base, Compression, Edits, Emitted, ImageFormat, Order, PackedLayers, Packing, Places,
};
use slim::keep::Foresight;
use slim::model::{Digest, KeepSet, Policy, Reason, RootPath, Tree};
use slim::oci::{BlobSource, Image, KnownPlaces};
use slim::rootfs::{Room, Store, Wish, index, index_aside};
use slim::source::Access;

use crate::images::{as_mounted, assert_same_tree, keep_all};
use crate::support::engines::{Docker, Engine as _};
use crate::support::image::{Attr, ImageFixture, LayerFixture, Packed};
use crate::support::registry::noise;
use crate::support::{Need, have, json, outcome, sh, slim};

fn path(text: &str) -> RootPath {
    RootPath::parse(text.as_bytes()).unwrap()
}

fn layer() -> LayerFixture {
    LayerFixture::default()
}

fn open(path: &Path) -> Image {
    slim::source::open(&path.display().to_string(), &Access::default()).unwrap()
}

fn all_but(tree: &Tree, dropped: &[&str]) -> KeepSet {
    let mut keep = keep_all(tree);
    dropped.iter().for_each(|gone| drop(keep.paths.remove(&path(gone)).unwrap()));
    keep
}

/// Writes `keep` of an image into `dir/NAME`, a layout.
fn write(
    image: &Image,
    tree: &Tree,
    keep: &KeepSet,
    base: Option<&Base>,
    packing: Packing,
    target: &Path,
) -> (Emitted, Image) {
    let (tags, edits) = (["t:1".to_owned()], Edits::default());
    let order = Order { base, packing, ..Order::new(image, tree, keep, &tags, &edits) };
    let emitted = slim::emit::write(&order, target).unwrap();
    (emitted, open(target))
}

fn packing(compression: Compression, threads: usize) -> Packing {
    Packing { compression, level: None, threads }
}

/// A base with two folders, something that changes a file, something that adds one.
fn three_layers(packed: Packed) -> ImageFixture {
    [
        layer().dir("etc").file("etc/a", "a").dir("usr").file("usr/b", "b").link("usr/c", "usr/b"),
        layer().dir("etc").file("etc/d", "d").file("e", "e"),
        layer().dir("usr").file("usr/f", "f"),
    ]
    .into_iter()
    .fold(ImageFixture::default(), |image, layer| image.packed(layer, packed))
}

#[test]
fn a_layer_that_loses_nothing_passes_byte_for_byte() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = open(&three_layers(Packed::Gzip).write(dir.path()));
    let tree = index(&image).unwrap();
    for (at, (dropped, whole)) in [
        (vec![], [true, true, true]),
        (vec!["/e"], [true, false, true]),
        (vec!["/usr/c"], [false, true, true]),
        (vec!["/etc/a", "/usr/f"], [false, true, false]),
    ]
    .into_iter()
    .enumerate()
    {
        let keep = all_but(&tree, &dropped);
        let target = dir.path().join(format!("slim{at}"));
        let (emitted, slim) = write(&image, &tree, &keep, None, Packing::default(), &target);
        let got: Vec<bool> = emitted.layers.iter().map(|layer| layer.whole).collect();
        assert_eq!(got, whole, "{dropped:?}");
        for (at, whole) in whole.into_iter().enumerate() {
            let same = slim.layers[at].blob == image.layers[at].blob;
            assert_eq!(same, whole, "{dropped:?}: layer {at}");
        }
        let mut want = tree.clone();
        dropped.iter().for_each(|gone| drop(want.nodes.remove(&path(gone))));
        assert_same_tree(&index(&slim).unwrap(), &want, &format!("{dropped:?}"));
    }
}

#[test]
fn the_manifest_is_annotated_as_the_original_but_for_its_base() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let name = |last: &str| format!("org.opencontainers.image.{last}");
    let fixture = three_layers(Packed::Gzip)
        .annotation(&name("source"), "https://example.org/x")
        .annotation(&name("base.name"), "debian")
        .annotation(&name("base.digest"), "sha256:00");
    let image = open(&fixture.write(dir.path()));
    let tree = index(&image).unwrap();
    let (keep, target) = (all_but(&tree, &["/e"]), dir.path().join("slim"));
    let (_, slim) = write(&image, &tree, &keep, None, Packing::default(), &target);
    let get = |last: &str| slim.annotations.get(&name(last)).map(String::as_str);
    assert_eq!(get("source"), Some("https://example.org/x"));
    assert_eq!(get("base.name"), None);
    assert_eq!(get("base.digest"), Some(image.manifest_digest.to_string().as_str()));
}

#[test]
fn what_a_whole_layer_may_not_have() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    for (at, (why, layers, whole)) in [
        ("a file that is replaced", [layer().file("a", "1"), layer().file("a", "2")], vec![true]),
        ("a whiteout", [layer().file("a", "1"), layer().file("b", "2").whiteout("a")], vec![false]),
        (
            "a name twice",
            [layer().file("a", "1").file("a", "2"), layer().file("b", "1")],
            vec![false, true],
        ),
        (
            "a link into a layer below",
            [layer().file("a", "1"), layer().link("b", "a")],
            vec![true, false],
        ),
        ("a folder that is replaced", [layer().dir("a"), layer().symlink("a", "b")], vec![true]),
    ]
    .into_iter()
    .enumerate()
    {
        let fixture = layers.into_iter().fold(ImageFixture::default(), ImageFixture::layer);
        let folder = dir.path().join(at.to_string());
        let image = open(&fixture.write(&folder));
        let tree = index(&image).unwrap();
        let target = folder.join("slim");
        let (emitted, slim) =
            write(&image, &tree, &keep_all(&tree), None, Packing::default(), &target);
        let got: Vec<bool> = emitted.layers.iter().map(|layer| layer.whole).collect();
        assert_eq!(got, whole, "{why}");
        assert_same_tree(&index(&slim).unwrap(), &tree, why);
    }
}

#[test]
fn compression_changes_how_a_layer_is_stored_and_never_what_it_is() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    // Several blocks, of text that compresses and of noise that does not.
    let text = "slim ".repeat(300_000);
    let noise: String = (0..900_000u32)
        .map(|n| char::from(33 + (n.wrapping_mul(2_654_435_761) >> 24) as u8 % 90))
        .collect();
    let fixture =
        [layer().file("a", &text).file("b", &noise).file("gone", "1"), layer().file("c", "1")];
    let fixture = fixture.into_iter().fold(ImageFixture::default(), ImageFixture::layer);
    let image = open(&fixture.write(dir.path()));
    let tree = index(&image).unwrap();
    let keep = all_but(&tree, &["/gone"]);
    let mut diff_ids = BTreeSet::new();
    for (compression, suffix) in
        [(Compression::Gzip, "+gzip"), (Compression::Zstd, "+zstd"), (Compression::None, "")]
    {
        let mut digests = BTreeSet::new();
        for threads in [1, 2, 5] {
            let target = dir.path().join(format!("{compression:?}{threads}"));
            let (emitted, slim) =
                write(&image, &tree, &keep, None, packing(compression, threads), &target);
            digests.insert((emitted.manifest_digest, emitted.layers[0].digest));
            diff_ids.insert(slim.diff_ids());
            let kind = format!("application/vnd.oci.image.layer.v1.tar{suffix}");
            assert!(slim.layers.iter().all(|layer| layer.media_type == kind), "{kind}");
            // Whatever is compressed otherwise than the original is compressed again, its tar as it was.
            assert!(emitted.layers[1].whole);
            let same_blob = slim.layers[1].blob == image.layers[1].blob;
            assert_eq!(same_blob, compression == Compression::Gzip);
            let mut want = tree.clone();
            want.nodes.remove(&path("/gone"));
            assert_same_tree(&index(&slim).unwrap(), &want, &kind);
            let blob = target.join("blobs/sha256").join(emitted.layers[0].digest.hex());
            if compression == Compression::Gzip && have(&[Need::Program("gzip")]) {
                let named = dir.path().join("layer.gz");
                std::fs::copy(blob, &named).unwrap();
                sh("gzip", &["-t", named.to_str().unwrap()]);
            }
        }
        assert_eq!(digests.len(), 1, "{compression:?}: the threads show");
        let layer = digests.first().unwrap().1.hex();
        let pinned = match compression {
            Compression::Gzip => "2275c96ffde47ccf827c43ea039e67e77b25f35c9507ed4d57da08db09d258d8",
            Compression::Zstd => "1d466d32a3a21d190d25f656881671942a9aa10be8dfb785bd098e52bb9ce1ca",
            Compression::None => "110789b03c7d2cbd1d9987bb13c727065502204e7c4b9dc1c6758c5330ae8b3e",
        };
        assert_eq!(layer, pinned, "other bytes than before: count REVISION in emit/packed.rs up");
    }
    assert_eq!(diff_ids.len(), 1);
}

/// The store as a place for packed layers, which counts what it gave.
struct Counting<'a>(&'a Store, std::cell::Cell<usize>);

impl PackedLayers for Counting<'_> {
    fn find(&self, key: Digest) -> Option<(Vec<u8>, File)> {
        let found = self.0.packed(key);
        self.1.set(self.1.get() + usize::from(found.is_some()));
        found
    }

    fn keep(&self, key: Digest, note: &[u8], blob: &Path) {
        self.0.keep_packed(key, note, blob);
    }
}

/// Counts how often layers are read.
struct Opened {
    inner: Arc<dyn BlobSource>,
    times: Mutex<BTreeMap<usize, usize>>,
}

impl BlobSource for Opened {
    fn open(&self, index: usize) -> std::io::Result<Box<dyn Read + Send>> {
        *self.times.lock().unwrap().entry(index).or_default() += 1;
        self.inner.open(index)
    }

    fn file(&self, index: usize) -> Option<(Arc<File>, u64)> {
        self.inner.file(index)
    }
}

#[test]
fn a_layer_of_which_something_stays_is_read_once() {
    let room = slim::sys::temporary::room(&slim::sys::temporary::folder()).unwrap();
    assert!(room.is_some(), "TMPDIR, or /var/tmp, has to lie on a disk");
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let large: String = (0..100_000).map(|n| format!("{n}\n")).collect();
    let records = [
        ("GNU.sparse.major", &b"1"[..]),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"holes"),
        ("GNU.sparse.realsize", b"5"),
    ];
    let sparse = format!("{:\0<512}end", "1\n2\n3\n");
    let fixture = [
        layer().file("a", "1").file("gone", "1").file("large", &large),
        layer().dir("d").file("d/b", "2").link("d/c", "d/b").file("gone too", "2"),
        layer().file("f", "3").pax(&records).file("holes", &sparse).file("x", ""),
    ];
    let fixture = fixture.into_iter().fold(ImageFixture::default(), ImageFixture::layer);
    let layout = open(&fixture.write(dir.path()));
    let archive = dir.path().join("plain.tar");
    let tree = index(&layout).unwrap();
    let (tags, edits) = (["t:1".to_owned()], Edits::default());
    let keep = all_but(&tree, &[]);
    let order = Order::new(&layout, &tree, &keep, &tags, &edits);
    let packing = packing(Compression::None, 1);
    let order = Order { format: ImageFormat::Archive, packing, ..order };
    slim::emit::write(&order, &archive).unwrap();
    let archive = open(&archive);
    let write = |image: &Image, foreseen: Option<&[&str]>| {
        let times = Mutex::default();
        let opened = Arc::new(Opened { inner: Arc::clone(&image.blobs), times });
        let image = Image { blobs: Arc::clone(&opened) as Arc<dyn BlobSource>, ..image.clone() };
        let keep: Vec<String> =
            foreseen.unwrap_or_default().iter().map(|g| g.to_string()).collect();
        let policy = Policy { keep, ..Policy::default() };
        let foresight = Foresight::new([], [], &policy).unwrap();
        let wish = Wish { foresight: &foresight, from: 0, room: &Room::now() };
        let (tree, aside) = index_aside(&image, wish).unwrap();
        let known = foreseen.map(|_| &aside as &dyn KnownPlaces);
        let keep = all_but(&tree, &["/gone", "/gone too", "/x"]);
        let places = Places { known, ..Places::default() };
        let order = Order { places, ..Order::new(&image, &tree, &keep, &tags, &edits) };
        let target = tempfile::tempdir_in(dir.path()).unwrap().path().join("slim");
        let digest = slim::emit::write(&order, &target).unwrap().manifest_digest;
        let times = opened.times.lock().unwrap().values().copied().collect::<Vec<_>>();
        (times, digest)
    };
    // Nothing set aside: once to index, once to write.
    let (times, want) = write(&layout, None);
    assert_eq!(times, [2, 2, 2]);
    assert_eq!(write(&layout, Some(&["/**"])), (vec![1, 1, 2], want), "holes are read again");
    assert_eq!(
        write(&layout, Some(&["/a", "/d"])),
        (vec![2, 1, 2], want),
        "not foreseen: read again"
    );
    assert_eq!(write(&layout, Some(&[])), (vec![2, 2, 2], want));
    // Where they are not compressed, contents lie in the archive, but for those with holes.
    let (times, want) = write(&archive, None);
    assert_eq!(times, [2, 2, 2]);
    assert_eq!(write(&archive, Some(&[])), (vec![1, 1, 2], want));
}

#[test]
fn an_interrupted_build_ends_at_once_and_leaves_nothing() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let (noise, attr) = (noise(150 << 20), Attr::default());
    let big = layer().raw(b'0', b"big", b"", &noise, &attr).file("gone", "");
    let image = open(&ImageFixture::default().packed(big, Packed::Plain).write(dir.path()));
    empty_profile(&image, &dir.path().join("profile.json"));
    let mut build = slim(dir.path());
    build.args(["build", "profile.json", "--image", "oci:layout", "-o", "out", "--keep", "/big"]);
    build.args(["--keep-going", "--level", "9", "--threads", "1"]).stderr(Stdio::piped());
    let mut child = build.spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    let before: Vec<String> = said.by_ref().take_while(|line| !line.contains("building")).collect();
    assert_eq!(before, ["slim: reading the image"]);
    sh("kill", &["-INT", &child.id().to_string()]);
    let asked = Instant::now();
    let said: Vec<String> = said.collect();
    assert_eq!(child.wait().unwrap().code(), Some(130), "{said:?}");
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    let left = std::fs::read_dir(dir.path().join("out")).unwrap().count();
    assert_eq!(left, 0, "{said:?}");
}

#[test]
fn a_layer_that_was_packed_before_is_not_packed_again() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let fixture = [
        layer().file("a", "1").file("gone", "1"),
        layer().file("b", "2").file("gone too", "2"),
        layer().file("c", "3"),
    ];
    let fixture = fixture.into_iter().fold(ImageFixture::default(), ImageFixture::layer);
    let image = open(&fixture.write(dir.path()));
    let tree = index(&image).unwrap();
    let store = Store::open(Some(&dir.path().join("store"))).unwrap();
    let write = |dropped: &[&str], packing, kept: bool| {
        let counting = Counting(&store, std::cell::Cell::new(0));
        let (keep, tags, edits) = (all_but(&tree, dropped), ["t:1".to_owned()], Edits::default());
        let packed = kept.then_some(&counting as &dyn PackedLayers);
        let places = Places { packed, ..Places::default() };
        let order = Order { places, packing, ..Order::new(&image, &tree, &keep, &tags, &edits) };
        let target = tempfile::tempdir_in(dir.path()).unwrap().path().join("slim");
        let emitted = slim::emit::write(&order, &target).unwrap();
        let slim = open(&target);
        let blobs: Vec<_> = slim.layers.iter().map(|layer| layer.blob).collect();
        let said: Vec<_> = emitted.layers.iter().map(|l| Some((l.digest, l.size))).collect();
        assert_eq!(blobs, said);
        index(&slim).unwrap();
        (counting.1.get(), emitted.manifest_digest)
    };
    let (gzip, both) = (Packing::default(), ["/gone", "/gone too"]);
    let (_, alone) = write(&both, gzip, false);
    assert_eq!(write(&both, gzip, true), (0, alone), "nothing was packed yet");
    assert_eq!(write(&both, gzip, true), (2, alone), "and now both");
    assert_eq!(write(&["/b", "/gone"], gzip, true).0, 1, "one is as before, one is not");
    for other in [packing(Compression::Zstd, 2), Packing { level: Some(9), ..gzip }] {
        assert_eq!(write(&both, other, true).0, 0, "{other:?}");
    }
    assert_eq!(write(&both, Packing { level: Some(5), threads: 7, ..gzip }, true), (2, alone));
    for _ in 0..2 {
        assert_eq!(write(&both, packing(Compression::None, 2), true).0, 0, "nothing to be saved");
    }
    // Damaged ones, or others' in their place, are packed again, and mended with that.
    let folders: Vec<PathBuf> = std::fs::read_dir(dir.path().join("store/packed"))
        .unwrap()
        .map(|f| f.unwrap().path())
        .collect();
    assert!(folders.len() >= 5, "{folders:?}");
    for damage in [&b""[..], b"short"] {
        for folder in &folders {
            let blob = folder.join("blob");
            let mut bytes = std::fs::read(&blob).unwrap();
            match damage {
                b"" => bytes[20] ^= 1,
                _ => bytes = damage.to_vec(),
            }
            std::fs::write(&blob, bytes).unwrap();
        }
        assert_eq!(write(&both, gzip, true), (2, alone), "they are found, and do not serve");
        assert_eq!(write(&both, gzip, true), (2, alone));
        for (note, folder) in folders.iter().enumerate() {
            std::fs::write(folder.join("note"), format!("{{{note}")).unwrap();
        }
        assert_eq!(write(&both, gzip, true), (2, alone), "notes that say nothing");
    }
    let keys = store.ls().unwrap();
    assert!(
        keys.len() == folders.len() && keys.iter().all(|it| it.packed && !it.in_use),
        "{keys:?}"
    );
    assert_eq!(store.clean().unwrap().layers.len(), 0);
    assert_eq!(store.gc().unwrap().layers.len(), folders.len());
    assert_eq!(write(&both, gzip, true), (0, alone));
}

#[test]
fn whoever_waits_hears_how_far_the_layers_are() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let big = "slim ".repeat(1 << 20);
    let layers = [layer().file("a", &big).file("gone", "1"), layer().file("b", "1")];
    let fixture = layers.into_iter().fold(ImageFixture::default(), ImageFixture::layer);
    let image = open(&fixture.write(dir.path()));
    let tree = index(&image).unwrap();
    let (keep, tags, edits) = (all_but(&tree, &["/gone"]), ["t:1".to_owned()], Edits::default());
    let told = std::cell::RefCell::new(Vec::new());
    let progress = &|done, total| told.borrow_mut().push((done, total));
    let format = ImageFormat::Archive;
    let order = Order { format, progress, ..Order::new(&image, &tree, &keep, &tags, &edits) };
    slim::emit::write(&order, &dir.path().join("slim.tar")).unwrap();
    // The first layer's content, and the second layer as it is stored.
    let total = big.len() as u64 + image.layers[1].blob.unwrap().1;
    let told = told.into_inner();
    assert!(told.len() >= 5 && told.iter().all(|(_, of)| *of == total), "{told:?}");
    assert!(told.is_sorted() && told.last() == Some(&(total, total)), "{told:?}");
}

/// What upper layers can do to a base: replace, remove, hide, change kinds, link into it.
fn on_a_base() -> ImageFixture {
    [
        layer()
            .dir("d")
            .file("d/a", "1")
            .file("d/b", "1")
            .dir("o")
            .file("o/x", "1")
            .file("o/y", "1"),
        layer()
            .dir("k")
            .file("k/c", "1")
            .file("f", "1")
            .file("l", "1")
            .dir("gone")
            .file("gone/z", "1"),
        layer().dir("d").file("d/a", "22").whiteout("d/b").opaque("o").file("o/n", "1"),
        layer().file("k", "a file now").dir("f").file("f/in", "1").link("m", "l").whiteout("gone"),
        layer().file("late", "1").file("later", "1"),
    ]
    .into_iter()
    .fold(ImageFixture::default(), ImageFixture::layer)
}

#[test]
fn a_kept_base_stays_whole_and_what_lies_above_counts() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let image = open(&on_a_base().write(dir.path()));
    let tree = index(&image).unwrap();
    for layers in 1..=5 {
        let mut keep = KeepSet::default();
        let names = tree.names_at(layers);
        slim::keep::add_names(&mut keep, &tree, &names, &Reason::Base).unwrap();
        let late = path("/late");
        keep.paths.insert(late.clone(), Reason::Touched.into());
        let base = Base::whole(&tree, layers);
        let target = dir.path().join(format!("slim{layers}"));
        let (emitted, slim) = write(&image, &tree, &keep, Some(&base), Packing::default(), &target);
        for at in 0..layers {
            assert_eq!(slim.layers[at].blob, image.layers[at].blob, "{layers}: layer {at}");
            assert!(emitted.layers[at].whole);
        }
        let mut want = tree.clone();
        want.nodes.retain(|path, _| keep.paths.contains_key(path));
        let what = format!("{layers} layers kept");
        let findings = slim::keep::verify_static(&tree, &index(&slim).unwrap(), &keep);
        assert!(findings.is_empty(), "{what}: {findings:?}");
        assert!(want.nodes.contains_key(&late) && !want.nodes.contains_key(&path("/gone")));
        // As the kernel sees it, too.
        let store = Store::open(Some(&dir.path().join(format!("store{layers}")))).unwrap();
        let rootfs = store.unpack(&slim, &|_, _| ()).unwrap();
        if have(&[Need::Root]) {
            as_mounted(&store, &rootfs, &what);
        }
    }
}

/// A profile of `image` without a run but with a call, for verbs that run nothing.
pub fn empty_profile(image: &Image, target: &Path) -> PathBuf {
    let identity = slim::model::profile::ImageIdentity {
        config_digest: image.config_digest,
        chain_id: image.chain_id(),
        platform: image.platform.clone(),
        names: image.name.clone().into_iter().collect(),
        manifest_digests: [image.manifest_digest].into(),
        extra: Default::default(),
    };
    let mut profile = serde_json::to_value(slim::model::Profile::new(identity)).unwrap();
    // Without any call there is no filter.
    let user = json!({ "exe": "/x", "argv0": "x", "uid": 0, "phase": "start" });
    let seen = json!({ slim::model::Digest::of(b"").to_string(): user });
    profile["syscalls"] = json!({ "x86_64": { "read": { "": { "call": seen } } } });
    std::fs::write(target, profile.to_string()).unwrap();
    target.to_owned()
}

/// `slim build` of the layout below `dir`, everything kept, results in `dir/out`.
fn build(dir: &Path, args: &[&str]) -> Output {
    let image = open(&dir.join("layout"));
    let profile = empty_profile(&image, &dir.join("profile.json"));
    let mut command = slim(dir);
    command.arg("build").arg(profile).args(["--image", "oci:layout", "-o", "out"]);
    command.args(["--keep-going", "--keep", "/**"]).args(args);
    command.output().unwrap()
}

fn config(dir: &Path) -> Value {
    open(&dir.join("out/image.tar")).config.0["config"].clone()
}

/// Nothing is refused here that may be wanted; but nobody has to find it out in production.
#[test]
fn what_an_edit_or_a_base_does_not_come_to_is_said() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let program = layer().dir("bin").file("bin/app", "1").file("bin/other", "2");
    let fixture = ImageFixture::default().layer(program).layer(layer().file("own", "3"));
    fixture.config(json!({ "Cmd": ["/bin/app"] })).tag("shop/web:1").write(dir.path());
    let image = open(&dir.path().join("layout"));
    profile_of(&image, &["/bin/app", "/own"], &dir.path().join("profile.json"));
    let run = |args: &[&str]| {
        let mut command = slim(dir.path());
        command.args(["build", "profile.json", "--image", "oci:layout", "-o", "out"]);
        let (code, text) = outcome(&command.arg("--keep-going").args(args).output().unwrap());
        assert_eq!(code, 0, "{args:?}: {text}");
        text
    };
    for (args, said) in [
        (&["--entrypoint", "other"][..], "keep it with --keep /bin/other"),
        (&["--cmd", "/bin/none"], "\"/bin/none\", which the image does not have"),
        (
            &["--keep-base", "1", "--compress", "zstd"],
            "1 of the layers that --keep-base keeps whole",
        ),
    ] {
        let text = run(args);
        assert!(text.contains(said), "{args:?}: {text}");
    }
    for args in [
        &["--entrypoint", "app"][..],
        &["--entrypoint", "other", "--keep", "/bin/other"],
        &["--keep-base", "1"],
    ] {
        let text = run(args);
        assert!(!text.contains("is to start") && !text.contains("keeps whole"), "{args:?}: {text}");
    }
}

#[test]
fn a_form_takes_the_place_of_the_one_before() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    three_layers(Packed::Gzip).tag("shop/web:1").write(dir.path());
    let forms = ["image.tar", "image", "Dockerfile", "keep.list", "skeleton.tar"];
    let there = || -> Vec<&str> {
        forms.into_iter().filter(|name| dir.path().join("out").join(name).exists()).collect()
    };
    for (format, want) in [
        ("archive", &["image.tar"][..]),
        ("layout", &["image"]),
        ("dockerfile", &["Dockerfile", "keep.list", "skeleton.tar"]),
        ("layout", &["image"]),
        ("archive", &["image.tar"]),
    ] {
        let (code, text) = outcome(&build(dir.path(), &["--format", format]));
        assert_eq!(code, 0, "{format}: {text}");
        assert_eq!(there(), want, "{format}");
    }
    // Somebody's Dockerfile is not slim's to remove, nor is a folder to be replaced.
    std::fs::write(dir.path().join("out/Dockerfile"), "FROM scratch\n").unwrap();
    let (code, text) = outcome(&build(dir.path(), &["--format", "archive"]));
    assert_eq!(code, 0, "{text}");
    assert_eq!(there(), ["image.tar", "Dockerfile"]);
    std::fs::remove_file(dir.path().join("out/Dockerfile")).unwrap();
    std::fs::create_dir(dir.path().join("out/image")).unwrap();
    std::fs::write(dir.path().join("out/image/cat.png"), "miaow").unwrap();
    let (code, text) = outcome(&build(dir.path(), &["--format", "layout"]));
    assert!(code == 2 && text.contains("out/image is a folder and no image"), "{code} {text}");
    assert_eq!(there(), ["image.tar", "image"]);
    assert!(dir.path().join("out/image/cat.png").exists());
}

#[test]
fn the_configuration_is_edited_as_asked() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let config_before = json!({
        "Entrypoint": ["/old"], "Cmd": ["x"], "Env": ["A=1", "B=2"], "User": "1", "WorkingDir": "/w",
        "Labels": { "a": "1", "b": "2" }, "ExposedPorts": { "80/tcp": {} },
        "Healthcheck": { "Test": ["CMD", "y"] }, "StopSignal": "SIGINT",
    });
    three_layers(Packed::Gzip).config(config_before.clone()).tag("shop/web:1").write(dir.path());
    let run = |args: &[&str]| {
        let (code, text) = outcome(&build(dir.path(), args));
        assert_eq!(code, 0, "{args:?}: {text}");
        config(dir.path())
    };
    assert_eq!(run(&[]), config_before);
    let got = run(&[
        "--entrypoint",
        r#"["/new","-v"]"#,
        "--cmd",
        "a",
        "--cmd=-b",
        "--env",
        "B=3",
        "--env",
        "C=4=5",
        "--label",
        "c=3",
        "--user",
        "7:8",
        "--workdir",
        "/v",
        "--expose",
        "53/udp",
        "--expose",
        "8080-8081",
        "--remove-env",
        "A",
        "--remove-label",
        "a",
        "--remove-expose",
        "80",
        "--remove-healthcheck",
    ]);
    let want = json!({
        "Entrypoint": ["/new", "-v"], "Cmd": ["a", "-b"], "Env": ["B=3", "C=4=5"], "User": "7:8",
        "WorkingDir": "/v", "Labels": { "b": "2", "c": "3" },
        "ExposedPorts": { "53/udp": {}, "8080/tcp": {}, "8081/tcp": {} }, "StopSignal": "SIGINT",
    });
    assert_eq!(got, want);
    let got = run(&["--new-entrypoint", "/n", "--remove-user", "--remove-workdir"]);
    assert_eq!(got["Entrypoint"], json!(["/n"]));
    assert_eq!(
        (&got["Cmd"], &got["User"], &got["WorkingDir"]),
        (&Value::Null, &Value::Null, &Value::Null)
    );
    for (args, hint) in [
        (&["--remove-env", "Z"][..], "no variable \"Z\""),
        (&["--env", "novalue"], "KEY=VALUE"),
        (&["--expose", "http"], "PORT"),
        (&["--workdir", "v"], "absolute"),
        (&["--cmd", "[1]"], "JSON"),
    ] {
        let (code, text) = outcome(&build(dir.path(), args));
        assert!(code == 2 && text.contains(hint), "{args:?}: {code} {text}");
    }
}

#[test]
fn names_levels_and_bases_are_checked_and_shown() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    three_layers(Packed::Gzip).tag("shop/web:1").write(dir.path());
    let image = open(&dir.path().join("layout"));
    let run = |args: &[&str]| outcome(&build(dir.path(), args));
    let summary = || json(&dir.path().join("out/summary.json"));
    assert_eq!(run(&[]).0, 0);
    assert_eq!(summary()["output"]["tags"], json!(["shop/web-slim:1"]));
    assert_eq!(run(&["--tag", "{repository}:{tag}-{arch}", "--tag", "other:2"]).0, 0);
    assert_eq!(summary()["output"]["tags"], json!(["shop/web:1-amd64", "other:2"]));
    let names =
        sh("tar", &["-xOf", dir.path().join("out/image.tar").to_str().unwrap(), "manifest.json"]);
    assert!(names.contains(r#""shop/web:1-amd64","other:2""#), "{names}");
    let second = image.layers[1].diff_id.to_string();
    let blob = image.layers[1].blob.unwrap().0.hex();
    for (base, kept) in [("0", 0), ("2", 2), (second.as_str(), 2), (&blob[..12], 2), ("3", 3)] {
        let (code, text) = run(&["--keep-base", base]);
        assert_eq!(code, 0, "{base}: {text}");
        assert_eq!(summary()["policy"]["keep_base"].as_u64().unwrap_or(0), kept);
        assert_eq!(summary()["kept_by_reason"].get("base").is_some(), kept > 0);
        let (code, text) = outcome(
            &slim(dir.path()).args(["verify", "out", "--image", "oci:layout"]).output().unwrap(),
        );
        assert_eq!(code, 0, "{base}: {text}");
    }
    for (args, hint) in [
        (&["--tag", "{name}:1"][..], "{repository}"),
        (&["--tag", "Bad"], "lower-case"),
        (&["--compress", "gzip", "--level", "10"], "0 to 9"),
        (&["--compress", "zstd", "--level", "0"], "1 to 22"),
        (&["--compress", "none", "--level", "1"], "leave it out"),
        (&["--keep-base", "4"], "has 3 layers"),
        (&["--keep-base", "sha256:00000000"], &second),
        (&["--keep-base", "base"], "digest of the last"),
        (&["--user", "1:2:3"], "USER or USER:GROUP"),
        (&["--workdir", "relative"], "--new-workdir"),
        (&["--expose", "82-80"], "FROM-TO"),
        (&["--keep-base", "1", "--drop", "/etc/a"], "/etc/a"),
    ] {
        let (code, text) = run(args);
        assert!(code == 2 && text.contains(hint), "{args:?}: {code} {text}");
    }
}

/// A profile that touched `files`.
pub fn profile_of(image: &Image, files: &[&str], target: &Path) {
    empty_profile(image, target);
    let mut profile = json(target);
    let user = json!({ "exe": "/x", "argv0": "x", "uid": 0, "phase": "start" });
    let seen = json!({ slim::model::Digest::of(b"").to_string(): user });
    for file in files {
        profile["files"][file] = json!({ "access": { "open": seen } });
    }
    std::fs::write(target, profile.to_string()).unwrap();
}

#[test]
fn images_of_a_family_share_their_slim_layers() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let bottom =
        layer().dir("d").file("d/a", "a").file("d/b", "b").file("d/c", "c").file("d/n", "n");
    let middle = layer().dir("m").file("m/a", "a").file("m/b", "b").file("m/n", "n");
    let images = [
        (
            "a",
            vec![bottom.clone(), middle.clone(), layer().file("own", "a")],
            vec!["/d/a", "/m/a", "/own"],
        ),
        // This one hides what the first one uses, and replaces what the third one does.
        (
            "b",
            vec![
                bottom.clone(),
                middle,
                layer().whiteout("d/a").file("d/c", "new").file("own", "b"),
            ],
            vec!["/d/b", "/m/b", "/own"],
        ),
        ("c", vec![bottom.clone(), layer().file("own", "c")], vec!["/d/c", "/own"]),
        ("d", vec![bottom], vec!["/d/c"]),
    ];
    let mut command = slim(dir.path());
    command.args(["build", "--family", "--keep-going", "-o", "out", "--keep", "/m/n"]);
    for (name, layers, files) in &images {
        let folder = dir.path().join(name);
        let fixture = layers.iter().cloned().fold(ImageFixture::default(), ImageFixture::layer);
        let layout = fixture.tag(&format!("shop/{name}:1")).write(&folder);
        profile_of(&open(&layout), files, &folder.join("profile.json"));
        command.arg(folder.join("profile.json"));
        command.arg("--image").arg(format!("oci:{}", layout.display()));
    }
    let (code, text) = outcome(&command.output().unwrap());
    assert_eq!(code, 0, "{text}");
    let names = |name: &str| -> (Image, Vec<String>) {
        let slim = open(&dir.path().join(format!("out/{name}-1/image.tar")));
        let tree = index(&slim).unwrap();
        (slim, tree.nodes.keys().map(|path| path.to_string()).collect())
    };
    let (a, of_a) = names("a");
    assert_eq!(of_a, ["/d", "/d/a", "/d/b", "/d/c", "/m", "/m/a", "/m/b", "/m/n", "/own"]);
    let (b, of_b) = names("b");
    assert_eq!(of_b, ["/d", "/d/b", "/d/c", "/m", "/m/a", "/m/b", "/m/n", "/own"]);
    let (c, of_c) = names("c");
    assert_eq!(of_c, ["/d", "/d/a", "/d/b", "/d/c", "/own"]);
    let (d, _) = names("d");
    let blobs = |image: &Image| -> Vec<_> { image.layers.iter().map(|l| l.blob).collect() };
    assert_eq!(blobs(&a)[..2], blobs(&b)[..2]);
    assert_eq!(blobs(&a)[..1], blobs(&c)[..1]);
    assert_eq!(blobs(&d), blobs(&c)[..1]);
    let report = json(&dir.path().join("out/family.json"));
    let sums = |key: &str| {
        (report[key]["before"].as_u64().unwrap(), report[key]["after"].as_u64().unwrap())
    };
    let distinct: BTreeSet<_> =
        [&a, &b, &c, &d].iter().flat_map(|image| blobs(image)).flatten().collect();
    let after: u64 = distinct.iter().map(|(_, size)| size).sum();
    assert_eq!(sums("stored_bytes").1, after);
    assert!(sums("stored_bytes").0 < sums("unshared_bytes").0);
    assert_eq!(report["images"][0]["family_layers"], 2);
    for (name, ..) in &images {
        let mut command = slim(dir.path());
        command.args([
            "verify",
            &format!("out/{name}-1"),
            "--image",
            &format!("oci:{name}/layout"),
        ]);
        let (code, text) = outcome(&command.output().unwrap());
        assert_eq!(code, 0, "{name}: {text}");
    }
    // Every profile has its image, every image its profile; a glob matches somewhere.
    let again =
        |args: &[&str]| outcome(&slim(dir.path()).arg("build").args(args).output().unwrap());
    for (args, hint) in [
        (
            &[
                "--family",
                "--keep-going",
                "a/profile.json",
                "b/profile.json",
                "--image",
                "oci:a/layout",
            ][..],
            "b/profile.json",
        ),
        (
            &[
                "--family",
                "--keep-going",
                "a/profile.json",
                "--image",
                "oci:a/layout",
                "--image",
                "oci:b/layout",
            ],
            "oci:b/layout",
        ),
        (
            &[
                "--family",
                "--keep-going",
                "a/profile.json",
                "--image",
                "oci:a/layout",
                "--keep",
                "/none",
            ],
            "/none",
        ),
        (
            &[
                "--family",
                "--keep-going",
                "a/profile.json",
                "c/profile.json",
                "--image",
                "oci:a/layout",
                "--image",
                "oci:c/layout",
                "--tag",
                "x:1",
            ],
            "{repository}",
        ),
        (&["a/profile.json", "b/profile.json", "--image", "oci:a/layout"], "--family"),
    ] {
        let (code, text) = again(args);
        assert!(code == 2 && text.contains(hint), "{args:?}: {code} {text}");
    }
}

#[test]
fn results_of_several_platforms_become_one_image() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    for (name, arch) in [("a", "amd64"), ("b", "arm64"), ("c", "amd64")] {
        let folder = dir.path().join(name);
        let layout = ImageFixture::default().layer(layer().file("same", "1").file("arch", arch));
        let layout = layout.tag("shop/web:1").platform(arch).write(&folder);
        let reference = format!("oci:{}", layout.display());
        let access = Access::platform(&format!("linux/{arch}"));
        let image = slim::source::open(&reference, &access).unwrap();
        let tree = index(&image).unwrap();
        let target = folder.join("image");
        let (tags, edits) = (["shop/web:1".to_owned()], Edits::default());
        let keep = keep_all(&tree);
        let order = Order::new(&image, &tree, &keep, &tags, &edits);
        slim::emit::write(&order, &target).unwrap();
    }
    let run = |args: &[&str]| outcome(&slim(dir.path()).arg("index").args(args).output().unwrap());
    for (format, place) in [("layout", "out/image"), ("archive", "out/image.tar")] {
        let (code, text) =
            run(&["a", "b", "--tag", "shop/both:1", "--format", format, "-o", "out"]);
        assert!(code == 0 && text.contains("linux/arm64"), "{text}");
        for arch in ["amd64", "arm64"] {
            let access = Access::platform(&format!("linux/{arch}"));
            let place = dir.path().join(place).display().to_string();
            let image = slim::source::open(&place, &access).unwrap();
            assert_eq!(image.platform, format!("linux/{arch}"));
            assert_eq!(image.name.as_deref(), Some("shop/both:1"));
            assert_eq!(index(&image).unwrap().nodes.len(), 2);
            if have(&[Need::Program("skopeo")]) {
                let transport = if format == "layout" { "oci" } else { "oci-archive" };
                let name = format!("{transport}:{place}");
                let seen = sh("skopeo", &["--override-arch", arch, "inspect", &name]);
                assert!(seen.contains(&format!(r#""Architecture": "{arch}""#)), "{seen}");
            }
        }
    }
    let (code, text) = run(&["a", "c", "-o", "out2"]);
    assert!(code == 2 && text.contains("linux/amd64"), "{code} {text}");
}

/// What COPY finds hard, and what an image can say.
fn for_a_recipe() -> ImageFixture {
    let setuid = Attr { mode: 0o4755, ..Attr::default() };
    let link = Attr { mode: 0o777, ..Attr::default() };
    let owned = Attr { mode: 0o640, uid: 1000, gid: 7, mtime: 1_500_000_000 };
    let layers = [
        layer()
            .dir("a")
            .file("a/plain", "1")
            .raw(b'0', b"a/owned", b"", b"2", &owned)
            .raw(b'0', b"a/su", b"", b"3", &setuid)
            .dir("a/b")
            .file("a/b/deep", "4")
            .dir("empty"),
        layer()
            .file("x", "5")
            .link("y", "x")
            .raw(b'2', b"to", b"a/plain", b"", &link)
            .fifo("pipe")
            .file("$HOME [*]", "6"),
        layer().file("left out", "7").file("root file", "8"),
    ];
    let config = json!({
        "Cmd": ["/a/plain", "$x"], "Env": ["PATH=/bin", "A=$b \"c\""], "User": "7", "WorkingDir": "/a",
        "Labels": { "l": "a $b" }, "StopSignal": "SIGUSR1", "ExposedPorts": { "80/tcp": {} },
        "Healthcheck": { "Test": ["CMD", "/a/plain"], "Interval": 5_000_000_000u64 },
    });
    let fixture = layers.into_iter().fold(ImageFixture::default(), ImageFixture::layer);
    fixture.config(config).tag("shop/web:1")
}

#[test]
fn a_recipe_makes_the_same_image_in_another_builder() {
    if !have(&[Need::Root, Need::Program("buildah"), Need::Program("skopeo")]) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let layout = for_a_recipe().write(dir.path());
    let text = |output: Output| {
        let (code, text) = outcome(&output);
        assert_eq!(code, 0, "{text}");
    };
    let wish = ["--drop", "/left*"];
    text(build(dir.path(), &[&wish[..], &["--format", "dockerfile"]].concat()));
    let list = std::fs::read_to_string(dir.path().join("out/keep.list")).unwrap();
    assert!(list.lines().any(|line| line == "/a/b/deep") && !list.contains("left"), "{list}");
    let place = |name: &str| dir.path().join(name).display().to_string();
    let (root, run_root, recipe) = (place("store"), place("run"), place("recipe"));
    let buildah = |args: &[&str]| {
        let common = ["--root", &root, "--runroot", &run_root, "--storage-driver", "vfs"];
        sh("buildah", &[&common[..], args].concat())
    };
    let stored = format!("containers-storage:[vfs@{root}+{run_root}]localhost/shop/web:1");
    sh("skopeo", &["copy", "-q", &format!("oci:{}", layout.display()), &stored]);
    let args =
        ["bud", "-q", "--layers=false", "--isolation", "chroot", "-t", "made", &place("out")];
    buildah(&args);
    buildah(&["push", "-q", "made", &format!("oci:{recipe}")]);
    text(build(dir.path(), &wish));
    let ours = open(&dir.path().join("out/image.tar"));
    let theirs = open(Path::new(&recipe));
    assert_same_tree(&index(&theirs).unwrap(), &index(&ours).unwrap(), "buildah");
    // buildah adds a label of its own.
    assert_eq!(theirs.config.labels()["l"], "a $b");
    for key in ["Cmd", "Env", "User", "WorkingDir", "StopSignal", "ExposedPorts"] {
        assert_eq!(theirs.config.0["config"][key], ours.config.0["config"][key], "{key}");
    }
}

/// Docker's own builder, which engines have had before BuildKit.
#[test]
fn a_recipe_makes_the_same_image_in_dockers_builder() {
    if !have(&[Need::Root, Need::Program("dockerd"), Need::Program("docker")]) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = dir.path();
    for_a_recipe().write(folder);
    let docker = Docker::start();
    let env = docker.env();
    let wish = ["--drop", "/left*"];
    for args in [
        &[&wish[..], &["--format", "dockerfile"]].concat()[..],
        &[&wish[..], &["-o", "ours"]].concat(),
    ] {
        let (code, said) = outcome(&build(folder, args));
        assert_eq!(code, 0, "{said}");
    }
    let mut load = slim(folder);
    load.env(env.0, &env.1).args(["load", "layout", "--to", "docker"]);
    let (code, said) = outcome(&load.output().unwrap());
    assert_eq!(code, 0, "{said}");
    let mut builder = docker.client("docker");
    builder.env("DOCKER_BUILDKIT", "0").args(["build", "--quiet", "--tag", "made", "out"]);
    let (code, said) = outcome(&builder.current_dir(folder).output().unwrap());
    assert_eq!(code, 0, "{said}");
    let made = folder.join("made.tar");
    docker.ask("docker", &["save", "--output", made.to_str().unwrap(), "made"]);
    let (ours, theirs) = (open(&folder.join("ours/image.tar")), open(&made));
    assert_same_tree(&index(&theirs).unwrap(), &index(&ours).unwrap(), "docker build");
    let written = index(&theirs).unwrap().get(&path("/a/owned")).map(|node| (node.uid, node.mode));
    assert_eq!(written, Some((1000, 0o640)));
    let keys = ["Cmd", "Env", "User", "WorkingDir", "Labels", "StopSignal", "ExposedPorts"];
    for key in keys.into_iter().chain(["Healthcheck"]) {
        assert_eq!(theirs.config.0["config"][key], ours.config.0["config"][key], "{key}");
    }
}
