//! Policies and signatures, checked before anything is unpacked.
//!
//! `signed/` holds a signature that skopeo 1.18 made (Debian 13; Debian 12's is built without) over
//! the image of [`skopeo_signed`]:
//! `skopeo generate-sigstore-key`, then `skopeo copy --sign-by-sigstore-private-key … --sign-identity
//! registry.example/slim/signed:1`. What tests sign themselves they sign with openssl.

use std::sync::Arc;

use super::*;
use slim::wire::{Location, Options, Repository};

const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

fn skopeo_signed(dir: &Path) -> PathBuf {
    let layer = LayerFixture::default().dir("etc").file("etc/signed.conf", "by skopeo");
    ImageFixture::default().packed(layer, Packed::Plain).tag("latest").write(dir)
}

/// A key pair: `NAME.key`, `NAME.pub`.
fn key(dir: &Path, name: &str) -> PathBuf {
    let (private, public) = (dir.join(format!("{name}.key")), dir.join(format!("{name}.pub")));
    let (private, text) = (private.to_str().unwrap(), public.to_str().unwrap());
    sh("openssl", &["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", private]);
    sh("openssl", &["ec", "-in", private, "-pubout", "-out", text]);
    public
}

fn repository(registry: &Registry, name: &str) -> Arc<Repository> {
    let reference = format!("{}/{name}", registry.host()).parse().unwrap();
    let options = Options { plain_http: true, ..Options::default() };
    Arc::new(Repository::open(&Location::of(&reference), &options).unwrap())
}

struct Bytes(Vec<u8>);

impl slim::wire::Content for Bytes {
    fn open(&self, _: &Digest, at: u64) -> std::io::Result<Box<dyn std::io::Read + Send>> {
        let from = usize::try_from(at).unwrap();
        Ok(Box::new(std::io::Cursor::new(self.0[from..].to_vec())))
    }
}

/// Puts a signature beside an image, as cosign and skopeo do.
fn attach(repository: &Repository, image: &str, payload: &[u8], signature: &str) {
    let blob = |bytes: &[u8]| {
        let digest = Digest::of(bytes);
        repository.push_blob(&digest, bytes.len() as u64, &Bytes(bytes.to_vec()), None).unwrap();
        json!({ "digest": digest, "size": bytes.len() })
    };
    let (mut config, mut layer) = (blob(b"{}"), blob(payload));
    config["mediaType"] = json!("application/vnd.oci.image.config.v1+json");
    layer["mediaType"] = json!("application/vnd.dev.cosign.simplesigning.v1+json");
    layer["annotations"] = json!({ "dev.cosignproject.cosign/signature": signature });
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [layer],
    });
    let tag = format!("{}.sig", image.replace(':', "-"));
    repository.push_manifest(&tag, OCI_MANIFEST, manifest.to_string().as_bytes()).unwrap();
}

/// Signs that `reference` is `image`.
fn sign(dir: &Path, key: &Path, repository: &Repository, image: &str, reference: &str) {
    let payload = json!({
        "critical": {
            "type": "cosign container image signature",
            "image": { "docker-manifest-digest": image },
            "identity": { "docker-reference": reference },
        },
        "optional": { "creator": "slim's tests" },
    })
    .to_string();
    let (file, out) = (put(&dir.join("payload"), &payload), dir.join("signature"));
    let private = key.with_extension("key");
    let [private, out, file] = [&private, &out, &file].map(|path| path.to_str().unwrap());
    sh("openssl", &["dgst", "-sha256", "-sign", private, "-out", out, file]);
    let signature = sh("openssl", &["base64", "-A", "-in", out]);
    attach(repository, image, payload.as_bytes(), &signature);
}

fn policy(dir: &Path, name: &str, default: &Value, docker: Value) -> PathBuf {
    let text = json!({ "default": [default], "transports": { "docker": docker } });
    put(&dir.join(name), text.to_string())
}

/// Exit code and text of a look at `name` under a policy.
fn look(dir: &Path, name: &str, policy: &Path) -> (i32, String) {
    run(dir, &["inspect", name, "--plain-http", "--policy", policy.to_str().unwrap()], &[])
}

#[test]
fn a_signature_made_by_skopeo_counts_for_its_image_and_key_only() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let layout = skopeo_signed(dir.path());
    let digest = digest_of(&layout);
    registry.fill(&oci(&layout), "signed:1");
    let other = small(&dir.path().join("other"), "changed");
    registry.fill(&oci(&other), "signed:2");
    let signed = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/registry/signed");
    let payload = std::fs::read(signed.join("payload.json")).unwrap();
    let signature = std::fs::read_to_string(signed.join("signature")).unwrap();
    let repository = repository(&registry, "signed");
    let theirs = key(dir.path(), "theirs");
    let identity =
        json!({ "type": "exactReference", "dockerReference": "registry.example/slim/signed:1" });
    let by = |key: &Path, identity: &Value| {
        let host = registry.host();
        let rule =
            json!([{ "type": "sigstoreSigned", "keyPath": key, "signedIdentity": identity }]);
        policy(dir.path(), "policy.json", &json!({ "type": "reject" }), json!({ host: rule }))
    };
    let ours = signed.join("key.pub");
    let name = |tag: &str| format!("docker://{}/signed:{tag}", registry.host());
    let (code, text) = look(dir.path(), &name("1"), &by(&ours, &identity));
    assert!(code == 9 && text.contains("no signature"), "unsigned: {code} {text}");
    attach(&repository, &digest, &payload, signature.trim());
    let (code, text) = look(dir.path(), &name("1"), &by(&ours, &identity));
    assert_eq!(code, 0, "signed: {text}");
    let (code, text) = look(dir.path(), &name("1"), &by(&theirs, &identity));
    assert!(code == 9 && text.contains("not by the key"), "another key: {code} {text}");
    let elsewhere = json!({ "type": "matchRepository" });
    let (code, text) = look(dir.path(), &name("1"), &by(&ours, &elsewhere));
    assert!(code == 9 && text.contains("another name"), "another name: {code} {text}");
    // The same signature beside a changed image.
    attach(&repository, &digest_of(&other), &payload, signature.trim());
    let (code, text) = look(dir.path(), &name("2"), &by(&ours, &identity));
    assert!(code == 9 && text.contains(&digest), "changed: {code} {text}");
    // Changed words under a true signature.
    let forged = String::from_utf8(payload).unwrap().replace(&digest, &digest_of(&other));
    attach(&repository, &digest_of(&other), forged.as_bytes(), signature.trim());
    let (code, text) = look(dir.path(), &name("2"), &by(&ours, &identity));
    assert!(code == 9 && text.contains("not by the key"), "forged: {code} {text}");
}

#[test]
fn a_signature_is_for_the_name_that_was_asked_for() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let layout = small(dir.path(), "a");
    let (digest, host) = (digest_of(&layout), registry.host());
    for tag in ["1", "2"] {
        registry.fill(&oci(&layout), &format!("app:{tag}"));
    }
    let ours = key(dir.path(), "ours");
    sign(dir.path(), &ours, &repository(&registry, "app"), &digest, &format!("{host}/app:1"));
    let pem = std::fs::read(&ours).unwrap();
    use base64::Engine as _;
    let data = base64::engine::general_purpose::STANDARD.encode(pem);
    for (rule, name, code) in [
        (json!({ "keyPath": ours }), "app:1", 0),
        (json!({ "keyData": data }), "app:1", 0),
        (json!({ "keyPath": ours }), "app:2", 9),
        (json!({ "keyPath": ours }), &format!("app@{digest}"), 0),
        (json!({ "keyPath": ours, "signedIdentity": { "type": "matchRepository" } }), "app:2", 0),
        (
            json!({ "keyPath": ours, "signedIdentity": { "type": "matchExact" } }),
            &format!("app@{digest}"),
            9,
        ),
        (json!({ "keyPath": "/no/such.pub" }), "app:1", 2),
    ] {
        let mut rule = rule;
        rule["type"] = json!("sigstoreSigned");
        let file =
            policy(dir.path(), "p.json", &json!({ "type": "reject" }), json!({ "": [rule] }));
        let (got, text) = look(dir.path(), &format!("docker://{host}/{name}"), &file);
        assert_eq!(got, code, "{name} under {rule}: {text}");
    }
}

#[test]
fn a_signature_of_the_index_counts_for_what_it_lists() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let layout = small(dir.path(), "a");
    let host = registry.host();
    registry.fill(&oci(&layout), "app:amd64");
    let bytes = std::fs::read(layout.join("index.json")).unwrap();
    let entry = serde_json::from_slice::<Value>(&bytes).unwrap()["manifests"][0].take();
    let index = put_index(&registry, "app", "all", &[entry]).to_string();
    let ours = key(dir.path(), "ours");
    let rule = json!({ "type": "sigstoreSigned", "keyPath": ours });
    let file = policy(dir.path(), "p.json", &json!({ "type": "reject" }), json!({ &host: [rule] }));
    let name = format!("docker://{host}/app:all");
    assert_eq!(look(dir.path(), &name, &file).0, 9, "unsigned");
    sign(dir.path(), &ours, &repository(&registry, "app"), &index, &format!("{host}/app:all"));
    let (code, text) = look(dir.path(), &name, &file);
    assert_eq!(code, 0, "{text}");
    // Reached by another tag the manifest alone is what is asked for, and that nobody signed.
    let (code, text) = look(dir.path(), &format!("docker://{host}/app:amd64"), &file);
    assert_eq!(code, 9, "{text}");
}

#[test]
fn a_refused_image_is_refused_before_a_layer_is_read() {
    if !have(&NEEDS) {
        return;
    }
    let registry = Registry::plain();
    let dir = tempfile::tempdir().unwrap();
    let layout = small(dir.path(), "a");
    for name in ["good/app:1", "bad/app:1"] {
        registry.fill(&oci(&layout), name);
    }
    let host = registry.host();
    let (reject, anything) =
        (json!({ "type": "reject" }), json!({ "type": "insecureAcceptAnything" }));
    let allowed = json!({ format!("{host}/good"): [anything] });
    let file = policy(dir.path(), "allowed.json", &reject, allowed);
    let (code, text) = look(dir.path(), &format!("docker://{host}/good/app:1"), &file);
    assert_eq!(code, 0, "{text}");
    let before = registry.requests("GET /v2/bad/");
    let name = format!("docker://{host}/bad/app:1");
    let (code, text) = look(dir.path(), &name, &file);
    assert_eq!(code, 9, "{text}");
    for part in ["allowed.json", "default", &name, "--policy"] {
        assert!(text.contains(part), "{part} is not in: {text}");
    }
    assert_eq!(registry.requests("GET /v2/bad/"), before, "nothing of it was asked for");
    // GPG is what slim cannot check, so it is refused and not passed over.
    let gpg = json!({ "type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x" });
    let file = policy(dir.path(), "gpg.json", &gpg, json!({}));
    let (code, text) = look(dir.path(), &name, &file);
    assert!(code == 9 && text.contains("signedBy"), "{code} {text}");
    let file = put(&dir.path().join("broken.json"), r#"{"default": []}"#);
    let (code, text) = look(dir.path(), &name, &file);
    assert!(code == 2 && text.contains("broken.json"), "{code} {text}");
}

#[test]
fn images_on_disk_are_under_the_policy_too() {
    if !have(&[Need::Program("skopeo")]) {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let layout = small(dir.path(), "a");
    let archive = dir.path().join("image.tar");
    let docker = dir.path().join("docker.tar");
    for (kind, path) in [("oci-archive", &archive), ("docker-archive", &docker)] {
        sh("skopeo", &["copy", "-q", &oci(&layout), &format!("{kind}:{}", path.display())]);
    }
    let anything = json!([{ "type": "insecureAcceptAnything" }]);
    let names = [
        oci(&layout),
        layout.display().to_string(),
        format!("oci-archive:{}", archive.display()),
        docker.display().to_string(),
    ];
    for (transports, want) in [
        (json!({}), [9, 9, 9, 9]),
        (json!({ "oci": { "": anything } }), [0, 0, 9, 9]),
        (json!({ "oci": { layout.to_str().unwrap(): anything } }), [0, 0, 9, 9]),
        (json!({ "oci": { format!("{}:latest", layout.display()): anything } }), [0, 9, 9, 9]),
        (json!({ "oci-archive": { dir.path().to_str().unwrap(): anything } }), [9, 9, 0, 9]),
        (json!({ "docker-archive": { "": anything } }), [9, 9, 9, 0]),
    ] {
        let text = json!({ "default": [{ "type": "reject" }], "transports": transports });
        // The user's own file, which is what counts without --policy.
        put(&dir.path().join(".config/containers/policy.json"), text.to_string());
        for (name, want) in names.iter().zip(want) {
            let (code, said) = run(dir.path(), &["inspect", name], &[]);
            assert_eq!(code, want, "{name} under {text}: {said}");
        }
    }
}
