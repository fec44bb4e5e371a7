//! /etc/hosts, /etc/hostname and /etc/resolv.conf of a container.

use std::fmt::Write;
use std::net::IpAddr;
use std::path::Path;

use serde_json::{Value, json};

use super::SpecInput;
use crate::runtime::RuntimeError;

/// Writes the three files below `files_dir` and returns the mounts that put them in place.
pub fn write(input: &SpecInput<'_>, hostname: &str) -> Result<Vec<Value>, RuntimeError> {
    let extra = extra_hosts(&input.options.add_host, input.gateway_ip)?;
    let ip = input.container_ip.map(|ip| ip.to_string()).unwrap_or_default();
    let hosts = match input.netns {
        None => std::fs::read_to_string("/etc/hosts").unwrap_or_default() + &extra,
        Some(_) if ip.is_empty() => standard_hosts() + &extra,
        Some(_) => standard_hosts() + &extra + &format!("{ip}\t{hostname}\n"),
    };
    let resolv = match input.gateway_ip {
        Some(gateway) => format!("nameserver {gateway}\noptions ndots:0\n"),
        None => std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default(),
    };
    let name = format!("{hostname}\n");
    let all = [("resolv.conf", resolv), ("hostname", name), ("hosts", hosts)];
    all.into_iter().map(|(file, text)| place(input.files_dir, file, &text)).collect()
}

fn place(dir: &Path, file: &str, text: &str) -> Result<Value, RuntimeError> {
    let path = dir.join(file);
    let write = std::fs::create_dir_all(dir).and_then(|()| std::fs::write(&path, text));
    write.map_err(|source| RuntimeError::Io {
        what: format!("cannot write {}", path.display()),
        source,
    })?;
    Ok(json!({
        "destination": format!("/etc/{file}"),
        "type": "bind",
        "source": path.to_string_lossy(),
        "options": ["rbind", "rprivate"],
    }))
}

/// As Docker writes it; without IPv6 names where the kernel has no IPv6, for a name that resolves to
/// an address that cannot be bound breaks servers.
fn standard_hosts() -> String {
    let six = "::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
               ff00::0\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n";
    let have = Path::new("/proc/net/if_inet6").exists();
    format!("127.0.0.1\tlocalhost\n{}", if have { six } else { "" })
}

/// Lines for `--add-host HOST:IP`; `host-gateway` is the gateway.
fn extra_hosts(add: &[String], gateway: Option<IpAddr>) -> Result<String, RuntimeError> {
    let mut lines = String::new();
    for text in add {
        let no = |why: &str| RuntimeError::Option {
            option: "--add-host".to_owned(),
            value: text.clone(),
            why: why.to_owned(),
        };
        let pair = text.split_once([':', '=']).filter(|(host, _)| !host.is_empty());
        let (host, address) = pair.ok_or_else(|| no("want HOST:IP"))?;
        let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
        let address = match address {
            "host-gateway" => gateway.unwrap_or(IpAddr::from([127, 0, 0, 1])),
            _ => bare.unwrap_or(address).parse().map_err(|_| no("that is no IP address"))?,
        };
        if host.contains(char::is_whitespace) {
            return Err(no("a host name has no spaces"));
        }
        let _ = writeln!(lines, "{address}\t{host}"); // writing to a string cannot fail
    }
    Ok(lines)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_hosts_become_lines() {
        let add = ["db:10.0.0.1", "six:::1", "br:[fd00::1]", "gw:host-gateway", "eq=1.2.3.4"];
        let add = add.map(str::to_owned);
        let gateway = Some(IpAddr::from([172, 17, 0, 1]));
        let lines = extra_hosts(&add, gateway).expect("lines");
        let want = "10.0.0.1\tdb\n::1\tsix\nfd00::1\tbr\n172.17.0.1\tgw\n1.2.3.4\teq\n";
        assert_eq!(lines, want);
        for bad in ["db", ":1.2.3.4", "db:", "db:name", "a b:1.2.3.4"] {
            assert!(extra_hosts(&[bad.to_owned()], gateway).is_err(), "{bad}");
        }
    }
}
