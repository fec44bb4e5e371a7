//! Every kind of loss is made on purpose, and marks its run.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Child, Command};
use std::time::Instant;

use slim::model::LossKind;

use crate::losses::{SLIM, kinds, place_with_probe};
use crate::main_job::{NEEDS, Place};
use crate::support::{Need, have, json};

/// A loss that is provoked from outside: by what the script does in a run with these options.
struct Injected {
    kind: LossKind,
    args: &'static [&'static str],
    text: &'static str,
}

const fn by(kind: LossKind, args: &'static [&'static str], text: &'static str) -> Injected {
    Injected { kind, args, text }
}

/// What the scripts have to hand: `$slim`; `waiting`, which starts a process that waits in the
/// container and sets `$pid` to its number on the host; the top of the cgroups.
const PRELUDE: &str = r#"
cgroups=$(awk '$3 == "cgroup2" { print $2; exit }' /proc/mounts)
waiting() {
    $SLIM_EXEC probe wait token-$$ &
    pid=
    for ((i = 0; i < 500; i++)); do
        for file in $(grep -las "token-$$" /proc/[0-9]*/cmdline); do
            dir=${file%/cmdline}
            if [ "$(cat "$dir/comm")" = probe ]; then pid=${dir#/proc/}; return 0; fi
        done
        sleep 0.02
    done
    return 1
}
"#;

/// In turn, as often as `SLIM_LOSSES` says.
const INJECTED: &[Injected] = &[
    by(LossKind::UnknownSyscall, &[], "$SLIM_EXEC probe unknown"),
    by(LossKind::StringFault, &[], "$SLIM_EXEC probe vanish"),
    by(LossKind::DirectoryUnknown, &[], "$SLIM_EXEC probe closed"),
    by(
        LossKind::RingFull,
        &[],
        "exec 3< <($SLIM_EXEC probe later 300 flood 80000); read -u 3\n\
         kill -STOP $slim; read -t 60 -u 3; kill -CONT $slim; [ \"$REPLY\" = done ]",
    ),
    by(
        LossKind::FanotifyRead,
        &[],
        "exec 3< <($SLIM_EXEC probe later 300 open /srv/data/statted); read -u 3\n\
         prlimit --pid $slim --nofile=1:; read -t 60 -u 3; sleep 0.5\n\
         prlimit --pid $slim --nofile=20000:; [ \"$REPLY\" = done ]",
    ),
    by(LossKind::StringCut, &["--tmpfs", "/deep"], "$SLIM_EXEC probe deeper /deep"),
    by(
        LossKind::MountsUnknown,
        &["--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined"],
        "$SLIM_EXEC probe mounts 14",
    ),
    by(LossKind::LeftCgroup, &[], "waiting; echo $pid >$cgroups/cgroup.procs; kill $pid; wait"),
    // `path` is read by the process that the test started before slim, see `Outsider`
    by(
        LossKind::Unattributed,
        &[],
        "waiting; kill -STOP $slim; echo /proc/$pid/root/srv/data/statted >path.new\n\
         mv path.new path; for ((i = 0; i < 500; i++)); do [ ! -e path ] && break; sleep 0.02; done\n\
         kill -CONT $slim; [ ! -e path ]; kill $pid; wait",
    ),
    by(
        LossKind::PerfLost,
        &["--recorder", "perf"],
        "exec 3< <($SLIM_EXEC probe busy 300 200000); read -u 3\n\
         kill -STOP $slim; read -t 60 -u 3; kill -CONT $slim; [ \"$REPLY\" = done ]",
    ),
    by(
        LossKind::IoUringUnseen,
        &["--recorder", "notify", "--security-opt", "seccomp=unconfined"],
        "$SLIM_EXEC probe ring",
    ),
    by(LossKind::CallsNotNotified, &["--recorder", "notify", "--runtime", "runc"], ":"),
    by(
        LossKind::ListenerGap,
        &["--recorder", "perf", "--runtime", "runc"],
        "./probe knock /run/slim/$SLIM_CONTAINER.seccomp",
    ),
];

/// What cannot be provoked from outside, or is no failure: which file of the tests does, and its test.
const ELSEWHERE: &[(LossKind, &str, &str)] = &[
    (LossKind::MapFull, "record.rs", "a_full_ring_and_a_full_table_of_tasks_are_losses"),
    (LossKind::ProgramMissed, "record.rs", "what_a_reader_loses_is_counted_by_kind"),
    (LossKind::EventUnreadable, "record.rs", "what_a_reader_loses_is_counted_by_kind"),
    (LossKind::RecorderDied, "record.rs", "what_a_reader_loses_is_counted_by_kind"),
    (LossKind::FanotifyOverflow, "record.rs", "an_overflow_of_the_queue_is_a_loss"),
    (LossKind::LateAttach, "record.rs", "who_comes_late_or_leaves_is_a_loss"),
    (
        LossKind::OpensUnseen,
        "record.rs",
        "without_fanotify_a_call_that_may_open_any_file_is_a_loss",
    ),
    (LossKind::NotRecorded, "injections.rs", "a_run_that_is_not_recorded_says_so"),
];

#[test]
fn no_kind_of_loss_is_without_an_injection() {
    let all: BTreeSet<_> = LossKind::ALL.iter().copied().collect();
    let injected = INJECTED.iter().map(|injected| injected.kind);
    let made: BTreeSet<_> = injected.chain(ELSEWHERE.iter().map(|(kind, ..)| *kind)).collect();
    assert_eq!(all, made);
    for (kind, file, test) in ELSEWHERE {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it").join(file);
        let text = std::fs::read_to_string(&file).unwrap();
        let body = text.split(&format!("fn {test}(")).nth(1).unwrap_or_else(|| panic!("{test}"));
        let body = body.split("\n}").next().unwrap();
        assert!(body.contains(&format!("{:?}", kind.name())), "{test} and {}", kind.name());
    }
}

/// A process that slim did not start and that is in no container: opens what `path` names, and is dead
/// before it removes that.
struct Outsider(Child);

fn outsider(place: &Place) -> Outsider {
    let text = "while :; do if [ -e path ]; then cat \"$(cat path)\" >/dev/null; rm path; fi; sleep 0.02; done";
    let mut command = Command::new("sh");
    Outsider(command.args(["-c", text]).current_dir(place.path()).spawn().unwrap())
}

impl Drop for Outsider {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Every loss that is made on purpose is found: run by run, in turn.
#[test]
fn every_injected_loss_marks_its_run() {
    let programs = ["cc", "prlimit", "awk", "runc"].map(Need::Program);
    if !have(&NEEDS) || !have(&programs) {
        return;
    }
    let place = place_with_probe();
    let _outsider = outsider(&place);
    let runs = std::env::var("SLIM_LOSSES").map_or(INJECTED.len(), |n| n.parse().unwrap());
    let mut marked = 0;
    for Injected { kind, args, text } in INJECTED.iter().cycle().take(runs) {
        let (kind, began) = (kind.name(), Instant::now());
        let args = [&["--no-restart", "--no-verify", "--stop-signal", "KILL"], *args].concat();
        let (code, said) = place.trace(&args, &format!("{SLIM}{PRELUDE}\n{text}"));
        let summary = json(&place.out("summary.json"));
        let found = code == 7 && summary["complete"] == false && kinds(&summary).contains(&kind);
        assert!(found, "{kind}, after {marked} runs: {code}, {summary}: {said}");
        assert!(!place.out("image.tar").exists(), "{kind}");
        marked += 1;
        println!("{kind}: {:.1} s, {:?}", began.elapsed().as_secs_f32(), kinds(&summary));
    }
    println!("{marked} of {runs} runs with an injected loss are marked");
}

#[test]
fn a_run_that_is_not_recorded_says_so() {
    if !have(&NEEDS) || !have(&[Need::Program("cc")]) {
        return;
    }
    let place = place_with_probe();
    let (code, said) = place.trace(&["--recorder", "none", "--no-restart"], ":");
    assert_eq!(code, 0, "{said}");
    let summary = json(&place.out("summary.json"));
    assert_eq!(summary["complete"], false);
    assert_eq!(kinds(&summary), ["not_recorded"]);
    assert!(said.contains("nothing was recorded") && !place.out("profile.json").exists(), "{said}");
}

/// The last hop: a profile that could not be written is none, and the trace says so.
#[test]
fn a_profile_that_cannot_be_written_fails_the_trace() {
    if !have(&NEEDS) || !have(&[Need::Program("cc")]) {
        return;
    }
    let place = place_with_probe();
    let out = place.path().join("slim-out");
    std::fs::create_dir(&out).unwrap();
    let small = ["-t", "tmpfs", "-o", "size=8k", "none", out.to_str().unwrap()];
    crate::support::sh("mount", &small);
    let (code, said) = place.trace(&["--no-restart", "--profile-only"], "$SLIM_EXEC probe hello");
    let there = out.join("profile.json").exists() || out.join("summary.json").exists();
    crate::support::sh("umount", &[out.to_str().unwrap()]);
    assert!(!matches!(code, 0 | 7 | 8), "{code}: {said}");
    assert!(said.contains("profile.json") && said.contains("No space left"), "{said}");
    assert!(!there, "{said}");
}

/// A recorder that is stopped for a while makes notified calls wait, and they go on with it.
#[test]
fn calls_that_wait_for_a_stopped_recorder_go_on_with_it() {
    if !have(&NEEDS) || !have(&[Need::Program("cc")]) {
        return;
    }
    let place = place_with_probe();
    for recorder in ["perf", "notify"] {
        let text = format!(
            "{SLIM}\n\
             exec 3< <($SLIM_EXEC probe later 100 flood 3000)\n\
             exec 4< <($SLIM_EXEC probe later 100 processes 50; echo done)\n\
             read -u 3; read -u 4; kill -STOP $slim\n\
             ! read -t 2 -u 3; kill -CONT $slim\n\
             read -t 60 -u 3; [ \"$REPLY\" = done ]; read -t 60 -u 4; [ \"$REPLY\" = done ]"
        );
        let args = ["--recorder", recorder, "--no-restart", "--no-verify"];
        let (code, said) = place.trace(&args, &text);
        assert_eq!(code, 0, "{recorder}: {said}");
        let profile = json(&place.out("profile.json"));
        assert!(profile["files"].get("/srv/data/statted").is_some(), "{recorder}");
        let missing = profile["missing"].as_object().unwrap().keys();
        let looked = missing.filter(|path| path.starts_with("/tmp/none-")).count();
        assert_eq!(looked, 3000, "{recorder}");
    }
}
