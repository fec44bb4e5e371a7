//! What others make of the same images: GNU tar, umoci, skopeo, Docker, Podman.

use std::path::Path;
use std::process::Command;

use crate::support::sh;

use super::disk::{Lenient, same};
use super::model::Model;

/// GNU tar unpacks the layers of a layout that has no whiteouts, one over the other.
pub fn tar(
    image: &slim::oci::Image,
    layout: &Path,
    model: &Model,
    dir: &Path,
) -> Result<(), String> {
    let root = dir.join("tar");
    std::fs::create_dir(&root).unwrap();
    for layer in &image.layers {
        let blob = layout.join("blobs/sha256").join(layer.blob.unwrap().0.hex());
        let mut unpack = Command::new("tar");
        unpack.arg("-C").arg(&root).arg("-xf").arg(blob).args(["-p", "--numeric-owner"]);
        let xattrs = ["user", "trusted", "security", "system"];
        unpack.args(["--xattrs", "--same-owner"]);
        unpack.args(xattrs.map(|space| format!("--xattrs-include={space}.*")));
        let output = unpack.output().unwrap();
        if !output.status.success() {
            return Err(format!("GNU tar: {}", String::from_utf8_lossy(&output.stderr)));
        }
    }
    let lenient = Lenient { implied: true, folder_times: true, folder_attributes: true };
    same(&root, model, lenient).map_err(|why| format!("GNU tar: {why}"))
}

pub fn umoci(layout: &Path, tag: &str, model: &Model, dir: &Path) -> Result<(), String> {
    let (image, bundle) = (format!("{}:{tag}", layout.display()), dir.join("umoci"));
    let mut unpack = Command::new("umoci");
    let output = unpack.args(["unpack", "--image", &image]).arg(&bundle).output().unwrap();
    if !output.status.success() {
        return Err(format!("umoci: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let lenient = Lenient { implied: true, folder_times: true, folder_attributes: false };
    same(&bundle.join("rootfs"), model, lenient).map_err(|why| format!("umoci: {why}"))
}

/// skopeo reads every blob, checks its digest, and writes it under a tag that umoci takes.
pub fn skopeo(layout: &Path, dir: &Path) -> std::path::PathBuf {
    let (from, to) = (format!("oci:{}", layout.display()), dir.join("skopeo"));
    let tagged = format!("oci:{}:drawn", to.display());
    sh("skopeo", &["copy", "-q", "--insecure-policy", &from, &tagged]);
    to
}
