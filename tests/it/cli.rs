//! The command line as scripts meet it: exit codes, sources of options, messages. Needs no privilege.

use std::path::Path;
use std::process::{Command, Output};

fn slim(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slim"));
    for (key, _) in std::env::vars_os().filter(|(k, _)| k.to_string_lossy().starts_with("SLIM_")) {
        command.env_remove(key);
    }
    command.current_dir(folder).args(args);
    command
}

fn outcome(output: &Output) -> (i32, String) {
    (output.status.code().unwrap(), String::from_utf8_lossy(&output.stderr).into_owned())
}

#[test]
fn usage_errors_are_two_and_name_the_way_out() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("bad.toml"), "imgae = 1\n").unwrap();
    std::fs::write(folder.path().join("broken.toml"), "image = \n").unwrap();
    for (args, word) in [
        (&["trace"][..], "no script"),
        (&["trace", "--", "./x"], "SLIM_TRACE_IMAGE"),
        (&["trace", "--bogus", "--", "./x"], "--bogus"),
        (&["trace", "--config", "bad.toml", "--", "./x"], "imgae"),
        (&["trace", "--config", "broken.toml", "--", "./x"], "broken.toml"),
        (&["trace", "--config", "none.toml", "--", "./x"], "none.toml"),
        (&["trace", "--network", "bridge", "--image", "x", "--", "./x"], "ns:PATH"),
        (&["trace", "--timeout", "soon", "--image", "x", "--", "./x"], "--timeout"),
        (&["trace", "--recorder", "ptrace", "--image", "x", "--", "./x"], "possible values"),
        (&["trace", "--ready", "maybe", "--image", "x", "--", "./x"], "maybe"),
        (&["trace", "--keep-from", "none", "--image", "x", "--", "./x"], "none"),
        (&["trace", "-e", "=x", "--image", "x", "--", "./x"], "no name"),
        (&["merge", "-o", "out.json"], "PROFILES"),
        (&["merge", "none.json", "-o", "out.json"], "none.json"),
        (&["seccomp", "none.json"], "none.json"),
        (&["nonsense"], "nonsense"),
    ] {
        let output = slim(folder.path(), args).output().unwrap();
        let (code, stderr) = outcome(&output);
        assert_eq!(code, 2, "{args:?}: {stderr}");
        assert!(stderr.contains(word), "{args:?} does not name {word:?}: {stderr}");
    }
    assert!(!folder.path().join("slim-out").exists(), "nothing is half-written");
}

#[test]
fn a_missing_image_is_three() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("x"), "#!/bin/sh\n").unwrap();
    std::fs::write(folder.path().join("text"), "no image at all").unwrap();
    for image in ["oci:none", "oci-archive:none.tar", "docker-archive:none.tar", "./none", "text"] {
        let output = slim(folder.path(), &["inspect", image]).output().unwrap();
        let (code, stderr) = outcome(&output);
        assert_eq!(code, 3, "{image}: {stderr}");
        assert!(stderr.contains("none") || stderr.contains("text"), "{image}: {stderr}");
    }
}

#[test]
fn flag_goes_before_environment_before_file() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("slim.toml"), "image = \"oci:from-file\"\n").unwrap();
    std::fs::write(folder.path().join("profile.json"), "{}").unwrap();
    let told = |args: &[&str], env: Option<&str>| {
        let mut command = slim(folder.path(), args);
        if let Some(image) = env {
            command.env("SLIM_VERIFY_IMAGE", image);
        }
        outcome(&command.output().unwrap()).1
    };
    assert!(told(&["verify", "."], None).contains("from-file"));
    assert!(told(&["verify", "."], Some("oci:from-env")).contains("from-env"));
    let flag = &["verify", ".", "--image", "oci:from-flag"];
    assert!(told(flag, Some("oci:from-env")).contains("from-flag"));
}

#[test]
fn an_unknown_container_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let output = slim(folder.path(), &["exec", "slim-none", "--", "true"]).output().unwrap();
    let (code, stderr) = outcome(&output);
    assert_eq!(code, 126, "{stderr}");
    assert!(stderr.contains("slim-none"), "{stderr}");
}

#[test]
fn help_names_every_verb() {
    let folder = tempfile::tempdir().unwrap();
    let output = slim(folder.path(), &["--help"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    for verb in [
        "trace", "build", "verify", "merge", "seccomp", "exec", "inspect", "doctor", "clean",
        "store",
    ] {
        assert!(text.contains(&format!("\n  {verb} ")), "{verb} is not in:\n{text}");
    }
}
