//! slim as an ordinary user: it becomes root of a user namespace of its own.
//!
//! The process itself enters, while it has one thread: nothing is executed again, so pid, terminal,
//! signals and exit code stay what they are, and the cell dies with slim as ever. A fork stays outside
//! ([`outside`]); the script runs from there, as the user, with the user's groups and programs.

mod ids;
pub(super) mod outside;

use std::sync::OnceLock;

use super::RuntimeError;
use crate::sys::userns;
use outside::Outside;

/// What entering came to.
struct Entered {
    outside: Outside,
    warnings: Vec<String>,
}

static ENTERED: OnceLock<Entered> = OnceLock::new();

/// Makes this process root of a new user namespace, unless it is root already: the user is 0 in it,
/// and the user's subordinate ids follow. Without any, the user is alone there, and a warning says
/// what that costs.
///
/// To be called before this process has a second thread.
///
/// # Errors
/// If the host does not let users make namespaces, or refuses the ids that its files promise.
pub fn enter_user_namespace() -> Result<(), RuntimeError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    let user = User::own();
    let (users, groups) = user.subordinate();
    let lacking = user.lacks(!users.is_empty() && !groups.is_empty());
    let io = |source| RuntimeError::Io { what: "fork".into(), source };
    let outside = Outside::fork().map_err(io)?;
    userns::enter().map_err(|error| forbidden(&error))?;
    let mut warnings = Vec::new();
    match lacking {
        None => outside.map([user.uid, user.gid], users, groups).map_err(refused)?,
        Some(lack) => {
            userns::map_one(0, user.uid, user.gid).map_err(|error| forbidden(&error))?;
            warnings.push(format!(
                "only one user exists in the container: {lack}. Files of other owners belong to its \
                 root there, and programs that become another user fail"
            ));
        }
    }
    let _ = ENTERED.set(Entered { outside, warnings });
    Ok(())
}

/// Whether slim has only what the root of a user namespace has.
pub fn without_root() -> bool {
    userns::inside()
}

/// The users of slim's namespace, as `INSIDE:OUTSIDE:COUNT` with commas between.
pub fn user_map() -> String {
    userns::IdMap::users().to_string()
}

/// What the user should know about the namespace that slim entered.
pub fn rootless_warnings() -> Vec<String> {
    ENTERED.get().map(|entered| entered.warnings.clone()).unwrap_or_default()
}

/// Ends what [`enter_user_namespace`] started; the namespace itself ends with this process.
pub fn leave_user_namespace() {
    if let Some(outside) = outside() {
        outside.end();
    }
}

/// The process outside, if slim has entered a user namespace.
pub(super) fn outside() -> Option<&'static Outside> {
    ENTERED.get().map(|entered| &entered.outside)
}

/// Who runs slim.
struct User {
    name: String,
    uid: u32,
    gid: u32,
}

impl User {
    fn own() -> Self {
        let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
        let known = nix::unistd::User::from_uid(uid).ok().flatten();
        let name = known.map_or_else(|| uid.to_string(), |user| user.name);
        Self { name, uid: uid.as_raw(), gid: gid.as_raw() }
    }

    fn subordinate(&self) -> (ids::Ranges, ids::Ranges) {
        let of = |path| ids::subordinate(path, &self.name, self.uid);
        (of("/etc/subuid"), of("/etc/subgid"))
    }

    /// What is missing for more than one id, with the way out.
    fn lacks(&self, ranges: bool) -> Option<String> {
        let name = &self.name;
        if !ranges {
            return Some(format!(
                "{name} has no ids in /etc/subuid and /etc/subgid (as root: usermod --add-subuids \
                 100000-165535 --add-subgids 100000-165535 {name}, with a range that nobody has)"
            ));
        }
        let missing = ["newuidmap", "newgidmap"].into_iter().find(|name| !ids::installed(name))?;
        Some(format!("{missing} is not installed (Debian: apt install uidmap)"))
    }
}

fn forbidden(error: &std::io::Error) -> RuntimeError {
    RuntimeError::Host {
        what: "a user namespace for slim".into(),
        why: error.to_string(),
        way_out: "let users make them (sysctl user.max_user_namespaces, on Debian also \
                  kernel.unprivileged_userns_clone=1, on Ubuntu \
                  kernel.apparmor_restrict_unprivileged_userns=0), or run slim as root"
            .into(),
    }
}

fn refused(why: String) -> RuntimeError {
    RuntimeError::Host {
        what: "subordinate ids".into(),
        why,
        way_out: "see subuid(5): the ranges of /etc/subuid and /etc/subgid must be the user's own, \
                  and newuidmap and newgidmap need their set-user-ID bit or capabilities; or run slim \
                  as root"
            .into(),
    }
}
