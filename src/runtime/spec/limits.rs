//! Resource limits: Docker's defaults as far as the host allows them, and `--ulimit`.

use nix::sys::resource::{Resource, getrlimit};
use serde_json::{Value, json};

use super::caps;
use crate::runtime::RuntimeError;

const CAP_SYS_RESOURCE: u32 = 24;
const UNLIMITED: u64 = u64::MAX;

const KNOWN: [(&str, Resource); 16] = [
    ("as", Resource::RLIMIT_AS),
    ("core", Resource::RLIMIT_CORE),
    ("cpu", Resource::RLIMIT_CPU),
    ("data", Resource::RLIMIT_DATA),
    ("fsize", Resource::RLIMIT_FSIZE),
    ("locks", Resource::RLIMIT_LOCKS),
    ("memlock", Resource::RLIMIT_MEMLOCK),
    ("msgqueue", Resource::RLIMIT_MSGQUEUE),
    ("nice", Resource::RLIMIT_NICE),
    ("nofile", Resource::RLIMIT_NOFILE),
    ("nproc", Resource::RLIMIT_NPROC),
    ("rss", Resource::RLIMIT_RSS),
    ("rtprio", Resource::RLIMIT_RTPRIO),
    ("rttime", Resource::RLIMIT_RTTIME),
    ("sigpending", Resource::RLIMIT_SIGPENDING),
    ("stack", Resource::RLIMIT_STACK),
];

/// What containers get from a dockerd started by its systemd unit.
const DEFAULT: [(&str, u64); 3] =
    [("nofile", 1_048_576), ("nproc", UNLIMITED), ("core", UNLIMITED)];

/// The highest value slim may set for a resource.
fn ceiling(resource: Resource) -> u64 {
    let most = match resource {
        // Even with the capability (proc_sys_fs(5), nr_open).
        Resource::RLIMIT_NOFILE => std::fs::read_to_string("/proc/sys/fs/nr_open")
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(1_048_576),
        _ => UNLIMITED,
    };
    // The kernel asks the initial namespace for it.
    if caps::have(CAP_SYS_RESOURCE) && !crate::sys::userns::inside() {
        return most;
    }
    getrlimit(resource).map_or(most, |(_, hard)| hard.min(most))
}

/// `process.rlimits` and warnings about defaults that had to be lowered.
pub fn rlimits(ulimits: &[String]) -> Result<(Value, Vec<String>), RuntimeError> {
    rlimits_below(ulimits, ceiling)
}

fn rlimits_below(
    ulimits: &[String],
    ceiling: impl Fn(Resource) -> u64,
) -> Result<(Value, Vec<String>), RuntimeError> {
    let (mut list, mut warnings) = (Vec::new(), Vec::new());
    let mut asked: Vec<(&str, u64, u64)> = Vec::new();
    for text in ulimits {
        let limit = parse(text, &ceiling)?;
        asked.retain(|(name, ..)| *name != limit.0);
        asked.push(limit);
    }
    for (name, value) in DEFAULT {
        if asked.iter().any(|(given, ..)| *given == name) {
            continue;
        }
        let most = resource(name).map_or(UNLIMITED, &ceiling);
        if most < value {
            let wanted = if value == UNLIMITED { "unlimited".into() } else { value.to_string() };
            warnings.push(format!(
                "limit {name} is {most}, not Docker's {wanted}: the host allows no more"
            ));
        }
        asked.push((name, value.min(most), value.min(most)));
    }
    for (name, soft, hard) in asked {
        let kind = format!("RLIMIT_{}", name.to_uppercase());
        list.push(json!({ "type": kind, "hard": hard, "soft": soft }));
    }
    Ok((Value::Array(list), warnings))
}

fn resource(name: &str) -> Option<Resource> {
    KNOWN.iter().find(|(known, _)| *known == name).map(|(_, resource)| *resource)
}

/// `NAME=SOFT[:HARD]`; -1 is unlimited.
fn parse(
    text: &str,
    ceiling: impl Fn(Resource) -> u64,
) -> Result<(&'static str, u64, u64), RuntimeError> {
    let no = |why: &str| RuntimeError::Option {
        option: "--ulimit".to_owned(),
        value: text.to_owned(),
        why: why.to_owned(),
    };
    let form = "want NAME=SOFT[:HARD], as in nofile=1024:4096";
    let (name, values) = text.split_once('=').ok_or_else(|| no(form))?;
    let known = KNOWN.iter().find(|(known, _)| *known == name);
    let (name, resource) = known.ok_or_else(|| no("no such limit; see getrlimit(2)"))?;
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(UNLIMITED),
        _ => text.parse::<u64>().map_err(|_| no(form)),
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (number(soft)?, number(hard)?);
    if soft > hard {
        return Err(no("the soft limit is above the hard one"));
    }
    let most = ceiling(*resource);
    if hard > most {
        return Err(RuntimeError::Host {
            what: format!("--ulimit {text}"),
            why: format!("the host's hard limit for {name} is {most}, and slim may not raise it"),
            way_out: format!("use {name}={most} or less, or run slim with CAP_SYS_RESOURCE"),
        });
    }
    Ok((name, soft, hard))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(ulimits: &[&str], most: u64) -> Result<(Value, Vec<String>), RuntimeError> {
        let own: Vec<String> = ulimits.iter().map(|text| (*text).to_owned()).collect();
        rlimits_below(&own, |_| most)
    }

    #[test]
    fn defaults_are_lowered_with_a_warning() {
        let (list, warnings) = limits(&[], UNLIMITED).expect("defaults");
        assert_eq!(list[0], json!({"type": "RLIMIT_NOFILE", "hard": 1048576, "soft": 1048576}));
        assert_eq!(warnings, [""; 0]);
        let (list, warnings) = limits(&["core=0"], 4096).expect("lowered");
        assert_eq!(list[0], json!({"type": "RLIMIT_CORE", "hard": 0, "soft": 0}));
        assert_eq!(list[1]["hard"], 4096);
        assert_eq!(warnings.len(), 2, "{warnings:?}");
    }

    #[test]
    fn an_impossible_ulimit_is_the_hosts_fault_and_a_bad_one_the_users() {
        assert!(matches!(limits(&["nofile=8192"], 4096), Err(RuntimeError::Host { .. })));
        assert!(matches!(limits(&["nproc=-1"], 4096), Err(RuntimeError::Host { .. })));
        for bad in ["nofile", "nofile=", "nofile=2:1", "files=1", "nofile=1:x", "nofile=-2"] {
            let error = limits(&[bad], UNLIMITED).expect_err(bad);
            assert!(matches!(error, RuntimeError::Option { .. }), "{bad}: {error}");
        }
    }
}
