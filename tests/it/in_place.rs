//! Images in the stores of real engines, read and used where they lie.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use slim::rootfs::{Store, index};
use slim::source::{self, Access};

use crate::images::{as_mounted, assert_same_tree};
use crate::support::engines::{Containerd, Docker, Engine, Podman};
use crate::support::image::{Attr, ImageFixture, LayerFixture, Packed};
use crate::support::{Need, SERVICE, have, host_image, json, outcome, script, sh, slim};

/// Layers that engines unpack as slim does, and as the third one that they do not: it names no folder
/// above its file, and lies through a symlink.
fn layers() -> [LayerFixture; 3] {
    // CAP_NET_BIND_SERVICE, permitted and effective (struct vfs_cap_data, revision 2).
    let caps = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let attr = Attr { mode: 0o4750, uid: 1000, gid: 2000, mtime: 1_600_000_000 };
    let long = "n".repeat(150);
    [
        LayerFixture::default()
            .dir("srv")
            .file("srv/one", "one\n")
            .link("srv/two", "srv/one")
            .symlink("srv/three", "one")
            .fifo("srv/fifo")
            .raw(b'3', b"null", b"", &[1, 3], &Attr::default())
            .file(&format!("srv/{long}"), "long")
            .raw(b'0', b"srv/\xff", b"", b"no UTF-8", &Attr::default())
            .pax(&[("SCHILY.xattr.security.capability", &caps), ("mtime", b"5.000000007")])
            .raw(b'0', b"srv/su", b"", b"#!/bin/sh\n", &attr)
            .dir("gone")
            .file("gone/a", "a")
            .dir("opaque")
            .file("opaque/old", "old"),
        LayerFixture::default()
            .file("big", &"0123456789".repeat(100_000))
            .whiteout("gone")
            .dir("opaque")
            .opaque("opaque")
            .file("opaque/new", "new"),
        LayerFixture::default().symlink("way", "srv").dir("srv").file("srv/no/folder/named", "x"),
    ]
}

fn fixture(folder: &Path, layers: &[LayerFixture]) -> PathBuf {
    let config = json!({ "Healthcheck": { "Test": ["CMD", "true"] }, "Env": ["A=b"] });
    let image = layers.iter().cloned().fold(ImageFixture::default(), ImageFixture::layer);
    image
        .packed(LayerFixture::default().file("top", "1"), Packed::Plain)
        .config(config)
        .write(folder)
}

/// Loads a layout into an engine.
fn load(engine: &dyn Engine, layout: &Path, to: &str, name: &str) {
    let (key, value) = engine.env();
    let mut command = slim(layout.parent().unwrap());
    command.arg("load").arg(layout).args(["--to", to, "--tag", name]).env(key, value);
    let (code, said) = outcome(&command.output().unwrap());
    assert_eq!(code, 0, "{said}");
}

fn slim_with(engine: &dyn Engine, folder: &Path) -> Command {
    let (key, value) = engine.env();
    let mut command = slim(folder);
    command.env(key, value).env("RUST_LOG", "slim=info");
    command
}

/// What `slim inspect` says of an image, all layers read and checked, and its log.
fn inspected(engine: &dyn Engine, folder: &Path, reference: &str) -> (Value, String) {
    let output = slim_with(engine, folder).args(["inspect", "--json", reference]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{reference}: {said}");
    (serde_json::from_slice(&output.stdout).unwrap(), said)
}

pub fn assert_same_image(got: &Value, want: &Value, what: &str) {
    for key in ["config_digest", "chain_id", "config", "platform", "files", "bytes"] {
        assert_eq!(got[key], want[key], "{what}: {key}");
    }
}

/// Folders of engines that a store's layers point to.
fn pointed(store: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for layer in std::fs::read_dir(store.join("layers")).unwrap() {
        let layer = layer.unwrap().path();
        let place = json(&layer.join("layer.json"))["elsewhere"].as_str().map(str::to_owned);
        assert_eq!(place.is_none(), layer.join("fs").is_dir(), "{}", layer.display());
        found.extend(place);
    }
    found
}

/// A TCP address that leads to a socket; it ends with the test.
pub fn forwarded(socket: &str) -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let at = format!("tcp://{}", listener.local_addr().unwrap());
    let socket = socket.to_owned();
    std::thread::spawn(move || {
        for near in listener.incoming().map_while(Result::ok) {
            let far = std::os::unix::net::UnixStream::connect(&socket).unwrap();
            let (mut up, mut down) = (near.try_clone().unwrap(), far.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut up, &mut &far));
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut down, &mut &near);
                let _ = near.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    at
}

#[test]
fn podmans_layers_are_the_containers_and_the_tree_is_the_images() {
    if !have(&[Need::Root, Need::Program("podman")]) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let podman = Podman::new();
    let layout = fixture(dir.path(), &layers());
    load(&podman, &layout, "podman", "localhost/it/fixture:1");
    let root = podman.ask("podman", &["info", "--format", "{{.Store.GraphRoot}}"]);

    let access = Access::platform("linux/amd64");
    let want = source::open(&format!("oci:{}", layout.display()), &access).unwrap();
    let storage = format!("containers-storage:[overlay@{root}+/run/none]");
    let open = |name: &str| source::open(&format!("{storage}{name}"), &access);
    let image = open("it/fixture:1").unwrap();
    assert_eq!(image.name.as_deref(), Some("localhost/it/fixture:1"));
    assert_eq!(image.diff_ids(), want.diff_ids());
    assert_eq!(image.config_digest, want.config_digest);
    assert_eq!(image.config_bytes, want.config_bytes);
    assert_eq!(image.manifest_digest, want.manifest_digest);
    let tree = index(&want).unwrap();
    assert_same_tree(&index(&image).unwrap(), &tree, "podman");
    for id in [want.config_digest.hex(), want.config_digest.hex()[..12].to_owned()] {
        assert_eq!(open(&id).unwrap().config_digest, want.config_digest, "{id}");
    }
    let pin = format!("localhost/it/fixture@{}", want.manifest_digest);
    assert_eq!(open(&pin).unwrap().config_digest, want.config_digest);
    let wrong = format!("localhost/it/fixture@{}", want.config_digest);
    assert!(open(&wrong).is_err());
    assert!(open("it/none").err().unwrap().to_string().contains("no image \"it/none\""));

    // Mounted, the engine's folders and slim's are the image.
    let store = Store::open(Some(&dir.path().join("store"))).unwrap();
    let mut theirs = 0;
    for again in ["first", "from the index"] {
        let rootfs = store.unpack(&image, &|_, _| ()).unwrap();
        assert_same_tree(&rootfs.tree, &tree, again);
        theirs = rootfs.lowers.iter().filter(|lower| lower.starts_with(&root)).count();
        assert!(theirs >= 3, "{again}: {:?}", rootfs.lowers);
        as_mounted(&store, &rootfs, again);
    }
    assert_eq!(pointed(store.path()).len(), theirs);
    // The same layers from elsewhere are unpacked: nobody says that the folders are there still.
    let rootfs = store.unpack(&want, &|_, _| ()).unwrap();
    assert!(rootfs.lowers.iter().all(|lower| lower.starts_with(store.path())));
    assert_same_tree(&rootfs.tree, &tree, "unpacked");

    // A container's image; and what is removed under slim's hands is told.
    let create = ["create", "--name", "made", "localhost/it/fixture:1", "/bin/none"];
    podman.ask("podman", &create);
    let (got, _) = inspected(&podman, dir.path(), "container:made");
    assert_eq!(got["config_digest"], json!(want.config_digest));
    let (got, said) = inspected(&podman, dir.path(), "it/fixture:1");
    assert_eq!(got["config_digest"], json!(want.config_digest));
    assert!(said.contains(&format!("it/fixture:1 found in Podman's storage ({root})")), "{said}");
    podman.ask("podman", &["rm", "made"]);
    podman.ask("podman", &["rmi", "localhost/it/fixture:1"]);
    let error = slim::model::chain(&index(&image).unwrap_err());
    assert!(error.contains("layer 0") && error.contains("pull it again"), "{error}");
}

/// Storages as they are configured elsewhere: by driver, with a program that mounts, in one folder with
/// another driver's, and as an additional store.
#[test]
fn storages_of_several_drivers_have_the_same_image() {
    let needs = [Need::Root, Need::Program("skopeo"), Need::Program("fuse-overlayfs")];
    if !have(&needs) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = dir.path();
    let layout = format!("oci:{}", fixture(folder, &layers()).display());
    let access = Access::platform("linux/amd64");
    let want = source::open(&layout, &access).unwrap();
    let tree = index(&want).unwrap();
    let fuse = "overlay.mount_program=/usr/bin/fuse-overlayfs";
    let conf = folder.join("storage.conf");
    for (number, (root, driver, option)) in
        [("one", "vfs", ""), ("one", "overlay", ""), ("two", "overlay", fuse)].iter().enumerate()
    {
        let root = folder.join(root);
        let (place, run) = (root.display(), folder.join("run"));
        let options = if option.is_empty() { String::new() } else { format!(":{option}") };
        let name = format!("localhost/it/{driver}:1");
        let to = format!("containers-storage:[{driver}@{place}+{}{options}]{name}", run.display());
        sh("skopeo", &["copy", "--quiet", &layout, &to]);
        let what = format!("{driver} {option}");
        let image = source::open(&format!("containers-storage:[{driver}@{place}]{name}"), &access);
        let image = image.unwrap();
        assert_eq!(image.config_digest, want.config_digest, "{what}");
        let store = Store::open(Some(&folder.join(format!("store{number}")))).unwrap();
        let rootfs = store.unpack(&image, &|_, _| ()).unwrap();
        assert_same_tree(&rootfs.tree, &tree, &what);
        as_mounted(&store, &rootfs, &what);
        // A folder of vfs is the whole image up to there, and none of its layers.
        let theirs = rootfs.lowers.iter().filter(|lower| lower.starts_with(&root)).count();
        assert_eq!(theirs > 0, *driver == "overlay", "{what}: {:?}", rootfs.lowers);

        // By the configuration: as the storage itself, and as one that another adds.
        let own = format!("driver = {driver:?}\ngraphroot = {root:?}\n");
        let added = format!(
            "driver = {driver:?}\ngraphroot = {:?}\n[storage.options]\nadditionalimagestores = [{root:?}]\n",
            folder.join("none")
        );
        for text in [own, added] {
            std::fs::write(&conf, format!("[storage]\nrunroot = {run:?}\n{text}")).unwrap();
            let mut command = slim(folder);
            command.env("CONTAINERS_STORAGE_CONF", &conf);
            command.args(["inspect", "--json", &format!("containers-storage:{name}")]);
            let output = command.output().unwrap();
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{what}, {text}: {said}");
            let got: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(got["config_digest"], json!(want.config_digest), "{what}, {text}");
        }
    }
    for root in ["one", "two"] {
        for name in ["overlay", ""] {
            let path = folder.join(root).join(name);
            let _ = Command::new("umount").arg(path).stderr(std::process::Stdio::null()).status();
        }
    }
}

/// A tree that engines unpack otherwise than slim: what they made is not used.
#[test]
fn layers_that_engines_unpack_otherwise_are_unpacked_by_slim() {
    if !have(&[Need::Root, Need::Program("podman")]) {
        return;
    }
    let cases = [
        (
            "a name through a symlink of a lower layer",
            vec![
                LayerFixture::default().dir("usr").dir("usr/lib").symlink("lib", "usr/lib"),
                LayerFixture::default().file("lib/a", "1"),
            ],
        ),
        (
            "a folder of a lower layer that the layer does not describe",
            vec![
                LayerFixture::default().raw(
                    b'5',
                    b"d/",
                    b"",
                    b"",
                    &Attr { mode: 0o700, uid: 7, gid: 8, mtime: 1 },
                ),
                LayerFixture::default().file("d/a", "1"),
            ],
        ),
        (
            "an attribute that is an order to the overlay",
            vec![
                LayerFixture::default().dir("secret").file("secret/a", "1"),
                LayerFixture::default()
                    .pax(&[("SCHILY.xattr.trusted.overlay.redirect", b"/secret")])
                    .dir("d"),
            ],
        ),
    ];
    let podman = Podman::new();
    let root = podman.ask("podman", &["info", "--format", "{{.Store.GraphRoot}}"]);
    let access = Access::platform("linux/amd64");
    for (what, layers) in cases {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let layout = fixture(dir.path(), &layers);
        load(&podman, &layout, "podman", "localhost/it/odd:1");
        let reference = format!("containers-storage:[overlay@{root}]it/odd:1");
        let image = source::open(&reference, &access).unwrap();
        let want = source::open(&format!("oci:{}", layout.display()), &access).unwrap();
        let store = Store::open(Some(&dir.path().join("store"))).unwrap();
        let rootfs = store.unpack(&image, &|_, _| ()).unwrap();
        assert_same_tree(&rootfs.tree, &index(&want).unwrap(), what);
        let theirs: Vec<bool> =
            rootfs.lowers.iter().map(|lower| lower.starts_with(&root)).collect();
        assert_eq!(theirs, [true, false, true], "{what}");
        podman.ask("podman", &["rmi", "localhost/it/odd:1"]);
    }
}

#[test]
fn dockers_layers_are_used_in_place_from_trace_to_build() {
    if !have(&[Need::Root, Need::Program("dockerd"), Need::Program("umoci")]) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = dir.path();
    let docker = Docker::start();
    let layout = fixture(&folder.join("fixture"), &layers());
    load(&docker, &layout, "docker", "it/fixture:1");
    let (want, _) = inspected(&docker, folder, layout.to_str().unwrap());
    let (got, said) = inspected(&docker, folder, "docker-daemon:it/fixture:1");
    assert!(!said.contains("exported"), "{said}");
    assert_same_image(&got, &want, "in place");
    // An engine that may be elsewhere exports; the image is the same, and so is its manifest.
    let mut far = slim_with(&docker, folder);
    far.env("DOCKER_HOST", forwarded(docker.at().trim_start_matches("unix://")));
    let output = far.args(["inspect", "--json", "docker-daemon:it/fixture:1"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("exported"), "{said}");
    assert_eq!(serde_json::from_slice::<Value>(&output.stdout).unwrap(), got);

    host_image(folder, &SERVICE);
    let layout = folder.join("image");
    load(&docker, &layout, "docker", "it/host:1");
    let coverage = script(folder, "coverage", "$SLIM_EXEC cat /srv/data/used");
    let (store, out) = (folder.join("store"), folder.join("out"));
    let mut trace = slim_with(&docker, folder);
    trace.args(["trace", "--image", "it/host:1", "--network", "private", "--tag", "it/slim:1"]);
    trace.arg("--store").arg(&store).arg("--output").arg(&out).arg("--").arg(&coverage);
    let (code, said) = outcome(&trace.output().unwrap());
    assert_eq!(code, 0, "{said}");
    let root = docker.ask("docker", &["info", "--format", "{{.DockerRootDir}}"]);
    let places = pointed(&store);
    assert!(places.iter().any(|place| place.starts_with(&root)), "{places:?}");
    // The engine's folder is as it was: what the container wrote is elsewhere.
    let (got, _) = inspected(&docker, folder, "docker-daemon:it/host:1");
    let (want, _) = inspected(&docker, folder, layout.to_str().unwrap());
    assert_same_image(&got, &want, "after a trace");

    let build = |image: &str, name: &str| {
        let target = folder.join(name);
        let mut build = slim_with(&docker, folder);
        build.arg("build").arg(out.join("profile.json")).args([
            "--image",
            image,
            "--tag",
            "it/slim:1",
        ]);
        let (code, said) = outcome(&build.arg("--output").arg(&target).output().unwrap());
        assert_eq!(code, 0, "{said}");
        json(&target.join("summary.json"))["output"]["config_digest"].clone()
    };
    let in_place = build("docker-daemon:it/host:1", "a");
    assert!(in_place.is_string());
    // The manifest names the original's, of which Docker keeps none.
    assert_eq!(in_place, build(layout.to_str().unwrap(), "b"), "not the same slim image");
}

#[test]
fn containerds_blobs_are_read_where_they_lie() {
    if !have(&[Need::Root, Need::Program("containerd")]) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = dir.path();
    let containerd = Containerd::start();
    let layout = fixture(folder, &layers());
    load(&containerd, &layout, "containerd:it", "it/fixture:1");
    let (want, _) = inspected(&containerd, folder, layout.to_str().unwrap());
    let same = |reference: &str| {
        let (got, said) = inspected(&containerd, folder, reference);
        assert_same_image(&got, &want, reference);
        assert_eq!(got["manifest_digest"], want["manifest_digest"], "{reference}");
        assert_eq!(got["layers"], want["layers"], "{reference}");
        assert!(!said.contains("exported"), "{said}");
        said
    };
    same("containerd:it/docker.io/it/fixture:1");
    let said = same("it/fixture:1");
    assert!(said.contains("it/fixture:1 found in containerd ("), "{said}");
    assert!(said.contains("is in containerd's namespace it"), "{said}");
    let spaced = ["--namespace", "it", "containers", "create"];
    let made = ["docker.io/it/fixture:1", "made", "/bin/none"];
    containerd.ask("ctr", &[&spaced[..], &made[..]].concat());
    same("container:made");
    same("container:it/made");
    let none = slim_with(&containerd, folder).args(["inspect", "containerd:it/none"]).output();
    let (code, said) = outcome(&none.unwrap());
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("containerd has no image \"it/none\""), "{said}");
    let mut away = slim(folder);
    away.args(["inspect", "containerd:a"]).env("CONTAINERD_ADDRESS", "/no/such.sock");
    let (code, said) = outcome(&away.output().unwrap());
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("there is no /no/such.sock"), "{said}");
}
