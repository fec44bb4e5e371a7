//! Images in and out of a registry: Debian's own, with and without TLS and a password. skopeo judges.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::{Value, json};
use slim::model::Digest;
use slim::rootfs::index;
use slim::source::Access;

use crate::images::assert_same_tree;
use crate::support::image::{Attr, ImageFixture, LayerFixture, Packed};
use crate::support::registry::{Breaking, Cut, LOGIN, Registry, drain, free_port, noise, put};
use crate::support::{Need, have, outcome, sh, slim};

mod push;
mod token;
mod trust;

const NEEDS: [Need; 4] = [
    Need::Program("docker-registry"),
    Need::Program("skopeo"),
    Need::Program("openssl"),
    Need::Program("htpasswd"),
];

/// Two layers; `text` makes it an image of its own.
fn small(dir: &Path, text: &str) -> PathBuf {
    let base = LayerFixture::default().dir("etc").file("etc/app.conf", text).symlink("conf", "etc");
    let above = LayerFixture::default().file("etc/other", "x").whiteout("conf");
    let image = ImageFixture::default().layer(base).packed(above, Packed::Plain).tag("latest");
    std::fs::create_dir_all(dir).unwrap();
    image.write(dir)
}

/// A layer of `len` bytes that do not compress, and a small one.
fn large(dir: &Path, len: usize) -> PathBuf {
    let big = LayerFixture::default().raw(b'0', b"big", b"", &noise(len), &Attr::default());
    let little = LayerFixture::default().file("little", "x");
    ImageFixture::default().packed(big, Packed::Plain).layer(little).tag("latest").write(dir)
}

fn oci(layout: &Path) -> String {
    format!("oci:{}:latest", layout.display())
}

/// Runs slim with a HOME of its own and these variables.
fn run(home: &Path, args: &[&str], variables: &[(&str, &str)]) -> (i32, String) {
    let mut command = slim(home);
    for name in ["DOCKER_CONFIG", "REGISTRY_AUTH_FILE", "XDG_RUNTIME_DIR", "XDG_CONFIG_HOME"] {
        command.env_remove(name);
    }
    command.args(args).env("HOME", home).envs(variables.iter().copied());
    outcome(&command.output().unwrap())
}

fn digest_of(layout: &Path) -> String {
    let index: Value =
        serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap().to_owned()
}

#[test]
fn an_image_in_a_registry_is_the_image_that_was_put_there() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let layout = small(dir.path(), "a");
    registry.fill(&oci(&layout), "team/app:1");
    let name = format!("docker://{}/team/app", registry.host());
    let want = slim::source::open(&oci(&layout), &Registry::access()).unwrap();
    let digest = want.manifest_digest;
    for reference in
        [format!("{name}:1"), format!("{name}@{digest}"), format!("{name}:other@{digest}")]
    {
        let got = slim::source::open(&reference, &Registry::access()).unwrap();
        assert_eq!(got.manifest_digest, digest, "{reference}");
        assert_eq!(got.config_bytes, want.config_bytes, "{reference}");
        assert_same_tree(&index(&got).unwrap(), &index(&want).unwrap(), &reference);
    }
    let named = slim::source::open(&format!("{name}:1"), &Registry::access()).unwrap();
    assert_eq!(named.name, Some(format!("{}/team/app:1", registry.host())));

    let home = dir.path();
    let other = Digest::of(b"other");
    for (reference, plain, code, says) in [
        (format!("{name}:1"), true, 0, "files"),
        (format!("{name}:1"), false, 4, "--plain-http"), // never without being asked
        (format!("{name}:2"), true, 3, "team/app:2"),
        (format!("{name}@{other}"), true, 3, "does not have"),
        (format!("docker://127.0.0.1:{}/app", free_port()), true, 4, "cannot reach"),
        (format!("docker://{}/Bad", registry.host()), true, 2, "no name of an image"),
    ] {
        let plain = if plain { "--plain-http" } else { "--plain-http=false" };
        let (got, text) = run(home, &["inspect", &reference, plain], &[]);
        assert_eq!(got, code, "{reference}: {text}");
        assert!(text.contains(says), "{reference}: {text}");
    }
}

#[test]
fn an_index_in_a_registry_is_resolved_by_platform() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let mut entries = Vec::new();
    for (platform, text) in [("amd64", "here"), ("arm64", "there")] {
        let layout = small(&dir.path().join(platform), text);
        let repository = format!("{}/multi", registry.host());
        registry.fill(&oci(&layout), &format!("multi:{platform}"));
        let raw = sh(
            "skopeo",
            &[
                "inspect",
                "--raw",
                "--tls-verify=false",
                &format!("docker://{repository}:{platform}"),
            ],
        );
        entries.push(json!({
            "mediaType": "application/vnd.oci.image.manifest.v1+json", "size": raw.len(),
            "digest": Digest::of(raw.as_bytes()), "platform": { "os": "linux", "architecture": platform },
        }));
    }
    let index = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": entries,
    });
    let file = put(&dir.path().join("index.json"), index.to_string());
    let url = format!("http://{}/v2/multi/manifests/all", registry.host());
    let kind = "Content-Type: application/vnd.oci.image.index.v1+json";
    let data = format!("@{}", file.display());
    sh("curl", &["-sf", "-X", "PUT", "-H", kind, "--data-binary", &data, &url]);
    let name = format!("docker://{}/multi:all", registry.host());
    for (at, platform) in ["linux/amd64", "linux/arm64"].into_iter().enumerate() {
        let access = Access { platform: Some(platform.into()), ..Registry::access() };
        let image = slim::source::open(&name, &access).unwrap();
        assert_eq!(json!(image.manifest_digest), entries[at]["digest"], "{platform}");
    }
    let access = Access { platform: Some("linux/s390x".into()), ..Registry::access() };
    let error = slim::source::open(&name, &access).err().unwrap().to_string();
    assert!(error.contains("linux/amd64, linux/arm64"), "{error}");
}

#[test]
fn certificates_and_credentials_are_found_where_docker_and_podman_keep_them() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::secure();
    let dir = tempfile::tempdir().unwrap();
    let home = dir.path().join("home");
    let layout = small(dir.path(), "a");
    let (user, password) = LOGIN;
    let login = format!("{user}:{password}");
    let host = registry.host();
    let ca = std::fs::read(registry.dir.path().join("ca.crt")).unwrap();
    let certs = dir.path().join("certs");
    put(&certs.join("ca.crt"), &ca);
    let certs = certs.to_str().unwrap();
    let to = format!("docker://{host}/app:1");
    let from = oci(&layout);
    sh("skopeo", &["copy", "-q", "--dest-cert-dir", certs, "--dest-creds", &login, &from, &to]);

    use base64::Engine as _;
    let entry = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    let auths = |text: &str| json!({ "auths": { &host: { "auth": entry(text) } } }).to_string();
    let good = put(&dir.path().join("good.json"), auths(&login));
    let bad = put(&dir.path().join("bad.json"), auths("tester:wrong horse"));
    let inspect = |more: &[&str], variables: &[(&str, &str)]| {
        std::fs::create_dir_all(&home).unwrap();
        run(&home, &[&["inspect", &to][..], more].concat(), variables)
    };
    let good_file = good.to_str().unwrap();
    let with_ca = ["--cert-dir", certs];

    // TLS first: nobody vouches for the authority of the test.
    let (code, text) = inspect(&["--authfile", good_file], &[]);
    assert!(code == 4 && text.contains("certs.d") && text.contains(&host), "{code} {text}");
    // Then who we are.
    let (code, text) = inspect(&with_ca, &[]);
    assert!(code == 3 && text.contains("anonymous") && text.contains("login"), "{code} {text}");
    let wrong = ["--cert-dir", certs, "--authfile", bad.to_str().unwrap()];
    let (code, text) = inspect(&wrong, &[]);
    assert!(code == 3 && text.contains("tester") && !text.contains("wrong horse"), "{code} {text}");
    let (code, text) = inspect(&["--cert-dir", certs, "--authfile", "/no/such"], &[]);
    assert!(code == 2 && text.contains("/no/such"), "{code} {text}");
    let (code, text) = inspect(&["--cert-dir", certs, "--authfile", good_file], &[]);
    assert_eq!(code, 0, "{text}");

    // Every place where they are looked for, one at a time.
    let path = |below: &str| home.join(below);
    let runtime = dir.path().join("runtime");
    let places: [(PathBuf, Vec<(&str, String)>); 5] = [
        (path(".docker/config.json"), vec![]),
        (
            path("elsewhere/config.json"),
            vec![("DOCKER_CONFIG", path("elsewhere").display().to_string())],
        ),
        (path(".config/containers/auth.json"), vec![]),
        (
            runtime.join("containers/auth.json"),
            vec![("XDG_RUNTIME_DIR", runtime.display().to_string())],
        ),
        (path("x.json"), vec![("REGISTRY_AUTH_FILE", path("x.json").display().to_string())]),
    ];
    for (file, variables) in &places {
        put(file, auths(&login));
        let variables: Vec<(&str, &str)> =
            variables.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let (code, text) = inspect(&with_ca, &variables);
        assert_eq!(code, 0, "{}: {text}", file.display());
        std::fs::remove_file(file).unwrap();
    }

    // Helpers, for one registry and for all.
    let helper = format!(
        "#!/bin/sh\n[ \"$1\" = get ] && read host && [ \"$host\" = '{host}' ] || {{ echo 'credentials not found in native keychain'; exit 1; }}\n\
         echo '{{\"ServerURL\":\"'$host'\",\"Username\":\"{user}\",\"Secret\":\"{password}\"}}'\n"
    );
    let program = put(&home.join("bin/docker-credential-tests"), helper);
    sh("chmod", &["+x", program.to_str().unwrap()]);
    let search = format!("{}:{}", home.join("bin").display(), std::env::var("PATH").unwrap());
    for config in [json!({ "credHelpers": { &host: "tests" } }), json!({ "credsStore": "tests" })] {
        let file = put(&home.join(".docker/config.json"), config.to_string());
        let (code, text) = inspect(&with_ca, &[("PATH", &search)]);
        assert_eq!(code, 0, "{config}: {text}");
        std::fs::remove_file(file).unwrap();
    }
    put(&home.join(".docker/config.json"), json!({ "credsStore": "absent" }).to_string());
    let (code, text) = inspect(&with_ca, &[]);
    assert!(code == 2 && text.contains("docker-credential-absent"), "{code} {text}");

    // certs.d, the user's and the host's (under this registry's own name, which nobody else has).
    let own = home.join(".config/containers/certs.d").join(&host).join("ca.crt");
    put(&own, &ca);
    let (code, text) = inspect(&["--authfile", good_file], &[]);
    assert_eq!(code, 0, "{text}");
    std::fs::remove_file(own).unwrap();
    let (code, text) = inspect(&["--plain-http", "--authfile", good_file], &[]);
    assert!(code == 3 && text.contains("HTTPS"), "plain HTTP to TLS: {code} {text}");
    if rustix::process::geteuid().is_root() {
        for folder in ["/etc/docker/certs.d", "/etc/containers/certs.d"] {
            let folder = Path::new(folder).join(&host);
            put(&folder.join("ca.crt"), &ca);
            let (code, text) = inspect(&["--authfile", good_file], &[]);
            std::fs::remove_dir_all(&folder).unwrap();
            assert_eq!(code, 0, "{}: {text}", folder.display());
        }
    }
}

#[test]
fn mirrors_come_first_and_blocked_names_never() {
    if !have(&NEEDS) {
        return;
    }
    let mirror = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let layout = small(dir.path(), "a");
    mirror.fill(&oci(&layout), "copies/team/app:1");
    let gone = free_port();
    let file = put(
        &dir.path().join("registries.conf"),
        format!(
            "[[registry]]\nprefix = \"main.example/team\"\nlocation = \"127.0.0.1:{gone}/team\"\ninsecure = true\n\
             [[registry.mirror]]\nlocation = \"127.0.0.1:{gone}/empty\"\ninsecure = true\n\
             [[registry.mirror]]\nlocation = \"{0}/copies/team\"\ninsecure = true\n\
             [[registry]]\nlocation = \"{0}\"\ninsecure = true\n\
             [[registry]]\nlocation = \"bad.example\"\nblocked = true\n",
            mirror.host()
        ),
    );
    // A proxy that is not there: what is on this machine is not asked of it.
    let proxy = format!("http://127.0.0.1:{gone}");
    let variables = [
        ("CONTAINERS_REGISTRIES_CONF", file.to_str().unwrap()),
        ("HTTP_PROXY", proxy.as_str()),
        ("HTTPS_PROXY", proxy.as_str()),
    ];
    let inspect = |name: &str| run(dir.path(), &["inspect", name, "--json"], &variables);
    let (code, text) = inspect("docker://main.example/team/app:1");
    assert_eq!(code, 0, "{text}");
    assert!(
        text.contains(&digest_of(&layout)) && text.contains("main.example/team/app:1"),
        "{text}"
    );
    let (code, text) = inspect("docker://main.example/team/app:2");
    assert_eq!(code, 4, "the registry itself, which is asked last, is not there: {text}");
    let (code, text) = inspect("docker://bad.example/app:1");
    assert!(code == 9 && text.contains("registries.conf"), "{code} {text}");
    // For a push only `insecure` counts.
    let target = format!("{}/pushed:1", mirror.host());
    let (code, text) = run(dir.path(), &["push", layout.to_str().unwrap(), &target], &variables);
    assert_eq!(code, 0, "{text}");
}

#[test]
fn layers_come_once_and_go_on_where_the_connection_broke() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let layout = large(dir.path(), 6 << 20);
    registry.fill(&oci(&layout), "app:1");
    let before = registry.requests("GET /v2/app/blobs/");
    let broken = Breaking::new(registry.port, Cut::Down(2 << 20), 2);
    let name = format!("docker://{}/app:1", broken.host());
    let image = slim::source::open(&name, &Registry::access()).unwrap();
    let bytes = drain(image.blobs.open(0).unwrap()).unwrap();
    let (digest, size) = image.layers[0].blob.unwrap();
    assert_eq!((Digest::of(&bytes), bytes.len() as u64), (digest, size));
    assert!(broken.is_done(), "the connection was never cut");
    let ranges = registry.requests("\" 206 ");
    assert_eq!(ranges, 2, "each break is followed by a request for the rest");
    let want = slim::source::open(&oci(&layout), &Registry::access()).unwrap();
    for _ in 0..2 {
        assert_same_tree(&index(&image).unwrap(), &index(&want).unwrap(), "read again");
    }
    // The configuration, two layers, and the two continuations: nothing twice.
    assert_eq!(registry.requests("GET /v2/app/blobs/") - before, 5);
}

#[test]
fn a_registry_that_goes_away_is_no_fault_of_the_image() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    registry.fill(&oci(&small(dir.path(), "a")), "app:1");
    let name = format!("docker://{}/app:1", registry.host());
    let image = slim::source::open(&name, &Registry::access()).unwrap();
    drop(registry);
    let error = slim::pipeline::PipelineError::from(index(&image).err().unwrap());
    assert_eq!(error.exit(), slim::pipeline::exit::HOST, "{error}");
}

#[test]
fn a_registry_that_lies_is_caught() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let layout = small(dir.path(), "a");
    registry.fill(&oci(&layout), "app:1");
    let name = format!("docker://{}/app@{}", registry.host(), digest_of(&layout));
    let image = slim::source::open(&name, &Registry::access()).unwrap();
    let data = |digest: &str| {
        let hex = digest.strip_prefix("sha256:").unwrap();
        let blobs = registry.dir.path().join("data/docker/registry/v2/blobs/sha256");
        blobs.join(&hex[..2]).join(hex).join("data")
    };
    let (layer, _) = image.layers[0].blob.unwrap();
    // Same length, other bytes: only the digest tells.
    for (digest, what) in [(layer.to_string(), "layer"), (digest_of(&layout), "manifest")] {
        let path = data(&digest);
        let mut bytes = std::fs::read(&path).unwrap();
        let at = bytes.len() - 9;
        bytes[at] ^= 1;
        std::fs::write(&path, bytes).unwrap();
        let opened = slim::source::open(&name, &Registry::access());
        let text = match &opened {
            Ok(image) => index(image).err().unwrap().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(text.contains(&digest), "{what}: {text}");
    }
}

#[test]
fn a_pin_is_checked_wherever_the_image_lies() {
    if !have(&[Need::Program("skopeo")]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layout = small(dir.path(), "a");
    let (right, wrong) = (digest_of(&layout), Digest::of(b"other"));
    let archive = dir.path().join("image.tar");
    let docker = dir.path().join("docker.tar");
    let (to, to_docker) = (
        format!("oci-archive:{}", archive.display()),
        format!("docker-archive:{}", docker.display()),
    );
    sh("skopeo", &["copy", "-q", "--preserve-digests", &oci(&layout), &to]);
    sh("skopeo", &["copy", "-q", &oci(&layout), &to_docker]);
    for (name, pin, code) in [
        (layout.display().to_string(), right.clone(), 0),
        (oci(&layout), right.clone(), 0),
        (oci(&layout), wrong.to_string(), 9),
        (format!("oci-archive:{}", archive.display()), right.clone(), 0),
        (format!("oci-archive:{}", archive.display()), wrong.to_string(), 9),
        (format!("docker-archive:{}", docker.display()), right, 9),
    ] {
        let (got, text) = run(dir.path(), &["inspect", &format!("{name}@{pin}")], &[]);
        assert_eq!(got, code, "{name}@{pin}: {text}");
    }
}

#[test]
fn a_whole_trace_downloads_each_layer_once() {
    if !have(&[&NEEDS[..], &[Need::Root, Need::Cgroup2]].concat()) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let layout = crate::support::host_image(dir.path(), &["--config.cmd", "/usr/bin/id"]);
    registry.fill(&format!("oci:{}:latest", layout.display()), "app:1");
    let before = registry.requests("GET /v2/app/blobs/");
    let script = crate::support::script(dir.path(), "coverage.sh", "$SLIM_RUN /usr/bin/id");
    let name = format!("docker://{}/app:1", registry.host());
    let mut command: Command = slim(dir.path());
    command.args(["trace", "--image", &name, "--plain-http", "--no-restart", "--store", "store"]);
    command.args(["-o", "out", "--"]).arg(&script);
    let (code, text) = outcome(&command.output().unwrap());
    assert_eq!(code, 0, "{text}");
    let image = slim::source::open(&name, &Registry::access()).unwrap();
    let fetched = registry.requests("GET /v2/app/blobs/") - before;
    // A configuration for the trace and one for the line above.
    assert_eq!(fetched, image.layers.len() + 2, "{text}");
}
