//! Images drawn from seeds go through slim and come back the same: unpacked, indexed, written whole,
//! written filtered; by slim's own reading and by others'.
//!
//! `SLIM_DRAWN=N` draws N images, `SLIM_DRAWN_SEED=S` starts at S: a failure names its seed, and the
//! smallest part of its image that fails.

mod disk;
mod encode;
mod judges;
mod model;
mod recipe;

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use slim::emit::{Compression, Edits, Emitted, ImageFormat, Order, Packing, Places, write_image};
use slim::keep::Foresight;
use slim::model::{Digest, Policy, RootPath, Totals, Tree};
use slim::oci::Image;
use slim::rootfs::{Folders, Room, Store, Wish, index, index_aside};
use slim::source::Access;
use slim::sys::mount::overlay;

use crate::images::keep_all;
use crate::support::image::{ImageFixture, LayerFixture};
use crate::support::{Need, have};

use disk::{Lenient, same, same_tree};
use model::Model;
pub use recipe::Dice;
use recipe::{Kind, LayerRecipe, Recipe};

const IMAGES: u64 = 200;

#[test]
fn drawn_images_come_back_the_same() {
    if !have(&[Need::Root]) {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let count = number("SLIM_DRAWN").unwrap_or(IMAGES);
    let first = number("SLIM_DRAWN_SEED").unwrap_or(1);
    let started = std::time::Instant::now();
    let (mut entries, mut layers) = (0, 0);
    for seed in first..first + count {
        let recipe = recipe::draw(seed, false);
        layers += recipe.layers.len();
        entries += recipe.layers.iter().map(|layer| layer.entries.len()).sum::<usize>();
        if let Err(why) = check(&recipe, seed) {
            let (small, why) = smallest(recipe, seed, why);
            panic!("seed {seed}: {why}\n{}", show(&small));
        }
    }
    println!("{count} images, {layers} layers, {entries} entries in {:?}", started.elapsed());
}

/// All of slim's own ways, against the model.
fn check(recipe: &Recipe, seed: u64) -> Result<(), String> {
    let model = Model::of(recipe).map_err(|_| "no image that has one meaning")?;
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let image = write(recipe, dir.path())?;
    let tree = index(&image).map_err(|e| format!("index: {e}"))?;
    same_tree(&tree, &model).map_err(|why| format!("index: {why}"))?;
    let folders = unpacked(&image, &model, dir.path())?;
    let all = written(&image, &tree, &BTreeSet::new(), dir.path())?;
    same_tree(&all.1, &model).map_err(|why| format!("written whole: {why}"))?;
    let mut less = model.clone();
    let dropped = dropped(&mut less, seed);
    let filtered = written(&image, &tree, &dropped, dir.path())?;
    same_tree(&filtered.1, &less).map_err(|why| format!("written without {dropped:?}: {why}"))?;
    let contents = |layer, path: &RootPath| folders.open(layer, path);
    let stored = dir.path().join("stored");
    let stores = Places { unpacked: Some(&contents), ..Places::default() };
    let emitted = emit(&image, &tree, &dropped, stores, &stored)?;
    if emitted.manifest_digest != filtered.0.manifest_digest {
        return Err("written from the store: other bytes than from the layers".into());
    }
    let foreseen = if seed.is_multiple_of(2) { "/**" } else { "*[a-m]" };
    let digest = written_from_aside(&image, foreseen, &dropped, &dir.path().join("aside"))?;
    if digest != filtered.0.manifest_digest {
        return Err("written from what was set aside: other bytes than from the layers".into());
    }
    as_it_is(&image, &tree, &dropped, dir.path())?;
    let again = dir.path().join("again");
    std::fs::create_dir(&again).unwrap();
    let passed = written(&filtered.0, &filtered.1, &BTreeSet::new(), &again)?;
    same_tree(&passed.1, &less).map_err(|why| format!("written twice: {why}"))?;
    Ok(())
}

/// Others unpack the drawn image itself, and what slim made of it, to the same files.
#[test]
fn others_make_the_same_of_drawn_images() {
    if !have(&[Need::Root, Need::Program("umoci"), Need::Program("skopeo"), Need::Program("tar")]) {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let count = number("SLIM_DRAWN_JUDGED").unwrap_or(12);
    let first = number("SLIM_DRAWN_SEED").unwrap_or(1);
    for seed in first..first + count {
        let recipe = recipe::draw(seed, true);
        if let Err(why) = judged(&recipe, seed) {
            panic!("seed {seed}: {why}\n{}", show(&recipe));
        }
    }
}

fn judged(recipe: &Recipe, seed: u64) -> Result<(), String> {
    let model = Model::of(recipe).map_err(|_| "no image that has one meaning")?;
    let dir = tempfile::tempdir_in(scratch()).unwrap();
    let dir = dir.path();
    let image = write(recipe, dir)?;
    judges::umoci(&dir.join("layout"), "drawn", &model, dir)
        .map_err(|e| format!("original: {e}"))?;
    let tree = index(&image).map_err(|e| e.to_string())?;
    let mut less = model.clone();
    let dropped = dropped(&mut less, seed);
    let inside = dir.join("slim");
    std::fs::create_dir(&inside).unwrap();
    let (slim, _) = written(&image, &tree, &dropped, &inside)?;
    let layout = inside.join(if dropped.is_empty() { "whole" } else { "filtered" });
    judges::umoci(&judges::skopeo(&layout, &inside), "drawn", &less, &inside)?;
    judges::tar(&slim, &layout, &less, &inside)
}

/// Docker and Podman load what slim wrote and show the same files.
#[test]
fn engines_make_the_same_of_drawn_images() {
    let programs = ["docker", "dockerd", "podman", "unshare"].map(Need::Program);
    if !have(&[&[Need::Root], &programs[..]].concat()) {
        return;
    }
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let count = number("SLIM_DRAWN_LOADED").unwrap_or(2);
    let docker = judges::Docker::start();
    let storage = tempfile::tempdir_in("/var/tmp").unwrap();
    for seed in 1..=count {
        let recipe = recipe::draw(seed, true);
        let mut model = Model::of(&recipe).unwrap();
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let image = write(&recipe, dir.path()).unwrap();
        let tree = index(&image).unwrap();
        let mut keep = keep_all(&tree);
        let dropped = dropped(&mut model, seed);
        keep.paths.retain(|path, _| !dropped.contains(path));
        let target = dir.path().join("image.tar");
        let tag = "localhost/drawn:1";
        write_image(&image, &tree, &keep, tag, ImageFormat::Archive, &target).unwrap();
        for (name, engine) in [
            ("docker", &(|args: &[&str]| docker.client(args)) as &dyn Fn(&[&str]) -> _),
            ("podman", &|args: &[&str]| judges::podman(storage.path(), args)),
        ] {
            let inside = dir.path().join(name);
            std::fs::create_dir(&inside).unwrap();
            if let Err(why) = judges::engine(engine, &target, tag, &model, &inside) {
                panic!("seed {seed}, {name}: {why}\n{}", show(&recipe));
            }
        }
    }
    for mounted in ["root/overlay", "root"] {
        let path = storage.path().join(mounted);
        let _ = rustix::mount::unmount(path, rustix::mount::UnmountFlags::DETACH);
    }
}

fn write(recipe: &Recipe, dir: &Path) -> Result<Image, String> {
    let mut fixture = ImageFixture::default().tag("drawn");
    for LayerRecipe { entries, packed } in &recipe.layers {
        fixture = fixture.packed(LayerFixture::of_tar(encode::tar(entries)), *packed);
    }
    open(&fixture.write(dir))
}

fn open(layout: &Path) -> Result<Image, String> {
    let reference = format!("oci:{}", layout.display());
    slim::source::open(&reference, &Access::platform("linux/amd64")).map_err(|e| e.to_string())
}

/// Unpacks, and looks at what the kernel makes of the folders.
fn unpacked(image: &Image, model: &Model, dir: &Path) -> Result<Folders, String> {
    let store = Store::open(Some(&dir.join("store"))).map_err(|e| e.to_string())?;
    let rootfs = store.unpack(image, &|_, _| ()).map_err(|e| format!("unpack: {e}"))?;
    same_tree(&rootfs.tree, model).map_err(|why| format!("unpack: {why}"))?;
    let again = store.unpack(image, &|_, _| ()).map_err(|e| format!("from the store: {e}"))?;
    same_tree(&again.tree, model).map_err(|why| format!("from the store: {why}"))?;
    let make = |name: &str| {
        std::fs::create_dir(dir.join(name)).unwrap();
        dir.join(name)
    };
    let (upper, work, merged) = (make("upper"), make("work"), make("merged"));
    overlay(&rootfs.lowers, &upper, &work, &merged).map_err(|e| format!("overlay: {e}"))?;
    // The upper folder is the caller's, and so is the root's metadata that it shows.
    let mut inside = model.clone();
    inside.root = None;
    let found = same(&merged, &inside, Lenient::default());
    rustix::mount::unmount(&merged, rustix::mount::UnmountFlags::DETACH).unwrap();
    found.map_err(|why| format!("on disk: {why}"))?;
    Ok(again.folders)
}

/// The image with all but the paths `without`, and its tree.
fn written(
    image: &Image,
    tree: &Tree,
    without: &BTreeSet<RootPath>,
    dir: &Path,
) -> Result<(Image, Tree), String> {
    let target = dir.join(if without.is_empty() { "whole" } else { "filtered" });
    emit(image, tree, without, Places::default(), &target)?;
    let slim = open(&target)?;
    let tree = index(&slim).map_err(|e| format!("what was written: {e}"))?;
    Ok((slim, tree))
}

fn emit(
    image: &Image,
    tree: &Tree,
    without: &BTreeSet<RootPath>,
    places: Places<'_>,
    target: &Path,
) -> Result<Emitted, String> {
    let mut keep = keep_all(tree);
    keep.paths.retain(|path, _| !without.contains(path));
    let (tags, edits) = (["t:1".to_owned()], Edits::default());
    let order = Order { places, ..Order::new(image, tree, &keep, &tags, &edits) };
    slim::emit::write(&order, target).map_err(|e| format!("write: {e}"))
}

/// The digest of the image that is written while its layers are read no more than once, but for what is not
/// foreseen.
fn written_from_aside(
    image: &Image,
    foreseen: &str,
    without: &BTreeSet<RootPath>,
    target: &Path,
) -> Result<Digest, String> {
    let policy = Policy { keep: vec![foreseen.to_owned()], ..Policy::default() };
    let foresight = Foresight::new([], [], &policy).map_err(|e| e.to_string())?;
    let wish = Wish { foresight: &foresight, from: 0, room: &Room::now() };
    let (tree, aside) = index_aside(image, wish).map_err(|e| format!("index: {e}"))?;
    let places = Places { known: Some(&aside), ..Places::default() };
    Ok(emit(image, &tree, without, places, target)?.manifest_digest)
}

/// Layers that are not compressed, in an archive: contents lie in it as they are.
fn as_it_is(
    image: &Image,
    tree: &Tree,
    without: &BTreeSet<RootPath>,
    dir: &Path,
) -> Result<(), String> {
    let (keep, tags, edits) = (keep_all(tree), ["t:1".to_owned()], Edits::default());
    let packing = Packing { compression: Compression::None, ..Packing::default() };
    let format = ImageFormat::Archive;
    let order = Order { packing, format, ..Order::new(image, tree, &keep, &tags, &edits) };
    let file = dir.join("plain.tar");
    slim::emit::write(&order, &file).map_err(|e| format!("write an archive: {e}"))?;
    let reference = format!("oci-archive:{}", file.display());
    let plain = slim::source::open(&reference, &Access::platform("linux/amd64"));
    let plain = plain.map_err(|e| e.to_string())?;
    let tree = index(&plain).map_err(|e| format!("archive: {e}"))?;
    let want = emit(&plain, &tree, without, Places::default(), &dir.join("plain-read"))?;
    let got = written_from_aside(&plain, "no such name", without, &dir.join("plain"))?;
    match got == want.manifest_digest {
        true => Ok(()),
        false => Err("written from where contents lie: other bytes than from the layers".into()),
    }
}

/// Takes files away, a name here and there, so that most layers are filtered.
fn dropped(model: &mut Model, seed: u64) -> BTreeSet<RootPath> {
    let mut dice = Dice::new(seed ^ 0xd0d0);
    let files = model.nodes.iter().filter(|(_, node)| node.kind != Kind::Dir);
    let files: Vec<Vec<u8>> = files.map(|(path, _)| path.clone()).collect();
    let some: Vec<Vec<u8>> = files.into_iter().filter(|_| dice.one_in(3)).collect();
    for path in &some {
        model.nodes.remove(path);
    }
    some.iter().map(|path| RootPath::parse(path).unwrap()).collect()
}

/// Leaves away whatever the failure does not need.
fn smallest(mut recipe: Recipe, seed: u64, mut why: String) -> (Recipe, String) {
    let mut changed = true;
    while changed {
        changed = false;
        for layer in (0..recipe.layers.len()).rev() {
            for entry in (0..recipe.layers[layer].entries.len()).rev() {
                let mut less = recipe.clone();
                less.layers[layer].entries.remove(entry);
                if Model::of(&less).is_err() {
                    continue;
                }
                if let Err(other) = check(&less, seed) {
                    (recipe, why, changed) = (less, other, true);
                }
            }
        }
    }
    (recipe, why)
}

fn show(recipe: &Recipe) -> String {
    let mut text = String::new();
    for (at, layer) in recipe.layers.iter().enumerate() {
        for entry in &layer.entries {
            let kind = match &entry.kind {
                Kind::File(data) => format!("File({} bytes)", data.len()),
                Kind::Link(target) => format!("Link({})", target.escape_ascii()),
                Kind::Symlink(target) => format!("Symlink({})", target.escape_ascii()),
                other => format!("{other:?}"),
            };
            let name = entry.name.escape_ascii();
            text += &format!("layer {at}: {name} {kind} {:?} {:?}\n", entry.meta, entry.style);
        }
    }
    text
}

/// Memory, if it takes all attributes (user.* on tmpfs: Linux 6.6), else the disk.
fn scratch() -> PathBuf {
    static PLACE: std::sync::OnceLock<PathBuf> = std::sync::OnceLock::new();
    let fits = |path: &Path| {
        let Ok(file) = tempfile::NamedTempFile::new_in(path) else { return false };
        xattr::set(file.path(), "user.x", b"1").is_ok()
            && xattr::set(file.path(), "trusted.x", b"1").is_ok()
    };
    let memory = PathBuf::from("/dev/shm");
    PLACE.get_or_init(|| if fits(&memory) { memory } else { "/var/tmp".into() }).clone()
}

/// Many files and a large one, small where `SLIM_LARGE` is not set: then a million, and 20 GB.
#[test]
fn many_files_and_a_large_one_come_back_the_same() {
    let full = std::env::var_os("SLIM_LARGE").is_some();
    let (files, size) = if full { (1_000_000, 20_000_000_000) } else { (5_000, 100_000_000) };
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("large");
    let file = std::fs::File::create(&path).unwrap();
    for at in [0, size / 2, size - 4096] {
        std::os::unix::fs::FileExt::write_all_at(&file, &[7; 4096], at).unwrap();
    }
    let mut pack = std::process::Command::new("tar");
    pack.arg("-C").arg(dir.path()).args(["--sparse", "--format=posix", "-cf", "-", "large"]);
    let tar = pack.output().unwrap().stdout;
    assert!(tar.len() < 1 << 20, "not sparse");
    let mut many = LayerFixture::default();
    for n in 0..files {
        many = many.file(&format!("d{}/f{n}", n % 1000), "");
    }
    let fixture = ImageFixture::default().layer(many).layer(LayerFixture::of_tar(tar));
    let image = open(&fixture.write(dir.path())).unwrap();
    let started = std::time::Instant::now();
    let store = Store::open(Some(&dir.path().join("store"))).unwrap();
    let tree = store.unpack(&image, &|_, _| ()).unwrap().tree;
    println!("unpacked in {:?}", started.elapsed());
    assert_eq!(tree.totals(), Totals { files: files + 1, bytes: size });
    let without = BTreeSet::from([RootPath::parse(b"/d7/f7").unwrap()]);
    let started = std::time::Instant::now();
    let (slim, less) = written(&image, &tree, &without, dir.path()).unwrap();
    println!("written and read again in {:?}", started.elapsed());
    assert_eq!(less.totals(), Totals { files, bytes: size });
    // What lost nothing passed byte for byte, holes included.
    assert_eq!(slim.layers[1].diff_id, image.layers[1].diff_id);
    assert_eq!(slim.layers[1].blob, image.layers[1].blob);
    let lowest = store.unpack(&image, &|_, _| ()).unwrap().lowers.pop().unwrap();
    let unpacked = std::fs::metadata(lowest.join("large")).unwrap();
    assert!(unpacked.len() == size && unpacked.blocks() < 4096, "{} blocks", unpacked.blocks());
}

/// A file of the store that somebody changed does not get into an image; one that is gone is read from
/// its layer.
#[test]
fn a_store_that_was_changed_is_found_out() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let layer = LayerFixture::default().file("a", "right").file("b", "other").file("c", "c");
    let fixture = ImageFixture::default().layer(layer);
    let image = open(&fixture.write(dir.path())).unwrap();
    let store = Store::open(Some(&dir.path().join("store"))).unwrap();
    let rootfs = store.unpack(&image, &|_, _| ()).unwrap();
    let contents = |layer, path: &RootPath| rootfs.folders.open(layer, path);
    let places = || Places { unpacked: Some(&contents), ..Places::default() };
    let without = BTreeSet::from([RootPath::parse(b"/c").unwrap()]);
    let emit = |name: &str| {
        let target = dir.path().join(name);
        emit(&image, &rootfs.tree, &without, places(), &target).map(|e| e.manifest_digest)
    };
    let sound = emit("sound").unwrap();
    std::fs::remove_file(rootfs.lowers[0].join("b")).unwrap();
    assert_eq!(emit("gone").unwrap(), sound);
    std::fs::write(rootfs.lowers[0].join("a"), "wrong").unwrap();
    let why = emit("changed").unwrap_err();
    assert!(why.contains("copy of /a in layer 0") && why.contains("slim store gc"), "{why}");
    assert!(!dir.path().join("changed").exists());
    std::fs::remove_file(rootfs.lowers[0].join("a")).unwrap();
    std::os::unix::fs::symlink("/etc/hostname", rootfs.lowers[0].join("a")).unwrap();
    assert_eq!(emit("a link").unwrap(), sound);
}
