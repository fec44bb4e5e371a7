//! slim run by an ordinary user, with subordinate ids and without. Needs root to make the user, a
//! static busybox and newuidmap.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;

use crate::in_place::assert_same_image;
use crate::support::image::{Attr, ImageFixture, LayerFixture};
use crate::support::{Need, SERVICE, have, host_image, json, outcome, script, sh};

const NEEDS: [Need; 4] =
    [Need::Root, Need::Program("newuidmap"), Need::Program("useradd"), Need::Program("busybox")];
/// Tests run side by side: each user has a range of its own.
static USERS: AtomicU32 = AtomicU32::new(0);
const IDS: u32 = 65_536;

/// A user of the machine, removed at the end, and its home with slim and an image in it.
struct User {
    name: String,
    uid: u32,
    first: u32,
    home: tempfile::TempDir,
}

impl User {
    fn new(subordinate: bool) -> Self {
        let number = USERS.fetch_add(1, Ordering::Relaxed);
        let name = format!("slim-t{}-{number}", std::process::id());
        let home = tempfile::Builder::new().prefix("slim-home").tempdir().unwrap();
        let text = home.path().to_str().unwrap();
        // By itself useradd gives subordinate ids, or none, as the machine's login.defs has it.
        let none = ["-K", "SUB_UID_COUNT=0", "-K", "SUB_GID_COUNT=0"];
        sh("useradd", &[&none[..], &["-M", "-d", text, &name]].concat());
        let first = 0x2000_0000 + (std::process::id() % 2000 * 4 + number % 4) * IDS;
        if subordinate {
            let range = format!("{first}-{}", first + IDS - 1);
            sh("usermod", &["--add-subuids", &range, "--add-subgids", &range, &name]);
        }
        let uid = sh("id", &["-u", &name]).trim().parse().unwrap();
        let user = Self { name, uid, first, home };
        std::fs::copy(env!("CARGO_BIN_EXE_slim"), user.path("slim")).unwrap();
        user.owns(user.home.path());
        user
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.path().join(name)
    }

    fn owns(&self, path: &Path) {
        sh("chown", &["-R", &format!("{0}:{0}", self.uid), path.to_str().unwrap()]);
    }

    /// slim in the user's home; the process is slim itself, so that signals reach it.
    fn slim(&self, args: &[&str]) -> Command {
        let mut command = Command::new(self.path("slim"));
        command.args(args).current_dir(self.home.path()).stdin(Stdio::null());
        command.env_clear().env("HOME", self.home.path());
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        // As root the standard library drops the groups, too.
        command.uid(self.uid).gid(self.uid);
        command
    }

    /// The same where cgroups have version 2 alone, as with systemd, whatever this host has.
    fn slim_on_version_2(&self, args: &[&str]) -> Command {
        let script = "umount -R -l /sys/fs/cgroup; mount -t cgroup2 none /sys/fs/cgroup || exit 99
            exec setpriv --reuid \"$0\" --regid \"$0\" --clear-groups \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]);
        command.arg(self.uid.to_string()).arg(self.path("slim")).args(args);
        command.current_dir(self.home.path()).stdin(Stdio::null());
        command.env_clear().env("HOME", self.home.path());
        command.env("PATH", "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin");
        command
    }

    fn trace(&self, more: &[&str], script: &Path) -> (i32, String) {
        let image = ["trace", "--recorder", "none", "--image", "oci:layout"];
        let last = ["--", script.to_str().unwrap()];
        outcome(&self.slim(&[&image[..], more, &last].concat()).output().unwrap())
    }

    fn script(&self, text: &str) -> PathBuf {
        script(self.home.path(), "coverage.sh", text)
    }

    fn image(&self, config: serde_json::Value) {
        image(config).write(self.home.path());
        self.owns(&self.path("layout"));
    }

    /// Processes of the user and of its subordinate ids.
    fn processes(&self) -> Vec<String> {
        let own = |uid: u32| uid == self.uid || (self.first..self.first + IDS).contains(&uid);
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            // A process that was killed and not reaped yet has no command line.
            if entry.metadata().is_ok_and(|meta| own(meta.uid())) && !line.is_empty() {
                found.push(String::from_utf8_lossy(&line).replace('\0', " "));
            }
        }
        found
    }

    fn nothing_runs(&self, patience: Duration) {
        let until = Instant::now() + patience;
        while !self.processes().is_empty() {
            assert!(Instant::now() < until, "still there: {:?}", self.processes());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // What a test that failed left, else the user stays.
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            let own = entry.metadata().is_ok_and(|meta| meta.uid() == self.uid);
            if own && name.parse::<u32>().is_ok() {
                let _ = Command::new("kill").args(["-KILL", &name]).stderr(Stdio::null()).status();
            }
        }
        // Its folder of sockets, where no session gave it one.
        let _ = std::fs::remove_dir(format!("/tmp/slim-{}", self.uid));
        let _ = Command::new("userdel").arg(&self.name).stderr(Stdio::null()).status();
    }
}

/// A web server and, beside it, what a user namespace finds hard: owners, a device, attributes,
/// whiteouts, an opaque folder.
fn image(config: serde_json::Value) -> ImageFixture {
    let program = Attr { mode: 0o755, ..Attr::default() };
    let capability: &[u8] = b"\x01\0\0\x02\0\x04\0\0\0\0\0\0\0\0\0\0\0\0\0\0";
    let hard = plain_layer()
        .raw(b'3', b"srv/null", b"", &[1, 3], &Attr::default())
        .link("srv/null-too", "srv/null")
        .pax(&[
            ("SCHILY.xattr.security.capability", capability),
            ("SCHILY.xattr.trusted.secret", b"1"),
        ])
        .raw(b'0', b"srv/capable", b"", b"x", &program);
    with_an_upper_layer(hard, config)
}

/// A web server and files of other owners.
fn plain_layer() -> LayerFixture {
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].map(Path::new);
    let busybox = std::fs::read(busybox.iter().find(|path| path.exists()).unwrap()).unwrap();
    let program = Attr { mode: 0o755, ..Attr::default() };
    let owned = Attr { mode: 0o4640, uid: 1000, gid: 1000, ..Attr::default() };
    LayerFixture::default()
        .dir("bin")
        .raw(b'0', b"bin/busybox", b"", &busybox, &program)
        .symlink("bin/sh", "busybox")
        .dir("etc")
        .file("etc/passwd", "root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n")
        .dir("www")
        .file("www/index.html", "hello\n")
        .dir("srv")
        .raw(b'0', b"srv/owned", b"", b"x", &owned)
        .file("srv/gone", "x")
        .dir("srv/opaque")
        .file("srv/opaque/below", "x")
}

fn with_an_upper_layer(lower: LayerFixture, config: serde_json::Value) -> ImageFixture {
    let upper = LayerFixture::default().whiteout("srv/gone").dir("srv/opaque").opaque("srv/opaque");
    let mut all = json!({
        "Cmd": ["/bin/busybox", "httpd", "-f", "-p", "80", "-h", "/www"],
        "ExposedPorts": { "80/tcp": {} }, "StopSignal": "SIGKILL",
    });
    for (key, value) in config.as_object().unwrap() {
        all[key] = value.clone();
    }
    ImageFixture::default().layer(lower).layer(upper).config(all).tag("latest")
}

/// Asks the server by bash alone.
const FETCH: &str = "fetch() { exec 3<>\"/dev/tcp/$SLIM_HOST/$SLIM_PORT\"; printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3; cat <&3; exec 3>&-; }\n";

#[test]
fn an_ordinary_user_runs_an_image() {
    if !have(&NEEDS) {
        return;
    }
    let user = User::new(true);
    user.image(json!({}));
    let uid = user.uid;
    let script = user.script(&format!(
        "{FETCH}\
         [ $(id -u) = {uid} ]\n\
         fetch | grep hello\n\
         in=\"$SLIM_EXEC busybox\"\n\
         [ \"$($in stat -c %u:%g:%a /srv/owned)\" = 1000:1000:4640 ]\n\
         [ \"$($in id -u)\" = 0 ]\n\
         [ \"$($in ls /srv)\" = \"capable\nopaque\nowned\" ]\n\
         [ -z \"$($in ls /srv/opaque)\" ]\n\
         $in sh -c ': > /dev/null; : < /dev/urandom; echo x > /dev/full' && exit 1\n\
         [ \"$($in sh -c 'chown 1000 /www/index.html; stat -c %u /www/index.html')\" = 1000 ]\n\
         [ \"$($SLIM_RUN busybox echo fresh)\" = fresh ]\n\
         $SLIM_RUN sh -c 'exit 9' || [ $? = 9 ]\n\
         touch made\n"
    ));
    let (code, said) = user.trace(&["-o", "out"], &script);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("devices of the image are missing in the container"), "{said}");
    assert!(said.contains("/srv/null") && said.contains("1 extended attributes"), "{said}");
    assert!(!said.contains("belong to root"), "{said}");
    for made in ["made", "out/summary.json", ".local/share/slim/layers"] {
        let meta = std::fs::metadata(user.path(made)).unwrap_or_else(|e| panic!("{made}: {e}"));
        assert_eq!((meta.uid(), meta.gid()), (uid, uid), "{made}");
    }
    user.nothing_runs(Duration::from_secs(2));
    // A second time from the store; every way to the network.
    for (network, address) in [("private", "172.17.0.2"), ("host", "127.0.0.1")] {
        let who = if network == "private" { 0 } else { uid };
        let script = user.script(&format!(
            "[ $SLIM_HOST = {address} ]\n[ $(id -u) = {who} ]\n\
             $SLIM_EXEC busybox ls /sys/class/net | grep lo\n: > in-{network}\n"
        ));
        // On the host's network port 80 is not a user's to listen on.
        let command = ["/bin/busybox", "sleep", "100"].map(|word| ["--cmd", word]).concat();
        let options = ["-o", "out", "--network", network, "--ready", "none"];
        let (code, said) = user.trace(&[&options[..], &command].concat(), &script);
        assert_eq!(code, 0, "{network}: {said}");
        let made = std::fs::metadata(user.path(&format!("in-{network}"))).unwrap();
        assert_eq!(made.uid(), uid);
    }
    let (code, said) = outcome(&user.slim(&["store", "gc"]).output().unwrap());
    assert_eq!((code, said.matches("removed").count()), (0, 2), "{said}");
}

#[test]
fn without_subordinate_ids_only_root_exists() {
    if !have(&NEEDS) {
        return;
    }
    let user = User::new(false);
    user.image(json!({}));
    let script = user.script(&format!(
        "{FETCH}fetch | grep hello\n[ \"$($SLIM_EXEC busybox stat -c %u /srv/owned)\" = 0 ]\n"
    ));
    let (code, said) = user.trace(&[], &script);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("only one user exists in the container"), "{said}");
    assert!(said.contains("usermod --add-subuids") && said.contains(&user.name), "{said}");
    assert!(said.contains("1 paths of the image belong to root"), "{said}");
    let (code, said) = user.trace(&["--user", "app"], &script);
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("the container's user 1000: slim runs without root"), "{said}");
    // With ids the layers are unpacked again: those owners were never written.
    let range = format!("{}-{}", user.first, user.first + IDS - 1);
    sh("usermod", &["--add-subuids", &range, "--add-subgids", &range, &user.name]);
    let script = user.script(
        "[ \"$($SLIM_EXEC busybox stat -c %u /srv/owned)\" = 1000 ]\n\
         [ \"$($SLIM_EXEC busybox id -u)\" = 1000 ]\n",
    );
    let (code, said) = user.trace(&["--user", "app"], &script);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn what_a_user_cannot_have_is_refused_by_name() {
    if !have(&NEEDS) {
        return;
    }
    let user = User::new(true);
    user.image(json!({}));
    let fails = user.script("exit 3");
    for (more, want, text) in [
        (&["--memory", "64m"][..], 4, "--memory: limits are cgroups'"),
        (&["--pids-limit", "10"], 4, "--pids-limit: limits are cgroups'"),
        (&["--network", "ns:/proc/1/ns/net"], 2, "--network"),
        (&["--recorder", "bpf"], 4, "run slim as root"),
        (&[], 5, "the script exited 3"),
    ] {
        let (code, said) = user.trace(more, &fails);
        assert_eq!(code, want, "{more:?}: {said}");
        assert!(said.contains(text), "{more:?}: {said}");
    }
    // Somebody else's folder of sockets is not used.
    let folder = PathBuf::from(format!("/tmp/slim-{}", user.uid));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir(&folder).unwrap();
    let (code, said) = user.trace(&[], &fails);
    std::fs::remove_dir(&folder).unwrap();
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("belongs to another user"), "{said}");
}

fn started(user: &User) -> Child {
    let script = user.script("sleep 1000 & setsid sleep 1000 & : > up; wait");
    let args = ["trace", "--recorder", "none", "--image", "oci:layout", "--", "./coverage.sh"];
    assert!(script.exists());
    let mut command = user.slim(&args);
    let child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let until = Instant::now() + Duration::from_secs(60);
    while !user.path("up").exists() {
        assert!(Instant::now() < until, "the script did not start");
        std::thread::sleep(Duration::from_millis(10));
    }
    std::fs::remove_file(user.path("up")).unwrap();
    child
}

#[test]
fn everything_of_a_user_dies_with_slim() {
    if !have(&NEEDS) {
        return;
    }
    let user = User::new(true);
    user.image(json!({}));
    let mut child = started(&user);
    // slim, its process outside, the cell, the container, supervisor, script and two of its own.
    let until = Instant::now() + Duration::from_secs(5);
    while user.processes().len() < 8 {
        assert!(Instant::now() < until, "{:?}", user.processes());
        std::thread::sleep(Duration::from_millis(10));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    user.nothing_runs(Duration::from_secs(2));
    let mut child = started(&user);
    let pid = rustix::process::Pid::from_child(&child);
    rustix::process::kill_process(pid, rustix::process::Signal::INT).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    user.nothing_runs(Duration::from_secs(2));
    // At any moment, the unpacking and the entering of namespaces included.
    for round in 0..10_u64 {
        let mut child = user
            .slim(&["trace", "--recorder", "none", "--image", "oci:layout", "--", "./coverage.sh"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        std::thread::sleep(Duration::from_millis(round * 37));
        child.kill().unwrap();
        child.wait().unwrap();
        user.nothing_runs(Duration::from_secs(2));
    }
    let (code, said) = outcome(&user.slim(&["clean"]).output().unwrap());
    assert_eq!(code, 0, "{said}");
    let runs = std::fs::read_dir(user.path(".local/share/slim/runs")).unwrap();
    assert_eq!(runs.count(), 0, "{said}");
}

/// What root would record by BPF a user records by notification, and the image is the same that root
/// builds from that.
#[test]
fn a_user_records_builds_and_verifies() {
    if !have(&NEEDS) {
        return;
    }
    let user = User::new(true);
    user.image(json!({}));
    let script = user.script(&format!(
        "{FETCH}\
         fetch | grep hello\n\
         $SLIM_EXEC busybox cat /srv/owned\n\
         $SLIM_EXEC busybox stat /srv/capable\n\
         $SLIM_RUN busybox ls /srv/opaque\n"
    ));
    let trace = ["trace", "--image", "oci:layout", "-o", "mine", "--keep", "/srv/null", "--"];
    let args = [&trace[..], &[script.to_str().unwrap()]].concat();
    let (code, said) = outcome(&user.slim(&args).output().unwrap());
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("recording with notify: the other recorders are root's"), "{said}");
    let summary = json(&user.path("mine/summary.json"));
    assert_eq!(summary["complete"], true, "{summary}");
    assert_eq!(summary["verified"], json!({ "static": true, "dynamic": true }), "{summary}");
    let profile = json(&user.path("mine/profile.json"));
    for run in profile["runs"].as_object().unwrap().values() {
        assert_eq!(run["recorder"], "notify");
        let blind = run["without_root"]["blind"].to_string();
        assert!(blind.contains("io_uring") && blind.contains("a filter refuses"), "{blind}");
        assert!(run["without_root"]["users"].as_str().unwrap().starts_with("0:"), "{run}");
    }
    for (path, used) in [
        ("/bin/busybox", true),
        ("/www/index.html", true),
        ("/srv/owned", true),
        ("/srv/capable", true),
        ("/srv/opaque", true),
        ("/srv/gone", false),
    ] {
        assert_eq!(profile["files"].get(path).is_some(), used, "{path}");
    }
    // As root, from the same profile and the original's layers: nothing of the user is in the image.
    let mut root = crate::support::slim(user.home.path());
    root.args(["build", "mine/profile.json", "--image", "oci:layout", "-o", "root"]);
    let (code, said) = outcome(&root.args(["--keep", "/srv/null"]).output().unwrap());
    assert_eq!(code, 0, "{said}");
    for file in ["image.tar", "seccomp.json", "seccomp.oci.json"] {
        let read = |folder: &str| std::fs::read(user.path(folder).join(file)).unwrap();
        assert!(read("root") == read("mine"), "{file} differs");
    }
    let (code, said) = outcome(
        &user
            .slim(&["verify", "mine", "--image", "oci:layout", "--", "./coverage.sh"])
            .output()
            .unwrap(),
    );
    assert_eq!(code, 0, "{said}");
}

/// libcontainer takes its own way with each layout of cgroups.
#[test]
fn a_user_records_where_cgroups_have_version_2_alone() {
    if !have(&NEEDS) || !have(&[Need::Program("unshare"), Need::Program("setpriv")]) {
        return;
    }
    let user = User::new(true);
    user.image(json!({}));
    let script = user.script("$SLIM_EXEC busybox cat /srv/owned\n");
    let trace =
        ["trace", "--image", "oci:layout", "-o", "out", "--no-verify", "--no-restart", "--"];
    let args = [&trace[..], &[script.to_str().unwrap()]].concat();
    let (code, said) = outcome(&user.slim_on_version_2(&args).output().unwrap());
    assert_eq!(code, 0, "{said}");
    let profile = json(&user.path("out/profile.json"));
    assert!(profile["files"].get("/srv/owned").is_some(), "{profile}");
}

/// The image is made from the original's layers: who builds it leaves no trace in it.
#[test]
fn a_user_builds_the_image_that_root_builds() {
    if !have(&NEEDS) || !have(&[Need::Program("umoci"), Need::Program("ldd")]) {
        return;
    }
    let user = User::new(true);
    let home = user.home.path();
    host_image(home, &SERVICE);
    let coverage = user.script("$SLIM_EXEC cat /srv/data/used\n");
    let as_root = |args: &[&str]| {
        let mut command = crate::support::slim(home);
        outcome(&command.args(args).output().unwrap())
    };
    let image = ["--image", "oci:image"];
    let trace = [&["trace"][..], &image, &["--store", "root-store", "-o", "root", "--no-verify"]];
    let script = ["--", coverage.to_str().unwrap()];
    let (code, said) = as_root(&[&trace.concat()[..], &script].concat());
    assert_eq!(code, 0, "{said}");
    user.owns(&user.path("root"));
    user.owns(&user.path("image"));
    let build = |out| [&["build", "root/profile.json"][..], &image, &["-o", out]].concat();
    let (code, said) = outcome(&user.slim(&build("mine")).output().unwrap());
    assert_eq!(code, 0, "{said}");
    for file in ["image.tar", "seccomp.json", "seccomp.oci.json"] {
        let read = |folder: &str| std::fs::read(user.path(folder).join(file)).unwrap();
        assert!(read("root") == read("mine"), "{file} differs");
    }
    let meta = std::fs::metadata(user.path("mine/image.tar")).unwrap();
    assert_eq!((meta.uid(), meta.permissions().mode() & 0o002), (user.uid, 0));
}

/// An ordinary user's Podman keeps images in the user's home, files there with the user's ids.
#[test]
fn the_images_of_a_users_podman_are_found_and_the_same() {
    if !have(&NEEDS) || !have(&["podman", "fuse-overlayfs"].map(Need::Program)) {
        return;
    }
    let user = User::new(true);
    let name = "localhost/it/own:1";
    // Podman cannot link to a device that it cannot make.
    with_an_upper_layer(plain_layer(), json!({})).tag(name).write(user.home.path());
    let archive = user.path("image.tar");
    let layout = user.path("layout");
    sh("tar", &["-C", layout.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
    let coverage = user.script("$SLIM_EXEC busybox cat /srv/owned\n");
    let conf = user.path(".config/containers/storage.conf");
    std::fs::create_dir_all(conf.parent().unwrap()).unwrap();
    std::fs::create_dir(user.path("run")).unwrap();
    let podman = |args: &[&str]| {
        let mut command = Command::new("podman");
        command.args(args).current_dir(user.home.path()).stdin(Stdio::null());
        let slim = user.slim(&[]);
        command.env_clear().envs(slim.get_envs().filter_map(|(key, value)| Some((key, value?))));
        command.env("XDG_RUNTIME_DIR", user.path("run")).uid(user.uid).gid(user.uid);
        command
    };
    let done = |mut command: Command| {
        let (code, said) = outcome(&command.output().unwrap());
        assert_eq!(code, 0, "{command:?}: {said}");
    };
    let inspected = |mut command: Command| -> serde_json::Value {
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?}: {said}");
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let want = inspected({
        let mut command = crate::support::slim(user.home.path());
        command.args(["inspect", "--json", "oci:layout"]);
        command
    });
    let fuse = "[storage.options.overlay]\nmount_program = \"/usr/bin/fuse-overlayfs\"\n";
    for (number, (driver, options)) in
        [("vfs", ""), ("overlay", ""), ("overlay", fuse)].into_iter().enumerate()
    {
        let root = user.path(&format!("storage{number}"));
        let run = user.path(&format!("run/{number}"));
        let text =
            format!("[storage]\ndriver = {driver:?}\ngraphroot = {root:?}\nrunroot = {run:?}\n");
        std::fs::write(&conf, text + options).unwrap();
        user.owns(user.home.path());
        done(podman(&["load", "--quiet", "--input", archive.to_str().unwrap()]));
        done(podman(&["create", "--name", "made", name]));
        let what = format!("{driver} {options}");
        // Where slim runs nothing it has the user's own id only.
        let (code, said) = outcome(&user.slim(&["inspect", name]).output().unwrap());
        assert!(code == 3 && said.contains("podman unshare slim"), "{what}: {code} {said}");
        for reference in [name, "container:made"] {
            let got = inspected(podman(&["unshare", "./slim", "inspect", "--json", reference]));
            assert_same_image(&got, &want, &format!("{what}: {reference}"));
        }
        // Another user's storage by its place: root sees other owners in its folders.
        let place = format!("containers-storage:[{driver}@{}]{name}", root.display());
        let mut as_root = crate::support::slim(user.home.path());
        as_root.args(["inspect", "--json", &place]);
        assert_same_image(&inspected(as_root), &want, &what);
        for mut slim in [user.slim(&[]), crate::support::slim(user.home.path())] {
            let by = slim.get_program().to_owned();
            slim.args(["trace", "--image", &place, "--recorder", "none", "--no-restart"]);
            slim.args(["--store", &format!("store-{number}-{}", by.len()), "-o", "out", "--"]);
            let (code, said) = outcome(&slim.arg(&coverage).output().unwrap());
            assert_eq!(code, 0, "{what}, {by:?}: {said}");
            let _ = std::fs::remove_dir_all(user.path("out"));
        }
        done(podman(&["rm", "made"]));
        // The process that keeps its namespaces ends.
        done(podman(&["system", "migrate"]));
    }
}

/// Hooks are run by a user's slim too, with the user's rights, and what they use is kept.
#[test]
fn a_user_s_hooks_find_their_files_in_the_slim_image() {
    if !have(&NEEDS) {
        return;
    }
    let user = User::new(true);
    let number = std::process::id();
    let known = "state=$(cat)\n\
        bundle=$(sed -n 's/.*\"bundle\" *: *\"\\([^\"]*\\)\".*/\\1/p' <<<\"$state\")\n\
        root=$(sed -n 's/.*\"root\":{\"path\":\"\\([^\"]*\\)\".*/\\1/p' <\"$bundle/config.json\")\n\
        [ -n \"$root\" ]\n";
    let hooks = [
        ("prestart", "cat $root$file"),
        ("createRuntime", "chroot $root /bin/busybox stat $file"),
        ("createContainer", "test -e $root$file"),
        ("startContainer", ""),
        ("poststop", "cat $root$file"),
    ];
    let file = |stage: &str| format!("/srv/{stage}-{number}");
    let mut layer = LayerFixture::default();
    std::fs::create_dir(user.path("hooks.d")).unwrap();
    for (stage, text) in hooks {
        layer = layer.file(&file(stage)[1..], "data only\n");
        let path = script(
            user.home.path(),
            stage,
            &format!("{known}{}", text.replace("$file", &file(stage))),
        );
        let hook = match text {
            "" => json!({ "path": "/bin/busybox", "args": ["busybox", "stat", file(stage)] }),
            _ => json!({ "path": path, "args": [stage], "env": ["PATH=/usr/sbin:/usr/bin:/bin"] }),
        };
        let all = json!({ "version": "1.0.0", "hook": hook, "when": { "always": true }, "stages": [stage] });
        std::fs::write(user.path("hooks.d").join(format!("{stage}.json")), all.to_string())
            .unwrap();
    }
    image(json!({})).layer(layer).write(user.home.path());
    user.owns(user.home.path());
    let script =
        user.script(&format!("{FETCH}fetch | grep hello\n$SLIM_EXEC busybox test -c /dev/other\n"));
    let trace = ["trace", "--image", "oci:layout", "-o", "mine", "--hooks-dir", "hooks.d"];
    let device = ["--device", "/dev/zero:/dev/other", "--", script.to_str().unwrap()];
    let args = [&trace[..], &device].concat();
    let (code, said) = outcome(&user.slim(&args).output().unwrap());
    assert_eq!(code, 0, "{said}");
    let summary = json(&user.path("mine/summary.json"));
    assert_eq!((&summary["complete"], &summary["recordings"]), (&json!(true), &json!(1)), "{said}");
    assert_eq!(summary["verified"], json!({ "static": true, "dynamic": true }), "{said}");
    assert!(!said.contains("hook"), "{said}");
    let profile = json(&user.path("mine/profile.json"));
    for (stage, _) in hooks {
        let access = profile["files"][file(stage)]["access"].to_string();
        assert!(access.contains("\"phase\":\"hook\""), "{stage}: {access}");
    }
}
