//! Report-once, losses and verification on real containers, from outside.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::main_job::{NEEDS, Place, mutate};
use crate::support::{Need, SERVICE, have, json, outcome, sh, slim};

/// An image with a static program in it that does what a recorder cannot follow.
pub fn place_with_probe() -> Place {
    let place = Place::new(&SERVICE);
    let built = probe(place.path());
    let image = format!("{}:latest", place.path().join("image").display());
    sh("umoci", &["insert", "--image", &image, built.to_str().unwrap(), "/usr/bin/probe"]);
    place
}

/// Builds that program into a folder.
pub fn probe(folder: &Path) -> PathBuf {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/losses/probe.c");
    let built = folder.join("probe");
    sh(
        "cc",
        &["-static", "-pthread", "-O1", "-o", built.to_str().unwrap(), source.to_str().unwrap()],
    );
    built
}

/// Which kinds of loss a run has.
pub fn kinds(summary: &Value) -> Vec<&str> {
    let losses = summary["losses"].as_array().unwrap();
    losses.iter().map(|loss| loss["kind"].as_str().unwrap()).collect()
}

#[test]
fn an_incomplete_record_is_marked_in_every_output() {
    if !have(&NEEDS) || !have(&[Need::Program("cc")]) {
        return;
    }
    let place = place_with_probe();
    let text = "$SLIM_EXEC probe unknown; $SLIM_EXEC probe deep; $SLIM_EXEC probe negative";
    let files = |image: bool| {
        for (name, there) in [
            ("profile.json", true),
            ("summary.json", true),
            ("container.log", true),
            ("image.tar", image),
            ("seccomp.json", image),
            ("seccomp.oci.json", image),
        ] {
            assert_eq!(place.out(name).exists(), there, "{name}");
        }
    };
    for (args, code) in [(&["--no-restart"][..], 7), (&["--no-restart", "--keep-going"], 0)] {
        let (got, said) = place.trace(args, text);
        assert_eq!(got, code, "{said}");
        assert!(said.contains("INCOMPLETE"), "{said}");
        files(code == 0);
        let summary = json(&place.out("summary.json"));
        assert_eq!(summary["complete"], false);
        // 300 directories down is deep, but nothing lost
        assert_eq!(kinds(&summary), ["unknown_syscall"], "{summary}");
        let profile = json(&place.out("profile.json"));
        let mut runs = profile["runs"].as_object().unwrap().values();
        assert!(runs.all(|run| run["complete"] == false && run["losses"][0]["number"] != 0));
    }
    for name in ["seccomp.json", "seccomp.oci.json"] {
        assert!(json(&place.out(name)).to_string().contains("INCOMPLETE"), "{name}");
    }
    let summary = json(&place.out("summary.json"));
    assert_eq!(summary["verified"], serde_json::json!({"static": true, "dynamic": true}));
    // A profile that lost something stays refused until somebody says that it will do.
    for (args, code) in [(&[][..], 7), (&["--keep-going"], 0)] {
        let mut command = slim(place.path());
        command.args(["build", "slim-out/profile.json", "--image", "oci:image", "-o", "built"]);
        let (got, said) = outcome(&command.args(args).output().unwrap());
        assert_eq!(got, code, "{said}");
    }
}

/// slim's own process, seen from the script, and a way to keep it from reading for a while.
pub const SLIM: &str = "slim=$(sed -n 's/^PPid:\\t//p' /proc/$PPID/status)";

/// Opens of the application that a recorder which silences too early would not see.
#[test]
fn what_others_opened_first_is_not_hidden_from_the_application() {
    if !have(&NEEDS) || !have(&[Need::Program("runc"), Need::Program("crun")]) {
        return;
    }
    let loop_ = "trap 'exit 0' TERM; while :; do sleep 0.1; if [ -e /tmp/go ]; then \
                 cat /srv/data/used /etc/passwd /srv/data/second-name /etc/app.conf >/dev/null; \
                 rm /tmp/go; fi; done";
    let cmd = ["--config.cmd", "sh", "--config.cmd", "-c", "--config.cmd", loop_];
    let place = Place::new(&cmd);
    // the runtime reads /etc/passwd for every user that has a name
    let text = "
set -x
slim=${SLIM_EXEC%% *}
for file in /srv/data/used /etc/app.conf /srv/data/unused; do
    $slim exec --unrecorded \"$SLIM_CONTAINER\" -- cat $file >/dev/null
done
$SLIM_EXEC touch /tmp/go
for i in $(seq 100); do $slim exec --unrecorded \"$SLIM_CONTAINER\" -- ls /tmp/go 2>/dev/null || break; done
";
    for runtime in ["embedded", "runc", "crun"] {
        let args = ["--runtime", runtime, "-u", "root", "--no-verify", "--no-restart"];
        let (code, said) = place.trace(&args, text);
        assert_eq!(code, 0, "{runtime}: {said}");
        let profile = json(&place.out("profile.json"));
        let by = |path: &str| -> Vec<(String, String)> {
            let runs = profile["files"][path]["access"]["open"].as_object();
            let runs = runs.into_iter().flat_map(|runs| runs.values());
            let text = |value: &Value| value.as_str().unwrap().to_owned();
            runs.map(|by| (text(&by["exe"]), text(&by["phase"]))).collect()
        };
        let cat = [("/usr/bin/cat".to_owned(), "coverage".to_owned())];
        for path in ["/srv/data/used", "/srv/data/second-name", "/etc/app.conf", "/etc/passwd"] {
            assert_eq!(by(path), cat, "{runtime}: {path}");
        }
        assert_eq!(by("/srv/data/unused"), [], "{runtime}");
        // opened by the kernel alone, for execution
        let access = &profile["files"]["/usr/lib64/ld-linux-x86-64.so.2"]["access"];
        assert!(access.get("exec").is_some(), "{runtime}: {access}");
    }
}

#[test]
fn verification_finds_what_the_script_tolerates() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let text = "$SLIM_EXEC sh -c 'cat /srv/data/used >/dev/null 2>&1 || true'";
    let (code, said) = place.trace(&["--format", "layout", "--no-restart"], text);
    assert_eq!(code, 0, "{said}");
    let verify = || place.verify(&["--no-restart", "--", "./coverage.sh"]);
    assert_eq!(verify().0, 0);
    let filter = place.out("seccomp.oci.json");
    let whole = std::fs::read_to_string(&filter).unwrap();
    std::fs::write(&filter, whole.replace("\"fadvise64\",", "")).unwrap();
    let (code, said) = verify();
    assert_eq!(code, 8, "{said}");
    let refused = "fadvise64: x86_64 call was refused with ENOSYS";
    assert!(said.contains(refused) && said.contains("by /usr/bin/cat, "), "{said}");
    std::fs::write(&filter, whole).unwrap();

    mutate(&place, &place.out("image"), "rm {}/srv/data/used");
    let (code, said) = verify();
    assert_eq!(code, 8, "{said}");
    let missing = "/srv/data/used: was not found in the slim image; the original has it (by /usr/bin/cat, exec)";
    assert!(said.contains(missing), "{said}");
}

/// A script that passes once and fails ever after blames the slim image only as long as the original has not
/// failed, too.
#[test]
fn a_script_that_fails_on_the_original_after_all_is_told_as_that() {
    if !have(&NEEDS) {
        return;
    }
    let mut service = SERVICE;
    service[5] = "echo works; trap 'echo stops; exit 0' TERM; while :; do sleep 0.1; done";
    let place = Place::new(&service);
    let (code, said) =
        place.trace(&["--no-restart"], "echo >>turns; [ $(wc -l <turns) = 1 ] || exit 23");
    assert_eq!(code, 5, "{said}");
    assert!(said.contains("which passed before, fails now too") && said.contains("23"), "{said}");
    let summary = json(&place.out("summary.json"));
    assert_eq!(
        (&summary["recordings"], &summary["verified"]["dynamic"]),
        (&2.into(), &false.into())
    );
    assert_eq!(summary["findings"].as_array().unwrap().len(), 1, "{summary}");
    let what = summary["findings"][0]["what"].as_str().unwrap();
    assert!(what.contains("last line: \"works\""), "{what}");
    assert!(!place.out("image.tar").exists() && place.out("profile.json").exists());
}

#[test]
fn after_a_finding_the_original_is_recorded_again_at_most_twice() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    // The script is run on the original, then on the slim image, and so on in turn.
    let script = |when: &str| {
        format!(
            "echo >>turns; n=$(wc -l <turns)\n\
             if [ {when} ]; then $SLIM_EXEC sh -c 'cat /srv/data/unused 2>/dev/null || true'; fi"
        )
    };
    for (when, code, recordings) in [("$n -ge 2", 0, 2_u64), ("$((n % 2)) = 0", 8, 3)] {
        let _ = std::fs::remove_file(place.path().join("turns"));
        let (got, said) = place.trace(&["--no-restart"], &script(when));
        assert_eq!(got, code, "{said}");
        assert!(said.contains("recording the original once more"), "{said}");
        let summary = json(&place.out("summary.json"));
        assert_eq!(summary["recordings"], recordings);
        let turns = std::fs::read_to_string(place.path().join("turns")).unwrap();
        assert_eq!(turns.lines().count(), 2 * usize::try_from(recordings).unwrap());
        assert_eq!(place.out("image.tar").exists(), code == 0);
        if code != 0 {
            let findings = summary["findings"].as_array().unwrap();
            let found = findings.iter().any(|f| f["subject"] == "/srv/data/unused");
            assert!(found, "{summary}");
        }
    }
}
