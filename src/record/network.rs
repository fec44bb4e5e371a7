//! Socket addresses and capabilities as profiles name them.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::gather::AddressUse;
use crate::model::escape;
use crate::model::profile::kind;

/// An address, and what a call did with it.
pub struct Address {
    pub text: String,
    pub what: &'static str,
}

/// `tcp 0.0.0.0:80`, `udp [::1]:53`, `unix @name` (unix(7), abstract sockets); `None` for an address
/// that makes no sense.
pub fn address(call: &str, used: &AddressUse) -> Option<Address> {
    let raw = &used.address;
    let protocol = match (used.kind, used.protocol) {
        (1, 0 | 6) => "tcp".to_owned(),
        (2, 0 | 17) => "udp".to_owned(),
        (kind, protocol) => format!("type={kind},protocol={protocol}"),
    };
    let port = || Some(u16::from_be_bytes(raw.get(2..4)?.try_into().ok()?));
    let text = match u16::from_ne_bytes(raw.get(..2)?.try_into().ok()?) {
        1 => format!("unix @{}", escape(raw.get(3..)?)),
        2 => {
            let ip = Ipv4Addr::from(<[u8; 4]>::try_from(raw.get(4..8)?).ok()?);
            format!("{protocol} {ip}:{}", port()?)
        }
        10 => {
            let ip = Ipv6Addr::from(<[u8; 16]>::try_from(raw.get(8..24)?).ok()?);
            format!("{protocol} [{ip}]:{}", port()?)
        }
        _ => return None,
    };
    let what = match call {
        "bind" => kind::BIND,
        "listen" => kind::LISTEN,
        "connect" => kind::CONNECT,
        // socketcall(2) does any of them
        "socketcall" => kind::SOCKET,
        _ => kind::SEND,
    };
    Some(Address { text, what })
}

/// capabilities(7), in the order of their numbers (linux/capability.h).
const CAPABILITIES: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// A capability's name; a number that this version has no name for as `CAP_41`.
pub fn capability(number: u64) -> String {
    let known = usize::try_from(number).ok().and_then(|at| CAPABILITIES.get(at));
    known.map_or_else(|| format!("CAP_{number}"), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::Phase;
    use crate::record::gather::By;

    #[test]
    fn addresses_read_as_people_write_them() {
        let used = |kind, address: &[u8]| AddressUse {
            arch: 0,
            number: 0,
            result: 0,
            kind,
            protocol: 0,
            address: address.into(),
            by: By::nobody(Phase::Start),
        };
        let text = |kind, raw: &[u8]| address("bind", &used(kind, raw)).map(|a| a.text);
        assert_eq!(text(1, &[2, 0, 0, 80, 10, 0, 0, 1]).as_deref(), Some("tcp 10.0.0.1:80"));
        let mut six = [0; 28];
        (six[0], six[3], six[23]) = (10, 53, 1);
        assert_eq!(text(2, &six).as_deref(), Some("udp [::1]:53"));
        assert_eq!(text(1, b"\x01\0\0name").as_deref(), Some("unix @name"));
        assert_eq!(text(1, &[2, 0, 0]), None);
        assert_eq!(capability(0), "CAP_CHOWN");
        assert_eq!(capability(40), "CAP_CHECKPOINT_RESTORE");
        assert_eq!(capability(63), "CAP_63");
    }
}
