//! The backends side by side: the same image and script, the same files and calls.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use crate::losses::kinds;
use crate::main_job::{NEEDS, Place};
use crate::support::{Need, SERVICE, have, json, sh};

const SCRIPT: &str = "
[ \"$($SLIM_EXEC cat /srv/link)\" = used ]
$SLIM_EXEC stat /srv/data/statted >/dev/null
$SLIM_EXEC sh -c 'cd /srv && ls data >/dev/null && test ! -e data/none && cat none 2>/dev/null || true'
$SLIM_EXEC sh -c 'touch /tmp/new && mv /tmp/new /tmp/moved && rm /tmp/moved'
$SLIM_EXEC sh -c 'for i in 1 2 3; do cat /etc/app.conf >/dev/null & done; wait'
[ \"$($SLIM_RUN id -u)\" = 0 ]
";

/// Names in a map of the profile that somebody but the runtime used, with the kinds of use.
fn used(map: &Value, kinds: impl Fn(&Value) -> &Value) -> BTreeSet<String> {
    let entries = map.as_object().unwrap().iter();
    let by_target = |access: &Value| {
        let users = access.as_object().unwrap().values().flat_map(|runs| runs.as_object().unwrap());
        users.map(|(_, user)| user["phase"].clone()).any(|phase| phase != "runtime")
    };
    entries.filter(|(_, cell)| by_target(kinds(cell))).map(|(name, _)| name.clone()).collect()
}

/// Files, missing files and calls.
fn seen(place: &Place) -> [BTreeSet<String>; 3] {
    let profile = json(&place.out("profile.json"));
    let files = used(&profile["files"], |cell| &cell["access"]);
    let missing = used(&profile["missing"], |access| access);
    let mut calls = BTreeSet::new();
    for (name, cells) in profile["syscalls"]["x86_64"].as_object().unwrap() {
        let plain = &cells[""];
        let entered = plain.get("call").is_some_and(|runs| {
            runs.as_object().unwrap().values().any(|user| user["phase"] != "runtime")
        });
        if entered {
            calls.insert(name.clone());
        }
    }
    [files, missing, calls]
}

#[test]
fn every_backend_sees_the_same_files_and_calls_and_its_image_verifies() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let mut first: Option<[BTreeSet<String>; 3]> = None;
    for backend in ["bpf", "perf", "notify"] {
        let (code, said) = place.trace(&["--recorder", backend], SCRIPT);
        assert_eq!(code, 0, "{backend}: {said}");
        let summary = json(&place.out("summary.json"));
        assert_eq!(summary["complete"], true, "{backend}: {summary}");
        let passed = serde_json::json!({"static": true, "dynamic": true});
        assert_eq!(summary["verified"], passed, "{backend}");
        let profile = json(&place.out("profile.json"));
        for run in profile["runs"].as_object().unwrap().values() {
            assert_eq!(run["recorder"], backend);
        }
        let by = &profile["files"]["/srv/data/used"]["access"]["open"];
        let by = by.as_object().unwrap().values().next().unwrap();
        assert_eq!((&by["exe"], &by["phase"]), (&"/usr/bin/cat".into(), &"exec".into()));
        let got = seen(&place);
        let want = first.get_or_insert_with(|| got.clone());
        for (what, (want, got)) in
            ["files", "missing", "calls"].into_iter().zip(want.iter().zip(&got))
        {
            let beside = slim::seccomp::beside(&(want & got));
            let by_timing =
                |one: &String| beside.get(one).is_some_and(|why| why.contains("timing"));
            let odd = want.symmetric_difference(got).filter(|one| !by_timing(one));
            let odd: Vec<_> = odd.collect();
            assert!(odd.is_empty(), "{backend}: {what} differ from bpf's: {odd:?}");
        }
    }
}

const IN_VOLUMES: &str = "
[ \"$($SLIM_EXEC cat /srv/data/used)\" = used ]
$SLIM_EXEC sh -c 'echo x >/tmp/x && mv /tmp/x /srv/data/new && mv /srv/data/new /srv/data/other'
$SLIM_EXEC sh -c 'echo y >/named/y && test ! -e /named/none && rm /named/y'
! $SLIM_EXEC touch /fixed/file 2>/dev/null
! $SLIM_EXEC touch /srv/file 2>/dev/null
$SLIM_EXEC cat /proc/self/mountinfo >seen
";

/// As in production, where a volume is a mount: a file cannot be renamed into it, and it can be written
/// in a container that cannot.
#[test]
fn volumes_are_mounts_and_what_lies_in_them_is_seen_by_every_backend() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&[&SERVICE[..], &["--config.volume", "/srv/data"]].concat());
    let mut first: Option<[BTreeSet<String>; 3]> = None;
    for backend in ["bpf", "perf", "notify"] {
        let options = ["--read-only", "--tmpfs", "/tmp", "-v", "name:/named", "-v", "x:/fixed:ro"];
        let args = [&["--recorder", backend][..], &options].concat();
        let (code, said) = place.trace(&args, IN_VOLUMES);
        assert_eq!(code, 0, "{backend}: {said}");
        let summary = json(&place.out("summary.json"));
        assert_eq!(summary["complete"], true, "{backend}: {summary}");
        let mounts = std::fs::read_to_string(place.path().join("seen")).unwrap();
        for at in ["/srv/data", "/named", "/fixed"] {
            assert!(mounts.contains(&format!(" {at} ")), "{backend}: {at}: {mounts}");
        }
        let profile = json(&place.out("profile.json"));
        assert!(profile["files"]["/srv/data/used"]["access"]["open"].is_object(), "{backend}");
        assert!(
            profile["written"]["/srv/data/new"].is_object(),
            "{backend}: {}",
            profile["written"]
        );
        assert!(profile["missing"]["/named/none"].is_object(), "{backend}");
        let got = seen(&place);
        // mv copies and removes.
        let removes = ["unlink", "unlinkat"].iter().any(|call| got[2].contains(*call));
        assert!(removes, "{backend}: {:?}", got[2]);
        let want = first.get_or_insert_with(|| got.clone());
        assert_eq!(&got, want, "{backend}");
    }
}

#[test]
fn a_container_without_a_filter_or_with_no_new_privileges_is_recorded_as_well() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    for backend in ["perf", "notify"] {
        for option in ["seccomp=unconfined", "no-new-privileges"] {
            let args = ["--recorder", backend, "--security-opt", option];
            let args = [&args[..], &["-u", "app", "--no-verify", "--no-restart"]].concat();
            let (code, said) = place.trace(&args, "$SLIM_EXEC stat /srv/data/statted >/dev/null");
            assert_eq!(code, 0, "{backend} {option}: {said}");
            let profile = json(&place.out("profile.json"));
            let by = &profile["files"]["/srv/data/statted"]["access"]["stat"];
            let by = by.as_object().unwrap().values().next().unwrap();
            assert_eq!(by["uid"], 1000, "{backend} {option}: {by}");
        }
    }
}

#[test]
fn runc_and_crun_hand_over_their_listeners() {
    if !have(&NEEDS) || !have(&[Need::Program("runc"), Need::Program("crun")]) {
        return;
    }
    let place = Place::new(&SERVICE);
    let script = "$SLIM_EXEC stat /srv/data/statted >/dev/null; $SLIM_EXEC cat /srv/link";
    for runtime in ["runc", "crun"] {
        // perf counts what these runtimes do not let be notified; alone, notification says what it lacks
        for (backend, code) in [("perf", 0), ("notify", 7)] {
            let args = ["--runtime", runtime, "--recorder", backend, "--no-verify", "--no-restart"];
            let (got, said) = place.trace(&args, script);
            assert_eq!(got, code, "{runtime} {backend}: {said}");
            let summary = json(&place.out("summary.json"));
            let want: &[&str] = if code == 0 { &[] } else { &["calls_not_notified"] };
            assert_eq!(kinds(&summary), want, "{runtime} {backend}");
            let [files, ..] = seen(&place);
            for path in ["/srv/data/statted", "/srv/link", "/srv/data/used", "/etc/app.conf"] {
                assert!(files.contains(path), "{runtime} {backend}: {path} is not in {files:?}");
            }
        }
    }
}

/// A shell's SIGCHLD comes when it forks again, and `can't fork: Interrupted system call` is the end of
/// its script.
#[test]
fn no_recorder_lets_a_signal_end_a_fork() {
    if !have(&NEEDS) || !have(&[Need::Program("cc")]) {
        return;
    }
    let place = Place::new(&SERVICE);
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/backends/forks.c");
    let (folder, made) = (place.path(), place.path().join("forks"));
    sh("cc", &["-static", "-O1", "-o", made.to_str().unwrap(), source.to_str().unwrap()]);
    let volume = format!("{}:/x:ro", folder.display());
    for backend in ["perf", "notify"] {
        let args = ["--recorder", backend, "-v", &volume, "--no-verify", "--no-restart"];
        let (code, said) = place.trace(&args, "$SLIM_EXEC /x/forks 1000 >ended");
        assert_eq!(code, 0, "{backend}: {said}");
        let ended = std::fs::read_to_string(folder.join("ended")).unwrap();
        assert_eq!(ended.trim(), "0", "{backend}");
        let profile = json(&place.out("profile.json"));
        let clone = &profile["syscalls"]["x86_64"]["clone"];
        let phases = clone[""]["call"].as_object().unwrap().values().map(|user| &user["phase"]);
        assert!(phases.into_iter().any(|phase| phase == "exec"), "{backend}: {clone}");
    }
}
