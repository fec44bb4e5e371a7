//! What a stranger's image may try, and what becomes of it; docs/hostile.md has the table.
//!
//! Each trick is layered on the same base, which alone must pass, and beside a folder that must stay as
//! it is. Cases are ours; where they were first met is in the table.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use serde_json::json;
use slim::model::{Digest, RootPath, Tree};
use slim::oci::limits::{Limits, MAX_LAYERS};
use slim::rootfs::{RootfsError, Store, index};
use slim::source::Access;

use crate::images::mounted;
use crate::result::profile_of;
use crate::support::image::{Attr, ImageFixture, LayerFixture, Packed};
use crate::support::{Need, have, outcome, slim};

fn layer() -> LayerFixture {
    LayerFixture::default()
}

/// What every trick is played on.
fn base() -> LayerFixture {
    layer().dir("etc").file("etc/passwd", "inside").dir("dummy").dir("breakouts").dir("localetc")
}

fn image(layers: &[LayerFixture]) -> ImageFixture {
    layers.iter().cloned().fold(ImageFixture::default(), ImageFixture::layer)
}

/// Everything about a folder that could be changed.
fn state(folder: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in walkdir::WalkDir::new(folder).sort_by_file_name() {
        let entry = entry.unwrap();
        let m = entry.metadata().unwrap();
        let facts = (m.mode(), m.uid(), m.gid(), m.len(), m.mtime(), m.ctime(), m.ino(), m.nlink());
        all.push(format!("{} {facts:?}", entry.path().display()));
    }
    all
}

/// A folder beside the store, named in tricks as OUTSIDE.
struct Sandbox {
    dir: tempfile::TempDir,
    before: Vec<String>,
}

impl Sandbox {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("victim"), "whole").unwrap();
        std::fs::create_dir(outside.join("sub")).unwrap();
        let before = state(&outside);
        Self { dir, before }
    }

    fn outside(&self) -> String {
        self.dir.path().join("outside").to_str().unwrap().to_owned()
    }

    /// Unpacks and indexes, which must agree, and leave everything else alone.
    fn open(&self, fixture: &ImageFixture, limits: Limits) -> Result<(Tree, Store), String> {
        let text = |e: &dyn std::error::Error| slim::model::chain(e).to_string();
        let path = tempfile::tempdir_in(self.dir.path()).unwrap().keep();
        let layout = fixture.write(&path);
        let access = Access { limits, ..Access::platform("linux/amd64") };
        let image = slim::source::open(&format!("oci:{}", layout.display()), &access);
        let image = image.map_err(|e| text(&e))?;
        let store = Store::open(Some(&path.join("store"))).unwrap();
        let (indexed, unpacked) = (index(&image), store.unpack(&image, &|_, _| ()));
        assert_eq!(self.before, state(&self.dir.path().join("outside")), "ESCAPE");
        match (indexed, unpacked) {
            (Ok(tree), Ok(rootfs)) => {
                assert!(tree == rootfs.tree);
                Ok((tree, store))
            }
            (Err(one), Err(two)) => {
                assert!(one.is_bad_image() && two.is_bad_image(), "{one} / {two}");
                assert!(!text(&one).contains('\x1b') && !text(&two).contains('\x1b'), "{one}");
                let whole = store.ls().unwrap();
                assert!(whole.len() < image.layers.len(), "half unpacked and taken for whole");
                Err(text(&two))
            }
            (one, two) => panic!("{:?} / {:?}", one.err(), two.err()),
        }
    }
}

fn try_layers(layers: &[LayerFixture]) -> Result<Tree, String> {
    Sandbox::new().open(&image(layers), Limits::default()).map(|(tree, _)| tree)
}

fn refused(what: &str, trick: LayerFixture, why: &str) {
    let error = try_layers(&[base(), trick]).err().unwrap_or_else(|| panic!("{what} passed"));
    assert!(error.contains("layer 1") && error.contains(why), "{what}: {error}");
}

fn passes(what: &str, trick: LayerFixture) -> Tree {
    try_layers(&[base(), trick]).unwrap_or_else(|error| panic!("{what}: {error}"))
}

fn same_file(tree: &Tree, one: &str, two: &str) -> bool {
    let get = |path: &str| tree.get(&RootPath::parse(path.as_bytes()).unwrap());
    matches!((get(one), get(two)), (Some(a), Some(b)) if a.inode == b.inode)
}

fn has(tree: &Tree, path: &str) -> bool {
    tree.has(&RootPath::parse(path.as_bytes()).unwrap())
}

#[test]
fn the_base_alone_passes() {
    assert!(has(&try_layers(&[base()]).unwrap(), "/etc/passwd"));
    assert!(has(&passes("two layers", layer().file("x", "1")), "/x"));
}

#[test]
fn absolute_and_climbing_names() {
    for name in ["../x", "/../x", "a/../../x", "etc/../../x", "./.././x", "..", "/.."] {
        refused(name, layer().file(name, "x"), "above the root");
    }
    let far = format!("{}x", "../".repeat(30));
    refused("far", layer().file(&far, "x"), "above the root");
    refused("a folder", layer().dir("../d"), "above the root");
    refused("by PAX", layer().pax(&[("path", b"../x")]).file("x", "1"), "above the root");
    let sparse: &[(&str, &[u8])] =
        &[("GNU.sparse.name", b"../x"), ("GNU.sparse.size", b"0"), ("GNU.sparse.map", b"0,0")];
    refused("by a sparse name", layer().pax(sparse).file("x", ""), "above the root");
    for name in ["/x", "//x", "./x", "/./x", "a/../x", "etc/../x"] {
        assert!(has(&passes(name, layer().file(name, "1")), "/x"), "{name}");
    }
    let sandbox = Sandbox::new();
    let absolute = format!("{}/victim", sandbox.outside());
    let fixture = image(&[base(), layer().file(&absolute, "broken")]);
    let (tree, _) = sandbox.open(&fixture, Limits::default()).unwrap();
    assert!(has(&tree, &absolute));
}

#[test]
fn symlinks_are_walked_inside_the_root() {
    type Case = (&'static str, &'static [(&'static str, &'static str)], &'static str, &'static str);
    let cases: &[Case] = &[
        ("absolute", &[("link", "/etc")], "link/new", "/etc/new"),
        ("up and out", &[("link", "/dummy/../etc")], "link/new", "/etc/new"),
        ("far up", &[("link", "../../../../../../etc")], "link/new", "/etc/new"),
        ("two", &[("dummy/etc", "/etc"), ("link", "/dummy/etc")], "link/new", "/etc/new"),
        ("relative two", &[("dummy/e", "/etc"), ("link", "./dummy/e")], "link/new", "/etc/new"),
        ("through nothing", &[("link", "no/../../../etc")], "link/new", "/etc/new"),
        ("the root", &[("link", "/")], "link/new", "/new"),
        ("above the root", &[("link", "/..")], "link/new", "/new"),
        ("garbage", &[("link", "/./.././.././../")], "link/new", "/new"),
        ("itself", &[("dummy/up", "..")], "dummy/up/dummy/up/new", "/new"),
    ];
    for (what, links, name, want) in cases {
        let links = links.iter().fold(layer(), |l, (link, to)| l.symlink(link, to));
        assert!(has(&passes(what, links.file(name, "1")), want), "{what}");
    }
    let loops = layer().symlink("one", "two").symlink("two", "one").file("one/x", "1");
    refused("a loop", loops, "loop");
    let sandbox = Sandbox::new();
    for to in [sandbox.outside(), format!("../../../../../../../..{}", sandbox.outside())] {
        for trick in [
            layer().symlink("out", &to).file("out/victim", "broken"),
            layer().symlink("out", &to).dir("out/sub").fifo("out/pipe"),
            layer().symlink("a", "out").symlink("out", &to).file("a/new", "broken"),
        ] {
            sandbox.open(&image(&[base(), trick.clone()]), Limits::default()).unwrap();
            // The link in one layer, its use in the next.
            let apart = image(&[base(), trick, layer().file("out/victim", "broken")]);
            sandbox.open(&apart, Limits::default()).unwrap();
        }
        // A file in place of the link that it would be written through.
        let replaced = layer().symlink("v", &format!("{to}/victim")).file("v", "broken");
        sandbox.open(&image(&[base(), replaced]), Limits::default()).unwrap();
    }
}

#[test]
fn hard_links_stay_inside() {
    for (what, link, to) in [
        ("relative", "breakouts/d1", "../../etc"),
        ("down and out", "breakouts/d1", "../dummy/../../etc"),
        ("absolute", "breakouts/d1", "/etc"),
        ("long", "breakouts/d1", "../../../../../../../etc"),
        ("through nothing", "breakouts/d1", "upandout/../../../etc"),
    ] {
        let trick = layer().symlink(link, to).link("breakouts/mine", "/breakouts/d1/passwd");
        assert!(same_file(&passes(what, trick), "/breakouts/mine", "/etc/passwd"), "{what}");
    }
    let tree = passes("straight", layer().link("mine", "/etc/passwd"));
    assert!(same_file(&tree, "/mine", "/etc/passwd"));
    for to in ["../etc/passwd", "../../../../etc/passwd", "a/../../etc/shadow"] {
        refused(to, layer().link("mine", to), "above the root");
    }
    let outside = Sandbox::new();
    let victim = format!("{}/victim", outside.outside());
    for trick in [
        layer().link("mine", &victim),
        layer().symlink("d", &outside.outside()).link("mine", "d/victim"),
    ] {
        let error = outside.open(&image(&[base(), trick]), Limits::default()).err().unwrap();
        assert!(error.contains("which no layer up to here has"), "{error}");
    }
    refused("the root", layer().link("mine", "/"), "hard link to the root");
    refused("a folder", layer().link("mine", "etc"), "a directory");
    refused("below itself", layer().link("etc/passwd/x", "etc/passwd"), "below itself");
    refused("in place of it", layer().link("etc", "etc/passwd"), "in place of");
    // A link to a symlink is that symlink, never what it leads to.
    let trick = layer().symlink("s", &victim).link("s2", "s").file("s2", "broken");
    outside.open(&image(&[base(), trick]), Limits::default()).unwrap();
}

#[test]
fn links_and_folders_that_replace_each_other() {
    let in_folder = layer().symlink("localetc", "/etc").link("localetc/mine", "/etc/passwd");
    assert!(same_file(&passes("a link for a folder", in_folder), "/etc/mine", "/etc/passwd"));
    let link = layer().symlink("l", "/etc");
    let layers = [base(), link, layer().dir("l").link("l/mine", "/etc/passwd")];
    let tree = try_layers(&layers).unwrap();
    assert!(same_file(&tree, "/l/mine", "/etc/passwd") && !has(&tree, "/etc/mine"));
    let swap = layer().file("l", "1").dir("l").file("l/a", "1").symlink("l", "/etc").dir("l");
    assert!(!has(&passes("back and forth", swap), "/l/a"));
}

#[test]
fn folder_modes_are_not_set_through_links() {
    let sandbox = Sandbox::new();
    let attr = Attr { mode: 0o777, uid: 1234, gid: 1234, mtime: 1 };
    for to in [sandbox.outside(), format!("../../../../../../..{}", sandbox.outside())] {
        let open = |name: &[u8]| layer().raw(b'5', name, b"", b"", &attr);
        let link = layer().symlink("out", &to);
        let (tree, _) = sandbox
            .open(&image(&[base(), link.clone(), open(b"out/")]), Limits::default())
            .unwrap();
        assert_eq!(tree.get(&RootPath::parse(b"/out").unwrap()).unwrap().mode, 0o777);
        sandbox.open(&image(&[base(), link, open(b"out/sub/")]), Limits::default()).unwrap();
    }
}

#[test]
fn the_root_is_a_folder_and_stays_one() {
    for name in [".", "./", "/", "etc/.."] {
        refused(name, layer().symlink(name, "/etc"), "root can only be a directory");
        refused(name, layer().link(name, "etc/passwd"), "root can only be a directory");
        refused(name, layer().fifo(name), "root can only be a directory");
    }
    let attr = Attr { mode: 0o711, ..Attr::default() };
    passes("a folder", layer().raw(b'5', b"./", b"", b"", &attr));
}

#[test]
fn whiteouts_do_not_climb() {
    for name in [".wh..", ".wh...", "etc/.wh..", "etc/.wh...", ".wh.", "etc/.wh."] {
        refused(name, layer().file(name, ""), "a whiteout");
    }
    for name in ["../.wh.etc", "a/../../.wh.etc", "../.wh..wh..opq"] {
        refused(name, layer().file(name, ""), "above the root");
    }
    refused("a folder named so", layer().file(".wh.etc/x", ""), "named as a whiteout");
    let gone = passes("a plain one", layer().whiteout("etc/passwd"));
    assert!(!has(&gone, "/etc/passwd") && has(&gone, "/etc"));
    assert!(!has(&passes("by name", layer().file("no/../.wh.etc", "")), "/etc/passwd"));
    assert!(has(&passes("dots", layer().file("etc/.wh....", "")), "/etc/passwd"));
}

#[test]
fn whiteouts_through_links_stay_inside() {
    let sandbox = Sandbox::new();
    for to in [sandbox.outside(), format!("../../../../../../..{}", sandbox.outside())] {
        for mark in ["out/.wh.victim", "out/.wh..wh..opq", "out/sub/.wh..wh..opq"] {
            let trick = layer().symlink("out", &to).file(mark, "");
            sandbox.open(&image(&[base(), trick]), Limits::default()).unwrap();
        }
    }
    let linked = |mark: &str| {
        try_layers(&[base(), layer().symlink("l", "/etc"), layer().file(mark, "")]).unwrap()
    };
    let tree = linked(".wh.l");
    assert!(has(&tree, "/etc/passwd") && !has(&tree, "/l"), "the link goes, not what it leads to");
    assert!(!has(&linked("l/.wh.passwd"), "/etc/passwd"));
    let dead = [base(), layer().symlink("l", "/none"), layer().file("l/.wh.etc", "")];
    assert!(has(&try_layers(&dead).unwrap(), "/etc/passwd"));
}

#[test]
fn devices_are_only_for_root() {
    if !have(&[Need::Root]) {
        return;
    }
    let attr = Attr { mode: 0o666, ..Attr::default() };
    let sandbox = Sandbox::new();
    let disk = layer().raw(b'4', b"disk", b"", &[8, 0], &attr);
    let (_, store) = sandbox.open(&image(&[base(), disk]), Limits::default()).unwrap();
    closed(&store);
    let mut header = tar::Header::new_gnu();
    header.set_path("d").unwrap();
    header.set_entry_type(tar::EntryType::Char);
    header.set_device_major(4096).unwrap();
    header.set_device_minor(1).unwrap();
    header.set_size(0);
    header.set_mode(0o600);
    header.set_cksum();
    let odd = LayerFixture::of_tar(header.as_bytes().to_vec());
    refused("numbers Linux has not", odd, "none that Linux has");
}

/// Nobody but the owner gets at what is unpacked.
fn closed(store: &Store) {
    for name in ["layers", "locks"] {
        let mode = store.path().join(name).metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o077, 0, "{name} is open to others: {mode:o}");
    }
}

#[test]
fn setuid_programs_are_kept_and_out_of_reach() {
    if !have(&[Need::Root]) {
        return;
    }
    let attr = Attr { mode: 0o6755, uid: 0, gid: 0, ..Attr::default() };
    let sandbox = Sandbox::new();
    let trick = layer().raw(b'0', b"tmp/su", b"", b"#!/bin/sh\n", &attr);
    let (tree, store) = sandbox.open(&image(&[base(), trick]), Limits::default()).unwrap();
    let node = tree.get(&RootPath::parse(b"/tmp/su").unwrap()).unwrap();
    assert_eq!((node.mode, node.uid), (0o6755, 0), "kept as it is");
    closed(&store);
    // A store that an older slim left open is closed.
    let open = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(store.path().join("layers"), open).unwrap();
    let fixture = image(&[base()]);
    let layout = fixture.write(&sandbox.dir.path().join("again"));
    let image = slim::source::open(layout.to_str().unwrap(), &Access::default()).unwrap();
    store.unpack(&image, &|_, _| ()).unwrap();
    closed(&store);
}

#[test]
fn layers_cannot_set_overlay_marks() {
    if !have(&[Need::Root]) {
        return;
    }
    let sandbox = Sandbox::new();
    let mark = |prefix: &str, name: &str, value: &[u8]| {
        let key = format!("SCHILY.xattr.{prefix}.overlay.{name}");
        layer().pax(&[(key.as_str(), value)])
    };
    for prefix in ["trusted", "user"] {
        let opaque = mark(prefix, "opaque", b"y").dir("etc");
        let redirect = mark(prefix, "redirect", sandbox.outside().as_bytes()).dir("dummy");
        let meta = mark(prefix, "metacopy", b"").file("f", "own");
        for trick in [opaque, redirect, meta] {
            let path = tempfile::tempdir_in(sandbox.dir.path()).unwrap().keep();
            let layout = image(&[base(), trick]).write(&path);
            let image = slim::source::open(layout.to_str().unwrap(), &Access::default()).unwrap();
            let store = Store::open(Some(&path.join("store"))).unwrap();
            let rootfs = store.unpack(&image, &|_, _| ()).unwrap();
            for entry in rootfs.lowers.iter().flat_map(walkdir::WalkDir::new) {
                let entry = entry.unwrap();
                let names = xattr::list(entry.path()).unwrap();
                let marks = names.filter(|n| n.to_string_lossy().contains(".overlay."));
                assert_eq!(marks.count(), 0, "{}", entry.path().display());
            }
            mounted(&store, &rootfs.lowers, |merged| {
                let seen = std::fs::read_to_string(merged.join("etc/passwd"));
                assert_eq!(seen.unwrap(), "inside");
                assert!(!merged.join("dummy/victim").exists());
            });
        }
    }
}

#[test]
fn no_output_holds_control_characters() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let evil = "x\x1b[2J\x1b]0;owned\x07\u{9b}31m\u{202e}y";
    let shown = |fixture: &ImageFixture, good: bool| {
        let folder = tempfile::tempdir_in(dir.path()).unwrap().keep();
        let layout = fixture.write(&folder);
        for extra in [&["--json"][..], &[]] {
            let mut command = slim(&folder);
            command.args(["inspect", "--platform", "linux/amd64"]).arg(&layout).args(extra);
            let (code, text) = outcome(&command.output().unwrap());
            assert_eq!(code, if good { 0 } else { 3 }, "{text}");
            let wild = text
                .chars()
                .find(|c| c.is_control() && *c != '\n' || ('\u{202a}'..='\u{202e}').contains(c));
            assert_eq!(wild, None, "{text:?}");
        }
    };
    shown(&image(&[base()]).tag("plain:1"), true);
    shown(&image(&[base(), layer().file(evil, "1")]).tag(&format!("repo/{evil}:1")), true);
    shown(
        &image(&[base()]).config(json!({ "User": evil, "Cmd": [evil], "WorkingDir": evil })),
        true,
    );
    shown(&image(&[base(), layer().file(&format!("../{evil}"), "1")]), false);
    shown(&image(&[base(), layer().link("a", evil)]), false);
    shown(&image(&[base(), layer().pax(&[("mtime", evil.as_bytes())]).file("a", "")]), false);
    shown(
        &image(&[base(), layer().raw(b'\x1b', evil.as_bytes(), b"", b"", &Attr::default())]),
        false,
    );
}

#[test]
fn what_an_image_calls_itself_leads_nowhere() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let listing = |folder: &Path| -> Vec<String> {
        let list = std::fs::read_dir(folder).unwrap();
        let mut names: Vec<_> =
            list.map(|one| one.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    };
    for (name, good) in [
        ("shop/web:1", true),
        ("a/..", false),
        ("a/.", false),
        ("a/", false),
        ("a/family.json", true),
        ("a/b:1\nRUN evil", false),
        ("a/b:1 AS full\nRUN evil\n#", false),
        ("Shop/Web:X", false),
    ] {
        let folder = tempfile::tempdir_in(dir.path()).unwrap().keep();
        let layout = image(&[base()]).tag(name).write(&folder);
        let opened = slim::source::open(layout.to_str().unwrap(), &Access::default()).unwrap();
        assert_eq!(opened.name.is_some(), good, "{name:?}");
        profile_of(&opened, &["/etc/passwd"], &folder.join("profile.json"));
        let build = |args: &[&str]| {
            let mut command = slim(&folder);
            command.args(["build", "profile.json", "--keep-going", "--image"]).arg(&layout);
            let (code, text) = outcome(&command.args(args).output().unwrap());
            assert_eq!(code, 0, "{name:?}: {text}");
            assert!(!text.contains("\nRUN"), "{text}");
        };
        build(&["--family", "-o", "out/in"]);
        assert_eq!(listing(&folder.join("out")), ["in"], "{name:?}");
        let inside = listing(&folder.join("out/in"));
        let [own] = &inside.iter().filter(|name| *name != "family.json").collect::<Vec<_>>()[..]
        else {
            panic!("{name:?}: {inside:?}")
        };
        assert!(folder.join("out/in").join(own).join("image.tar").is_file(), "{name:?}");
        assert!(folder.join("out/in/family.json").is_file(), "{name:?}");
        build(&["--format", "dockerfile", "-o", "recipe"]);
        let recipe = std::fs::read_to_string(folder.join("recipe/Dockerfile")).unwrap();
        assert_eq!(recipe.matches("\nRUN").count(), 0, "{name:?}: {recipe}");
        assert_eq!(recipe.contains("ARG ORIGINAL"), !good, "{name:?}: {recipe}");
    }
}

#[test]
fn a_configuration_writes_no_instructions() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let config = json!({
        "Cmd": ["x\nRUN evil"], "User": "u\nRUN evil", "Env": ["A\nRUN evil=1", "B=1\nRUN evil"],
        "ExposedPorts": { "80/tcp\nRUN evil": {} }, "OnBuild": ["RUN fine\nRUN evil"],
        "Healthcheck": { "Test": ["CMD-SHELL", "true\nRUN evil"] },
    });
    let layout = image(&[base()]).config(config).tag("a/b:1").write(dir.path());
    let opened = slim::source::open(layout.to_str().unwrap(), &Access::default()).unwrap();
    profile_of(&opened, &["/etc/passwd"], &dir.path().join("profile.json"));
    let mut command = slim(dir.path());
    command.args(["build", "profile.json", "--keep-going", "--format", "dockerfile", "-o", "out"]);
    let (code, text) = outcome(&command.arg("--image").arg(&layout).output().unwrap());
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("EXPOSE 80/tcp\\x0aRUN evil: a Dockerfile cannot say it"), "{text}");
    let recipe = std::fs::read_to_string(dir.path().join("out/Dockerfile")).unwrap();
    assert_eq!(recipe.matches("\nRUN").count(), 0, "{recipe}");
}

#[test]
fn giant_headers_are_refused() {
    let value = vec![b'x'; 60 << 10];
    let names: Vec<String> = (0..20).map(|n| format!("SCHILY.xattr.user.{n}")).collect();
    let records = |n: usize| -> Vec<(&str, &[u8])> {
        names[..n].iter().map(|name| (name.as_str(), &value[..])).collect()
    };
    passes("much", layer().pax(&records(2)).file("a", ""));
    refused("too much", layer().pax(&records(20)).file("a", ""), "more than 1 MiB");
    // Each of them is small enough.
    let many = (0..20).fold(layer(), |l, _| l.pax(&records(1)));
    refused("too many", many.file("a", ""), "more than 1 MiB");
    let long = vec![b'n'; 2 << 20];
    refused(
        "a GNU name",
        layer().raw(b'L', b"././@LongLink", b"", &long, &Attr::default()),
        "1 MiB",
    );
    let large = vec![b'x'; 70 << 10];
    let large = layer().pax(&[("SCHILY.xattr.user.a", &large)]).file("a", "");
    refused("a value no kernel takes", large, "no room");
    // A header that claims to be large, and is not there.
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[156] = b'x';
    header.set_size(1 << 40);
    header.set_cksum();
    refused("a claim", LayerFixture::of_tar(header.as_bytes().to_vec()), "1 MiB");
}

#[test]
fn names_longer_than_the_kernel_takes() {
    let name = "n".repeat(255);
    passes("a long one", layer().file(&format!("d/{name}"), "1"));
    refused("a longer one", layer().file(&format!("d/{name}n"), "1"), "more than 255 bytes");
    let deep = "d/".repeat(1500);
    passes("a deep one", layer().file(&format!("{deep}f"), "1"));
    refused("a deeper one", layer().file(&format!("{}f", "d/".repeat(2500)), "1"), "4095");
    passes("a link", layer().symlink("l", &"t/".repeat(2000)));
    refused("a longer link", layer().symlink("l", &"t/".repeat(2100)), "4095");
}

#[test]
fn numbers_no_file_can_have() {
    refused("a size", sized(b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xf0"), "size");
    refused("a huge size", sized(b"\x80\x00\x00\x00\x7f\xff\xff\xff\xff\xff\xff\xff"), "");
    for key in ["uid", "gid"] {
        for value in ["4294967295", "4294967296", "-1"] {
            refused(value, layer().pax(&[(key, value.as_bytes())]).file("a", ""), "");
        }
        passes("the last", layer().pax(&[(key, b"4294967294")]).file("a", ""));
    }
    for time in ["x", "99999999999999999999", "-", "1.x"] {
        refused(time, layer().pax(&[("mtime", time.as_bytes())]).file("a", ""), "no time");
    }
    passes("a time", layer().pax(&[("mtime", b"-1.5")]).file("a", ""));
}

/// A file whose size field holds these bytes.
fn sized(field: &[u8; 12]) -> LayerFixture {
    let mut header = tar::Header::new_gnu();
    header.as_mut_bytes()[0] = b'a';
    header.as_mut_bytes()[124..136].copy_from_slice(field);
    header.set_cksum();
    LayerFixture::of_tar(header.as_bytes().to_vec())
}

#[test]
fn deeply_nested_json_is_no_stack() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let layout = image(&[base()]).write(dir.path());
    slim::source::open(layout.to_str().unwrap(), &Access::default()).unwrap();
    let index = std::fs::read_to_string(layout.join("index.json")).unwrap();
    for (open, close) in [("[", "]"), ("{\"a\":", "}")] {
        let deep = format!("{}1{}", open.repeat(500_000), close.repeat(500_000));
        let text = index.replacen('{', &format!("{{\"annotations\":{deep},"), 1);
        std::fs::write(layout.join("index.json"), text).unwrap();
        // Nothing wants what is in there: it is skipped, without a stack.
        slim::source::open(layout.to_str().unwrap(), &Access::default()).unwrap();
        std::fs::write(layout.join("index.json"), &index).unwrap();
        rewrite(&layout, |config| config.replacen('{', &format!("{{\"x\":{deep},"), 1));
        let error = slim::source::open(layout.to_str().unwrap(), &Access::default()).err().unwrap();
        assert!(error.to_string().contains("configuration"), "{error}");
    }
}

/// Changes the configuration, and digests and sizes with it.
fn rewrite(layout: &Path, change: impl Fn(String) -> String) {
    let blobs = layout.join("blobs/sha256");
    let read = |value: &serde_json::Value| {
        let digest = value["digest"].as_str().unwrap().replace("sha256:", "");
        std::fs::read_to_string(blobs.join(digest)).unwrap()
    };
    let put = |value: &mut serde_json::Value, text: &str| {
        let digest = Digest::of(text.as_bytes());
        std::fs::write(blobs.join(digest.hex()), text).unwrap();
        (value["digest"], value["size"]) = (json!(digest.to_string()), json!(text.len()));
    };
    let file = layout.join("index.json");
    let mut index: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&file).unwrap()).unwrap();
    let mut manifest: serde_json::Value =
        serde_json::from_str(&read(&index["manifests"][0])).unwrap();
    let config = change(read(&manifest["config"]));
    put(&mut manifest["config"], &config);
    put(&mut index["manifests"][0], &manifest.to_string());
    std::fs::write(file, index.to_string()).unwrap();
}

#[test]
fn bombs_hit_a_limit_and_the_limit_can_be_raised() {
    let sandbox = Sandbox::new();
    let small = Limits { bytes: 1 << 20, entries: 10 };
    let zeros = "\0".repeat(3 << 20);
    let large = image(&[base(), layer().file("zeros", &zeros)]);
    let error = sandbox.open(&large, small).err().unwrap();
    assert!(error.contains("layer 1") && error.contains("--max-image-bytes"), "{error}");
    sandbox.open(&large, Limits { bytes: 8 << 20, ..small }).unwrap();
    // No layer is too large, the image is.
    let part = "\0".repeat(600 << 10);
    let parts = image(&[layer().file("a", &part), layer().file("b", &part)]);
    assert!(sandbox.open(&parts, small).err().unwrap().contains("layer 1"));
    // Behind the end of the archive, and in entries that are not unpacked.
    let mut tail = base().finish();
    tail.resize(4 << 20, 0);
    let tail = image(&[LayerFixture::of_tar(tail)]);
    assert!(sandbox.open(&tail, small).err().unwrap().contains("--max-image-bytes"));
    let ignored = image(&[layer().file(".wh..wh.aufs", &zeros).file(".wh.x", &zeros)]);
    assert!(sandbox.open(&ignored, small).err().unwrap().contains("--max-image-bytes"));
    // A hole takes no bytes at all: this one, by default, is refused before it is read.
    let hole: &[(&str, &[u8])] =
        &[("GNU.sparse.size", b"1152921504606846976"), ("GNU.sparse.map", b"0,0")];
    let start = std::time::Instant::now();
    let hole = image(&[base(), layer().pax(hole).file("hole", "")]);
    let error = sandbox.open(&hole, Limits::default()).err().unwrap();
    assert!(error.contains("--max-image-bytes"), "{error}");
    assert!(start.elapsed().as_secs() < 10);
    let many = |n: usize| image(&[(0..n).fold(layer(), |l, at| l.file(&format!("f{at}"), ""))]);
    assert!(sandbox.open(&many(11), small).err().unwrap().contains("--max-entries"));
    sandbox.open(&many(10), small).unwrap();
    // Folders that nobody names count.
    let deep = image(&[layer().file("a/b/c/d/e/f/g/h/i/j/k/l", "").file("x", "")]);
    assert!(sandbox.open(&deep, small).err().unwrap().contains("--max-entries"));
    // zstd, and gzip in gzip's own members.
    let zstd = ImageFixture::default().packed(layer().file("zeros", &zeros), Packed::Zstd);
    assert!(sandbox.open(&zstd, small).err().unwrap().contains("--max-image-bytes"));
    let usual = Limits::default();
    assert!(usual.bytes >= 40 << 30 && usual.entries >= 2_000_000, "honest images must pass");
}

#[test]
fn the_limits_are_options() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let layout = image(&[base(), layer().file("zeros", &"\0".repeat(1 << 20))]).write(dir.path());
    for (args, want) in [
        (&["--max-image-bytes", "900k"][..], 3),
        (&["--max-image-bytes", "2m"], 0),
        (&["--max-entries", "5"], 3),
        (&["--max-entries", "6"], 0),
        (&["--max-image-bytes", "many"], 2),
        (&[], 0),
    ] {
        let mut command = slim(dir.path());
        command.args(["inspect", "--platform", "linux/amd64"]).arg(&layout).args(args);
        let (code, text) = outcome(&command.output().unwrap());
        assert_eq!(code, want, "{args:?}: {text}");
        assert!(code != 3 || text.contains(args[0]), "{text}");
    }
}

#[test]
fn a_full_disk_is_said() {
    if !have(&[Need::Root]) {
        return;
    }
    let sandbox = Sandbox::new();
    let bytes: String = (0..4u32 << 20).map(|n| char::from((n % 90 + 33) as u8)).collect();
    let layout = image(&[base(), layer().file("large", &bytes)]).write(sandbox.dir.path());
    let store = sandbox.dir.path().join("store");
    std::fs::create_dir(&store).unwrap();
    let run = slim::sys::mount::in_private(|| {
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("slim", &store, "tmpfs", flags, Some(c"size=2m")).unwrap();
        let image = slim::source::open(layout.to_str().unwrap(), &Access::default()).unwrap();
        let error = Store::open(Some(&store)).unwrap().unpack(&image, &|_, _| ()).err().unwrap();
        matches!(error, RootfsError::Full { .. }).then_some(()).ok_or(error.to_string())
    });
    run.unwrap().unwrap();
}

#[test]
fn digests_sizes_and_diff_ids_that_lie() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let opened = |layout: &Path| {
        let image = slim::source::open(layout.to_str().unwrap(), &Access::default());
        image.map_err(|e| e.to_string()).and_then(|i| index(&i).map_err(|e| e.to_string()))
    };
    let layout = image(&[base()]).write(dir.path());
    opened(&layout).unwrap();
    let other = Digest::of(b"other").to_string();
    let own = Digest::of(&base().finish()).to_string();
    rewrite(&layout, |config| config.replace(&own, &other));
    assert!(opened(&layout).unwrap_err().contains("diffID"));
    rewrite(&layout, |config| config.replace(&other, &own));
    opened(&layout).unwrap();
    let file = layout.join("index.json");
    let index = std::fs::read_to_string(&file).unwrap();
    let parsed: serde_json::Value = serde_json::from_str(&index).unwrap();
    let size = parsed["manifests"][0]["size"].as_u64().unwrap();
    for lie in [0, size - 1, size + 1, u64::MAX] {
        let text = index.replace(&format!("\"size\":{size}"), &format!("\"size\":{lie}"));
        std::fs::write(&file, text).unwrap();
        opened(&layout).unwrap_err();
    }
    for lie in ["sha256:00", "md5:00", "", "sha256:../../../../etc/passwd", &other] {
        let digest = parsed["manifests"][0]["digest"].as_str().unwrap();
        std::fs::write(&file, index.replace(digest, lie)).unwrap();
        opened(&layout).unwrap_err();
    }
}

#[test]
fn a_configuration_of_a_million_layers() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let layout = image(&[base()]).write(dir.path());
    let id = Digest::of(&base().finish()).to_string();
    for count in [MAX_LAYERS + 1, 100_000, 1_000_000] {
        let ids = vec![format!("\"{id}\""); count].join(",");
        rewrite(&layout, |config| {
            let (head, tail) = config.split_once("\"diff_ids\":[").unwrap();
            let (_, tail) = tail.split_once(']').unwrap();
            format!("{head}\"diff_ids\":[{ids}]{tail}")
        });
        let start = std::time::Instant::now();
        let error = slim::source::open(layout.to_str().unwrap(), &Access::default()).err().unwrap();
        assert!(error.to_string().contains("no honest image"), "{error}");
        assert!(start.elapsed().as_secs() < 20);
    }
    let many = vec![base(); 300];
    assert_eq!(try_layers(&many).unwrap().layers.len(), 300);
}

#[test]
fn junk_is_no_layer() {
    for (what, bytes) in [
        ("text", &b"NAME=\"Some Linux\"\nVERSION=1\n"[..]),
        ("a long text", &b"not a header, but as long as one. ".repeat(40)[..]),
        ("a truncated header", &base().finish()[..300]),
        ("a truncated file", &layer().file("a", &"x".repeat(2000)).finish()[..1200]),
    ] {
        for packed in [Packed::Plain, Packed::Gzip, Packed::Zstd] {
            let junk = ImageFixture::default().layer(base()).bytes(bytes.to_vec(), packed);
            let error = Sandbox::new().open(&junk, Limits::default()).err();
            let error = error.unwrap_or_else(|| panic!("{what} passed"));
            assert!(error.contains("layer 1"), "{what}: {error}");
        }
    }
    for packed in [Packed::Plain, Packed::Gzip, Packed::Zstd] {
        let empty = ImageFixture::default().layer(base()).bytes(Vec::new(), packed);
        Sandbox::new().open(&empty, Limits::default()).unwrap();
    }
}

#[test]
fn names_in_archives_do_not_climb_either() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    std::fs::write(dir.path().join("secret"), base().finish()).unwrap();
    let folder = dir.path().join("image");
    std::fs::create_dir(&folder).unwrap();
    let id = Digest::of(&base().finish());
    let config = json!({ "os": "linux", "architecture": "amd64",
        "rootfs": { "type": "layers", "diff_ids": [id.to_string()] } });
    std::fs::write(folder.join("c.json"), config.to_string()).unwrap();
    std::fs::copy(dir.path().join("secret"), folder.join("l.tar")).unwrap();
    for (layer, good) in
        [("l.tar", true), ("../secret", false), ("x/../../secret", false), ("/etc/passwd", false)]
    {
        let list = json!([{ "Config": "c.json", "RepoTags": ["a:1"], "Layers": [layer] }]);
        std::fs::write(folder.join("manifest.json"), list.to_string()).unwrap();
        let archive = dir.path().join("image.tar");
        crate::support::sh(
            "tar",
            &["-C", folder.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."],
        );
        for path in [&folder, &archive] {
            let reference = format!("docker-archive:{}", path.display());
            let image = slim::source::open(&reference, &Access::default());
            let tree = image.ok().and_then(|image| index(&image).ok());
            assert_eq!(tree.is_some(), good, "{layer} in {}", path.display());
        }
    }
}

/// A name that the table promises is a test.
#[test]
fn the_table_names_tests_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let table = read("docs/hostile.md");
    let sources = ["tests/it/hostile.rs", "src/sys/confine.rs"].map(read);
    let rows: Vec<&str> =
        table.lines().filter(|l| l.starts_with("| ") && l.contains("::")).collect();
    assert!(rows.len() >= 20, "only {} rows", rows.len());
    for row in rows {
        let (_, name) = row.rsplit_once("::").unwrap();
        let name = name.split('`').next().unwrap();
        let test = format!("#[test]\nfn {name}()");
        let inner = format!("    #[test]\n    fn {name}()");
        assert!(sources.iter().any(|s| s.contains(&test) || s.contains(&inner)), "no test {name}");
    }
    for line in sources[0].lines().filter_map(|l| l.strip_prefix("fn ")) {
        let name = line.split('(').next().unwrap();
        let test = sources[0].contains(&format!("#[test]\nfn {name}("));
        assert!(!test || name.starts_with("the_") || table.contains(name), "{name} is in no row");
    }
}

/// What the fences cost a layer; the figure is in docs/hostile.md.
#[test]
fn the_confinement_costs_little() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let start = std::time::Instant::now();
    for _ in 0..100 {
        let keep = rustix::thread::CapabilitySet::SYS_ADMIN;
        slim::sys::confine::run(dir.path(), keep, |_| ());
    }
    let each = start.elapsed() / 100;
    eprintln!("confining a thread took {each:?}");
    assert!(each.as_millis() < 100, "{each:?}");
}
