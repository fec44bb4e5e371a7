//! A filter as rules, and its two forms in JSON: Docker's, and the runtime specification's.

use serde_json::{Map, Value, json};

use super::table::{Comparison, ENOSYS};
use crate::model::Arch;

/// What a rule answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    Errno(u32),
}

/// Calls that are answered alike.
#[derive(Debug, Clone)]
pub struct Rule {
    pub names: Vec<String>,
    pub action: Action,
    /// At most one: several comparisons of one argument are several rules.
    pub comparison: Option<Comparison>,
    /// Why the rule is there. Docker's form has a field for it; the runtime specification has none
    /// and its readers pass over it.
    pub comment: String,
    /// Docker's form only: the rule counts under these conditions.
    pub when: When,
}

/// Conditions that Docker evaluates when a container starts.
#[derive(Debug, Clone, Default)]
pub struct When {
    pub capability: Option<String>,
    pub kernel: Option<String>,
    /// Not if the container has one of these.
    pub unless: Vec<String>,
}

impl Rule {
    pub fn new(action: Action, names: Vec<String>, comment: impl Into<String>) -> Self {
        let comment = comment.into();
        Self { names, action, comparison: None, comment, when: When::default() }
    }

    fn json(&self, docker: bool) -> Value {
        let mut rule = Map::new();
        rule.insert("names".into(), json!(self.names));
        match self.action {
            Action::Allow => rule.insert("action".into(), "SCMP_ACT_ALLOW".into()),
            Action::Errno(errno) => {
                rule.insert("action".into(), "SCMP_ACT_ERRNO".into());
                rule.insert("errnoRet".into(), errno.into())
            }
        };
        if let Some(c) = self.comparison {
            let mut arg = json!({"index": c.index, "value": c.value, "op": c.op.scmp()});
            // Written always: for MASKED_EQ it is the result, and crun wants the field.
            arg["valueTwo"] = c.value_two.into();
            rule.insert("args".into(), json!([arg]));
        }
        if !self.comment.is_empty() {
            rule.insert("comment".into(), self.comment.as_str().into());
        }
        if docker {
            let mut includes = Map::new();
            if let Some(cap) = &self.when.capability {
                includes.insert("caps".into(), json!([cap]));
            }
            if let Some(kernel) = &self.when.kernel {
                includes.insert("minKernel".into(), kernel.as_str().into());
            }
            if !includes.is_empty() {
                rule.insert("includes".into(), Value::Object(includes));
            }
            if !self.when.unless.is_empty() {
                rule.insert("excludes".into(), json!({"caps": self.when.unless}));
            }
        }
        Value::Object(rule)
    }
}

/// A whole filter: what no rule names answers ENOSYS.
///
/// The error is said twice, as default and by rules for the calls that are known: Docker 20.10 drops
/// `defaultErrnoRet` in silence.
pub fn filter(architectures: &[&str], rules: &[Rule], docker: bool) -> Value {
    let rules: Vec<Value> =
        rules.iter().filter(|r| !r.names.is_empty()).map(|rule| rule.json(docker)).collect();
    json!({
        "defaultAction": "SCMP_ACT_ERRNO",
        "defaultErrnoRet": ENOSYS,
        "architectures": architectures,
        "syscalls": rules,
    })
}

/// The names that seccomp JSON uses for x32, which shares the calls of x86-64.
pub const X32: &str = "SCMP_ARCH_X32";

/// The native architecture of `os/architecture[/variant]`; the host's where it is another one.
pub fn native(platform: &str) -> Arch {
    match platform.split('/').nth(1) {
        Some("amd64") => Arch::X86_64,
        Some("arm64") => Arch::Aarch64,
        Some("386") => Arch::X86,
        Some("arm") => Arch::Arm,
        _ => Arch::NATIVE,
    }
}
