//! The completeness matrix: every kind of access, by which backend of a recorder it is seen under the
//! image's own path. Each access is made once, on a file with a random name that holds data only, by a
//! static program in a real container; what counts is `profile.json`.
//!
//! A hole stands in [`CASES`] with its reason, or the test fails; so does a reason for a hole that is
//! none. `docs/matrix.md` prints the same table: `SLIM_BLESS=1 cargo test matrix` rewrites it.

mod cases;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use serde_json::Value;
use slim::model::RootPath;

use crate::losses::SLIM;
use crate::support::image::{Attr, ImageFixture, LayerFixture};
use crate::support::{Need, have, json, kernel, outcome, script, sh, slim};
use cases::{CASES, Case, DEEP, Hole, LOUD, OPEN, QUIET, RECORDERS, RING};

/// The path of a thing of a case: `F3`, say, is the data file of the third case.
type Names = BTreeMap<(usize, char), Vec<u8>>;

/// An image with what every case is about, and the paths of it all.
struct Stage {
    folder: tempfile::TempDir,
    names: Names,
}

fn random() -> String {
    let mut bytes = [0; 8];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty()).unwrap();
    hex::encode(bytes)
}

fn compile(folder: &Path, name: &str, args: &[&str]) -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/matrix").join(name);
    let out = folder.join("built");
    sh("cc", &[args, &["-O1", "-o", out.to_str().unwrap(), source.to_str().unwrap()]].concat());
    std::fs::read(out).unwrap()
}

/// A path of 4,095 bytes, the longest that a call takes.
fn deep_path() -> Vec<u8> {
    let mut path = format!("/m/{}", random());
    while path.len() + 201 < DEEP {
        path.push('/');
        path.push_str(&"d".repeat(200.min(DEEP - path.len() - 18)));
    }
    path.push('/');
    path.push_str(&random());
    while path.len() < DEEP {
        path.push('x');
    }
    assert_eq!(path.len(), DEEP);
    path.into_bytes()
}

impl Stage {
    fn new() -> Self {
        let folder = tempfile::Builder::new().prefix("slim-it-").tempdir_in("/var/tmp").unwrap();
        let mut stage = Self { folder, names: Names::new() };
        let access = compile(stage.path(), "access.c", &["-static"]);
        let mut layer = LayerFixture::default().dir("bin").dir("m").dir("tmp").dir("proc");
        layer = put(layer, b"/bin/access", &access);
        for (number, case) in CASES.iter().enumerate() {
            for what in case.things() {
                layer = stage.add(layer, number, what, &access);
            }
        }
        let config = serde_json::json!({ "Cmd": ["/bin/access", "sleep", "600000"] });
        ImageFixture::default().layer(layer).config(config).tag("latest").write(stage.path());
        stage
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The path of a thing; a random one when it is first asked for.
    fn name(&mut self, number: usize, what: char) -> Vec<u8> {
        let fresh = || match what {
            'P' => deep_path(),
            'U' => [format!("/m/{}", random()).as_bytes(), b"\xff\xfe"].concat(),
            _ => format!("/m/{}", random()).into_bytes(),
        };
        self.names.entry((number, what)).or_insert_with(fresh).clone()
    }

    /// Adds one thing of a case, and what it needs.
    fn add(
        &mut self,
        layer: LayerFixture,
        number: usize,
        what: char,
        access: &[u8],
    ) -> LayerFixture {
        let path = self.name(number, what);
        let attr = Attr::default();
        match what {
            'F' | 'G' | 'U' | 'P' => put(layer, &path, &path[..20.min(path.len())]),
            'D' => {
                let inside = [&path[..], b"/in"].concat();
                let layer = put(dir(layer, &path), &inside, b"data");
                self.names.insert((number, 'I'), inside);
                layer
            }
            'C' => put(dir(layer, &path), &[&path[..], b"/in"].concat(), b"data"),
            'M' => dir(layer, &path),
            'L' => layer.raw(b'2', &path[1..], &self.name(number, 'F')[3..], b"", &attr),
            'K' => layer.raw(b'2', &path[1..], &self.name(number, 'D')[3..], b"", &attr),
            'H' => layer.raw(b'1', &path[1..], &self.name(number, 'F')[1..], b"", &attr),
            'X' | 'Y' => put(layer, &path, access),
            'S' => {
                let first = [b"#!", &self.name(number, 'Y')[..], b" nothing\n"].concat();
                put(layer, &path, &first)
            }
            'Z' => put(layer, &path, &compile(self.path(), "tiny.c", &BARE_INTERPRETER)),
            'E' => {
                let interpreter = String::from_utf8(self.name(number, 'Z')).unwrap();
                let linker = format!("-Wl,--dynamic-linker={interpreter}");
                let args = [&BARE[..], &["-pie", "-fPIE", &linker]].concat();
                put(layer, &path, &compile(self.path(), "tiny.c", &args))
            }
            'W' => put(layer, &path, &compile(self.path(), "tiny.c", &BARE_32)),
            _ => layer, // I is made with D; N and O are new names
        }
    }

    /// The words of the case for the program.
    fn words(&mut self, number: usize, case: &Case) -> String {
        let word = |word: &str| match thing(word) {
            Some(what) => {
                let name = self.name(number, what);
                let byte = |b: &u8| match b {
                    b'/' | b'a'..=b'z' | b'0'..=b'9' => char::from(*b).to_string(),
                    other => format!("%{other:02x}"),
                };
                name.iter().map(byte).collect()
            }
            None => word.to_owned(),
        };
        case.words.split(' ').map(word).collect::<Vec<String>>().join(" ")
    }
}

const BARE: [&str; 2] = ["-nostdlib", "-ffreestanding"];
const BARE_INTERPRETER: [&str; 4] = ["-nostdlib", "-ffreestanding", "-static-pie", "-fPIE"];
const BARE_32: [&str; 7] = [
    "-nostdlib",
    "-ffreestanding",
    "-static",
    "-m32",
    "-fno-pie",
    "-no-pie",
    "-fno-stack-protector",
];

fn put(layer: LayerFixture, path: &[u8], data: &[u8]) -> LayerFixture {
    // a long path needs its directories: nobody else will make them
    let mut layer = layer;
    if path.len() == DEEP {
        for (at, _) in path.iter().enumerate().skip(3).filter(|(_, b)| **b == b'/') {
            layer = dir(layer, &path[..at]);
        }
    }
    layer.raw(b'0', &path[1..], b"", data, &Attr { mode: 0o755, ..Attr::default() })
}

fn dir(layer: LayerFixture, path: &[u8]) -> LayerFixture {
    let name = [&path[1..], b"/"].concat();
    layer.raw(b'5', &name, b"", b"", &Attr { mode: 0o755, ..Attr::default() })
}

/// A word of one capital letter stands for a thing of the case.
fn thing(word: &str) -> Option<char> {
    let mut chars = word.chars();
    chars.next().filter(|c| c.is_ascii_uppercase() && chars.next().is_none())
}

impl Case {
    fn things(&self) -> BTreeSet<char> {
        let named = self.words.split(' ').chain(self.wants.split(' ')).filter_map(thing);
        let needs = |what| match what {
            'L' | 'H' => Some('F'),
            'K' => Some('D'),
            'S' => Some('Y'),
            'E' => Some('Z'),
            _ => None,
        };
        named.flat_map(|what| [Some(what), needs(what)]).flatten().collect()
    }

    fn hole(&self, backend: &str) -> Option<Hole> {
        self.holes.iter().find(|(name, _)| *name == backend).map(|(_, why)| *why)
    }
}

/// What one run of a recorder saw.
struct Run {
    recorder: &'static str,
    profile: Value,
    /// Case → the errno that it ended with.
    results: Vec<i32>,
}

/// Makes every access in one container under a recorder; `None` if the kernel is too old for it.
fn run(stage: &mut Stage, recorder: &'static str) -> Option<Run> {
    let words: Vec<_> = CASES.iter().enumerate().map(|(n, c)| stage.words(n, c)).collect();
    let (quick, stopped): (Vec<_>, Vec<_>) =
        words.iter().zip(CASES).partition(|(_, case)| !case.while_stopped);
    let join = |some: &[(&String, &Case)]| {
        some.iter().map(|(words, _)| words.as_str()).collect::<Vec<_>>().join(" -- ")
    };
    // What is done while slim is stopped is over, and its processes dead, when slim reads of it. Where
    // calls wait for the recorder's answer nothing can be done meanwhile.
    let (stop, go_on) =
        if recorder == "bpf" { ("kill -STOP $slim", "kill -CONT $slim") } else { (":", ":") };
    let text = format!(
        "$SLIM_EXEC /bin/access {} >quick\n{SLIM}\n\
         exec 3< <($SLIM_EXEC /bin/access sleep 500 -- {}); read -u 3\n\
         {stop}; timeout 30 head -n {} <&3 >stopped; {go_on}; cat <&3",
        join(&quick),
        join(&stopped),
        stopped.len(),
    );
    let script = script(stage.path(), "coverage.sh", &text);
    let mut command = slim(stage.path());
    command.args(["trace", "--image", "oci:layout", "--store", "store", "--recorder", recorder]);
    command.args(["--cap-add", "ALL", "--security-opt", "seccomp=unconfined", "-u", "0"]);
    command.args(["--no-verify", "--no-restart", "--profile-only", "--stop-signal", "SIGKILL"]);
    let (code, said) = outcome(&command.arg("--").arg(script).output().unwrap());
    if code == 4 && said.contains("recorder cannot run") && std::env::var_os("CI").is_none() {
        eprintln!("SKIP: {recorder}: {}", said.lines().last().unwrap_or_default());
        return None;
    }
    assert!(matches!(code, 0 | 7), "{recorder}: {code}: {said}"); // losses are told below
    let (mut quick, mut stopped) = (results(stage, "quick"), results(stage, "stopped"));
    let results = CASES.iter().map(|case| {
        let from = if case.while_stopped { &mut stopped } else { &mut quick };
        let lines = from.by_ref().take(case.words.split(" -- ").count());
        lines.max().unwrap_or_else(|| panic!("{}: no result", case.access))
    });
    let results = results.collect();
    Some(Run { recorder, profile: json(&stage.path().join("slim-out/profile.json")), results })
}

fn results(stage: &Stage, name: &str) -> impl Iterator<Item = i32> + use<> {
    let text = std::fs::read_to_string(stage.path().join(name)).unwrap();
    let numbers: Vec<i32> =
        text.lines().map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    numbers.into_iter()
}

/// The backends that saw a path, by the evidence in the profile.
fn backends(run: &Run, path: &[u8]) -> BTreeSet<String> {
    let key = RootPath::parse(path).unwrap().to_string();
    let access = [&run.profile["files"][&key]["access"], &run.profile["written"][&key]];
    let kinds = access.into_iter().filter_map(Value::as_object).flatten();
    let mut out = BTreeSet::new();
    for (kind, runs) in kinds {
        for by in runs.as_object().into_iter().flat_map(|runs| runs.values()) {
            match by["backends"].as_array() {
                Some(names) => out.extend(names.iter().map(|n| n.as_str().unwrap().to_owned())),
                // without evidence: what fanotify could have seen as well
                None if matches!(kind.as_str(), "open" | "exec" | "list") => {
                    out.extend([run.recorder.to_owned(), "fanotify".to_owned()]);
                }
                None => out.extend([run.recorder.to_owned()]),
            }
        }
    }
    out
}

/// What a backend did not see of a case, or saw without a right to.
fn differences(stage: &Stage, run: &Run, of: &[&str]) -> Vec<String> {
    let mut wrong = Vec::new();
    let evidence = run.profile.to_string().contains("\"backends\":");
    let summary = json(&stage.path().join("slim-out/summary.json"));
    let mut told = false;
    for loss in summary["losses"].as_array().unwrap() {
        match loss["kind"].as_str() {
            Some("io_uring_unseen") if run.recorder != "bpf" => told = true,
            _ => wrong.push(format!("lost: {loss}")),
        }
    }
    if !told && run.recorder != "bpf" {
        wrong.push("what io_uring did is neither seen nor counted as lost".to_owned());
    }
    for (number, case) in CASES.iter().enumerate() {
        match run.results[number] {
            0 => {}
            38 | 22 if case.young || kernel() < case.since => {
                eprintln!("{}: this kernel has no such call", case.access);
                continue;
            }
            18 if case.needs_redirect => {
                eprintln!("{}: this overlay does not rename folders", case.access);
                continue;
            }
            errno => {
                wrong.push(format!("{}: the access itself failed with {errno}", case.access));
                continue;
            }
        }
        let wanted: Vec<_> = case.wants.split(' ').filter_map(thing).collect();
        let saw: Vec<_> =
            wanted.iter().map(|t| backends(run, &stage.names[&(number, *t)])).collect();
        for name in of {
            match (saw.iter().all(|by| by.contains(*name)), case.hole(name)) {
                (false, None) if *name == "fanotify" && case.quiet && kernel() < LOUD => {
                    eprintln!("{}: {QUIET}", case.access);
                }
                (false, None) => {
                    wrong.push(format!("{}: not seen by {name}: {saw:?}", case.access));
                }
                // an open one may be seen or not, by timing
                (true, Some(why)) if why.starts_with(OPEN) => {
                    println!("{}: {name} sees what is marked as not yet seen", case.access);
                }
                (true, Some(_)) if evidence => {
                    wrong.push(format!("{}: seen by {name} after all", case.access));
                }
                _ => {}
            }
        }
        let open = of.iter().any(|name| case.hole(name).is_some_and(|why| why.starts_with(OPEN)));
        // what a host has beside its recorder makes up for what the kernel denies to each alone
        let told = of.iter().any(|name| case.hole(name) == Some(RING));
        if saw.iter().any(BTreeSet::is_empty) && !open && !told && of.len() > 1 {
            wrong.push(format!("{}: seen by nobody: {saw:?}", case.access));
        }
    }
    wrong
}

#[test]
fn every_access_is_seen_by_whom_the_matrix_says() {
    if !have(&[Need::Root, Need::Program("cc")]) {
        return;
    }
    let mut wrong = Vec::new();
    for (recorder, columns) in RECORDERS {
        let look = || {
            let mut stage = Stage::new();
            let run = run(&mut stage, recorder)?;
            Some(differences(&stage, &run, columns))
        };
        let Some(mut found) = look() else { continue };
        // Beside the whole suite one open in some two thousand was named by perf alone (2026-11-26, once
        // in 13 runs; why is not known). What a recorder does not see it does not see twice.
        if !found.is_empty() {
            eprintln!("{recorder}, once more: {found:?}");
            let again = look().unwrap_or_default();
            found.retain(|what| again.contains(what));
        }
        wrong.extend(found.into_iter().map(|what| format!("{recorder}: {what}")));
    }
    assert!(wrong.is_empty(), "{}", wrong.join("; "));
}

/// The table as people read it.
fn page() -> String {
    let columns: BTreeSet<&str> = RECORDERS.iter().flat_map(|(_, c)| c.iter().copied()).collect();
    let mut reasons: Vec<Hole> = Vec::new();
    let mut out = String::from(INTRO);
    let names: Vec<_> = columns.iter().copied().collect();
    out += &format!("| access | {} |\n|---|{}\n", names.join(" | "), "---|".repeat(names.len()));
    for case in CASES {
        let mut number = |why: Hole| {
            let at = reasons.iter().position(|r| *r == why).unwrap_or_else(|| {
                reasons.push(why);
                reasons.len() - 1
            });
            at + 1
        };
        let cell = |name: &&str| match case.hole(name) {
            None if *name == "fanotify" && case.quiet => format!("seen ({})", number(QUIET)),
            None => "seen".to_owned(),
            Some(why) => format!("– ({})", number(why)),
        };
        let cells: Vec<_> = names.iter().map(cell).collect();
        out += &format!("| {} | {} |\n", case.access, cells.join(" | "));
    }
    out.push('\n');
    for (at, why) in reasons.iter().enumerate() {
        out += &format!("{}. {why}\n", at + 1);
    }
    out
}

const INTRO: &str = "\
# What each backend sees

Generated by `tests/it/matrix.rs`, which makes every access once in a real container, on a file with a random
name that holds data only, and looks in `profile.json` for the image's own path of that file and for the backends
that saw it. A dash is a hole, with its reason below. `--recorder bpf` has bpf and fanotify; what both do not see has a
reason that begins with \"Not yet\" and is slim's to mend. `--recorder perf` has perf, which
counts calls and learns of paths by notification, and fanotify. notify is shown alone, as an ordinary user has it.

";

#[test]
fn the_page_is_the_matrix() {
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/matrix.md");
    if std::env::var_os("SLIM_BLESS").is_some() {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(&path, page()).unwrap();
    }
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(there, page(), "SLIM_BLESS=1 cargo test the_page_is_the_matrix rewrites it");
}
