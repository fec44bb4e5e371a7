//! What a specification cannot have in a user namespace, and what takes its place.

use serde_json::{Value, json};

use super::user::Identity;
use super::{RunOptions, RuntimeError};
use crate::sys::userns::{self, IdMap};

/// The ids of the user namespace that slim is root of.
#[derive(Debug, Clone)]
pub struct Ids {
    users: IdMap,
    groups: IdMap,
    /// Supplementary groups can be had.
    setgroups: bool,
}

impl Ids {
    /// `None` in the initial namespace, where everything exists.
    pub fn here() -> Option<Self> {
        let (users, groups) = (IdMap::users(), IdMap::groups());
        let here = || Self { users, groups, setgroups: !userns::setgroups_denied() };
        userns::inside().then(here)
    }

    /// Takes away groups that cannot be had, with a warning.
    ///
    /// # Errors
    /// If the user or its group does not exist here.
    pub fn fit(&self, who: &mut Identity, warnings: &mut Vec<String>) -> Result<(), RuntimeError> {
        for (kind, id, map) in [("user", who.uid, &self.users), ("group", who.gid, &self.groups)] {
            if !map.has(id) {
                return Err(RuntimeError::Host {
                    what: format!("the container's {kind} {id}"),
                    why: format!("slim runs without root and has the ids 0 to {}", last(map)),
                    way_out: "give the user more subordinate ids (usermod --add-subuids and \
                              --add-subgids, with the package uidmap), or run slim as root"
                        .to_owned(),
                });
            }
        }
        let gid = who.gid;
        let kept = |group: &u32| self.setgroups && self.groups.has(*group);
        let lost: Vec<u32> =
            who.groups.iter().copied().filter(|group| *group != gid && !kept(group)).collect();
        if !lost.is_empty() {
            warnings.push(format!(
                "the container's user is not in its groups {lost:?}: they do not exist without root"
            ));
        }
        who.groups.retain(kept);
        Ok(())
    }

    /// `net.ipv4.ping_group_range`: all groups there are.
    pub fn ping_groups(&self) -> String {
        format!("0 {}", last(&self.groups).min(i32::MAX as u64))
    }

    /// Replaces mounts that only the host's root can make.
    pub fn mounts(&self, usual: &mut Vec<Value>, own_network: bool) {
        // There is no cgroup of the container's to show, and the host's are not its.
        usual.retain(|mount| mount["type"] != "cgroup");
        for mount in usual {
            match mount["type"].as_str() {
                // devpts refuses a group that it cannot give files to.
                Some("devpts") if !self.groups.has(5) => drop_option(mount, "gid=5"),
                // A sysfs belongs to a network namespace; the host's cannot be mounted anew.
                Some("sysfs") if !own_network => {
                    let options = ["rbind", "nosuid", "noexec", "nodev", "ro"];
                    *mount = json!({ "destination": "/sys", "type": "bind", "source": "/sys",
                                     "options": options });
                }
                _ => {}
            }
        }
    }
}

fn last(map: &IdMap) -> u64 {
    map.contiguous().saturating_sub(1)
}

fn drop_option(mount: &mut Value, word: &str) {
    if let Some(options) = mount["options"].as_array_mut() {
        options.retain(|option| option != word);
    }
}

/// Limits are the cgroup's, which a user has none of.
///
/// # Errors
/// For the first one that was asked for.
pub fn refuse_limits(options: &RunOptions) -> Result<(), RuntimeError> {
    let asked = [
        ("--memory", options.memory.is_some_and(|bytes| bytes > 0)),
        ("--cpus", options.cpus.is_some_and(|cpus| cpus != 0.0)),
        ("--pids-limit", options.pids_limit.is_some_and(|limit| limit > 0)),
    ];
    let Some((option, _)) = asked.into_iter().find(|(_, given)| *given) else { return Ok(()) };
    Err(RuntimeError::Host {
        what: option.to_owned(),
        why: "limits are cgroups', and slim runs without root and so without any".to_owned(),
        way_out: "leave it out, use --ulimit, or run slim as root".to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(users: &str, setgroups: bool) -> Ids {
        Ids { users: IdMap::parse(users), groups: IdMap::parse(users), setgroups }
    }

    fn who(uid: u32, groups: &[u32]) -> Identity {
        Identity { uid, gid: uid, groups: groups.to_vec(), home: "/".into() }
    }

    #[test]
    fn an_id_that_does_not_exist_is_the_hosts_lack() {
        let (one, mut warnings) = (ids("0 1000 1", false), Vec::new());
        let error = one.fit(&mut who(999, &[999]), &mut warnings).expect_err("no such id");
        assert!(
            matches!(&error, RuntimeError::Host { why, .. } if why.ends_with("0 to 0")),
            "{error}"
        );
        let mut root = who(0, &[0]);
        one.fit(&mut root, &mut warnings).expect("root exists");
        assert_eq!((root.groups.len(), warnings.len()), (0, 0));
        one.fit(&mut who(0, &[0, 4]), &mut warnings).expect("root exists");
        assert!(warnings[0].contains("[4]"), "{warnings:?}");
        let many = ids("0 1000 1\n1 100000 65536", true);
        let mut app = who(999, &[999, 4, 70_000]);
        many.fit(&mut app, &mut warnings).expect("it exists");
        assert_eq!(app.groups, [999, 4]);
        assert_eq!(many.ping_groups(), "0 65536");
    }

    #[test]
    fn what_only_root_can_mount_is_replaced() {
        let mut usual = super::super::mounts::usual(None);
        ids("0 1000 1", false).mounts(&mut usual, false);
        let text = serde_json::to_string(&usual).expect("JSON");
        assert!(!text.contains("gid=5") && !text.contains("cgroup"), "{text}");
        assert!(text.contains(r#""type":"bind","source":"/sys""#), "{text}");
        let mut usual = super::super::mounts::usual(None);
        ids("0 1000 1\n1 100000 65536", true).mounts(&mut usual, true);
        let text = serde_json::to_string(&usual).expect("JSON");
        assert!(text.contains("gid=5") && text.contains(r#""type":"sysfs""#), "{text}");
    }

    #[test]
    fn limits_are_refused_by_name() {
        let options = RunOptions { pids_limit: Some(10), ..RunOptions::default() };
        let error = refuse_limits(&options).expect_err("no cgroup");
        assert!(error.to_string().starts_with("--pids-limit: "), "{error}");
        refuse_limits(&RunOptions { pids_limit: Some(-1), ..RunOptions::default() }).expect("none");
    }
}
