//! `slim push`: what arrives is what was there, and no byte goes up twice.

use serde_json::Value;

use super::*;
use crate::oddities::{Blob, ELSEWHERE, gzip, layout};
use crate::result::profile_of;

fn raw(registry: &Registry, name: &str) -> Value {
    let name = format!("docker://{}/{name}", registry.host());
    serde_json::from_str(&sh("skopeo", &["inspect", "--raw", "--tls-verify=false", &name])).unwrap()
}

fn push(dir: &Path, args: &[&str]) -> Value {
    let (code, text) = run(dir, &[&["push", "--plain-http", "--json"][..], args].concat(), &[]);
    assert_eq!(code, 0, "{text}");
    serde_json::from_str(&text[text.find('[').unwrap()..=text.rfind(']').unwrap()]).unwrap()
}

/// A folder of results around an image.
fn results(dir: &Path) -> PathBuf {
    let layout = small(dir, "a");
    let out = dir.join("out");
    std::fs::create_dir(&out).unwrap();
    let archive = format!("oci-archive:{}/image.tar:latest", out.display());
    sh("skopeo", &["copy", "-q", "--preserve-digests", &oci(&layout), &archive]);
    put(&out.join("profile.json"), r#"{"schema":"slim.profile/v1"}"#);
    put(&out.join("seccomp.json"), r#"{"defaultAction":"SCMP_ACT_ERRNO"}"#);
    out
}

#[test]
fn what_is_pushed_is_what_skopeo_pulls_and_goes_up_once() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let out = results(dir.path());
    let (out, host) = (out.to_str().unwrap(), registry.host());
    let name = format!("{host}/shop/web:1");
    let first = push(dir.path(), &[out, &name]);
    assert_eq!(first[0]["blobs"], json!({ "sent": 3, "mounted": 0, "present": 0 }));
    assert_eq!(first[0]["digest"], digest_of(&dir.path().join("layout")).as_str());
    let pulled = dir.path().join("pulled");
    let (from, to) = (format!("docker://{name}"), format!("oci:{}:latest", pulled.display()));
    sh("skopeo", &["copy", "-q", "--preserve-digests", "--src-tls-verify=false", &from, &to]);
    let open = |layout: &Path| slim::source::open(&oci(layout), &Registry::access()).unwrap();
    let (got, want) = (open(&pulled), open(&dir.path().join("layout")));
    assert_eq!(got.manifest_digest, want.manifest_digest);
    assert_same_tree(&index(&got).unwrap(), &index(&want).unwrap(), "pulled");

    // The same again and under another tag, then into another repository, then a new registry.
    let more =
        [format!("{host}/shop/web:2"), format!("{host}/other/web"), format!("docker://{name}")];
    let again = push(dir.path(), &[out, &more[0], &more[1], &more[2]]);
    let uploads = registry.requests("\"PATCH ");
    assert_eq!(again[0]["blobs"], json!({ "sent": 0, "mounted": 0, "present": 3 }));
    assert_eq!(again[1]["blobs"], json!({ "sent": 0, "mounted": 3, "present": 0 }));
    assert_eq!(again[1]["name"], format!("{host}/other/web:latest"));
    assert_eq!(uploads, 3, "one for each blob of the first push");
    let from = ["--mount-from", name.as_str()];
    let third = push(dir.path(), &[&[out, &format!("{host}/third/web")][..], &from].concat());
    assert_eq!(third[0]["blobs"]["mounted"], 3);
}

#[test]
fn a_layout_of_several_platforms_is_pushed_as_an_index() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    // One layout with both images, listed in index.json itself, then below a nested index.
    let layout = small(dir.path(), "here");
    let there = small(&dir.path().join("there"), "there");
    let blobs = layout.join("blobs/sha256");
    for blob in std::fs::read_dir(there.join("blobs/sha256")).unwrap() {
        let blob = blob.unwrap();
        std::fs::copy(blob.path(), blobs.join(blob.file_name())).unwrap();
    }
    let entry = |layout: &Path, architecture: &str| {
        let bytes = std::fs::read(layout.join("index.json")).unwrap();
        let mut entry = serde_json::from_slice::<Value>(&bytes).unwrap()["manifests"][0].take();
        entry.as_object_mut().unwrap().remove("annotations");
        entry["platform"]["architecture"] = json!(architecture);
        entry
    };
    let entries = [entry(&layout, "amd64"), entry(&there, "arm64")];
    let kind = "application/vnd.oci.image.index.v1+json";
    let flat = json!({ "schemaVersion": 2, "mediaType": kind, "manifests": entries }).to_string();
    let digest = Digest::of(flat.as_bytes());
    put(&blobs.join(digest.hex()), &flat);
    let nested = json!({ "mediaType": kind, "digest": digest, "size": flat.len() });
    let nested = json!({ "schemaVersion": 2, "manifests": [nested] }).to_string();
    for (name, index) in [("flat", &flat), ("nested", &nested)] {
        put(&layout.join("index.json"), index);
        let target = format!("{}/{name}:1", registry.host());
        let pushed = push(dir.path(), &[layout.to_str().unwrap(), &target]);
        assert_eq!(pushed[0]["digest"], digest.to_string(), "{name}");
        assert_eq!(raw(&registry, &format!("{name}:1"))["manifests"].as_array().unwrap().len(), 2);
        for (platform, entry) in ["linux/amd64", "linux/arm64"].into_iter().zip(&entries) {
            let access = Access { platform: Some(platform.into()), ..Registry::access() };
            let image = slim::source::open(&format!("docker://{target}"), &access).unwrap();
            assert_eq!(entry["digest"], image.manifest_digest.to_string(), "{name} {platform}");
        }
    }
}

#[test]
fn results_are_attached_as_referrers_under_the_fallback_tag() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let out = results(dir.path());
    let name = format!("{}/web:1", registry.host());
    for _ in 0..2 {
        push(dir.path(), &["--attach", out.to_str().unwrap(), &name]);
    }
    let subject = digest_of(&dir.path().join("layout"));
    let index = raw(&registry, &format!("web:{}", subject.replace(':', "-")));
    let listed = index["manifests"].as_array().unwrap();
    let kinds: Vec<&str> = listed.iter().filter_map(|m| m["artifactType"].as_str()).collect();
    // Twice pushed is once attached.
    let want = ["application/vnd.slim.profile.v1+json", "application/vnd.slim.seccomp.v1+json"];
    assert_eq!(kinds, want);
    for (entry, file) in listed.iter().zip(["profile.json", "seccomp.json"]) {
        let digest = entry["digest"].as_str().unwrap();
        let manifest = raw(&registry, &format!("web@{digest}"));
        assert_eq!(manifest["subject"]["digest"], subject.as_str());
        assert_eq!(manifest["artifactType"], entry["artifactType"]);
        let bytes = std::fs::read(out.join(file)).unwrap();
        assert_eq!(manifest["layers"][0]["digest"], Digest::of(&bytes).to_string());
        let url = format!(
            "http://{}/v2/web/blobs/{}",
            registry.host(),
            manifest["layers"][0]["digest"].as_str().unwrap()
        );
        assert_eq!(sh("curl", &["-sf", &url]).as_bytes(), bytes);
    }
    // What somebody else has listed there stays.
    let wire = slim::wire::Options { plain_http: true, ..Default::default() };
    let reference: slim::wire::Reference = name.parse().unwrap();
    let location = slim::wire::Location::of(&reference);
    let repository = std::sync::Arc::new(slim::wire::Repository::open(&location, &wire).unwrap());
    assert_eq!(repository.referrers(&subject.parse().unwrap()).unwrap().len(), 2);
    put(&out.join("summary.json"), "{}");
    push(dir.path(), &["--attach", out.to_str().unwrap(), &name]);
    assert_eq!(repository.referrers(&subject.parse().unwrap()).unwrap().len(), 3);
}

#[test]
fn an_upload_goes_on_where_the_connection_broke() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let size = 20 << 20;
    let layout = large(dir.path(), size);
    // Between parts the registry knows where it is; within one Debian's gives up the upload, and the
    // blob (no other) is begun anew. Twice: both have to arrive whole.
    for (repository, cut, times) in
        [("between", Cut::SecondPart, 1), ("within", Cut::Up(10 << 20), 2)]
    {
        let broken = Breaking::new(registry.port, cut, times);
        let name = format!("{}/{repository}:1", broken.host());
        let pushed = push(dir.path(), &[layout.to_str().unwrap(), &name]);
        assert!(broken.is_done(), "{repository}: the connection was never cut");
        assert_eq!(pushed[0]["blobs"]["sent"], 3);
        let status = registry.requests(&format!("\"GET /v2/{repository}/blobs/uploads/"));
        assert!(status >= 1, "{repository}: nobody asked how much arrived");
        let name = format!("docker://{}/{repository}:1", registry.host());
        let image = slim::source::open(&name, &Registry::access()).unwrap();
        let (digest, want) = image.layers[0].blob.unwrap();
        let bytes = drain(image.blobs.open(0).unwrap()).unwrap();
        assert_eq!((Digest::of(&bytes), bytes.len() as u64), (digest, want), "{repository}");
        if repository == "between" {
            let over = broken.sent() - size as u64;
            assert!(over < 1 << 20, "{over} bytes were sent twice");
        }
    }
}

#[test]
fn a_push_needs_a_password_where_the_registry_wants_one() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::secure();
    let dir = tempfile::tempdir().unwrap();
    let out = results(dir.path());
    let (out, name) = (out.to_str().unwrap(), format!("{}/web:1", registry.host()));
    let certs = dir.path().join("certs");
    std::fs::create_dir(&certs).unwrap();
    std::fs::copy(registry.dir.path().join("ca.crt"), certs.join("ca.crt")).unwrap();
    let certs = certs.to_str().unwrap();
    let args = ["push", out, &name, "--cert-dir", certs];
    let (code, text) = run(dir.path(), &args, &[]);
    assert!(code == 4 && text.contains("anonymous"), "{code} {text}");
    use base64::Engine as _;
    let auth = base64::engine::general_purpose::STANDARD.encode(format!("{}:{}", LOGIN.0, LOGIN.1));
    let file = json!({ "auths": { registry.host(): { "auth": auth } } }).to_string();
    let file = put(&dir.path().join("auth.json"), file);
    let more = ["--authfile", file.to_str().unwrap(), "--attach"];
    let (code, text) = run(dir.path(), &[&args[..], &more].concat(), &[]);
    assert!(code == 0 && text.contains("3 sent"), "{code} {text}");
    let login = format!("{}:{}", LOGIN.0, LOGIN.1);
    let name = format!("docker://{name}");
    sh("skopeo", &["inspect", "--cert-dir", certs, "--creds", &login, &name]);
}

#[test]
fn what_cannot_be_pushed_says_why() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let out = results(dir.path());
    let docker = dir.path().join("docker.tar");
    let layout = oci(&dir.path().join("layout"));
    sh("skopeo", &["copy", "-q", &layout, &format!("docker-archive:{}", docker.display())]);
    let name = format!("{}/web:1", registry.host());
    let pinned = format!("{name}@{}", Digest::of(b"other"));
    let (out, docker) = (out.to_str().unwrap(), docker.to_str().unwrap());
    for (args, code, says) in [
        (vec!["/no/such", name.as_str()], 3, "/no/such"),
        (vec![docker, &name], 3, "manifest to push"),
        (vec![out, "Bad Name"], 2, "Bad Name"),
        (vec![out, &pinned], 2, "leave the digest out"),
        (vec![docker, &name, "--attach"], 2, "--attach"),
        (vec![out], 2, "NAME"),
    ] {
        let (got, text) = run(dir.path(), &[&["push", "--plain-http"][..], &args].concat(), &[]);
        assert_eq!(got, code, "{args:?}: {text}");
        assert!(text.contains(says), "{args:?}: {text}");
    }
}

/// Layers that are said to be elsewhere: Docker's registry takes them only where its configuration allows
/// the addresses, and calls the blob unknown otherwise.
#[test]
fn a_layer_that_is_elsewhere_goes_up_as_it_is_or_as_an_ordinary_one() {
    if !have(&NEEDS) {
        return;
    }
    let allowed = "validation:\n  manifests:\n    urls:\n      allow: [\"^https://\"]\n";
    let (strict, lax) = (Registry::plain(), Registry::start("", allowed));
    let kind = "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip";
    let tar = LayerFixture::default().file("a", "1").finish();
    let (here, away) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let blob = |here: bool| {
        let mut blob = Blob::new(gzip(&tar), kind.into(), tar.clone());
        blob.here = here;
        blob
    };
    layout(here.path(), &[blob(true)], None);
    layout(away.path(), &[blob(false)], None);
    let layer = Digest::of(&gzip(&tar)).to_string();

    // As it is where that is allowed, with its bytes as far as they are there.
    for (dir, sent) in [(here.path(), 2), (away.path(), 1)] {
        let name = format!("{}/x{sent}:1", lax.host());
        let pushed = push(dir, &["layout", &name]);
        assert_eq!(pushed[0]["blobs"]["sent"], sent);
        assert_eq!(pushed[0]["digest"], digest_of(&dir.join("layout")).as_str());
        assert_eq!(raw(&lax, &format!("x{sent}:1"))["layers"][0]["urls"][0], ELSEWHERE);
    }
    let name = format!("{}/x:1", strict.host());
    let refused = |dir: &Path, more: &[&str]| {
        let args = [&["push", "--plain-http", "layout", &name][..], more].concat();
        run(dir, &args, &[])
    };
    let (code, text) = refused(here.path(), &[]);
    assert_eq!(code, 4, "{text}");
    for part in [&*layer, ELSEWHERE, "--drop-urls", "blob unknown"] {
        assert!(text.contains(part), "{part}: {text}");
    }
    let (code, text) = refused(away.path(), &["--drop-urls"]);
    assert!(code == 3 && text.contains(&layer) && text.contains("is not in the image"), "{text}");

    let pushed = push(here.path(), &["layout", &name, "--drop-urls"]);
    let there = raw(&strict, "x:1");
    assert_eq!(there["layers"][0]["mediaType"], "application/vnd.oci.image.layer.v1.tar+gzip");
    assert!(there["layers"][0]["urls"].is_null(), "{there}");
    let image = slim::source::open(&format!("docker://{name}"), &Registry::access()).unwrap();
    assert_eq!(pushed[0]["digest"], image.manifest_digest.to_string());
    assert_eq!(index(&image).unwrap().nodes.len(), 1);

    // The same where a build pushes: a layer that loses nothing is said to be elsewhere until then.
    let layout = here.path().join("layout").display().to_string();
    let image = slim::source::open(&layout, &Access::default()).unwrap();
    profile_of(&image, &["/a"], &here.path().join("profile.json"));
    let name = format!("{}/y:1", strict.host());
    let mut build =
        vec!["build", "profile.json", "--image", "layout", "-o", "built", "--plain-http"];
    build.extend(["--push", &name]);
    let (code, text) = run(here.path(), &build, &[]);
    assert!(code == 7 && text.contains("the profile has no run"), "{text}");
    build.push("--keep-going");
    let (code, text) = run(here.path(), &build, &[]);
    assert!(code == 4 && text.contains("--drop-urls"), "{text}");
    build.push("--drop-urls");
    let (code, text) = run(here.path(), &build, &[]);
    assert_eq!(code, 0, "{text}");
    let there = raw(&strict, "y:1");
    assert!(there["layers"][0]["urls"].is_null(), "{there}");
    assert_eq!(there["layers"][0]["digest"], layer.as_str());
}
