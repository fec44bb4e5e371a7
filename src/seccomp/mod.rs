//! System calls into filters: Docker's default, the emitted allowlist, Docker and OCI JSON. Pure.
//!
//! [`table`] holds Docker's default, [`base`] what runtimes need, [`filter`] the JSON. What is
//! allowed is what was recorded and the base sets, as far as Docker's default goes and under its
//! conditions; `--allow` alone goes further.

mod base;
mod filter;
mod judge;
mod read;
mod table;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::iter;

use serde_json::Value;

use crate::model::profile::kind;
use crate::model::{Arch, Digest, Policy, Profile};
pub use base::beside;
use filter::{Action, Rule, When};
pub use judge::{Answer, Judge};
pub use read::{missing_calls, parse_filter};
use table::{Comparison, DEFAULT_CAPS, DOCKER, ENOSYS, EPERM, Verdict, complement};
pub use watch::Watch;

/// Why no filter could be made.
#[derive(Debug, thiserror::Error)]
pub enum SeccompError {
    #[error("--allow {0:?} names no system call known here; names are as in `man 2 syscalls`")]
    UnknownCall(String),
    #[error(
        "the profile has no system calls of {0}: it was made with --recorder none or for another \
         platform; trace the image again"
    )]
    NothingRecorded(String),
    #[error("no seccomp filter: {0}; give a file as slim, Docker or an OCI runtime has it")]
    NotAFilter(String),
}

/// An allowlist with the reason of each name.
#[derive(Debug, Clone)]
pub struct Allowlist {
    pub docker: Value,
    pub oci: Value,
    /// Name → `recorded`, `base set: crun 1.8.1, runc 1.1.5`, `base set: timing beside wait4`,
    /// `--allow`.
    pub why: BTreeMap<String, String>,
}

const RECORDED: &str = "recorded";
const ALLOW: &str = "--allow";
/// In every output of an incomplete profile.
const INCOMPLETE: &str = "INCOMPLETE: the recording lost events, calls may be missing here";

/// The allowlist for what `profile` recorded plus the measured base sets, never wider than Docker's
/// default but for `policy.allow`.
///
/// The flat form holds for the capabilities that the traced runs had: those that a run names in its
/// record (`capabilities`, a list of `CAP_…`), Docker's default ones where it names none; in Docker's form the engine decides when a container
/// starts, so calls that a capability gives are there under that condition.
pub fn allowlist(profile: &Profile, policy: &Policy) -> Result<Allowlist, SeccompError> {
    let native = filter::native(&profile.image.platform);
    let recorded = recorded(profile, native);
    if recorded.is_empty() {
        return Err(SeccompError::NothingRecorded(native.to_string()));
    }
    let compat = native.compat().map(|arch| (arch, self::recorded(profile, arch)));
    let compat = compat.filter(|(_, names)| !names.is_empty());
    let mut arches = vec![native];
    let mut why: BTreeMap<String, String> = base::BASE
        .iter()
        .filter(|(name, _)| native.call_number(name).is_some())
        .map(|(name, label)| (name.clone(), label.clone()))
        .collect();
    if runs_hooks_inside(profile) {
        let known = |(name, _): &(&String, &String)| native.call_number(name).is_some();
        why.extend(base::HOOKS.iter().filter(known).map(|(name, why)| (name.clone(), why.clone())));
    }
    for names in iter::once(&recorded).chain(compat.iter().map(|(_, names)| names)) {
        for (name, label) in beside(names) {
            why.entry(name).or_insert(label);
        }
    }
    let label = |name: String, why: &str| (name, why.to_owned());
    why.extend(recorded.into_iter().map(|name| label(name, RECORDED)));
    if let Some((arch, names)) = compat {
        arches.push(arch);
        why.extend(names.into_iter().map(|name| label(name, RECORDED)));
    }
    for name in &policy.allow {
        let known = |arch: Option<Arch>| arch.is_some_and(|a| a.call_number(name).is_some());
        if !known(Some(native)) && !known(native.compat()) {
            return Err(SeccompError::UnknownCall(name.clone()));
        }
        why.insert(name.clone(), ALLOW.to_owned());
    }
    let default: Vec<String> = DEFAULT_CAPS.map(str::to_owned).into();
    let granted = granted(profile, &default);
    let note = if profile.is_complete() { "" } else { INCOMPLETE };
    let scmp: Vec<&str> = arches.iter().map(|arch| arch.scmp()).collect();
    let flat = Plan { arches: &arches, caps: &granted, docker: false }.rules(&why, note);
    let docker = Plan { arches: &arches, caps: &default, docker: true }.rules(&why, note);
    let allowed: BTreeSet<&String> =
        flat.iter().filter(|r| r.action == Action::Allow).flat_map(|r| &r.names).collect();
    why.retain(|name, _| allowed.contains(name));
    Ok(Allowlist {
        docker: filter::filter(&scmp, &docker, true),
        oci: filter::filter(&scmp, &flat, false),
        why,
    })
}

/// Refuses an `--allow` that names no call of any architecture, before something is run for it.
///
/// # Errors
/// With the first such name.
pub fn check_allow(policy: &Policy) -> Result<(), SeccompError> {
    let native = Arch::NATIVE;
    let arches: Vec<Arch> = [native].into_iter().chain(native.compat()).collect();
    let known = |name: &str| arches.iter().any(|arch| arch.call_number(name).is_some());
    let unknown = policy.allow.iter().find(|name| !known(name));
    unknown.map_or(Ok(()), |name| Err(SeccompError::UnknownCall(name.clone())))
}

/// Docker's default filter for a container with `caps` (`CAP_…`), flat, as `linux.seccomp` of a
/// runtime configuration. Returns it with its name (`docker-default/28.5.2`).
///
/// What it refuses it refuses with EPERM, and a call too new for libseccomp's tables with ENOSYS, as
/// runc does for Docker ("ENOSYS stub", runc 1.0.0-rc94): libcontainer and crun have no such stub.
pub fn docker_default(caps: &[String]) -> (String, Value) {
    let native = Arch::NATIVE;
    let arches: Vec<Arch> = iter::once(native).chain(native.compat()).collect();
    let mut scmp: Vec<&str> = arches.iter().map(|arch| arch.scmp()).collect();
    if native == Arch::X86_64 {
        scmp.push(filter::X32);
    }
    let names = known(&arches);
    let mut rules = Vec::new();
    let (mut allow, mut eperm, mut enosys) = (Vec::new(), Vec::new(), Vec::new());
    for name in names {
        match DOCKER.verdict(native, &name, caps) {
            Verdict::Allowed => allow.push(name),
            Verdict::AllowedIf(any) => rules.extend(conditional(&name, &any, "")),
            Verdict::Refused(_) if name != "clone3" => eperm.push(name),
            Verdict::Refused(_) => enosys.push(name),
        }
    }
    rules.insert(0, Rule::new(Action::Allow, allow, ""));
    rules.push(Rule::new(Action::Errno(EPERM), eperm, ""));
    rules.push(Rule::new(Action::Errno(ENOSYS), enosys, ""));
    (format!("docker-default/{}", DOCKER.version), filter::filter(&scmp, &rules, false))
}

/// The calls of `arch` that traced runs made, not counting the runtime's before the entrypoint.
fn recorded(profile: &Profile, arch: Arch) -> BTreeSet<String> {
    let is_trace = |run: &Digest| profile.runs.get(run).is_none_or(|r| r.purpose != "verify");
    let calls = profile.syscalls.get(arch.name()).into_iter().flatten();
    let made = |access: &crate::model::profile::Access| {
        let runs = access.get(kind::CALL).into_iter().flatten();
        runs.into_iter().any(|(run, by)| is_trace(run) && !by.is_runtime())
    };
    // An unknown number has no name that a filter could hold; the run is incomplete then.
    calls
        .filter(|(name, all)| arch.call_number(name).is_some() && all.values().any(made))
        .map(|(name, _)| name.clone())
        .collect()
}

/// Whether a traced run had a hook that its runtime starts under the container's filter.
fn runs_hooks_inside(profile: &Profile) -> bool {
    let traced = profile.runs.values().filter(|run| run.purpose != "verify");
    let hooks = traced.filter_map(|run| run.extra.get("hooks")?.as_array()).flatten();
    let mut stages = hooks.filter_map(|hook| hook.get("stages")?.as_array()).flatten();
    stages.any(|stage| stage == "startContainer")
}

fn granted(profile: &Profile, default: &[String]) -> Vec<String> {
    let mut names: BTreeSet<String> = BTreeSet::new();
    for run in profile.runs.values().filter(|run| run.purpose != "verify") {
        match run.extra.get("capabilities").and_then(Value::as_array) {
            Some(list) => names.extend(list.iter().filter_map(Value::as_str).map(str::to_owned)),
            None => names.extend(default.iter().cloned()),
        }
    }
    names.into_iter().collect()
}

/// Every call of these architectures, sorted.
fn known(arches: &[Arch]) -> BTreeSet<String> {
    arches.iter().flat_map(|arch| arch.calls()).map(|(_, name)| name.to_owned()).collect()
}

/// How rules are made from names.
struct Plan<'a> {
    arches: &'a [Arch],
    caps: &'a [String],
    docker: bool,
}

impl Plan<'_> {
    fn rules(&self, why: &BTreeMap<String, String>, note: &str) -> Vec<Rule> {
        let mut plain: BTreeMap<(&str, Option<&str>), Vec<String>> = BTreeMap::new();
        let (mut special, mut refused) = (Vec::new(), known(self.arches));
        // Calls that Docker allows to some containers only: refused for all others.
        let mut partly: BTreeMap<Vec<String>, Vec<String>> = BTreeMap::new();
        for (name, why) in why {
            // What a capability gives, Docker's form leaves to the engine, default ones included.
            let caps = if self.docker { &[] } else { self.caps };
            let verdict = DOCKER.verdict(self.arches[0], name, caps);
            if why == ALLOW || (verdict == Verdict::Allowed && name != "clone3") {
                refused.remove(name);
                plain.entry((why, DOCKER.kernel(name))).or_default().push(name.clone());
            } else if let Verdict::AllowedIf(any) = verdict {
                refused.remove(name);
                let mut rules = conditional(name, &any, why);
                if name == "socket" && self.arches.contains(&Arch::X86) {
                    // There it may also come as a socketcall, whose arguments no filter sees: libseccomp
                    // makes one rule for that of both, and refuses it. The default's ENOSYS is left.
                    rules.retain(|rule| rule.action == Action::Allow);
                }
                special.extend(rules);
            } else if self.docker && name != "clone3" {
                let caps: Vec<String> = DOCKER.capabilities(name).map(str::to_owned).collect();
                for cap in &caps {
                    let mut rule = Rule::new(Action::Allow, vec![name.clone()], why.as_str());
                    rule.when.capability = Some(cap.clone());
                    special.push(rule);
                }
                if !caps.is_empty() && refused.remove(name) {
                    partly.entry(caps).or_default().push(name.clone());
                }
            }
        }
        let mut rules: Vec<Rule> = plain
            .into_iter()
            .map(|((why, kernel), names)| {
                let mut rule = Rule::new(Action::Allow, names, why);
                rule.when.kernel = kernel.map(str::to_owned);
                rule
            })
            .collect();
        rules.extend(special);
        for (caps, names) in partly {
            let mut rule = Rule::new(Action::Errno(EPERM), names, ON_PURPOSE);
            rule.when = When { unless: caps, ..When::default() };
            rules.push(rule);
        }
        rules.extend(self.refusals(refused));
        if let (false, Some(first)) = (note.is_empty(), rules.first_mut()) {
            first.comment = format!("{note}; {}", first.comment);
        }
        rules
    }

    /// EPERM for what Docker refuses on purpose, ENOSYS for all else.
    fn refusals(&self, names: BTreeSet<String>) -> [Rule; 2] {
        let on_purpose = |name: &String| {
            let verdict = DOCKER.verdict(self.arches[0], name, self.caps);
            verdict == Verdict::Refused(EPERM)
        };
        let (eperm, enosys): (Vec<String>, Vec<String>) = names.into_iter().partition(on_purpose);
        [
            Rule::new(Action::Errno(EPERM), eperm, ON_PURPOSE),
            Rule::new(
                Action::Errno(ENOSYS),
                enosys,
                "not used: answered as if the kernel had none",
            ),
        ]
    }
}

const ON_PURPOSE: &str = "refused on purpose by Docker's default";

/// Docker's conditions for a call, and EPERM where they do not hold.
fn conditional(name: &str, any: &[Comparison], why: &str) -> Vec<Rule> {
    let rule = |action, comparison: &Comparison, why: &str| {
        let mut rule = Rule::new(action, vec![name.to_owned()], why);
        rule.comparison = Some(*comparison);
        rule
    };
    let refusal = if why.is_empty() { "" } else { ON_PURPOSE };
    let allow = any.iter().map(|c| rule(Action::Allow, c, why));
    let refuse = complement(any);
    allow.chain(refuse.iter().map(|c| rule(Action::Errno(EPERM), c, refusal))).collect()
}

#[cfg(test)]
mod tests;
