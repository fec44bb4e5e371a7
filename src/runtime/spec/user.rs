//! `USER` and `--user`: names and numbers looked up in the image's own files.

use std::path::Path;

use super::inside;
use crate::runtime::RuntimeError;

/// Who runs, as Docker works it out.
#[derive(Debug, PartialEq, Eq)]
pub struct Identity {
    pub uid: u32,
    pub gid: u32,
    /// The primary group first, as Docker has it since 20.10.18.
    pub groups: Vec<u32>,
    pub home: String,
}

/// passwd(5): the fields that matter here.
struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// group(5).
struct Group<'a> {
    name: &'a str,
    gid: u32,
    members: &'a str,
}

/// Looks up `user[:group]` in the root file system's /etc/passwd and /etc/group.
///
/// A number need not be known there, a name must. Supplementary groups are those that list the user,
/// and only if no group is asked for.
pub fn look_up(root: &Path, wanted: &str) -> Result<Identity, RuntimeError> {
    let passwd = inside::read(root, "/etc/passwd").unwrap_or_default();
    let group = inside::read(root, "/etc/group").unwrap_or_default();
    identify(wanted, &passwd, &group)
}

fn identify(wanted: &str, passwd: &str, group: &str) -> Result<Identity, RuntimeError> {
    let (user, asked) = wanted.split_once(':').unwrap_or((wanted, ""));
    let user = if user.is_empty() { "0" } else { user };
    let number = user.parse::<u32>().ok();
    let known = accounts(passwd).find(|known| known.name == user || Some(known.uid) == number);
    let (uid, mut gid, home) = match (&known, number) {
        (Some(known), _) => (known.uid, known.gid, known.home),
        (None, Some(number)) => (number, 0, ""),
        (None, None) => return Err(missing("user", user, "/etc/passwd")),
    };
    let mut more = Vec::new();
    if !asked.is_empty() {
        gid = find_group(asked, group)?;
    } else if let Some(known) = &known {
        let has = |entry: &Group<'_>| entry.members.split(',').any(|name| name == known.name);
        more.extend(groups(group).filter(has).map(|entry| entry.gid));
    }
    for id in [uid, gid] {
        if id > i32::MAX as u32 {
            let why = "user and group numbers end at 2147483647".to_owned();
            return Err(RuntimeError::Container { what: format!("user {wanted:?}"), why });
        }
    }
    more.retain(|id| *id != gid);
    more.insert(0, gid);
    let home = if home.is_empty() { "/" } else { home }.to_owned();
    Ok(Identity { uid, gid, groups: more, home })
}

fn find_group(asked: &str, text: &str) -> Result<u32, RuntimeError> {
    let number = asked.parse::<u32>().ok();
    let known = groups(text).find(|known| known.name == asked || Some(known.gid) == number);
    let gid = known.map(|known| known.gid).or(number);
    gid.ok_or_else(|| missing("group", asked, "/etc/group"))
}

fn missing(kind: &str, name: &str, file: &str) -> RuntimeError {
    let why = format!("no such name in the image's {file}; use a number or a name from it");
    RuntimeError::Container { what: format!("{kind} {name:?}"), why }
}

fn accounts(text: &str) -> impl Iterator<Item = Account<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, uid, gid, rest @ ..] = &fields[..] else { return None };
        let home = rest.get(1).copied().unwrap_or_default();
        Some(Account { name, uid: uid.parse().ok()?, gid: gid.parse().ok()?, home })
    })
}

fn groups(text: &str) -> impl Iterator<Item = Group<'_>> {
    text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.trim().split(':').collect();
        let [name, _, gid, rest @ ..] = &fields[..] else { return None };
        let members = rest.first().copied().unwrap_or_default();
        Some(Group { name, gid: gid.parse().ok()?, members })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:33:w:/var/www:/x\n\
                          7:x:77:77::/seven:\nhomeless:x:50:50::";
    const GROUP: &str = "root:x:0:\nwww:x:33:\nadm:x:4:root,www\ntty:x:5:www\nstaff:x:50:www";

    #[test]
    fn users_are_found_as_docker_finds_them() {
        for (wanted, uid, gid, groups, home) in [
            ("", 0, 0, &[0, 4][..], "/root"),
            ("root", 0, 0, &[0, 4], "/root"),
            ("www", 33, 33, &[33, 4, 5, 50], "/var/www"),
            ("33", 33, 33, &[33, 4, 5, 50], "/var/www"),
            ("www:tty", 33, 5, &[5], "/var/www"),
            ("www:1234", 33, 1234, &[1234], "/var/www"),
            (":tty", 0, 5, &[5], "/root"),
            ("7", 77, 77, &[77], "/seven"), // a name made of digits wins
            ("1000", 1000, 0, &[0], "/"),
            ("1000:1001", 1000, 1001, &[1001], "/"),
            ("homeless", 50, 50, &[50], "/"),
        ] {
            let got = identify(wanted, PASSWD, GROUP).expect(wanted);
            let want = Identity { uid, gid, groups: groups.to_vec(), home: home.into() };
            assert_eq!(got, want, "{wanted:?}");
        }
    }

    #[test]
    fn unknown_names_are_named() {
        for (wanted, start) in [
            ("nobody", "user \"nobody\": no such name in the image's /etc/passwd"),
            ("www:wheel", "group \"wheel\": no such name in the image's /etc/group"),
            ("3000000000", "user \"3000000000\": user and group numbers end"),
        ] {
            let error = identify(wanted, PASSWD, GROUP).expect_err(wanted).to_string();
            assert!(error.starts_with(start), "{error}");
        }
        assert!(identify("1:2", "", "").is_ok(), "numbers need no files");
    }
}
