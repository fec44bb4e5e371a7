//! Generated images go through keep-everything, and onto the disk, and come back as they were.
//!
//! What they mean is judged by a model of the test's own, and for samples by GNU tar and skopeo.

use std::collections::{BTreeMap, HashMap};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use slim::emit::{ImageFormat, write_image};
use slim::model::{NodeKind, Tree};
use slim::rootfs::{Store, index};
use slim::source::Access;
use slim::sys::mount::overlay;

use crate::images::keep_all;
use crate::support::image::{ImageFixture, LayerFixture, Packed};
use crate::support::{Need, have, sh};

mod model;
mod writer;

use model::{Ask, Kind, Meta, Model};
use writer::Style;

#[derive(Debug, Clone)]
struct Wish {
    path: Vec<u8>,
    ask: Ask,
    meta: Meta,
    style: Style,
    /// Stays even if no engine should take it.
    stubborn: bool,
}

type Layers = Vec<(Vec<Wish>, u8)>;

/// Few names, so that entries meet.
fn name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        6 => Just(b"a".to_vec()),
        6 => Just(b"b".to_vec()),
        4 => Just(b"a-b".to_vec()),
        2 => Just(b"\xff\n\x1b[m".to_vec()),
        2 => Just("\u{e9}".as_bytes().to_vec()),
        2 => Just(b"...".to_vec()),
        1 => Just([b"long-".repeat(24), b"!".to_vec()].concat()),
    ]
}

fn path() -> impl Strategy<Value = Vec<u8>> {
    prop::collection::vec(name(), 1..4).prop_map(|names| names.join(&b'/'))
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    let plain = prop_oneof![Just(0usize), Just(1), 511..514usize, Just(4096)];
    let plain = (plain, any::<u8>()).prop_map(|(len, seed)| {
        (0..len).map(|n| (n as u8).wrapping_mul(seed).wrapping_add(seed)).collect()
    });
    // Holes of whole blocks, at the start, between and at the end.
    let holey =
        (prop::collection::vec(any::<bool>(), 9..200), 1..512usize).prop_map(|(full, tail)| {
            let mut bytes: Vec<u8> =
                full.iter().flat_map(|full| [if *full { 7 } else { 0 }; 512]).collect();
            bytes.truncate(bytes.len() - 512 + tail);
            bytes
        });
    prop_oneof![5 => plain, 1 => holey]
}

fn target() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        4 => path(),
        1 => path().prop_map(|p| [b"/", &p[..]].concat()),
        1 => path().prop_map(|p| [b"../", &p[..]].concat()),
        1 => Just(b"/../../../../../etc".to_vec()),
        1 => Just(b".".to_vec()),
    ]
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        6 => content().prop_map(|bytes| Ask::Make(Kind::File(bytes))),
        5 => Just(Ask::Make(Kind::Dir)),
        3 => target().prop_map(|to| Ask::Make(Kind::Symlink(to))),
        4 => path().prop_map(Ask::Link),
        2 => Just(Ask::Whiteout),
        2 => Just(Ask::Opaque),
        1 => Just(Ask::Make(Kind::Fifo)),
        1 => (1..4096u32, 0..1_000_000u32).prop_map(|(a, b)| Ask::Make(Kind::Char(a, b))),
        1 => (0..4096u32, 0..1_000_000u32).prop_map(|(a, b)| Ask::Make(Kind::Block(a, b))),
    ]
}

fn id() -> impl Strategy<Value = u32> {
    prop_oneof![Just(0u32), Just(1000), Just(2_097_151), Just(2_097_152), Just(4_294_967_294)]
}

fn wish() -> impl Strategy<Value = Wish> {
    let mode = prop_oneof![Just(0o644u32), Just(0o755), Just(0o4755), Just(0o1777), 0..0o10000u32];
    let time = prop_oneof![
        3 => Just((1_600_000_000i64, 0u32)),
        1 => (-2_000_000_000..9_000_000_000i64, 0..1_000_000_000u32),
        1 => (0..9i64, Just(7u32)),
    ];
    let style = (0..4u8, 0..3u8, 0..3u8, 0..5u8, 0..4u8);
    let meta = (mode, id(), id(), time, prop_oneof![Just(0u8), any::<u8>()]);
    (path(), ask(), meta, style, prop::bool::weighted(0.01)).prop_map(
        |(path, ask, (mode, uid, gid, mtime, pick), style, stubborn)| {
            let kind = if let Ask::Make(kind) = &ask { kind.clone() } else { Kind::Fifo };
            let xattrs = match &ask {
                Ask::Make(kind) => writer::attributes(pick, kind, mode),
                _ => BTreeMap::new(),
            };
            let mode = if matches!(kind, Kind::Symlink(_)) { 0o777 } else { mode };
            let meta = Meta { mode, uid, gid, mtime, xattrs };
            let (lead, long, number, sparse, extra) = style;
            let style = Style { lead, long, number, sparse, extra };
            Wish { path, ask, meta, style, stubborn }
        },
    )
}

fn layers() -> impl Strategy<Value = Layers> {
    prop::collection::vec((prop::collection::vec(wish(), 0..14), 0..3u8), 1..6)
}

/// The image, what it means, and whether engines should refuse it.
fn build(layers: &Layers) -> (ImageFixture, Result<Model, &'static str>) {
    let (mut model, mut image, mut refused) = (Model::default(), ImageFixture::default(), None);
    for (wishes, packed) in layers {
        model.next_layer();
        let mut tar = Vec::new();
        for wish in wishes {
            let mut next = model.clone();
            match next.apply(&wish.path, &wish.ask, &wish.meta) {
                Ok(()) => model = next,
                Err(why) if wish.stubborn => refused = refused.or(Some(why)),
                Err(_) => continue,
            }
            writer::write(&mut tar, &wish.path, &wish.ask, &wish.meta, wish.style);
        }
        let packed = [Packed::Gzip, Packed::Zstd, Packed::Plain][usize::from(*packed)];
        image = image.packed(LayerFixture::of_tar(tar), packed);
    }
    (image, refused.map_or(Ok(model), Err))
}

/// Compares an index with the model: everything but contents, which the disk is asked for.
/// A folder that nobody described may be described now (`written`), where nothing below it is left.
fn same(tree: &Tree, model: &Model, written: bool) -> Result<(), String> {
    let mut groups: HashMap<u64, u64> = HashMap::new();
    let mut want = model.nodes.iter();
    for (path, node) in &tree.nodes {
        let Some((name, other)) = want.next() else { return Err(format!("{path} is too much")) };
        if path.relative() != name {
            return Err(format!("{path} where {:?} should be", String::from_utf8_lossy(name)));
        }
        let kind = match (&node.kind, &other.kind) {
            (NodeKind::Dir, Kind::Dir) | (NodeKind::Fifo, Kind::Fifo) => true,
            (NodeKind::File { size, content, .. }, Kind::File(bytes)) => {
                *size == bytes.len() as u64 && *content == slim::model::Digest::of(bytes)
            }
            (NodeKind::Symlink { target }, Kind::Symlink(to)) => target == to,
            (NodeKind::Char { major, minor }, Kind::Char(a, b))
            | (NodeKind::Block { major, minor }, Kind::Block(a, b)) => {
                (*major, *minor) == (u64::from(*a), u64::from(*b))
            }
            _ => false,
        };
        let meta = Meta {
            mode: if matches!(other.kind, Kind::Symlink(_)) { 0o777 } else { node.mode },
            uid: node.uid,
            gid: node.gid,
            mtime: node.mtime,
            xattrs: node.xattrs.clone(),
        };
        let linked = node.kind == NodeKind::Dir
            || *groups.entry(other.file).or_insert(node.inode) == node.inode;
        let implied = node.implied == other.implied || written && other.implied;
        if !kind || meta != other.meta || !implied || !linked {
            return Err(format!("{path}: {node:?} is not {other:?}"));
        }
    }
    want.next().map_or(Ok(()), |(name, _)| Err(format!("{name:?} is missing")))
}

/// What others leave out when they unpack.
#[derive(Clone, Copy)]
struct Lax {
    /// Whole seconds only.
    seconds: bool,
    xattrs: bool,
}

const STRICT: Lax = Lax { seconds: false, xattrs: true };

/// Compares what lies at `root` with the model.
fn on_disk(root: &Path, model: &Model, lax: Lax) -> Result<(), String> {
    let mut found: BTreeMap<Vec<u8>, std::path::PathBuf> = BTreeMap::new();
    for entry in walkdir::WalkDir::new(root).min_depth(1) {
        let entry = entry.map_err(|e| e.to_string())?;
        let name = entry.path().strip_prefix(root).unwrap().as_os_str().as_bytes().to_vec();
        found.insert(name, entry.into_path());
    }
    let mut inodes: HashMap<u64, u64> = HashMap::new();
    for (name, node) in &model.nodes {
        let shown = name.escape_ascii().to_string();
        let host = found.remove(name).ok_or_else(|| format!("{shown} is missing"))?;
        let stat = std::fs::symlink_metadata(&host).map_err(|e| e.to_string())?;
        let kind = stat.file_type();
        let device = |major: u32, minor: u32| stat.rdev() == rustix::fs::makedev(major, minor);
        let right = match &node.kind {
            Kind::Dir => kind.is_dir(),
            Kind::File(bytes) => kind.is_file() && std::fs::read(&host).unwrap() == *bytes,
            Kind::Symlink(to) => {
                kind.is_symlink()
                    && std::fs::read_link(&host).unwrap().into_os_string().into_vec() == *to
            }
            Kind::Fifo => kind.is_fifo(),
            Kind::Char(a, b) => kind.is_char_device() && device(*a, *b),
            Kind::Block(a, b) => kind.is_block_device() && device(*a, *b),
        };
        if !right {
            return Err(format!("{shown}: {kind:?} is not {:?}", node.kind));
        }
        let meta = &node.meta;
        let mode = if kind.is_symlink() { 0o777 } else { stat.mode() & 0o7777 };
        if (mode, stat.uid(), stat.gid()) != (meta.mode, meta.uid, meta.gid) {
            let got = (mode, stat.uid(), stat.gid());
            return Err(format!("{shown}: {got:?} is not {meta:?}"));
        }
        let nanos = if lax.seconds { i64::from(meta.mtime.1) } else { stat.mtime_nsec() };
        if !node.implied && (stat.mtime(), nanos) != (meta.mtime.0, i64::from(meta.mtime.1)) {
            return Err(format!("{shown}: {}.{nanos} is not {:?}", stat.mtime(), meta.mtime));
        }
        if !kind.is_dir() && *inodes.entry(node.file).or_insert(stat.ino()) != stat.ino() {
            return Err(format!("{shown} is linked to something else"));
        }
        let has: BTreeMap<String, Vec<u8>> = xattr::list(&host)
            .map_err(|e| e.to_string())?
            .map(|key| {
                (key.to_string_lossy().into_owned(), xattr::get(&host, &key).unwrap().unwrap())
            })
            .collect();
        if lax.xattrs && has != meta.xattrs {
            return Err(format!("{shown}: {has:?} is not {:?}", meta.xattrs));
        }
    }
    found.keys().next().map_or(Ok(()), |name| Err(format!("{} is too much", name.escape_ascii())))
}

fn folder() -> tempfile::TempDir {
    let base = std::env::var_os("SLIM_FIDELITY_DIR").unwrap_or_else(|| "/var/tmp".into());
    tempfile::tempdir_in(base).unwrap()
}

/// Index, keep everything, index again; unpack, mount, look.
fn check(layers: &Layers) -> Result<(), String> {
    let (fixture, meaning) = build(layers);
    let dir = folder();
    let text = |e: &dyn std::error::Error| slim::model::chain(e).to_string();
    let layout = fixture.write(dir.path());
    let image =
        slim::source::open(&format!("oci:{}", layout.display()), &Access::platform("linux/amd64"))
            .map_err(|e| text(&e))?;
    let store = Store::open(Some(&dir.path().join("store"))).map_err(|e| text(&e))?;
    let model = match meaning {
        Ok(model) => model,
        Err(why) => {
            let (a, b) = (index(&image).err(), store.unpack(&image, &|_, _| ()).err());
            let refused = [a, b].iter().all(|e| e.as_ref().is_some_and(|e| e.is_bad_image()));
            return if refused { Ok(()) } else { Err(format!("{why} was let through")) };
        }
    };
    let tree = index(&image).map_err(|e| text(&e))?;
    same(&tree, &model, false)?;
    let target = dir.path().join("image.tar");
    let keep = keep_all(&tree);
    write_image(&image, &tree, &keep, "t:1", ImageFormat::Archive, &target)
        .map_err(|e| text(&e))?;
    let slim = slim::source::open(&target.display().to_string(), &Access::platform("linux/amd64"))
        .map_err(|e| text(&e))?;
    let again = index(&slim).map_err(|e| text(&e))?;
    same(&again, &model, true).map_err(|why| format!("kept whole: {why}"))?;
    let rootfs = store.unpack(&image, &|_, _| ()).map_err(|e| text(&e))?;
    if rootfs.tree != tree {
        return Err("unpacked and indexed trees differ".into());
    }
    let run = store.new_run().map_err(|e| text(&e))?;
    let make = |name: &str| {
        let path = run.path.join(name);
        std::fs::create_dir(&path).map(|()| path).map_err(|e| e.to_string())
    };
    let (upper, work, merged) = (make("upper")?, make("work")?, make("merged")?);
    overlay(&rootfs.lowers, &upper, &work, &merged).map_err(|e| text(&e))?;
    let seen = on_disk(&merged, &model, STRICT);
    let _ = rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::DETACH);
    seen.map_err(|why| format!("unpacked: {why}"))
}

/// The same images every time: a failure can be looked at again.
fn runner(cases: u32, seed: u8) -> TestRunner {
    let config =
        Config { cases, failure_persistence: None, max_shrink_iters: 100, ..Config::default() };
    TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &[seed; 32]))
}

#[test]
fn generated_images_survive_keep_everything_and_unpacking() {
    if !have(&[Need::Root]) {
        return;
    }
    let number = |key: &str| std::env::var(key).ok().and_then(|n| n.parse().ok());
    let (cases, seed) = (number("SLIM_FIDELITY").unwrap_or(200), number("SLIM_SEED").unwrap_or(1));
    let start = std::time::Instant::now();
    let run = runner(cases, u8::try_from(seed).unwrap())
        .run(&layers(), |layers| check(&layers).map_err(TestCaseError::fail));
    eprintln!("{cases} images in {:?}", start.elapsed());
    if let Err(error) = run {
        panic!("{error}");
    }
}

/// What slim writes of one layer, as GNU tar unpacks it. Tar knows no whiteouts, changes the times of a
/// folder that a second layer adds to, and follows absolute symlinks: the images have none of these.
#[test]
fn gnu_tar_makes_the_same_of_what_slim_writes() {
    if !have(&[Need::Root, Need::Program("tar"), Need::Program("skopeo")]) {
        return;
    }
    let tame = |wish: &mut Wish| match &wish.ask {
        Ask::Whiteout | Ask::Opaque | Ask::Make(Kind::Symlink(_)) => {
            wish.ask = Ask::Make(Kind::Fifo);
            wish.meta.mode &= 0o777;
        }
        _ => {}
    };
    judged(30, 4, tame, |dir, _, target, model| {
        let (from, to) = (format!("oci-archive:{}", target.display()), dir.join("copied"));
        let copied = format!("oci:{}:t", to.display());
        sh("skopeo", &["copy", "--insecure-policy", "-q", &from, &copied]);
        let root = dir.join("tar");
        std::fs::create_dir(&root).unwrap();
        let image = slim::source::open(to.to_str().unwrap(), &Access::platform("linux/amd64"));
        for layer in image.unwrap().layers {
            let blob = to.join("blobs/sha256").join(layer.blob.unwrap().0.hex());
            let args = ["--numeric-owner", "--xattrs", "--xattrs-include=*", "-xpf"];
            let root = root.to_str().unwrap();
            sh("tar", &[&["-C", root][..], &args, &[blob.to_str().unwrap()]].concat());
        }
        on_disk(&root, model, STRICT)
    });
}

/// Hands `cases` generated images, and what slim writes of them with everything kept, to a judge.
fn judged(
    cases: u32,
    seed: u8,
    change: impl Fn(&mut Wish),
    judge: impl Fn(&Path, &Path, &Path, &Model) -> Result<(), String>,
) {
    let run = runner(cases, seed).run(&layers(), |mut layers| {
        layers.truncate(1);
        for wish in layers.iter_mut().flat_map(|(wishes, _)| wishes) {
            (wish.stubborn, wish.style.extra) = (false, wish.style.extra % 2);
            change(wish);
        }
        let (fixture, meaning) = build(&layers);
        let dir = folder();
        let layout = fixture.tag("t").write(dir.path());
        let image = slim::source::open(layout.to_str().unwrap(), &Access::platform("linux/amd64"));
        let image = image.map_err(|e| TestCaseError::fail(e.to_string()))?;
        let tree = index(&image).map_err(|e| TestCaseError::fail(e.to_string()))?;
        let target = dir.path().join("image.tar");
        write_image(&image, &tree, &keep_all(&tree), "t:1", ImageFormat::Archive, &target).unwrap();
        judge(dir.path(), &layout, &target, &meaning.unwrap()).map_err(TestCaseError::fail)
    });
    if let Err(error) = run {
        panic!("{error}");
    }
}

/// The names of an image's tree, and of what slim writes of it, which must be the same.
fn kept(layout: &Path) -> Result<Vec<String>, String> {
    let text = |e: &dyn std::error::Error| slim::model::chain(e).to_string();
    let access = Access::platform("linux/amd64");
    let image = slim::source::open(layout.to_str().unwrap(), &access).map_err(|e| text(&e))?;
    let tree = index(&image).map_err(|e| text(&e))?;
    let target = layout.join("kept.tar");
    write_image(&image, &tree, &keep_all(&tree), "t:1", ImageFormat::Archive, &target)
        .map_err(|e| text(&e))?;
    let slim = slim::source::open(target.to_str().unwrap(), &access).map_err(|e| text(&e))?;
    let again = index(&slim).map_err(|e| text(&e))?;
    let names = |tree: &Tree| tree.nodes.keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(&again), names(&tree));
    Ok(names(&tree))
}

/// A frame that decoders skip (RFC 8878, 3.1.2), as zstd:chunked ends with.
fn skippable(content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).unwrap().to_le_bytes();
    [&[0x50, 0x2a, 0x4d, 0x18][..], &len, content].concat()
}

#[test]
fn lazily_pulled_layers_are_layers_like_others() {
    let plain = LayerFixture::default().dir("etc").file("etc/a", "1");
    // zstd:chunked: a frame a file, then a table of contents that decoders skip.
    let tar = plain.finish();
    let frames = tar.chunks(512).map(|chunk| zstd::encode_all(chunk, 3).unwrap());
    let mut chunked = frames.collect::<Vec<_>>().concat();
    chunked.extend(skippable(b"{\"version\":1}"));
    chunked.extend(skippable(&[7; 64]));
    // eStargz: a gzip member a file, the table of contents an entry of its own, an empty member last.
    let table =
        plain.file(".no.prefetch.landmark", "\x0f").file("stargz.index.json", "{}").finish();
    let member = |bytes: &[u8]| {
        use std::io::Write as _;
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(bytes).unwrap();
        gzip.finish().unwrap()
    };
    let mut stargz = table.chunks(512).map(member).collect::<Vec<_>>().concat();
    stargz.extend(member(b""));
    for (what, tar, blob, packed, want) in [
        ("zstd:chunked", tar, chunked, Packed::Zstd, &["/etc", "/etc/a"][..]),
        (
            "eStargz",
            table,
            stargz,
            Packed::Gzip,
            &["/.no.prefetch.landmark", "/etc", "/etc/a", "/stargz.index.json"],
        ),
    ] {
        let dir = folder();
        let layout = ImageFixture::default().stored(tar, blob, packed).write(dir.path());
        assert_eq!(kept(&layout).unwrap(), want, "{what}");
    }
}

#[test]
fn foreign_layers_and_a_missing_history_are_no_obstacle() {
    let dir = folder();
    let fixture = ImageFixture::default().layer(LayerFixture::default().file("a", "1"));
    let layout = fixture.write(dir.path());
    let file = |value: &serde_json::Value| {
        let digest = value["digest"].as_str().unwrap().replace("sha256:", "");
        layout.join("blobs/sha256").join(digest)
    };
    let read = |path: &Path| -> serde_json::Value {
        serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
    };
    let put = |value: &mut serde_json::Value, content: &serde_json::Value| {
        let text = content.to_string();
        let digest = slim::model::Digest::of(text.as_bytes());
        std::fs::write(layout.join("blobs/sha256").join(digest.hex()), &text).unwrap();
        value["digest"] = digest.to_string().into();
        value["size"] = text.len().into();
    };
    let mut list = read(&layout.join("index.json"));
    let mut manifest = read(&file(&list["manifests"][0]));
    let mut config = read(&file(&manifest["config"]));
    config.as_object_mut().unwrap().remove("history");
    put(&mut manifest["config"], &config);
    let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
    for kind in [foreign, "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"] {
        manifest["layers"][0]["mediaType"] = kind.into();
        manifest["layers"][0]["urls"] = serde_json::json!(["https://example.com/layer"]);
        put(&mut list["manifests"][0], &manifest);
        std::fs::write(layout.join("index.json"), list.to_string()).unwrap();
        assert_eq!(kept(&layout).unwrap(), ["/a"], "{kind}");
    }
    // Its blob is somewhere else: slim fetches nothing that a layer points to.
    std::fs::remove_file(file(&manifest["layers"][0])).unwrap();
    assert!(kept(&layout).unwrap_err().contains("layer 0"));
}
