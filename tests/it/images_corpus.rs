//! Real images through source, store and emit, compared with what umoci makes of them.
//!
//! They are built by the shared corpus into `$CORPUS_OUT`; without that the tests say so and skip.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use slim::emit::{ImageFormat, write_image};
use slim::rootfs::{Store, index};
use slim::source::Access;

use crate::images::{assert_same_tree, keep_all, on_disk};
use crate::support::{Need, have};

const NAMES: &[&str] =
    &["busybox", "static-c", "redis", "nginx", "cli", "express", "flask", "postgres"];

fn corpus() -> Vec<(String, PathBuf)> {
    if !have(&[Need::Variable("CORPUS_OUT")]) {
        return Vec::new();
    }
    let out = std::env::var_os("CORPUS_OUT").unwrap();
    let only = std::env::var("CORPUS_ONLY").ok();
    let wanted = |name: &&&str| only.as_deref().is_none_or(|only| only == **name);
    let found = NAMES.iter().filter(wanted).map(|n| ((*n).to_owned(), Path::new(&out).join(n)));
    let found: Vec<_> = found.filter(|(_, path)| path.join("oci/index.json").exists()).collect();
    assert!(!found.is_empty(), "no corpus image in {}", Path::new(&out).display());
    found
}

fn run(command: &mut Command) {
    let out = command.output().unwrap();
    assert!(out.status.success(), "{command:?}: {}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn corpus_images_survive_whole() {
    for (name, path) in corpus() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let image =
            slim::source::open(&format!("oci:{}", path.join("oci").display()), &Access::default())
                .unwrap();
        let store = Store::open(Some(&dir.path().join("store"))).unwrap();
        let start = Instant::now();
        let rootfs = store.unpack(&image, &|_, _| ()).unwrap();
        eprintln!("{name}: unpacked in {:?}", start.elapsed());
        let start = Instant::now();
        let again = store.unpack(&image, &|_, _| ()).unwrap();
        eprintln!("{name}: again in {:?}", start.elapsed());
        assert!(again.tree == rootfs.tree && again.lowers == rootfs.lowers, "{name}");

        let unpacked = dir.path().join("umoci");
        let reference = format!("{}:latest", path.join("oci").display());
        run(Command::new("umoci").args(["unpack", "--image", &reference]).arg(&unpacked));
        on_disk(&rootfs.tree, &unpacked.join("rootfs"), &name);

        let archive = path.join(format!("{name}.oci.tar"));
        for other in [archive, path.join(format!("{name}.docker.tar"))] {
            let image =
                slim::source::open(&other.display().to_string(), &Access::default()).unwrap();
            assert_same_tree(&index(&image).unwrap(), &rootfs.tree, &name);
        }

        let target = dir.path().join("image.tar");
        let start = Instant::now();
        let tag = format!("corpus/{name}-slim:latest");
        let keep = keep_all(&rootfs.tree);
        let emitted =
            write_image(&image, &rootfs.tree, &keep, &tag, ImageFormat::Archive, &target).unwrap();
        eprintln!("{name}: written in {:?}", start.elapsed());
        let slim = slim::source::open(&target.display().to_string(), &Access::default()).unwrap();
        assert_eq!(slim.manifest_digest, emitted.manifest_digest);
        assert_eq!(slim.name.as_deref(), Some(tag.as_str()));
        assert_same_tree(&index(&slim).unwrap(), &rootfs.tree, &name);
        for transport in ["oci-archive", "docker-archive"] {
            let from = format!("{transport}:{}", target.display());
            let to = format!("oci:{}:x", dir.path().join(transport).display());
            run(Command::new("skopeo").args(["copy", "--insecure-policy", "-q", &from, &to]));
        }
        let reference = format!("{}:x", dir.path().join("oci-archive").display());
        let unpacked = dir.path().join("umoci-slim");
        run(Command::new("umoci").args(["unpack", "--image", &reference]).arg(&unpacked));
        on_disk(&rootfs.tree, &unpacked.join("rootfs"), &name);
    }
}
