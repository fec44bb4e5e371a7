//! Emitted filters, evaluated as a kernel would, against Docker's default, evaluated from its table
//! by code of its own.

use std::sync::LazyLock;

use serde_json::json;

use super::*;
use crate::model::ChainId;
use crate::model::profile::{Access, Extra, FirstUse, ImageIdentity, PhaseRecord, RunRecord};

fn record(complete: bool) -> RunRecord {
    RunRecord {
        slim: "0.1.0".into(),
        purpose: "trace".into(),
        script: None,
        arguments: Vec::new(),
        kernel: "6.18".into(),
        runtime: "runc 1.1.5".into(),
        seccomp: "docker-default/28.5.2".into(),
        recorder: "bpf".into(),
        started: "2026-01-01T00:00:00Z".into(),
        phases: Vec::<PhaseRecord>::new(),
        losses: Vec::new(),
        complete,
        extra: Extra::new(),
    }
}

fn profile(arch: &str, calls: &[(&str, &str, &str)]) -> Profile {
    let mut profile = Profile::new(ImageIdentity {
        config_digest: Digest::of(b"c"),
        chain_id: ChainId(Digest::of(b"l")),
        platform: "linux/amd64".into(),
        names: [].into(),
        manifest_digests: [].into(),
        extra: Extra::new(),
    });
    let run = record(true);
    for (name, kind, phase) in calls {
        let by = FirstUse {
            exe: "/app".into(),
            argv0: "app".into(),
            phase: (*phase).to_owned(),
            ..FirstUse::default()
        };
        let access = Access::from([((*kind).to_owned().into(), [(run.id(), by.into())].into())]);
        let names = profile.syscalls.entry(arch.to_owned()).or_default();
        names.entry((*name).to_owned()).or_default().insert(String::new(), access);
    }
    profile.runs.insert(run.id(), run);
    profile
}

/// Every call of an architecture, recorded.
fn everything(arch: Arch) -> Profile {
    let calls: Vec<(&str, &str, &str)> =
        arch.calls().into_iter().map(|(_, name)| (name, kind::CALL, "start")).collect();
    profile(arch.name(), &calls)
}

fn compare(op: &str, argument: u64, value: u64, two: u64) -> bool {
    match op {
        "SCMP_CMP_EQ" | "eq" => argument == value,
        "SCMP_CMP_NE" | "ne" => argument != value,
        "SCMP_CMP_MASKED_EQ" | "masked_eq" => argument & value == two,
        other => panic!("{other}"),
    }
}

fn texts(value: &Value) -> Vec<&str> {
    value.as_array().into_iter().flatten().filter_map(Value::as_str).collect()
}

/// The part of a filter that is about one call.
fn about(filter: &Value, name: &str) -> Value {
    let rules = filter["syscalls"].as_array().unwrap().iter();
    let rules: Vec<Value> = rules
        .filter(|r| texts(&r["names"]).contains(&name))
        .cloned()
        .map(|mut r| {
            r["names"] = json!([name]);
            r
        })
        .collect();
    json!({"defaultErrnoRet": filter["defaultErrnoRet"], "syscalls": rules})
}

/// What an emitted filter answers: 0 for allowed, else the error. Rules that contradict each other
/// are a failure: which one a runtime takes is its own business.
fn answer(filter: &Value, name: &str, argument: u64, caps: &[&str]) -> u64 {
    let counts = |rule: &&Value| {
        let has = |cap: &&str| caps.contains(cap);
        texts(&rule["names"]).contains(&name)
            && texts(&rule["includes"]["caps"]).iter().all(has)
            && !texts(&rule["excludes"]["caps"]).iter().any(has)
            && rule["args"].as_array().is_none_or(|args| {
                args.iter().all(|a| {
                    let number = |key: &str| a[key].as_u64().unwrap();
                    assert_eq!(number("index"), 0);
                    compare(
                        a["op"].as_str().unwrap(),
                        argument,
                        number("value"),
                        number("valueTwo"),
                    )
                })
            })
    };
    let rules = filter["syscalls"].as_array().unwrap().iter().filter(counts);
    let answers: BTreeSet<u64> = rules
        .map(|rule| match rule["action"].as_str().unwrap() {
            "SCMP_ACT_ALLOW" => 0,
            "SCMP_ACT_ERRNO" => rule["errnoRet"].as_u64().unwrap(),
            other => panic!("{other}"),
        })
        .collect();
    assert!(answers.len() < 2, "{name}({argument:#x}) with {caps:?}: {answers:?}");
    answers.into_iter().next().unwrap_or_else(|| filter["defaultErrnoRet"].as_u64().unwrap())
}

static TABLE: LazyLock<Value> = LazyLock::new(|| {
    serde_json::from_str(include_str!("../../profiles/docker-default.json")).unwrap()
});

/// Whether Docker's default allows a call, straight from the published table.
fn docker_allows(name: &str, argument: u64, caps: &[&str]) -> bool {
    let table = &*TABLE;
    let without = |rule: &Value| !rule["without"].as_str().is_some_and(|cap| caps.contains(&cap));
    let list = |key: &str| table[key].as_array().unwrap();
    if list("refused_with").iter().any(|r| r["name"] == name && without(r)) {
        return false;
    }
    texts(&table["always"]).contains(&name)
        || list("by_kernel").iter().any(|r| texts(&r["names"]).contains(&name))
        || texts(&table["by_arch"]["x86_64"]).contains(&name)
        || caps.iter().any(|cap| texts(&table["by_capability"][cap]).contains(&name))
        || list("by_argument").iter().any(|rule| {
            let number = |c: &Value, key: &str| c[key].as_u64().unwrap();
            rule["name"] == name
                && without(rule)
                && rule["any"].as_array().unwrap().iter().any(|c| {
                    let op = c["op"].as_str().unwrap();
                    compare(op, argument, number(c, "value"), number(c, "value_two"))
                })
        })
}

const ARGUMENTS: [u64; 14] = [
    0,
    1,
    2,
    8,
    17,
    40,
    0x1_0011,
    0x2_0000,
    0x2_0008,
    0x0200_0000,
    0x1000_0000,
    0x7e02_0000,
    0x3d_0f00,
    0xffff_ffff,
];

#[test]
fn no_emitted_filter_is_wider_than_dockers_default() {
    let more = ["CAP_SYS_ADMIN", "CAP_SYS_PTRACE", "CAP_SYSLOG", "CAP_BPF", "CAP_SYS_TIME"];
    let some = profile("x86_64", &[("read", kind::CALL, "start"), ("mount", kind::CALL, "start")]);
    for profile in [some, everything(Arch::X86_64), {
        let mut both = everything(Arch::X86_64);
        both.syscalls.extend(everything(Arch::X86).syscalls);
        both
    }] {
        let list = allowlist(&profile, &Policy::default()).unwrap();
        for (_, name) in Arch::X86_64.calls().into_iter().chain(Arch::X86.calls()) {
            let (oci, docker) = (about(&list.oci, name), about(&list.docker, name));
            for argument in ARGUMENTS {
                let flat = answer(&oci, name, argument, &[]) == 0;
                let allowed = docker_allows(name, argument, &DEFAULT_CAPS);
                assert!(allowed || !flat, "flat: {name}({argument:#x})");
                for caps in
                    [&[][..], &DEFAULT_CAPS, &[&DEFAULT_CAPS[..], &more].concat(), &more[2..3]]
                {
                    let ours = answer(&docker, name, argument, caps) == 0;
                    let theirs = docker_allows(name, argument, caps);
                    assert!(theirs || !ours, "{name}({argument:#x}) {caps:?}");
                }
            }
        }
    }
}

#[test]
fn dockers_default_is_dockers_default() {
    for more in [&[][..], &["CAP_SYS_ADMIN"], &["CAP_SYS_TIME", "CAP_BPF"]] {
        let caps = [&DEFAULT_CAPS[..], more].concat();
        let own: Vec<String> = caps.iter().map(|c| (*c).to_owned()).collect();
        let (name, filter) = docker_default(&own);
        assert_eq!(name, "docker-default/28.5.2");
        for (_, name) in Arch::X86_64.calls() {
            let filter = about(&filter, name);
            for argument in ARGUMENTS {
                let want = match docker_allows(name, argument, &caps) {
                    true => 0,
                    false if name == "clone3" => 38,
                    false => 1,
                };
                assert_eq!(answer(&filter, name, argument, &[]), want, "{name}({argument:#x})");
            }
        }
    }
}

#[test]
fn refusals_say_eperm_on_purpose_and_enosys_otherwise() {
    let calls = [("clone", kind::CALL, "start"), ("socket", kind::CALL, "start")];
    let list = allowlist(&profile("x86_64", &calls), &Policy::default()).unwrap();
    for (name, argument, want) in [
        ("execve", 0, 0),
        ("clone", 17, 0),
        ("clone", 0x1000_0011, 1),
        ("socket", 2, 0),
        ("socket", 40, 1),
        ("personality", 0, 38),
        ("clone3", 0, 38),
        ("mount", 0, 1),
        ("keyctl", 0, 1),
        ("io_uring_setup", 0, 1),
        ("link", 0, 38),
        ("ptrace", 0, 38),
        ("a_call_of_tomorrow", 0, 38),
    ] {
        for filter in [&list.oci, &list.docker] {
            assert_eq!(answer(filter, name, argument, &DEFAULT_CAPS), want, "{name}({argument})");
        }
    }
    // Every known call is named, because Docker 20.10 drops the default's error.
    let rules = list.docker["syscalls"].as_array().unwrap();
    let named: BTreeSet<&str> = rules.iter().flat_map(|rule| texts(&rule["names"])).collect();
    assert!(Arch::X86_64.calls().iter().all(|(_, name)| named.contains(name)));
}

#[test]
fn only_uses_of_traced_runs_count() {
    let calls = [
        ("link", kind::CALL, "start"),
        ("rename", kind::CALL, "runtime"),
        ("unlink", "refused:EPERM", "start"),
    ];
    let mut recorded = profile("x86_64", &calls);
    let verify = RunRecord { purpose: "verify".into(), ..record(true) };
    let by = FirstUse {
        exe: "/a".into(),
        argv0: "a".into(),
        phase: "start".into(),
        ..FirstUse::default()
    };
    let access = Access::from([(kind::CALL.into(), [(verify.id(), by.into())].into())]);
    let names = recorded.syscalls.get_mut("x86_64").unwrap();
    names.insert("symlink".into(), [(String::new(), access)].into());
    recorded.runs.insert(verify.id(), verify);
    let list = allowlist(&recorded, &Policy::default()).unwrap();
    assert_eq!(list.why.get("link").map(String::as_str), Some("recorded"));
    for name in ["rename", "unlink", "symlink"] {
        assert_eq!(list.why.get(name), None, "{name}");
    }
    assert!(list.why["execve"].starts_with("base set: "), "{:?}", list.why["execve"]);
    assert!(list.why.len() <= 91, "{}", list.why.len());
}

#[test]
fn what_goes_with_a_recorded_call_is_allowed_and_labelled() {
    let seen = ["wait4", "pkey_alloc", "epoll_pwait2"].map(|name| (name, kind::CALL, "start"));
    let list = allowlist(&profile("x86_64", &seen), &Policy::default()).unwrap();
    assert_eq!(list.why["rt_sigsuspend"], "base set: timing beside wait4");
    assert_eq!(list.why["pkey_free"], "base set: release beside pkey_alloc");
    assert_eq!(list.why["epoll_wait"], "base set: fallback beside epoll_pwait2");
    for name in ["pkey_free", "epoll_wait"] {
        assert_eq!(answer(&list.oci, name, 0, &[]), 0, "{name}");
    }
    assert!(!list.why.contains_key("readv") && !list.why.contains_key("munlock"));
}

#[test]
fn nothing_that_goes_with_a_call_is_more_than_dockers_default() {
    let (_, default) = docker_default(&[]);
    let mut added = BTreeSet::new();
    for (_, name) in Arch::X86_64.calls() {
        let list =
            allowlist(&profile("x86_64", &[(name, kind::CALL, "start")]), &Policy::default());
        let why = list.unwrap().why.into_iter();
        added.extend(why.filter(|(_, why)| why.contains(" beside ")).map(|(name, _)| name));
    }
    assert!(added.len() > 7, "{added:?}");
    for name in added {
        assert_eq!(answer(&default, &name, 0, &[]), 0, "{name}");
    }
}

#[test]
fn allow_goes_further_and_must_name_a_call() {
    let recorded = profile("x86_64", &[("read", kind::CALL, "start")]);
    let allow = |names: &[&str]| {
        let allow = names.iter().map(|n| (*n).to_owned()).collect();
        allowlist(&recorded, &Policy { allow, ..Policy::default() })
    };
    let list = allow(&["mount", "clone3", "io_uring_setup"]).unwrap();
    for name in ["mount", "clone3", "io_uring_setup"] {
        assert_eq!(list.why[name], "--allow");
        assert_eq!(answer(&list.docker, name, 0, &DEFAULT_CAPS), 0, "{name}");
        assert_eq!(answer(&list.oci, name, 0, &[]), 0, "{name}");
    }
    assert!(matches!(allow(&["no_such_call"]), Err(SeccompError::UnknownCall(_))));
}

#[test]
fn a_capability_that_docker_asks_for_is_asked_for() {
    let mut recorded = profile("x86_64", &[("mount", kind::CALL, "start")]);
    let list = allowlist(&recorded, &Policy::default()).unwrap();
    assert_eq!(answer(&list.docker, "mount", 0, &DEFAULT_CAPS), 1);
    assert_eq!(answer(&list.docker, "mount", 0, &["CAP_SYS_ADMIN"]), 0);
    assert_eq!(answer(&list.oci, "mount", 0, &[]), 1);
    // A run that had the capability says so, and the flat form follows.
    let mut run = record(true);
    run.extra.insert("capabilities".into(), json!(["CAP_SYS_ADMIN"]));
    recorded.runs.insert(run.id(), run);
    let list = allowlist(&recorded, &Policy::default()).unwrap();
    assert_eq!(answer(&list.oci, "mount", 0, &[]), 0);
    assert_eq!(list.why["mount"], "recorded");
}

#[test]
fn compat_architectures_only_if_recorded() {
    let native = profile("x86_64", &[("read", kind::CALL, "start")]);
    let list = allowlist(&native, &Policy::default()).unwrap();
    assert_eq!(list.docker["architectures"], json!(["SCMP_ARCH_X86_64"]));
    let mut both = native.clone();
    both.syscalls.extend(profile("x86", &[("socketcall", kind::CALL, "start")]).syscalls);
    let list = allowlist(&both, &Policy::default()).unwrap();
    assert_eq!(list.oci["architectures"], json!(["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]));
    assert_eq!(answer(&list.oci, "socketcall", 0, &[]), 0);
    assert!(matches!(
        allowlist(&profile("x86", &[]), &Policy::default()),
        Err(SeccompError::NothingRecorded(_))
    ));
}

#[test]
fn an_incomplete_profile_is_marked_in_both_forms() {
    let complete = profile("x86_64", &[("read", kind::CALL, "start")]);
    let mut lossy = complete.clone();
    let run = record(false);
    lossy.runs.insert(run.id(), run);
    for (profile, want) in [(complete, false), (lossy, true)] {
        let list = allowlist(&profile, &Policy::default()).unwrap();
        for filter in [list.docker, list.oci] {
            assert_eq!(filter.to_string().contains("INCOMPLETE"), want);
        }
    }
}
