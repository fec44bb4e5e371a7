use std::collections::BTreeMap;

use proptest::collection::btree_map;
use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::model::profile::{Loss, PhaseRecord, RunRecord, Startup, Touch, kind};
use crate::model::{ChainId, ProfileError};

fn identity() -> ImageIdentity {
    ImageIdentity {
        config_digest: Digest::of(b"config"),
        chain_id: ChainId(Digest::of(b"chain")),
        platform: "linux/amd64".into(),
        names: [].into(),
        manifest_digests: [].into(),
        extra: Extra::new(),
    }
}

fn run(n: u8) -> RunRecord {
    RunRecord {
        slim: "0.1.0".into(),
        purpose: "trace".into(),
        script: None,
        arguments: vec!["--image".into(), "x".into()],
        kernel: "6.18".into(),
        runtime: "runc 1.1.5".into(),
        seccomp: "docker-default/28.5.2".into(),
        recorder: "bpf".into(),
        started: format!("2026-01-01T00:00:0{n}Z"),
        phases: vec![PhaseRecord {
            name: "start".into(),
            offset_ms: 0,
            duration_ms: u64::from(n),
            outcome: None,
        }],
        losses: vec![Loss { kind: "ring_full".into(), number: 1, detail: None }],
        complete: n != 1,
        extra: Extra::new(),
    }
}

fn first_use() -> impl Strategy<Value = FirstUse> {
    let phase = prop::sample::select(vec!["runtime", "start", "stop"]);
    let backends = prop::collection::btree_set("bpf|fanotify|perf|another", 0..3);
    let at = prop::option::of(0..3u64);
    (0..3u32, phase, prop::collection::vec(1..3u32, 0..3), at, backends).prop_map(
        |(uid, phase, pids, at_us, backends)| FirstUse {
            exe: "/bin/x".into(),
            argv0: "x".into(),
            uid,
            phase: phase.into(),
            pids,
            at_us,
            backends,
        },
    )
}

fn access() -> impl Strategy<Value = Access> {
    let kinds = prop::sample::select(vec![kind::OPEN, kind::STAT, "refused:EPERM"]);
    let runs = btree_map((0..3u8).prop_map(|n| run(n).id()), first_use(), 1..3);
    let runs = runs.prop_map(|map| map.into_iter().map(|(run, by)| (run, by.into())).collect());
    btree_map(kinds.prop_map(Into::into), runs, 1..3).prop_map(|map| map.into_iter().collect())
}

fn path() -> impl Strategy<Value = RootPath> {
    let raw = prop::sample::select(vec![&b"/a"[..], b"/a/b", b"/\xff", b"/back\\slash", b"/n\n"]);
    raw.prop_map(|raw| RootPath::parse(raw).unwrap())
}

fn paths() -> impl Strategy<Value = BTreeMap<RootPath, Access>> {
    btree_map(path(), access(), 0..3)
}

/// A cell's layer and content follow from its path: profiles of one image agree on them.
fn cells() -> impl Strategy<Value = BTreeMap<RootPath, Box<FileCell>>> {
    let cell = (access(), any::<bool>(), extra());
    btree_map(path(), cell, 0..4).prop_map(|map| {
        let cell = |path: &RootPath, access, knows: bool, extra| FileCell {
            layer: Some(DiffId(Digest::of(b"layer"))),
            content: knows.then(|| Digest::of(path.as_bytes())),
            access,
            extra: Extra::into_iter(extra).collect(),
        };
        map.into_iter()
            .map(|(p, (a, knows, e))| (p.clone(), cell(&p, a, knows, e).into()))
            .collect()
    })
}

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop::sample::select(vec![json!(1), json!("one"), json!([1, 2]), json!(false)]);
    leaf.prop_recursive(2, 6, 3, |inner| btree_map("[ab]", inner, 0..3).prop_map(|map| json!(map)))
}

fn extra() -> impl Strategy<Value = Extra> {
    btree_map("x_[ab]", value(), 0..3).prop_map(|map| map.into_iter().collect())
}

prop_compose! {
    fn profile()(
        files in cells(),
        missing in paths(),
        written in paths(),
        mounts in paths(),
        calls in btree_map("open|read", btree_map("|domain=1", access(), 1..2), 0..2),
        runs in prop::collection::btree_set(0..3u8, 0..3),
        network in btree_map("tcp :[12]", access(), 0..2),
        capabilities in btree_map("CAP_[AB]", access(), 0..2),
        startup in prop::collection::btree_map(0..2u8, (0..2u64, prop::bool::ANY), 0..2),
        names in prop::collection::btree_set("[ab]:1", 0..2),
        extra in extra(),
        minor in 0..2u8,
    ) -> Profile {
        let mut profile = Profile::new(identity());
        if minor > 0 {
            profile.schema = format!("slim.profile/v1.{minor}");
        }
        profile.image.names = names;
        profile.runs = runs.into_iter().map(|n| (run(n).id(), run(n))).collect();
        (profile.files, profile.missing) = (files, missing);
        (profile.written, profile.mounts) = (written, mounts);
        profile.syscalls.insert("x86_64".into(), calls);
        (profile.network, profile.capabilities) = (network, capabilities);
        let start = |(n, (at_us, more)): (u8, (u64, bool))| {
            let touch = Touch { path: RootPath::root(), bytes: 1, at_us };
            (run(n).id(), Startup { touches: vec![touch], more })
        };
        profile.startup = startup.into_iter().map(start).collect();
        profile.extra = extra;
        profile
    }
}

fn joined(a: &Profile, b: &Profile) -> Profile {
    let mut a = a.clone();
    a.merge(b.clone()).unwrap();
    a
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn merge_is_commutative(a in profile(), b in profile()) {
        prop_assert_eq!(joined(&a, &b).to_json(), joined(&b, &a).to_json());
        prop_assert_eq!(joined(&a, &b), joined(&b, &a));
    }

    #[test]
    fn merge_is_associative(a in profile(), b in profile(), c in profile()) {
        prop_assert_eq!(joined(&joined(&a, &b), &c), joined(&a, &joined(&b, &c)));
    }

    #[test]
    fn merge_is_idempotent(a in profile(), b in profile()) {
        prop_assert_eq!(joined(&a, &a), a.clone());
        let both = joined(&a, &b);
        prop_assert_eq!(joined(&both, &b), both);
    }

    #[test]
    fn text_and_profile_agree(a in profile()) {
        let text = a.to_json();
        let back = Profile::parse(text.as_bytes()).unwrap();
        prop_assert_eq!(&back, &a);
        prop_assert_eq!(back.to_json(), text);
    }

    #[test]
    fn the_published_schema_holds(a in profile()) {
        let schema = include_str!("../../profiles/slim.profile.v1.schema.json");
        let schema = serde_json::from_str(schema).unwrap();
        let validator = jsonschema::validator_for(&schema).unwrap();
        let value = serde_json::from_str(&a.to_json()).unwrap();
        let errors: Vec<String> = validator.iter_errors(&value).map(|e| e.to_string()).collect();
        prop_assert_eq!(errors, Vec::<String>::new());
    }
}

#[test]
fn the_schema_refuses_what_is_no_profile() {
    let schema = include_str!("../../profiles/slim.profile.v1.schema.json");
    let validator = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
    let mut good: Value = serde_json::from_str(&Profile::new(identity()).to_json()).unwrap();
    assert!(validator.is_valid(&good));
    good["files"] = json!({"relative": {"access": {}}});
    assert!(!validator.is_valid(&good), "a path without a leading slash");
    good["files"] = json!({"/a": {"access": {"open": {"not a run": {}}}}});
    assert!(!validator.is_valid(&good), "a run id that is no digest");
    good["files"] = json!({});
    good["schema"] = json!("slim.profile/v2");
    assert!(!validator.is_valid(&good), "another major version");
}

#[test]
fn another_image_is_refused_with_both_named() {
    let mut ours = Profile::new(identity());
    let before = ours.clone();
    for what in ["chainID", "config digest", "platform"] {
        let mut theirs = Profile::new(identity());
        match what {
            "chainID" => theirs.image.chain_id = ChainId(Digest::of(b"other")),
            "config digest" => theirs.image.config_digest = Digest::of(b"other"),
            _ => theirs.image.platform = "linux/arm64".into(),
        }
        let said = ours.merge(theirs).unwrap_err().to_string();
        let other = if what == "platform" {
            "linux/arm64".into()
        } else {
            Digest::of(b"other").to_string()
        };
        assert!(said.contains(what) && said.contains(&other), "{said}");
    }
    assert_eq!(ours, before);
}

#[test]
fn a_file_that_differs_is_a_conflict_and_changes_nothing() {
    let cell = |content: &[u8]| FileCell {
        layer: None,
        content: Some(Digest::of(content)),
        access: Access::default(),
        extra: Default::default(),
    };
    let path = RootPath::parse(b"/a").unwrap();
    let (mut ours, mut theirs) = (Profile::new(identity()), Profile::new(identity()));
    ours.files.insert(path.clone(), cell(b"1").into());
    theirs.files.insert(path, cell(b"2").into());
    theirs.image.names.insert("x:1".into());
    let before = ours.clone();
    assert!(matches!(ours.merge(theirs), Err(MergeError::Conflict { .. })));
    assert_eq!(ours, before);
}

#[test]
fn a_real_use_outlives_the_runtimes() {
    let by = |phase: &str| FirstUse {
        exe: "/x".into(),
        argv0: "x".into(),
        phase: phase.into(),
        ..FirstUse::default()
    };
    let with = |phase: &str| {
        let mut profile = Profile::new(identity());
        let path = RootPath::parse(b"/a").unwrap();
        let runs = [(run(0).id(), by(phase).into())].into();
        profile.missing.insert(path, Access::from([("open".into(), runs)]));
        profile
    };
    assert_eq!(joined(&with("runtime"), &with("stop")), with("stop"));
    assert_eq!(joined(&with("stop"), &with("runtime")), with("stop"));
}

#[test]
fn a_newer_major_is_refused_and_a_newer_minor_kept_whole() {
    let newer = br#"{"schema": "slim.profile/v2", "image": 7}"#;
    assert!(matches!(Profile::parse(newer), Err(ProfileError::Newer { .. })));
    for text in ["{}", "[]", r#"{"schema": "slim.policy/v1"}"#] {
        assert!(
            matches!(Profile::parse(text.as_bytes()), Err(ProfileError::NotAProfile)),
            "{text}"
        );
    }
    assert!(matches!(Profile::parse(b"{"), Err(ProfileError::Json(_))));

    let mut profile = Profile::new(identity());
    profile.schema = "slim.profile/v1.7".into();
    profile.runs.insert(run(1).id(), run(1));
    let mut value: Value = serde_json::from_str(&profile.to_json()).unwrap();
    let id = run(1).id().to_string();
    value["runs"][&id]["phases"][0]["mood"] = json!("calm");
    value["runs"][&id]["weather"] = json!({"wet": true});
    value["image"]["colour"] = json!("blue");
    value["new_cells"] = json!([1]);
    let parsed = Profile::parse(value.to_string().as_bytes()).unwrap();
    let back: Value = serde_json::from_str(&parsed.to_json()).unwrap();
    assert_eq!(back, value);
    assert_eq!(joined(&parsed, &profile).to_json(), parsed.to_json());
    assert_eq!(joined(&profile, &parsed).to_json(), parsed.to_json());
}
