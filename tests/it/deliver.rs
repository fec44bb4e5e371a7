//! `--load`, `--push` and `--attach` of `slim trace` and `slim build`: the finished image in engines and a
//! registry, in one go.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use serde_json::Value;
use slim::model::Digest;

use crate::in_place::forwarded;
use crate::support::engines::{Containerd, Docker, Engine, Podman};
use crate::support::image::{Attr, ImageFixture, LayerFixture, Packed};
use crate::support::registry::{Registry, free_port, noise};
use crate::support::{Need, SERVICE, have, host_image, outcome, script, sh, slim};

const NEEDS: [Need; 5] = [
    Need::Root,
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("umoci"),
    Need::Program("htpasswd"),
];

/// Digests of the manifest and of the configuration of the image among these results.
fn digests(out: &Path) -> (String, String) {
    let archive = out.join("image.tar");
    let read = |name: &str| sh("tar", &["-xOf", archive.to_str().unwrap(), name]);
    let index: Value = serde_json::from_str(&read("index.json")).unwrap();
    let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
    let manifest: Value =
        serde_json::from_str(&read(&format!("blobs/{}", digest.replace(':', "/")))).unwrap();
    (digest, manifest["config"]["digest"].as_str().unwrap().to_owned())
}

/// What a registry has under a name, as its bytes say.
fn raw(name: &str) -> String {
    sh("skopeo", &["inspect", "--raw", "--tls-verify=false", &format!("docker://{name}")])
}

/// An image of two layers, the lower of which is not filtered, in a registry as `shop/app:1`.
fn original(dir: &Path, registry: &Registry) -> PathBuf {
    let layout = host_image(dir, &SERVICE);
    let more = dir.join("more");
    std::fs::create_dir(&more).unwrap();
    std::fs::write(more.join("top"), "not used\n").unwrap();
    let tar = dir.join("more.tar");
    sh("tar", &["-C", more.to_str().unwrap(), "-cf", tar.to_str().unwrap(), "top"]);
    let image = format!("{}:latest", layout.display());
    sh("umoci", &["raw", "add-layer", "--image", &image, tar.to_str().unwrap()]);
    registry.fill(&format!("oci:{image}"), "shop/app:1");
    layout
}

#[test]
fn a_trace_and_a_build_load_push_and_attach_what_they_made() {
    let engines = ["dockerd", "podman", "containerd", "ctr"].map(Need::Program);
    if !have(&[&NEEDS[..], &engines, &[Need::Cgroup2]].concat()) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = dir.path();
    let (docker, podman, containerd) = (Docker::start(), Podman::new(), Containerd::start());
    let registry = Registry::plain();
    original(folder, &registry);
    let host = registry.host();
    let coverage = script(folder, "coverage", "$SLIM_EXEC cat /srv/data/used");
    let (image, mirror) = (format!("docker://{host}/shop/app:1"), format!("{host}/other/app:x"));
    let slimmed = format!("{host}/shop/app:slim");
    let envs = [docker.env(), podman.env(), containerd.env()];

    let mut trace = slim(folder);
    trace.envs(envs.clone()).args(["trace", "--image", &image, "--plain-http"]);
    trace.args(["--no-verify", "--no-restart", "--network", "private", "--store", "store"]);
    trace.args(["--tag", "it/one:1", "--tag", "it/two:{tag}", "--keep-base", "1"]);
    trace.args(["--load", "docker", "--load", "podman", "--load", "containerd:it"]);
    trace.args(["--push", &slimmed, "--push", &mirror, "--attach", "-o", "out", "--"]);
    let (code, said) = outcome(&trace.arg(&coverage).output().unwrap());
    assert_eq!(code, 0, "{said}");
    let out = folder.join("out");
    let (manifest, config) = digests(&out);

    for name in ["it/one:1", "it/two:1"] {
        assert_eq!(docker.ask("docker", &["image", "inspect", "-f", "{{.Id}}", name]), config);
        let name = format!("docker.io/{name}");
        let id = podman.ask("podman", &["image", "inspect", "--format", "{{.Id}}", &name]);
        assert_eq!(format!("sha256:{id}"), config);
        let listed =
            containerd.ask("ctr", &["-n", "it", "images", "list", &format!("name=={name}")]);
        assert!(listed.contains(&manifest), "{listed}");
    }
    let run = ["run", "--rm", "--network", "none", "it/two:1", "cat", "/srv/data/used"];
    assert_eq!(docker.ask("docker", &run), "used");
    for engine in ["Docker", "Podman", "containerd, namespace it"] {
        let line = format!("loaded     it/one:1, it/two:1 into {engine}");
        assert!(said.contains(&line), "{engine}: {said}");
    }

    // The layer that is kept whole is the original's: in its repository it is there, into another it is
    // mounted.
    assert!(
        said.contains("blobs: 1 sent") && said.contains("0 mounted, 1 already there"),
        "{said}"
    );
    assert!(said.contains("blobs: 0 sent (0.00 MB), 2 mounted"), "{said}");
    for name in [&slimmed, &mirror] {
        assert_eq!(Digest::of(raw(name).as_bytes()).to_string(), manifest, "{name}");
        assert!(said.contains(&format!("pushed {name}@{manifest}")), "{said}");
        attached(&out, name, &manifest);
    }

    // The same from the profile: the same image, so nothing is sent again.
    let mut build = slim(folder);
    build.envs(envs).args(["build", "out/profile.json", "--image", &image, "--plain-http"]);
    build.args(["--tag", "it/built:{arch}", "--keep-base", "1", "-o", "built"]);
    build.args(["--load", "docker", "--push", &format!("{host}/shop/app:built"), "--attach"]);
    let (code, said) = outcome(&build.output().unwrap());
    assert_eq!(code, 0, "{said}");
    let (built, _) = digests(&folder.join("built"));
    assert_eq!(
        docker.ask("docker", &["image", "inspect", "-f", "{{.Id}}", "it/built:amd64"]),
        config
    );
    assert!(said.contains("blobs: 0 sent"), "{said}");
    assert_eq!(Digest::of(raw(&format!("{host}/shop/app:built")).as_bytes()).to_string(), built);
    attached(&folder.join("built"), &format!("{host}/shop/app:built"), &built);
}

/// The four results are referrers of the image, under the fallback tag of its repository.
fn attached(out: &Path, name: &str, manifest: &str) {
    let repository = name.rsplit_once(':').unwrap().0;
    let listed = raw(&format!("{repository}:{}", manifest.replace(':', "-")));
    let index: Value = serde_json::from_str(&listed).unwrap();
    let mut blobs = Vec::new();
    for entry in index["manifests"].as_array().unwrap() {
        let artifact = raw(&format!("{repository}@{}", entry["digest"].as_str().unwrap()));
        let artifact: Value = serde_json::from_str(&artifact).unwrap();
        blobs.push(artifact["layers"][0]["digest"].as_str().unwrap().to_owned());
    }
    for file in ["profile.json", "seccomp.json", "seccomp.oci.json", "summary.json"] {
        let digest = Digest::of(&std::fs::read(out.join(file)).unwrap()).to_string();
        assert!(blobs.contains(&digest), "{file} is not among {listed}");
    }
}

#[test]
fn what_cannot_be_delivered_is_refused_before_the_run_and_else_leaves_the_results() {
    if !have(&[&NEEDS[..], &[Need::Cgroup2]].concat()) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = dir.path();
    host_image(folder, &SERVICE);
    let coverage = script(folder, "coverage", "$SLIM_EXEC cat /srv/data/used");
    let nowhere = format!("127.0.0.1:{}/app:1", free_port());
    let trace = |out: &str, args: &[&str]| {
        let mut trace = slim(folder);
        trace.env("DOCKER_HOST", "unix:///no/such.sock");
        trace.args(["trace", "--image", "oci:image", "--no-verify", "--no-restart"]);
        trace.args(["--network", "private", "--store", "store", "-o", out]);
        outcome(&trace.args(args).arg("--").arg(&coverage).output().unwrap())
    };
    for (args, says) in [
        (&["--push", "host.example/Bad"][..], "no name of an image"),
        (&["--attach"], "--push"),
        (&["--drop-urls"], "--push"),
        (&["--load", "floppy"], "docker, podman"),
        (&["--profile-only", "--load", "docker"], "--profile-only"),
    ] {
        let (code, said) = trace("never", args);
        assert_eq!(code, 2, "{args:?}: {said}");
        assert!(said.contains(says), "{args:?}: {said}");
        assert!(!said.contains("starting") && !folder.join("never").exists(), "{args:?}: {said}");
    }
    for (args, says) in [
        (&["--load", "docker"][..], "/no/such.sock"),
        (&["--push", &nowhere, "--plain-http"], "cannot reach"),
    ] {
        let (code, said) = trace("out", args);
        assert_eq!(code, 4, "{args:?}: {said}");
        assert!(said.contains(says) && said.contains("results are whole in out"), "{said}");
        digests(&folder.join("out"));
    }
}

/// A slow line to a registry: at most 64 KiB in 20 ms.
fn slow(port: u16) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let own = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let server = TcpStream::connect(("127.0.0.1", port)).unwrap();
            for (mut from, mut to) in
                [(client.try_clone().unwrap(), server.try_clone().unwrap()), (server, client)]
            {
                std::thread::spawn(move || {
                    let mut part = vec![0; 64 << 10];
                    while let Ok(n @ 1..) = from.read(&mut part) {
                        if to.write_all(&part[..n]).is_err() {
                            break;
                        }
                        std::thread::sleep(Duration::from_millis(20));
                    }
                    let _ = to.shutdown(Shutdown::Both);
                });
            }
        }
    });
    own
}

#[test]
fn an_interrupted_upload_ends_at_once_and_leaves_the_results() {
    if !have(&[&NEEDS[..], &[Need::Cgroup2]].concat()) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = dir.path();
    let registry = Registry::plain();
    host_image(folder, &SERVICE);
    // A part of 15 MB that do not compress takes five seconds on the slow line.
    std::fs::write(folder.join("big"), noise(15 << 20)).unwrap();
    let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
    sh("tar", &["-C", &path(""), "-cf", &path("big.tar"), "big"]);
    let image = format!("{}:latest", path("image"));
    sh("umoci", &["raw", "add-layer", "--image", &image, &path("big.tar")]);
    let coverage = script(folder, "coverage", "$SLIM_EXEC cat /srv/data/used");
    let to = format!("127.0.0.1:{}/app:1", slow(registry.port));
    let mut trace = slim(folder);
    trace.args(["trace", "--image", "oci:image", "--no-verify", "--no-restart", "--keep", "/big"]);
    trace.args(["--network", "private", "--store", "store", "-o", "out", "--plain-http"]);
    trace.args(["--push", &to, "--"]).arg(&coverage);
    let child = trace.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while registry.requests("\"POST ") < 2 {
        assert!(began.elapsed() < Duration::from_secs(60), "no upload began");
        std::thread::sleep(Duration::from_millis(20));
    }
    std::thread::sleep(Duration::from_millis(300));
    sh("kill", &["-INT", &child.id().to_string()]);
    let asked = Instant::now();
    let (code, said) = outcome(&child.wait_with_output().unwrap());
    assert_eq!(code, 130, "{said}");
    assert!(asked.elapsed() < Duration::from_secs(3), "{said}");
    assert!(said.contains("interrupted") && said.contains("results are whole in out"), "{said}");
    assert!(!said.contains("nothing was written"), "{said}");
    digests(&folder.join("out"));
}

/// An engine at the far end of a slow line.
struct Slow(u16);

impl Engine for Slow {
    fn env(&self) -> (&'static str, String) {
        ("DOCKER_HOST", format!("tcp://127.0.0.1:{}", self.0))
    }
}

/// Interrupts `slim load` of `folder/layout` once `begun` says that the engine is at it.
fn interrupted_load(engine: &dyn Engine, to: &str, folder: &Path, begun: &dyn Fn() -> bool) {
    let spool = folder.join(to);
    std::fs::create_dir(&spool).unwrap();
    let (key, value) = engine.env();
    let mut load = slim(folder);
    load.env(key, value).env("TMPDIR", &spool).args(["load", "layout", "--to", to]);
    let child = load.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while !begun() {
        assert!(began.elapsed() < Duration::from_secs(30), "{to}: no load began");
        std::thread::sleep(Duration::from_millis(5));
    }
    sh("kill", &["-INT", &child.id().to_string()]);
    let asked = Instant::now();
    let (code, said) = outcome(&child.wait_with_output().unwrap());
    assert_eq!(code, 130, "{to}: {said}");
    assert!(said.contains("interrupted while"), "{to}: {said}");
    assert!(asked.elapsed() < Duration::from_secs(6), "{to}: {:?}", asked.elapsed());
    assert_eq!(std::fs::read_dir(&spool).unwrap().count(), 0, "{to} left its files");
}

#[test]
fn an_interrupted_load_ends_at_once_and_leaves_nothing() {
    let engines = ["dockerd", "podman", "containerd", "ctr"].map(Need::Program);
    if !have(&[&[Need::Root][..], &engines].concat()) {
        return;
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let folder = dir.path();
    let mut layer = LayerFixture::default();
    layer = layer.raw(b'0', b"big", b"", &vec![7; 256 << 20], &Attr::default());
    ImageFixture::default().packed(layer, Packed::Plain).tag("it/big:1").write(folder);

    let podman = Podman::new();
    let spool = folder.join("podman");
    let holds = |folder: &Path| {
        let kib = sh("du", &["-s", folder.to_str().unwrap()]);
        kib.split_whitespace().next().unwrap().parse::<u64>().unwrap() > 10 << 10
    };
    interrupted_load(&podman, "podman", folder, &|| holds(&spool));
    assert_eq!(podman.ask("podman", &["images", "--quiet"]), "");

    let containerd = Containerd::start();
    let ingest = containerd.root().join("io.containerd.content.v1.content/ingest");
    interrupted_load(&containerd, "containerd", folder, &|| holds(&ingest));
    assert_eq!(containerd.ask("ctr", &["images", "list", "--quiet"]), "");

    let docker = Docker::start();
    let near = forwarded(docker.at().strip_prefix("unix://").unwrap());
    let slow = Slow(slow(near.rsplit_once(':').unwrap().1.parse().unwrap()));
    let began = Instant::now();
    interrupted_load(&slow, "docker", folder, &|| began.elapsed() > Duration::from_secs(2));
    assert_eq!(docker.ask("docker", &["images", "--quiet"]), "");
}

#[test]
fn what_a_killed_build_left_is_gone_after_the_next() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path();
    let left = |name: &str| out.join(name).join("image/blobs");
    for name in [".slim-image-dead", ".slim-image-live", "mine"] {
        std::fs::create_dir_all(left(name)).unwrap();
    }
    let live = std::fs::File::open(out.join(".slim-image-live")).unwrap();
    live.lock_shared().unwrap();
    slim::emit::sweep(out);
    assert!(!out.join(".slim-image-dead").exists());
    assert!(left(".slim-image-live").exists() && left("mine").exists());
    let (made, lock) = slim::emit::unfinished(out).unwrap();
    slim::emit::sweep(out);
    assert!(made.path().exists());
    drop((lock, live));
    slim::emit::sweep(out);
    assert!(!made.path().exists() && left("mine").exists());

    // Files likewise: what is being written stays, also under its last name.
    for name in [".slim-part-dead", ".slim-mine"] {
        std::fs::write(out.join(name), "").unwrap();
    }
    let part = slim::emit::part(out).unwrap();
    slim::emit::sweep(out);
    assert!(!out.join(".slim-part-dead").exists() && out.join(".slim-mine").exists());
    let path = part.path().to_owned();
    let file = part.persist(out.join("summary.json")).unwrap();
    slim::emit::sweep(out);
    assert!(!path.exists() && out.join("summary.json").exists());
    drop(file);
}

/// Somebody sweeps all the time, and nobody's file is lost.
#[test]
fn sweepers_never_take_what_is_being_written() {
    let dir = tempfile::tempdir().unwrap();
    let done = std::sync::atomic::AtomicBool::new(false);
    let mut lost = None;
    let over = || done.load(std::sync::atomic::Ordering::SeqCst);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over() {
                    slim::emit::sweep(dir.path());
                }
            });
        }
        let write = || -> std::io::Result<()> {
            let part = slim::emit::part(dir.path())?;
            part.persist(dir.path().join("result")).map_err(|error| error.error)?;
            let (folder, _lock) = slim::emit::unfinished(dir.path())?;
            std::fs::create_dir(folder.path().join("blobs"))
        };
        lost = (0..300).find_map(|_| write().err());
        done.store(true, std::sync::atomic::Ordering::SeqCst);
    });
    assert!(lost.is_none(), "{lost:?}");
}
