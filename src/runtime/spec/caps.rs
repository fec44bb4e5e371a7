//! Docker's default capabilities, `--cap-add` and `--cap-drop`.

use crate::runtime::RuntimeError;

/// By number (linux/capability.h).
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What Docker leaves a container, by number.
const DEFAULT: [usize; 14] = [0, 1, 3, 4, 5, 6, 7, 8, 10, 13, 18, 27, 29, 31];

/// The names with `CAP_`, and warnings about defaults that this host cannot give.
///
/// `bounding` is slim's own bounding set as a bit mask: what lies outside cannot be handed on.
/// Rules as Docker's: `ALL` added is everything but the drops, `ALL` dropped is just what is added.
pub fn choose(
    add: &[String],
    drop: &[String],
    bounding: u64,
) -> Result<(Vec<String>, Vec<String>), RuntimeError> {
    let (add_all, add) = parse("--cap-add", add)?;
    let (drop_all, drop) = parse("--cap-drop", drop)?;
    let has = |number: usize| bounding & (1 << number) != 0;
    if let Some(number) = add.iter().find(|number| !has(**number)) {
        return Err(RuntimeError::Host {
            what: format!("--cap-add {}", NAMES[*number]),
            why: "slim does not have this capability itself".to_owned(),
            way_out: "run slim with it, or leave the option out".to_owned(),
        });
    }
    let wanted = |number: &usize| match (add_all, drop_all) {
        (true, _) => !drop.contains(number) || add.contains(number),
        (false, true) => add.contains(number),
        (false, false) => {
            add.contains(number) || (DEFAULT.contains(number) && !drop.contains(number))
        }
    };
    let (given, lacking): (Vec<usize>, Vec<usize>) =
        (0..NAMES.len()).filter(wanted).partition(|number| has(*number));
    let warn = |number: &usize| {
        format!("the container lacks CAP_{}: slim does not have it", NAMES[*number])
    };
    let warnings = lacking.iter().filter(|number| DEFAULT.contains(number)).map(warn).collect();
    Ok((given.into_iter().map(|number| format!("CAP_{}", NAMES[number])).collect(), warnings))
}

fn parse(option: &str, names: &[String]) -> Result<(bool, Vec<usize>), RuntimeError> {
    let (mut all, mut numbers) = (false, Vec::new());
    for name in names {
        let upper = name.to_uppercase();
        let short = upper.strip_prefix("CAP_").unwrap_or(&upper);
        match NAMES.iter().position(|known| *known == short) {
            Some(number) => numbers.push(number),
            None if short == "ALL" => all = true,
            None => {
                return Err(RuntimeError::Option {
                    option: option.to_owned(),
                    value: name.clone(),
                    why: "no such capability; see capabilities(7)".to_owned(),
                });
            }
        }
    }
    Ok((all, numbers))
}

/// Slim's own bounding set, `CapBnd` of proc_pid_status(5).
pub fn own_bounding() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapBnd:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(u64::MAX)
}

/// Whether slim holds the capability with this number now (`CapEff`).
pub fn have(number: u32) -> bool {
    effective_mask() & (1 << number) != 0
}

/// The capabilities that slim holds now, without `CAP_`.
pub fn effective() -> Vec<&'static str> {
    let mask = effective_mask();
    let held = NAMES.iter().enumerate().filter(|(number, _)| mask & (1 << number) != 0);
    held.map(|(_, name)| *name).collect()
}

fn effective_mask() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(add: &[&str], drop: &[&str]) -> Vec<String> {
        let own = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect::<Vec<_>>();
        choose(&own(add), &own(drop), u64::MAX).expect("names").0
    }

    #[test]
    fn adds_and_drops_combine_as_in_docker() {
        assert_eq!(chosen(&[], &[]).len(), 14);
        assert_eq!(chosen(&[], &["ALL"]), [""; 0]);
        assert_eq!(chosen(&["net_admin", "CAP_CHOWN"], &["all"]), ["CAP_CHOWN", "CAP_NET_ADMIN"]);
        assert_eq!(chosen(&["ALL"], &[]).len(), NAMES.len());
        assert_eq!(chosen(&["ALL"], &["SYS_ADMIN"]).len(), NAMES.len() - 1);
        assert!(!chosen(&[], &["NET_RAW"]).contains(&"CAP_NET_RAW".to_owned()));
    }

    #[test]
    fn what_cannot_be_is_refused_or_warned_about() {
        let names = ["NO_SUCH".to_owned()];
        let error = choose(&names, &[], u64::MAX).expect_err("unknown");
        assert!(matches!(error, RuntimeError::Option { option, .. } if option == "--cap-add"));
        let sys_admin = ["SYS_ADMIN".to_owned()];
        assert!(matches!(choose(&sys_admin, &[], 0), Err(RuntimeError::Host { .. })));
        let (given, warnings) = choose(&[], &[], !(1 << 27)).expect("defaults");
        assert_eq!((given.len(), warnings.len()), (13, 1));
        assert!(warnings[0].contains("CAP_MKNOD"));
    }
}
