//! Storms: more files, processes and threads at once than a reader can follow. Nothing is lost, or the run
//! is marked. Small here; `SLIM_STORM=full` has the sizes that `scripts/test-long` runs.

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::losses::{SLIM, kinds, probe};
use crate::main_job::NEEDS;
use crate::support::image::{Attr, ImageFixture, LayerFixture};
use crate::support::{Need, have, json, outcome, script, slim};

/// The small size, or the full one.
fn size(small: usize, full: usize) -> usize {
    if std::env::var("SLIM_STORM").is_ok_and(|size| size == "full") { full } else { small }
}

/// The most memory that slim may take: in KiB without files, and in bytes for each file of the image
/// that is opened, when it is all put together after the run. A development build's code is 27 MiB of it,
/// the ring 16.
const MEMORY: u64 = 64 * 1024;
const MEMORY_PER_FILE: u64 = 512;

/// An image with the probe and `files` empty files, `/srv/many/N/…`.
struct Place {
    folder: tempfile::TempDir,
    files: usize,
}

/// What a storm left.
struct After {
    summary: Value,
    profile: Value,
    /// VmHWM of slim, in KiB.
    memory: u64,
}

impl Place {
    fn new(files: usize) -> Self {
        let folder = tempfile::Builder::new().prefix("slim-it-").tempdir_in("/var/tmp").unwrap();
        let attr = Attr { mode: 0o755, ..Attr::default() };
        let probe = std::fs::read(probe(folder.path())).unwrap();
        let mut layer = LayerFixture::default().raw(b'0', b"usr/bin/probe", b"", &probe, &attr);
        layer = layer.dir("tmp").dir("srv/many").file("srv/data/statted", "");
        for number in 0..files {
            if number % 1000 == 0 {
                layer = layer.dir(&format!("srv/many/{}", number / 1000));
            }
            layer = layer.file(&format!("srv/many/{}/{number}", number / 1000), "");
        }
        let config = serde_json::json!({
            "Cmd": ["probe", "wait"], "Env": ["PATH=/usr/bin"], "User": "0"
        });
        ImageFixture::default().layer(layer).config(config).tag("latest").write(folder.path());
        Self { folder, files }
    }

    /// Traces a script; what it could not see is in the summary, or the test fails.
    fn storm(&self, args: &[&str], text: &str) -> After {
        let folder = self.folder.path();
        let script = script(folder, "coverage.sh", &format!("{SLIM}\n{text}"));
        let mut command = slim(folder);
        command.args(["trace", "--image", "oci:layout", "--store", "store", "--profile-only"]);
        command.args(["--no-restart", "--no-verify"]).args(args).arg("--").arg(script);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let pid = child.id();
        let watch = std::thread::spawn(move || most_memory(pid));
        let (code, said) = outcome(&child.wait_with_output().unwrap());
        let memory = watch.join().unwrap();
        let summary = json(&folder.join("slim-out/summary.json"));
        let complete = summary["complete"] == true;
        assert_eq!(code, if complete { 0 } else { 7 }, "{summary}: {said}");
        assert_eq!(complete, kinds(&summary).is_empty(), "{summary}");
        println!("{text:?}: {memory} KiB at most, losses {}", summary["losses"]);
        After { summary, profile: json(&folder.join("slim-out/profile.json")), memory }
    }
}

/// VmHWM of a process at its end, nearly.
fn most_memory(pid: u32) -> u64 {
    let mut most = 0;
    let status = format!("/proc/{pid}/status");
    loop {
        let text = std::fs::read_to_string(&status).unwrap_or_default();
        let line = text.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let Some(line) = line else { return most };
        most = line.trim().trim_end_matches(" kB").parse().unwrap_or(most);
        std::thread::sleep(Duration::from_millis(5));
    }
}

impl After {
    fn lost_nothing(&self) -> bool {
        self.summary["complete"] == true
    }

    fn opened(&self) -> usize {
        let files = self.profile["files"].as_object().unwrap();
        let opened = files.iter().filter(|(_, cell)| cell["access"].get("open").is_some());
        opened.filter(|(path, _)| path.starts_with("/srv/many/")).count()
    }

    /// What happened last in the storm.
    fn last(&self) -> bool {
        self.profile["files"].get("/srv/data/statted").is_some()
    }
}

fn ready() -> bool {
    have(&NEEDS) && have(&[Need::Program("cc")])
}

#[test]
fn a_storm_of_files_is_recorded_whole() {
    if !ready() {
        return;
    }
    let place = Place::new(size(3000, 100_000));
    let text = format!("$SLIM_EXEC probe files /srv/many {} 8", place.files);
    let after = place.storm(&[], &text);
    assert!(after.lost_nothing(), "{}", after.summary["losses"]);
    assert_eq!(after.opened(), place.files);
    let bound = MEMORY + MEMORY_PER_FILE * place.files as u64 / 1024;
    assert!(after.memory <= bound, "{} KiB, more than {bound}", after.memory);
}

#[test]
fn a_storm_while_nobody_reads_is_recorded_or_marked() {
    if !ready() {
        return;
    }
    let place = Place::new(size(3000, 100_000));
    let text = format!(
        "exec 3< <($SLIM_EXEC probe later 300 files /srv/many {} 8); read -u 3\n\
         kill -STOP $slim; sleep 5; kill -CONT $slim; cat <&3",
        place.files
    );
    let after = place.storm(&[], &text);
    if after.lost_nothing() {
        assert_eq!(after.opened(), place.files);
    }
}

/// A storm that the probe makes without files.
fn recorded_or_marked(args: &[&str], storm: &str) {
    if !ready() {
        return;
    }
    let after = Place::new(0).storm(args, &format!("$SLIM_EXEC probe {storm}"));
    assert!(after.last() || !after.lost_nothing(), "{}", after.summary);
}

#[test]
fn a_storm_of_short_lived_processes_is_recorded_or_marked() {
    recorded_or_marked(&[], &format!("processes {}", size(1000, 20_000)));
}

#[test]
fn a_storm_of_threads_is_recorded_or_marked() {
    recorded_or_marked(&[], &format!("threads {}", size(500, 10_000)));
}

#[test]
fn a_fork_bomb_under_a_limit_is_recorded_or_marked() {
    recorded_or_marked(&["--pids-limit", "200"], &format!("bomb {}", size(2000, 50_000)));
}
