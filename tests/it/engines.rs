//! Images out of real engines and into them, compared with the layout that they came from.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use crate::support::engines::{Containerd, Docker, Engine, Podman};
use crate::support::image::{ImageFixture, LayerFixture, Packed};
use crate::support::{Need, SERVICE, have, host_image, json, outcome, script, sh, slim};

/// Three layers with what engines get wrong: links, whiteouts, an opaque folder, a health check, an
/// empty layer twice.
fn fixture(folder: &Path, top: Packed) -> PathBuf {
    let long = format!("srv/{}/file", "long-name-".repeat(12));
    ImageFixture::default()
        .layer(
            LayerFixture::default()
                .dir("srv")
                .file("srv/one", "one\n")
                .link("srv/two", "srv/one")
                .symlink("srv/three", "one")
                .dir("gone")
                .file("gone/a", "a")
                .dir("opaque")
                .file("opaque/old", "old")
                .file(&long, "long"),
        )
        .packed(LayerFixture::default().file("big", &"0123456789".repeat(100_000)), Packed::Plain)
        .layer(LayerFixture::default())
        .packed(
            LayerFixture::default()
                .whiteout("gone")
                .dir("opaque")
                .opaque("opaque")
                .file("opaque/new", "new"),
            top,
        )
        .layer(LayerFixture::default())
        .config(json!({
            "Cmd": ["/bin/none"], "Healthcheck": { "Test": ["CMD", "true"] }, "Env": ["A=b"],
        }))
        .tag("it/fixture:1")
        .write(folder)
}

/// What has to be the same wherever an image is read: `slim inspect` reads all layers for it, and
/// checks them against their diffIDs.
fn identity(mut inspect: Command) -> Value {
    let output = inspect.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{inspect:?}: {said}");
    let mut all: Value = serde_json::from_slice(&output.stdout).unwrap();
    let layers = all["layers"].as_array().unwrap();
    let diff_ids: Vec<Value> = layers.iter().map(|layer| layer["diff_id"].clone()).collect();
    assert_eq!(diff_ids.len(), 5);
    let all = all.as_object_mut().unwrap();
    for key in ["layers", "manifest_digest", "name"] {
        all.remove(key);
    }
    json!({ "image": all, "diff_ids": diff_ids })
}

fn inspect(folder: &Path, reference: &str) -> Command {
    let mut command = slim(folder);
    command.args(["inspect", "--json", reference]);
    command
}

/// The same, with an engine.
fn inspect_in(engine: &dyn Engine, folder: &Path, reference: &str) -> Command {
    let mut command = inspect(folder, reference);
    let (key, value) = engine.env();
    command.env(key, value);
    command
}

/// `slim load`; what it says.
fn load(engine: &dyn Engine, folder: &Path, args: &[&str]) -> Value {
    let (key, value) = engine.env();
    let output =
        slim(folder).arg("load").args(args).arg("--json").env(key, value).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "slim load {args:?}: {said}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// Digest of the configuration of the one image in a layout.
fn config_digest(layout: &Path) -> String {
    let blob = |digest: &Value| {
        let digits = digest.as_str().unwrap().trim_start_matches("sha256:").to_owned();
        json(&layout.join("blobs/sha256").join(digits))
    };
    let index = json(&layout.join("index.json"));
    let manifest = blob(&index["manifests"][0]["digest"]);
    manifest["config"]["digest"].as_str().unwrap().to_owned()
}

/// A slim image of a traced run whose script used `cat` and one file: folder of results.
fn slimmed(folder: &Path, image: &str, env: Option<(&str, String)>) -> PathBuf {
    let coverage = script(folder, "coverage", "$SLIM_EXEC cat /srv/data/used");
    let out = folder.join("out");
    let mut trace = slim(folder);
    trace.args([
        "trace",
        "--image",
        image,
        "--no-verify",
        "--network",
        "private",
        "--tag",
        "it/slim:1",
    ]);
    trace.arg("--store").arg(folder.join("store")).arg("--output").arg(&out);
    trace.envs(env).arg("--").arg(&coverage);
    let (code, said) = outcome(&trace.output().unwrap());
    assert_eq!(code, 0, "{said}");
    out
}

#[test]
fn dockers_engine_gives_and_takes_the_same_image() {
    if !have(&[Need::Root, Need::Program("dockerd"), Need::Program("umoci")]) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = dir.path();
    let docker = Docker::start();
    // zstd: Debian 12's Docker cannot read it, so it has to arrive in another form.
    let layout = fixture(folder, Packed::Zstd);
    let text = layout.to_str().unwrap();
    let loaded =
        load(&docker, folder, &[text, "--to", "docker", "--tag", "it/a:1", "--tag", "it/b:2"]);
    let want = config_digest(&layout);
    assert_eq!(loaded, json!({ "names": ["it/a:1", "it/b:2"], "id": want }));
    for name in ["it/a:1", "it/b:2"] {
        assert_eq!(docker.ask("docker", &["image", "inspect", "-f", "{{.Id}}", name]), want);
    }

    let same = identity(inspect(folder, text));
    let of = |reference: &str| identity(inspect_in(&docker, folder, reference));
    assert_eq!(of("docker-daemon:it/a:1"), same);
    assert_eq!(of(&format!("docker-daemon:{want}")), same);
    assert_eq!(of(&format!("docker-daemon:{}", &want[7..19])), same);

    docker.ask("docker", &["create", "--name", "stopped", "it/a:1"]);
    assert_eq!(of("container:stopped"), same);

    // A context of Docker's own client, where DOCKER_HOST does not say more.
    let settings = folder.join("docker-config");
    let context = |args: &[&str]| {
        let mut command = Command::new("docker");
        command.arg("context").args(args).env("DOCKER_CONFIG", &settings).env_remove("DOCKER_HOST");
        assert!(command.output().unwrap().status.success(), "{args:?}");
    };
    context(&["create", "it", "--docker", &format!("host={}", docker.at())]);
    context(&["use", "it"]);
    let mut by_context = inspect(folder, "docker-daemon:it/a:1");
    by_context.env("DOCKER_CONFIG", &settings).env_remove("DOCKER_HOST");
    assert_eq!(identity(by_context), same);

    let bare = inspect_in(&docker, folder, "it/a:1").output().unwrap();
    let told = format!("it/a:1 found in Docker's engine ({})", docker.at());
    let said = String::from_utf8_lossy(&bare.stderr).into_owned();
    assert_eq!(said.matches(&told).count(), 1, "{said}");

    // What is missing is looked for everywhere; a name that says where is not.
    let (code, said) = outcome(&inspect_in(&docker, folder, "it/none:1").output().unwrap());
    assert_eq!(code, 3, "{said}");
    for place in ["the working folder", "Docker's engine", "the registry docker.io"] {
        assert!(said.contains(place), "{said}");
    }
    let missing = inspect_in(&docker, folder, "docker-daemon:it/none:1").output().unwrap();
    let (code, said) = outcome(&missing);
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("Docker's engine has no image \"it/none:1\""), "{said}");

    let policy = folder.join("policy.json");
    let rules = json!({ "default": [{ "type": "insecureAcceptAnything" }],
        "transports": { "docker-daemon": { "docker.io/it": [{ "type": "reject" }] } } });
    std::fs::write(&policy, rules.to_string()).unwrap();
    let mut refused = inspect_in(&docker, folder, "docker-daemon:it/a:1");
    let (code, said) = outcome(&refused.arg("--policy").arg(&policy).output().unwrap());
    assert_eq!(code, 9, "{said}");

    // Docker's own archive, made by another program, and a result that runs.
    host_image(folder, &SERVICE);
    let source = format!("oci:{}", folder.join("image").display());
    let archive = folder.join("plain.tar");
    let to = format!("docker-archive:{}:it/host:1", archive.display());
    sh("skopeo", &["copy", "--quiet", &source, &to]);
    docker.ask("docker", &["load", "--quiet", "--input", archive.to_str().unwrap()]);
    let out = slimmed(folder, "it/host:1", Some(docker.env()));
    load(&docker, folder, &[out.to_str().unwrap(), "--to", "docker"]);
    let run = ["run", "--rm", "--network", "none", "it/slim:1", "cat", "/srv/data/used"];
    assert_eq!(docker.ask("docker", &run), "used");
}

#[test]
fn an_engine_that_does_not_answer_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let ask = |reference: &str| {
        let mut command = inspect(dir.path(), reference);
        outcome(&command.env("DOCKER_HOST", "unix:///no/such.sock").output().unwrap())
    };
    let (code, said) = ask("docker-daemon:a");
    assert_eq!(code, 4, "{said}");
    assert!(said.contains("unix:///no/such.sock does not answer: No such file"), "{said}");
    let (code, said) = ask("container:a");
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("Docker's engine (unix:///no/such.sock): no answer"), "{said}");
    let (code, said) = ask("a.tar");
    assert_eq!(code, 3, "{said}");
    assert!(!said.contains("Docker"), "a path is no name: {said}");
}

#[test]
fn archives_come_on_standard_input() {
    if !have(&[Need::Program("skopeo")]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path();
    let layout = fixture(folder, Packed::Gzip);
    let same = identity(inspect(folder, layout.to_str().unwrap()));
    let from = format!("oci:{}:it/fixture:1", layout.display());
    for kind in ["oci-archive", "docker-archive"] {
        let archive = folder.join(kind);
        sh("skopeo", &["copy", "--quiet", &from, &format!("{kind}:{}", archive.display())]);
        let plain = std::fs::read(&archive).unwrap();
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&plain).unwrap();
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        for bytes in [plain, gzip.finish().unwrap(), zstd] {
            let mut command = inspect(folder, "-");
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = command.spawn().unwrap();
            child.stdin.take().unwrap().write_all(&bytes).unwrap();
            let output = child.wait_with_output().unwrap();
            assert!(output.status.success());
            let got: Value = serde_json::from_slice(&output.stdout).unwrap();
            let ids = |all: &Value| {
                let layers = all["layers"].as_array().unwrap();
                layers.iter().map(|layer| layer["diff_id"].clone()).collect::<Vec<_>>()
            };
            assert_eq!(json!(ids(&got)), same["diff_ids"], "{kind}");
            if kind == "oci-archive" {
                assert_eq!(got["config_digest"], same["image"]["config_digest"]);
            }
        }
    }
    let (code, said) = outcome(&inspect(folder, "-").output().unwrap());
    assert_eq!(code, 3, "{said}");
    assert!(said.contains("standard input is no image"), "{said}");
    // Of several images one is named as in a file.
    let other = folder.join("other");
    std::fs::create_dir(&other).unwrap();
    let small = ImageFixture::default().layer(LayerFixture::default().file("a", "a")).tag("two");
    let other = format!("oci:{}:two", small.write(&other).display());
    let several = folder.join("several");
    let to = format!("oci:{}:", several.display());
    for (source, name) in [(&from, "one"), (&other, "two")] {
        sh("skopeo", &["copy", "--quiet", source, &format!("{to}{name}")]);
    }
    let archive = folder.join("several.tar");
    sh("tar", &["-C", several.to_str().unwrap(), "-cf", archive.to_str().unwrap(), "."]);
    for (reference, code, says) in
        [("-", 3, "several images"), ("-:two", 0, "files      1"), ("-:none", 3, "only one, two")]
    {
        let mut command = slim(folder);
        command.args(["inspect", "--", reference]).stdin(std::fs::File::open(&archive).unwrap());
        let (got, said) = outcome(&command.output().unwrap());
        assert_eq!(got, code, "{reference}: {said}");
        assert!(said.contains(says), "{reference}: {said}");
    }
    let (code, said) = outcome(&inspect(folder, "docker-daemon:").output().unwrap());
    assert!(code == 2 && said.contains("docker-daemon:NAME"), "{code} {said}");
}

#[test]
fn podman_takes_the_same_image() {
    if !have(&[Need::Root, Need::Program("podman"), Need::Program("umoci")]) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = dir.path();
    let podman = Podman::new();
    let layout = host_image(folder, &SERVICE);
    let text = layout.to_str().unwrap();
    let tags = ["--tag", "it/host:1", "--tag", "localhost/it-host:2"];
    let loaded = load(&podman, folder, &[&[text, "--to", "podman"], &tags[..]].concat());
    let want = config_digest(&layout);
    assert_eq!(loaded, json!({ "names": ["it/host:1", "localhost/it-host:2"], "id": want }));
    for name in ["docker.io/it/host:1", "localhost/it-host:2"] {
        let id = podman.ask("podman", &["image", "inspect", "--format", "{{.Id}}", name]);
        assert_eq!(format!("sha256:{id}"), want, "{name}");
    }
    let out = slimmed(folder, text, None);
    load(&podman, folder, &[out.to_str().unwrap(), "--to", "podman"]);
    assert_eq!(podman.run("docker.io/it/slim:1", &["cat", "/srv/data/used"]), "used");
}

#[test]
fn containerd_takes_the_same_image() {
    if !have(&[Need::Root, Need::Program("containerd"), Need::Program("umoci")]) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = dir.path();
    let containerd = Containerd::start();
    let layout = fixture(folder, Packed::Zstd);
    let to = ["--to", "containerd:it", "--tag", "it/a:1", "--tag", "it/b"];
    let loaded = load(&containerd, folder, &[&[layout.to_str().unwrap()], &to[..]].concat());
    let index = json(&layout.join("index.json"));
    let want = &index["manifests"][0]["digest"];
    assert_eq!(loaded, json!({ "names": ["it/a:1", "it/b:latest"], "id": want }));
    let list = containerd.ask("ctr", &["--namespace", "it", "images", "list", "--quiet"]);
    assert_eq!(list, "docker.io/it/a:1\ndocker.io/it/b:latest");

    host_image(folder, &SERVICE);
    let out = slimmed(folder, folder.join("image").to_str().unwrap(), None);
    load(&containerd, folder, &[out.to_str().unwrap(), "--to", "containerd:it"]);
    let run = "--namespace it run --rm docker.io/it/slim:1 one cat /srv/data/used";
    assert_eq!(containerd.ask("ctr", &run.split(' ').collect::<Vec<_>>()), "used");

    let nowhere = slim(folder).args(["load", "image", "--to", "rkt"]).output().unwrap();
    assert_eq!(outcome(&nowhere).0, 2);
    // One that is not there, and one that is there no more: said at once, where ctr tries for long.
    let dead = folder.join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    for (socket, says) in [(folder.join("none.sock"), "there is no "), (dead, "cannot be reached")]
    {
        for verb in [
            &["load", "image", "--to", "containerd", "--tag", "x"][..],
            &["inspect", "containerd:x"],
        ] {
            let began = std::time::Instant::now();
            let mut command = slim(folder);
            command.env("CONTAINERD_ADDRESS", &socket).args(verb);
            let (code, said) = outcome(&command.output().unwrap());
            assert_eq!(code, 4, "{verb:?}: {said}");
            assert!(said.contains(says) && said.contains("CONTAINERD_ADDRESS"), "{verb:?}: {said}");
            assert!(began.elapsed().as_secs() < 5, "{verb:?}");
        }
    }
}
