//! What others make of the same images: GNU tar, umoci, skopeo, Docker, Podman.

use std::path::Path;
use std::process::{Child, Command, Stdio};

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
    let lenient =
        Lenient { implied: true, folder_times: true, folder_attributes: true, seconds: false };
    same(&root, model, lenient).map_err(|why| format!("GNU tar: {why}"))
}

pub fn umoci(layout: &Path, tag: &str, model: &Model, dir: &Path) -> Result<(), String> {
    let (image, bundle) = (format!("{}:{tag}", layout.display()), dir.join("umoci"));
    let mut unpack = Command::new("umoci");
    let output = unpack.args(["unpack", "--image", &image]).arg(&bundle).output().unwrap();
    if !output.status.success() {
        return Err(format!("umoci: {}", String::from_utf8_lossy(&output.stderr)));
    }
    let lenient =
        Lenient { implied: true, folder_times: true, folder_attributes: false, seconds: false };
    same(&bundle.join("rootfs"), model, lenient).map_err(|why| format!("umoci: {why}"))
}

/// skopeo reads every blob, checks its digest, and writes it under a tag that umoci takes.
pub fn skopeo(layout: &Path, dir: &Path) -> std::path::PathBuf {
    let (from, to) = (format!("oci:{}", layout.display()), dir.join("skopeo"));
    let tagged = format!("oci:{}:drawn", to.display());
    sh("skopeo", &["copy", "-q", "--insecure-policy", &from, &tagged]);
    to
}

/// What an engine shows of an image that it loaded: `docker export` and `podman export` of a container
/// that never ran, unpacked by GNU tar. Names that the engine adds itself are taken away first.
pub fn engine(
    engine: &dyn Fn(&[&str]) -> Command,
    archive: &Path,
    tag: &str,
    model: &Model,
    dir: &Path,
) -> Result<(), String> {
    let run = |args: &[&str]| -> Result<Vec<u8>, String> {
        let output = engine(args).output().map_err(|e| e.to_string())?;
        let why = || format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr));
        if output.status.success() { Ok(output.stdout) } else { Err(why()) }
    };
    run(&["load", "-q", "-i", archive.to_str().unwrap()])?;
    let made = run(&["create", tag, "/nothing"])?;
    let id = String::from_utf8_lossy(&made).trim().to_owned();
    let (tar, root) = (dir.join("export.tar"), dir.join("export"));
    let exported = run(&["export", "-o", tar.to_str().unwrap(), &id]);
    let removed = run(&["rm", &id]).and_then(|_| run(&["rmi", tag]));
    exported.and(removed)?;
    std::fs::create_dir(&root).unwrap();
    let mut unpack = Command::new("tar");
    unpack.arg("-C").arg(&root).arg("-xf").arg(&tar).args(["-p", "--numeric-owner", "--xattrs"]);
    unpack.args(["--same-owner", "--xattrs-include=*"]);
    let output = unpack.output().unwrap();
    if !output.status.success() {
        return Err(format!("export: {}", String::from_utf8_lossy(&output.stderr)));
    }
    for own in ["dev", "etc", "proc", "sys", "run", ".dockerenv"] {
        let own = root.join(own);
        let _ = std::fs::remove_dir_all(&own).or_else(|_| std::fs::remove_file(&own));
    }
    let lenient =
        Lenient { implied: true, folder_times: true, folder_attributes: true, seconds: true };
    let mut model = model.clone();
    model.root = None;
    // An export has no attributes but capabilities.
    let nodes = model.nodes.values_mut();
    nodes.for_each(|node| node.meta.xattrs.retain(|name, _| name == "security.capability"));
    same(&root, &model, lenient)
}

/// A Docker engine in namespaces and folders of its own, gone with this value.
pub struct Docker {
    child: Child,
    folder: tempfile::TempDir,
}

impl Docker {
    pub fn start() -> Self {
        let folder = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = |name: &str| folder.path().join(name).display().to_string();
        let log = std::fs::File::create(path("log")).unwrap();
        let child = Command::new("unshare")
            .args([
                "--net",
                "--mount",
                "--pid",
                "--fork",
                "--kill-child",
                "--mount-proc",
                "dockerd",
            ])
            .args(["--bridge=none", "--iptables=false"])
            .arg(format!("--data-root={}", path("data")))
            .arg(format!("--exec-root={}", path("exec")))
            .arg(format!("--pidfile={}", path("pid")))
            .arg(format!("--host=unix://{}", path("socket")))
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let docker = Self { child, folder };
        for _ in 0..600 {
            if docker.client(&["info"]).output().unwrap().status.success() {
                return docker;
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("{}", std::fs::read_to_string(docker.folder.path().join("log")).unwrap());
    }

    pub fn client(&self, args: &[&str]) -> Command {
        let mut command = Command::new("docker");
        let host = format!("unix://{}/socket", self.folder.path().display());
        command.args(["--host", &host]).args(args).stdin(Stdio::null());
        command
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        // Pid 1 of its pid namespace: nothing of it survives.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Podman with a storage of its own.
pub fn podman(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new("podman");
    let path = |name: &str| folder.join(name).display().to_string();
    command.args(["--root", &path("root"), "--runroot", &path("run"), "--storage-driver=overlay"]);
    command.args(["--cgroup-manager=cgroupfs", "--events-backend=file"]).args(args);
    command.stdin(Stdio::null());
    command
}
