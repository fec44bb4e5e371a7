//! Whether a runtime can load a filter, before one fails to: libseccomp builds it here as it does there.

use std::str::FromStr;

use libseccomp::error::SeccompError;
use libseccomp::{
    ScmpAction, ScmpArch, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall,
};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompOperator, LinuxSyscall};
use serde_json::Value;

/// Builds `linux.seccomp` of a runtime configuration, for all architectures that it names, and loads
/// nothing.
///
/// # Errors
/// What is wrong with it, in words of `seccomp_rule_add(3)`: two rules that contradict each other, above all. What
/// looks different may do so, since `socket` and others are one call with a number on i386.
pub fn check_filter(filter: &Value) -> Result<(), String> {
    let filter: LinuxSeccomp =
        serde_json::from_value(filter.clone()).map_err(|error| error.to_string())?;
    let default = action(&filter.default_action().to_string(), filter.default_errno_ret())?;
    let mut context = ScmpFilterContext::new(default).map_err(failed("a filter"))?;
    for arch in filter.architectures().iter().flatten() {
        let name = arch.to_string();
        let arch = ScmpArch::from_str(&name).map_err(failed(&name))?;
        context.add_arch(arch).map_err(failed(&name))?;
    }
    for rule in filter.syscalls().iter().flatten() {
        let answer = action(&rule.action().to_string(), rule.errno_ret())?;
        if answer == default {
            continue; // as runtimes do: libseccomp takes no rule that changes nothing
        }
        let comparisons = comparisons(rule);
        // a name that this libseccomp does not know is left out there, too
        for name in rule.names() {
            let Ok(call) = ScmpSyscall::from_name(name) else { continue };
            let added = context.add_rule_conditional(answer, call, &comparisons);
            added.map_err(failed(&format!("the rule for {name}")))?;
        }
    }
    Ok(())
}

fn failed(what: &str) -> impl FnOnce(SeccompError) -> String {
    move |error| format!("{what}: {error}")
}

fn action(name: &str, errno: Option<u32>) -> Result<ScmpAction, String> {
    let errno = errno.map(|errno| i32::try_from(errno).unwrap_or(libc::EPERM));
    ScmpAction::from_str(name, errno.or(Some(libc::EPERM))).map_err(|error| error.to_string())
}

fn comparisons(rule: &LinuxSyscall) -> Vec<ScmpArgCompare> {
    let all = rule.args().iter().flatten().map(|arg| {
        let (value, two) = (arg.value(), arg.value_two().unwrap_or(0));
        let (op, datum) = match arg.op() {
            LinuxSeccompOperator::ScmpCmpNe => (ScmpCompareOp::NotEqual, value),
            LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, value),
            LinuxSeccompOperator::ScmpCmpLe => (ScmpCompareOp::LessOrEqual, value),
            LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, value),
            LinuxSeccompOperator::ScmpCmpGe => (ScmpCompareOp::GreaterEqual, value),
            LinuxSeccompOperator::ScmpCmpGt => (ScmpCompareOp::Greater, value),
            LinuxSeccompOperator::ScmpCmpMaskedEq => (ScmpCompareOp::MaskedEqual(value), two),
        };
        ScmpArgCompare::new(u32::try_from(arg.index()).unwrap_or(0), op, datum)
    });
    all.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn filter(arches: &[&str], rules: &Value) -> Value {
        json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "architectures": arches, "syscalls": rules,
        })
    }

    #[test]
    fn rules_that_contradict_each_other_on_one_architecture_are_found() {
        let vsock = |op: &str, action: &str| {
            json!({
                "names": ["socket"], "action": action, "errnoRet": 1,
                "args": [{ "index": 0, "value": 40, "op": op, "valueTwo": 0 }],
            })
        };
        let both =
            json!([vsock("SCMP_CMP_NE", "SCMP_ACT_ALLOW"), vsock("SCMP_CMP_EQ", "SCMP_ACT_ERRNO")]);
        let (native, with) = (["SCMP_ARCH_X86_64"], ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"]);
        check_filter(&filter(&native, &both)).unwrap();
        let why = check_filter(&filter(&with, &both)).unwrap_err();
        assert!(why.contains("the rule for socket"), "{why}");
        check_filter(&filter(&with, &json!([vsock("SCMP_CMP_NE", "SCMP_ACT_ALLOW")]))).unwrap();
        let same = json!([
            { "names": ["read"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38 },
            { "names": ["no such call"], "action": "SCMP_ACT_ALLOW" },
        ]);
        check_filter(&filter(&with, &same)).unwrap();
        check_filter(&json!({ "defaultAction": "SCMP_ACT_SING" })).unwrap_err();
        let (_, default) = crate::seccomp::docker_default(&[]);
        check_filter(&default).unwrap();
    }
}
