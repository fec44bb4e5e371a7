//! The architecture's picture, kept honest: which room may use which, and what stays out of where.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Rooms by rank: a room uses only rooms of a later rank.
const RANKS: [&[&str]; 6] = [
    &["cli"],
    &["pipeline"],
    &["source", "rootfs", "runtime", "record", "emit", "sink"],
    &["oci", "inspect", "sys", "wire"],
    &["keep", "seccomp"],
    &["model"],
];

fn rank(room: &str) -> usize {
    RANKS.iter().position(|rank| rank.contains(&room)).unwrap_or_else(|| {
        panic!("src/{room} is in no rank: draw it into ARCHITECTURE.md and tests/it/layering.rs")
    })
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|e| e == "rs") {
            found.push(path);
        }
    }
    found
}

/// Room → its files with their text, comment lines left out.
fn rooms() -> BTreeMap<String, Vec<(PathBuf, String)>> {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut rooms = BTreeMap::new();
    for entry in fs::read_dir(&src).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let code = |file: PathBuf| {
                let text = fs::read_to_string(&file).unwrap();
                let lines = text.lines().filter(|l| !l.trim_start().starts_with("//"));
                let code = lines.collect::<Vec<_>>().join("\n");
                (file, code)
            };
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            rooms.insert(name, sources(&path).into_iter().map(code).collect());
        }
    }
    rooms
}

#[test]
fn every_room_uses_only_rooms_of_later_ranks() {
    let rooms = rooms();
    let mut wrong = Vec::new();
    for (room, files) in &rooms {
        for other in rooms.keys().filter(|other| *other != room) {
            if rank(other) > rank(room) {
                continue;
            }
            let named = [
                format!("crate::{other}::"),
                format!("crate::{other};"),
                format!("crate::{other}}}"),
            ];
            for (file, code) in files {
                if named.iter().any(|name| code.contains(name.as_str())) {
                    wrong.push(format!("{} uses {other}", file.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn the_core_never_reaches_for_the_rim() {
    let rim =
        ["std::fs", "std::process", "std::net", "SystemTime::now", "Instant::now", "std::env::"];
    for (room, files) in rooms() {
        if !["model", "keep", "seccomp"].contains(&room.as_str()) {
            continue;
        }
        for (file, code) in files {
            let code = code.split("#[cfg(test)]").next().unwrap();
            let leak = rim.iter().find(|name| code.contains(*name));
            assert_eq!(leak, None, "{} must stay pure", file.display());
        }
    }
}

#[test]
fn unsafe_lives_in_sys_and_printing_in_cli() {
    for (room, files) in rooms() {
        for (file, code) in files {
            if room != "sys" {
                assert!(!code.contains("unsafe {"), "{} has an unsafe block", file.display());
            }
            if room != "cli" {
                let prints = ["println!", "print!(", "eprintln!", "eprint!("];
                let found = prints.iter().find(|print| code.contains(*print));
                assert_eq!(found, None, "{} prints", file.display());
            }
        }
    }
}

#[test]
fn the_picture_names_every_room() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let picture = fs::read_to_string(root.join("ARCHITECTURE.md")).unwrap();
    for room in rooms().keys() {
        assert!(picture.contains(&format!("{room}/")), "ARCHITECTURE.md does not show src/{room}/");
    }
    let ranks = RANKS.map(|rank| rank.join("  ")).join(" ─► ");
    assert!(picture.contains(&ranks), "ARCHITECTURE.md is to hold this line:\n{ranks}");
}

#[test]
fn every_test_file_is_registered() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it");
    let main = fs::read_to_string(folder.join("main.rs")).unwrap();
    for entry in fs::read_dir(&folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_stem().unwrap().to_str().unwrap();
        let module = path.is_dir() || path.extension().is_some_and(|e| e == "rs");
        assert!(
            !module || name == "main" || main.contains(&format!("mod {name};")),
            "{name} is forgotten"
        );
    }
}

/// A machine where somebody installed things by hand hides what `scripts/test` forgets.
#[test]
fn scripts_test_installs_every_program_that_a_test_needs() {
    /// Of packages that every Debian machine has (`Essential`, or the C compiler's).
    const THERE: [&str; 7] = ["cc", "gzip", "ldd", "setpriv", "tar", "unshare", "useradd"];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let script = fs::read_to_string(root.join("scripts/test")).unwrap();
    let installed: Vec<&str> = script
        .split_whitespace()
        .filter_map(|word| word.split_once('=').map(|(program, _)| program))
        .collect();
    let mut asked = 0;
    for file in sources(&root.join("tests/it")) {
        let text = fs::read_to_string(&file).unwrap();
        for rest in text.split("Program(\"").skip(1) {
            let program = rest.split('"').next().unwrap();
            let known = THERE.contains(&program) || installed.contains(&program);
            assert!(known, "{}: scripts/test does not install {program}", file.display());
            asked += 1;
        }
    }
    assert!(asked > 50, "only {asked} were found");
}

/// The fuzz targets have a lock file of their own, which nobody looks at until somebody fuzzes.
#[test]
fn the_fuzz_targets_lock_what_slim_uses() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let read = |name: &str| fs::read_to_string(root.join(name)).unwrap();
    let manifest = read("Cargo.toml");
    let used = manifest.split("\n[dependencies]\n").nth(1).unwrap().split("\n[").next().unwrap();
    let used = used.lines().filter_map(|line| line.split_once(" = ").map(|(name, _)| name));
    let locked = read("fuzz/Cargo.lock");
    let of_slim = locked.split("name = \"slim\"\n").nth(1).unwrap().split("]\n").next().unwrap();
    // A name that several versions have is followed by its own.
    let has =
        |name: &str| [format!(" \"{name}\","), format!(" \"{name} ")].map(|s| of_slim.contains(&s));
    let used: Vec<&str> = used.filter(|name| !name.starts_with('#')).collect();
    assert!(used.len() > 30, "only {used:?} were found");
    let missing: Vec<&&str> = used.iter().filter(|name| has(name) == [false, false]).collect();
    assert!(
        missing.is_empty(),
        "fuzz/Cargo.lock lacks {missing:?}: `cargo metadata` in fuzz mends it"
    );
}
