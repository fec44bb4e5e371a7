//! `slim doctor` from outside: as root, with fewer capabilities, as an ordinary user.

use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::{Need, have, outcome, slim};

/// Exit code and the rows, run by way of `prefix` (a program that changes who one is).
fn rows(folder: &Path, prefix: &[&str]) -> (i32, Vec<Value>) {
    let store = folder.join("store");
    let mut inner = slim(folder);
    inner.args(["doctor", "--json", "--store"]).arg(&store);
    let output = match prefix.split_first() {
        None => inner.output().unwrap(),
        Some((program, args)) => {
            let mut outer = Command::new(program);
            // the test's binary may lie where an ordinary user does not get to
            outer.args(args).arg(copy_for_everyone(folder)).args(inner.get_args());
            outer.current_dir("/").output().unwrap()
        }
    };
    let (code, text) = outcome(&output);
    let rows: Vec<Value> =
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error} in: {text}"));
    (code, rows)
}

fn copy_for_everyone(folder: &Path) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let copy = folder.join("slim");
    std::fs::copy(env!("CARGO_BIN_EXE_slim"), &copy).unwrap();
    std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

#[track_caller]
fn row<'a>(rows: &'a [Value], name: &str) -> &'a Value {
    rows.iter().find(|row| row["name"] == name).unwrap_or_else(|| panic!("no row {name}"))
}

#[track_caller]
fn lacks(rows: &[Value], name: &str) {
    let row = row(rows, name);
    assert_eq!(row["ok"], false, "{row}");
    for key in ["costs", "way_out"] {
        assert!(row[key].as_str().is_some_and(|text| !text.is_empty()), "no {key} in {row}");
    }
}

#[test]
fn root_has_what_tracing_needs_and_nothing_stays_behind() {
    if !have(&[Need::Root]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let (code, rows) = rows(folder.path(), &[]);
    let missing: Vec<&Value> =
        rows.iter().filter(|row| row["ok"] == false && row["needed"] == true).collect();
    assert_eq!((code, missing), (0, vec![]));
    assert_eq!(row(&rows, "recorder")["detail"], "bpf");
    // every key that programs may have read before recorders became several
    for name in
        ["root", "fanotify", "btf", "bpf", "cgroup2", "overlayfs", "seccomp", "runc", "crun"]
    {
        let row = row(&rows, name);
        assert!(row["ok"].is_boolean() && row["needed"].is_boolean(), "{row}");
        assert!(row["detail"].as_str().is_some_and(|text| !text.is_empty()), "{row}");
    }
    let left = std::fs::read_dir(folder.path().join("store/runs")).unwrap().count();
    assert_eq!(left, 0);
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(folder.path().to_str().unwrap()), "{mounts}");
}

#[test]
fn without_sys_admin_it_says_what_is_lost() {
    if !have(&[Need::Root, Need::Program("setpriv")]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let drop = ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"];
    let (code, rows) = rows(folder.path(), &drop);
    assert_eq!(code, 4);
    for name in ["fanotify", "overlayfs", "namespaces", "capabilities"] {
        lacks(&rows, name);
    }
    assert!(row(&rows, "capabilities")["detail"].as_str().unwrap().contains("SYS_ADMIN"));
    assert_eq!(row(&rows, "root")["ok"], true);
    // Podman would have left a process that keeps a user namespace.
    let ours = std::fs::read_link("/proc/self/ns/user").unwrap();
    for process in std::fs::read_dir("/proc").unwrap().flatten() {
        let status = std::fs::read_to_string(process.path().join("status")).unwrap_or_default();
        let ns = std::fs::read_link(process.path().join("ns/user")).unwrap_or(ours.clone());
        assert!(ns == ours || !status.starts_with("Name:\tpodman"), "{status}");
    }
}

#[test]
fn an_ordinary_user_is_told_every_lack_and_what_is_there_all_the_same() {
    if !have(&[Need::Root, Need::Program("setpriv")]) {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let nobody = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"];
    let (code, rows) = rows(folder.path(), &nobody);
    for name in ["root", "fanotify", "bpf", "perf_events", "cgroup2", "subuid"] {
        lacks(&rows, name);
    }
    // in the user namespace that a run would have, these are there
    for name in ["seccomp_notify", "pidfd_getfd", "user_namespaces", "namespaces", "overlayfs"] {
        assert_eq!(row(&rows, name)["ok"], true, "{}", row(&rows, name));
    }
    assert_eq!(row(&rows, "root")["needed"], false);
    let recorder = row(&rows, "recorder");
    assert_eq!(code, if recorder["ok"] == true { 0 } else { 4 }, "{recorder}");
}
