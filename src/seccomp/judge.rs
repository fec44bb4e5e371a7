//! What a filter says to one call, decided outside the kernel.
//!
//! A recorder that is notified of every call would not hear of those that the container's filter
//! refuses (ERRNO outranks USER_NOTIF, seccomp(2)). So it answers in the filter's stead. That is as
//! binding: a filter sees nothing but the registers that are notified.

use std::collections::HashMap;

use serde_json::Value;

use super::table::EPERM;
use super::watch::{CLONE, PLAIN_CLONE};
use crate::model::Arch;

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    Allow,
    /// It fails with this errno.
    Fail(u32),
    /// Its process is killed.
    Kill,
}

/// A filter, flat as `linux.seccomp` of a runtime configuration has it.
#[derive(Debug, Clone)]
pub struct Judge {
    default: Answer,
    rules: HashMap<String, Vec<Rule>>,
}

#[derive(Debug, Clone)]
struct Rule {
    answer: Answer,
    conditions: Vec<Condition>,
}

/// `args` of a rule.
#[derive(Debug, Clone)]
struct Condition {
    index: usize,
    op: String,
    value: u64,
    value_two: u64,
}

impl Judge {
    /// Reads `linux.seccomp`; `None` is unconfined.
    pub fn of(filter: Option<&Value>) -> Self {
        let Some(filter) = filter else {
            return Self { default: Answer::Allow, rules: HashMap::new() };
        };
        let default = answer(&filter["defaultAction"], &filter["defaultErrnoRet"]);
        let mut rules: HashMap<String, Vec<Rule>> = HashMap::new();
        for rule in filter["syscalls"].as_array().into_iter().flatten() {
            let conditions: Vec<Condition> =
                rule["args"].as_array().into_iter().flatten().map(condition).collect();
            let answer = answer(&rule["action"], &rule["errnoRet"]);
            for name in rule["names"].as_array().into_iter().flatten().filter_map(Value::as_str) {
                let rule = Rule { answer, conditions: conditions.clone() };
                rules.entry(name.to_owned()).or_default().push(rule);
            }
        }
        Self { default, rules }
    }

    /// The answer to a call; where several rules match, the most permissive, as libseccomp has it for
    /// rules beside a default that refuses. A number without a name gets the default.
    pub fn answer(&self, arch: Arch, number: u32, args: &[u64; 6]) -> Answer {
        let rules = arch.call_name(number).and_then(|name| self.rules.get(name));
        let mut matching =
            rules.into_iter().flatten().filter(|rule| rule.matches(args)).map(|rule| rule.answer);
        let Some(first) = matching.next() else { return self.default };
        matching.fold(first, |best, next| if next == Answer::Allow { next } else { best })
    }

    /// True if every `clone` that makes no namespaces is allowed, so that nobody need be asked.
    pub fn allows_plain_clones(&self) -> bool {
        let Some(rules) = self.rules.get(CLONE) else { return self.default == Answer::Allow };
        let plain = |condition: &Condition| {
            let bits = condition.value & !u64::from(PLAIN_CLONE);
            let first = condition.index == 0 && condition.op == "SCMP_CMP_MASKED_EQ";
            first && bits == 0 && condition.value_two == 0
        };
        let allows = |rule: &&Rule| rule.answer == Answer::Allow;
        rules.iter().filter(allows).any(|rule| rule.conditions.iter().all(plain))
    }
}

impl Rule {
    fn matches(&self, args: &[u64; 6]) -> bool {
        self.conditions.iter().all(|condition| {
            let Some(&arg) = args.get(condition.index) else { return false };
            let value = condition.value;
            match condition.op.as_str() {
                "SCMP_CMP_NE" => arg != value,
                "SCMP_CMP_LT" => arg < value,
                "SCMP_CMP_LE" => arg <= value,
                "SCMP_CMP_GE" => arg >= value,
                "SCMP_CMP_GT" => arg > value,
                "SCMP_CMP_MASKED_EQ" => arg & value == condition.value_two,
                _ => arg == value,
            }
        })
    }
}

fn condition(arg: &Value) -> Condition {
    let number = |key: &str| arg[key].as_u64().unwrap_or(0);
    Condition {
        index: usize::try_from(number("index")).unwrap_or(usize::MAX),
        op: arg["op"].as_str().unwrap_or_default().to_owned(),
        value: number("value"),
        value_two: number("valueTwo"),
    }
}

fn answer(action: &Value, errno: &Value) -> Answer {
    match action.as_str() {
        Some("SCMP_ACT_ERRNO") => {
            let errno = errno.as_u64().and_then(|errno| u32::try_from(errno).ok());
            Answer::Fail(errno.unwrap_or(EPERM))
        }
        Some(
            "SCMP_ACT_KILL" | "SCMP_ACT_KILL_PROCESS" | "SCMP_ACT_KILL_THREAD" | "SCMP_ACT_TRAP",
        ) => Answer::Kill,
        _ => Answer::Allow,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn dockers_default_is_judged_as_the_kernel_would() {
        let (_, filter) =
            super::super::docker_default(&super::super::DEFAULT_CAPS.map(str::to_owned));
        let judge = Judge::of(Some(&filter));
        let judged = |name: &str, args: [u64; 6]| {
            judge.answer(Arch::NATIVE, Arch::NATIVE.call_number(name).unwrap(), &args)
        };
        for (name, first, want) in [
            ("read", 0, Answer::Allow),
            ("mount", 0, Answer::Fail(1)),
            ("clone", 0x11, Answer::Allow),
            ("clone", 0x1000_0000, Answer::Fail(1)), // CLONE_NEWUSER
            ("clone3", 0, Answer::Fail(38)),
            ("personality", 0, Answer::Allow),
            ("personality", 0x40000, Answer::Fail(1)), // ADDR_NO_RANDOMIZE
        ] {
            assert_eq!(judged(name, [first, 0, 0, 0, 0, 0]), want, "{name} {first:#x}");
        }
        assert_eq!(Judge::of(None).answer(Arch::NATIVE, 0, &[0; 6]), Answer::Allow);
        assert!(judge.allows_plain_clones() && Judge::of(None).allows_plain_clones());
    }

    #[test]
    fn a_rule_without_a_number_and_one_that_kills() {
        let judge = Judge::of(Some(&json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_KILL"}],
        })));
        let read = Arch::NATIVE.call_number("read").unwrap();
        assert_eq!(judge.answer(Arch::NATIVE, read, &[0; 6]), Answer::Kill);
        assert_eq!(judge.answer(Arch::NATIVE, 900, &[0; 6]), Answer::Fail(38));
        assert!(!judge.allows_plain_clones());
    }
}
