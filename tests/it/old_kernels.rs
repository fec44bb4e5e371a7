//! What slim does where the kernel lacks a call, which a filter over slim and all its children takes
//! away here. `scripts/kernels` runs it on kernels that are as old.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::main_job::{Place, disallow};
use crate::support::{Need, SERVICE, have, host_image, json, outcome, script, sh, slim};

const MOUNT_SETATTR: &str = "442"; // Linux 5.12
const CLOSE_RANGE: &str = "436"; // Linux 5.9, and with CLOSE_RANGE_CLOEXEC 5.11
const FACCESSAT2: &str = "439"; // Linux 5.8

/// What a container sees of its mounts and devices: the folder's `coverage.sh` leaves it in `seen`.
const LOOK: &str = "[ \"$($SLIM_EXEC cat /bound/file)\" = data ]
$SLIM_EXEC cat /proc/self/mountinfo >seen
$SLIM_EXEC ls /proc/self/fd >>seen
$SLIM_EXEC stat -c '%n %A %u:%g %t:%T %N' /dev/null /dev/tty /dev/ptmx /dev/fd /dev/shm /tmp/new >>seen
$SLIM_EXEC sh -c 'echo >/dev/null && echo >/tmp/new/file && echo >/dev/shm/file && test -e /proc/1/stat'
! $SLIM_EXEC touch /bound/other 2>/dev/null
! $SLIM_EXEC sh -c 'echo 1 >/proc/sys/kernel/sysrq' 2>/dev/null
$SLIM_EXEC cat /proc/self/cgroup >own
$SLIM_EXEC sh -c 'for f in /sys/fs/cgroup/cgroup.procs /sys/fs/cgroup/memory/cgroup.procs; do cat $f 2>/dev/null; done; :' >procs";

/// Traces and verifies an image, under `before`, into `out`, with a folder of the
/// host's at `bound`.
fn trace(folder: &Path, before: &[&str], out: &str, bound: &str) -> (i32, String) {
    let bound = format!("./bound:{bound}:ro");
    let options = ["trace", "--image", "oci:image", "--store", "store", "-o", out, "--tmpfs"];
    let more = ["/tmp/new:size=1m,mode=700", "-v", &bound, "--", "./coverage.sh"];
    outcome(&under(before, folder).args(options).args(more).output().unwrap())
}

/// slim in `folder`, started by the words `before` it.
fn under(before: &[&str], folder: &Path) -> Command {
    let plain = slim(folder);
    let [first, rest @ ..] = before else { return plain };
    let mut command = Command::new(first);
    command.args(rest).arg(plain.get_program()).current_dir(folder);
    for (key, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command
}

/// Builds the program that takes a call away.
fn without(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/old_kernels/without.c");
    let program = folder.join("without");
    sh("cc", &["-O1", "-o", program.to_str().unwrap(), source.to_str().unwrap()]);
    program
}

/// Of each line of mountinfo the place, the root in its file system, what it is and how it is mounted.
/// The root directory itself is left out, an overlay of other folders each time, and so are control
/// groups of version 1, which libcontainer shows whole.
fn mounts(seen: &str) -> Vec<String> {
    let mut all: Vec<String> = seen
        .lines()
        .map(|line| {
            let Some((head, tail)) = line.split_once(" - ") else { return line.to_owned() };
            let head: Vec<&str> = head.split(' ').collect();
            // files of the run's own folder, which has another name each time
            let root = head[3].rsplit('/').next().unwrap_or_default();
            format!("{} {root} {} {tail}", head[4], head[5])
        })
        .filter(|line| !line.starts_with("/ ") && !line.starts_with("/sys/fs/cgroup/"))
        .collect();
    all.sort();
    all
}

#[test]
fn without_newer_calls_a_container_has_the_same_mounts_and_descriptors() {
    let needs = [Need::Root, Need::Program("umoci"), Need::Program("ldd"), Need::Program("cc")];
    if !have(&needs) {
        return;
    }
    let place = tempfile::Builder::new().prefix("slim-it-").tempdir_in("/var/tmp").unwrap();
    let folder = place.path();
    host_image(folder, &SERVICE);
    std::fs::create_dir(folder.join("bound")).unwrap();
    std::fs::write(folder.join("bound/file"), "data\n").unwrap();
    script(folder, "coverage.sh", LOOK);
    let without = without(folder);
    let without = without.to_str().unwrap();
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();

    let (code, said) = trace(folder, &[], "with", "/bound");
    assert_eq!(code, 0, "{said}");
    let want = mounts(&read("seen"));
    assert!(want.len() > 10, "{want:?}");
    let old = [without, MOUNT_SETATTR, without, CLOSE_RANGE];
    let (code, said) = trace(folder, &old, "by-hand", "/bound");
    assert_eq!(code, 0, "{said}");
    assert_eq!(mounts(&read("seen")), want);
    let (own, procs) = (read("own"), read("procs"));
    assert!(procs.lines().any(|pid| pid == "1"), "its own group is what it sees: {own}{procs}");

    let (code, said) = trace(folder, &[without, MOUNT_SETATTR], "none", "/etc/app.conf/in");
    assert_ne!(code, 0, "{said}");
    assert!(said.contains("/etc/app.conf/in: Not a directory"), "{said}");

    let doctor = Command::new(without)
        .args([MOUNT_SETATTR, env!("CARGO_BIN_EXE_slim"), "doctor"])
        .output()
        .unwrap();
    let (_, said) = outcome(&doctor);
    assert!(said.contains("slim makes its mounts"), "{said}");
}

/// The record has the newer call alone, which the older kernel does not know.
#[test]
fn what_was_traced_on_a_newer_kernel_works_on_an_older_one() {
    let needs = [
        Need::Root,
        Need::Program("ldd"),
        Need::Program("cc"),
        Need::Program("runc"),
        Need::Program("crun"),
    ];
    if !have(&needs) {
        return;
    }
    let place = Place::new(&SERVICE);
    let (code, said) = place.trace(&[], "$SLIM_EXEC sh -c 'test -r /etc/app.conf'");
    assert_eq!(code, 0, "{said}");
    let why = &json(&place.out("summary.json"))["syscalls"]["why"];
    assert_eq!(why["faccessat2"], "recorded");
    assert!(why["faccessat"].as_str().unwrap().starts_with("base set: "), "{why}");
    let without = without(place.path());
    let verify = |runtime: &str| {
        let mut command = under(&[without.to_str().unwrap(), FACCESSAT2], place.path());
        command.args(["verify", "slim-out", "--image", "oci:image", "--store", "store"]);
        // A recorder would take what is not there for refused by the image's filter.
        command.args(["--runtime", runtime, "--recorder", "none", "--", "./coverage.sh"]);
        outcome(&command.output().unwrap())
    };
    // Not the embedded one: that needs Linux 5.10 as slim does.
    for runtime in ["crun", "runc"] {
        let (code, said) = verify(runtime);
        assert_eq!(code, 0, "{runtime}: {said}");
    }
    disallow(&place, "faccessat");
    for runtime in ["crun", "runc"] {
        let (code, said) = verify(runtime);
        assert_eq!(code, 8, "{runtime}: {said}");
    }
}
