//! Confines a thread to one folder, so that what it does wrong stays there.
//!
//! Three fences, each as far as the kernel and the privileges go: a mount namespace in which
//! everything else is read-only, Landlock, and no more capabilities than asked for.

use std::path::Path;

use landlock::{
    ABI, AccessFs, PathBeneath, PathFd, Ruleset, RulesetAttr as _, RulesetCreatedAttr as _,
    RulesetStatus,
};
use rustix::mount::{MountPropagationFlags, mount_bind, mount_change};
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// The fences that stand, and why others do not.
#[derive(Debug, Default)]
pub struct Fences {
    /// Everything but the folder is read-only to the thread, and only to it.
    pub mounts: Option<String>,
    /// Only below the folder may files be made, written, renamed or removed.
    pub landlock: Option<String>,
    /// Capabilities that were not asked for are gone.
    pub capabilities: Option<String>,
}

impl Fences {
    /// What is lacking, by name.
    pub fn lacking(&self) -> Vec<(&'static str, &str)> {
        let fences = [
            ("mount namespace", &self.mounts),
            ("landlock", &self.landlock),
            ("capabilities", &self.capabilities),
        ];
        fences.into_iter().filter_map(|(name, why)| Some((name, why.as_deref()?))).collect()
    }
}

/// Runs `work` on a thread that can write below `folder` only and has at most the capabilities
/// `keep`. Fences that cannot be had are named in what `work` gets.
///
/// Threads that `work` starts are confined too; descriptors that were open before are not.
pub fn run<T: Send>(
    folder: &Path,
    keep: CapabilitySet,
    work: impl FnOnce(&Fences) -> T + Send,
) -> T {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| work(&enter(folder, keep)));
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Mounts first: under Landlock none can be changed, which is also what holds them in place.
fn enter(folder: &Path, keep: CapabilitySet) -> Fences {
    Fences {
        mounts: read_only_but(folder).err(),
        landlock: landlocked(folder).err(),
        capabilities: drop_but(keep).err(),
    }
}

/// `unshare(2)` with `CLONE_FS` and `CLONE_NEWNS`: `CAP_SYS_ADMIN`; a mount namespace wants a working
/// directory of its own.
fn read_only_but(folder: &Path) -> Result<(), String> {
    use nix::sched::CloneFlags;
    let call = |what: &str, error: &dyn std::fmt::Display| format!("{what}: {error}");
    nix::sched::unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)
        .map_err(|e| call("unshare(CLONE_FS|CLONE_NEWNS)", &e))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .map_err(|e| call("mount(MS_REC|MS_PRIVATE)", &e))?;
    mount_bind(folder, folder).map_err(|e| call("mount(MS_BIND)", &e))?;
    let attribute = |path, recursive, set, clear| {
        mount_setattr(path, recursive, set, clear).map_err(|e| call("mount_setattr", &e))
    };
    attribute(Path::new("/"), true, libc::MOUNT_ATTR_RDONLY, 0)?;
    attribute(folder, false, 0, libc::MOUNT_ATTR_RDONLY)
}

/// Changes the attributes of the mount at `path`, of those below it too if `recursive`.
///
/// `mount_setattr(2)`: Linux 5.12, `CAP_SYS_ADMIN`.
fn mount_setattr(path: &Path, recursive: bool, set: u64, clear: u64) -> std::io::Result<()> {
    use std::os::unix::ffi::OsStrExt as _;
    let path = std::ffi::CString::new(path.as_os_str().as_bytes())?;
    let attr = libc::mount_attr { attr_set: set, attr_clr: clear, propagation: 0, userns_fd: 0 };
    let flags = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: the kernel only reads `path`, NUL-terminated, and `attr`, whose size is given; both
    // outlive the call.
    let rc = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            flags,
            &raw const attr,
            size_of::<libc::mount_attr>(),
        )
    };
    if rc == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Landlock (Linux 5.13) with every right to write that the kernel knows, below `folder`. Links across
/// folders are forbidden before ABI 2 (Linux 5.19), which layers need: there it is left alone.
fn landlocked(folder: &Path) -> Result<(), String> {
    let known = ABI::V5;
    let rights = AccessFs::from_write(known);
    let restrict = || -> Result<RulesetStatus, Box<dyn std::error::Error>> {
        use landlock::{CompatLevel, Compatible as _};
        let created = Ruleset::default()
            .set_compatibility(CompatLevel::HardRequirement)
            .handle_access(AccessFs::from_write(ABI::V2))?
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(rights)?
            .create()?;
        let rule = PathBeneath::new(PathFd::new(folder)?, rights);
        Ok(created.add_rule(rule)?.restrict_self()?.ruleset)
    };
    match restrict() {
        Ok(RulesetStatus::NotEnforced) => Err("the kernel has none".into()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.to_string()),
    }
}

/// `capset(2)` is a matter of the calling thread alone.
fn drop_but(keep: CapabilitySet) -> Result<(), String> {
    let drop = || -> rustix::io::Result<()> {
        let mut sets = capabilities(None)?;
        sets.effective &= keep;
        sets.permitted &= keep;
        sets.inheritable = CapabilitySet::empty();
        set_capabilities(None, sets)
    };
    drop().map_err(|e| format!("capset: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::ErrorKind::{CrossesDevices, PermissionDenied, ReadOnlyFilesystem};

    /// What a bug in the walk could do, done on purpose.
    #[test]
    fn outside_the_folder_nothing_can_be_written() {
        if !nix::unistd::geteuid().is_root() {
            return; // the mount namespace is for root
        }
        let (inside, outside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let victim = outside.path().join("victim");
        std::fs::write(&victim, "whole").unwrap();
        let keep = CapabilitySet::DAC_OVERRIDE | CapabilitySet::FOWNER;
        run(inside.path(), keep, |fences| {
            let lacking = fences.lacking();
            let refused = |result: std::io::Result<()>, what: &str| {
                let kind = result.expect_err(what).kind();
                assert!(
                    [PermissionDenied, ReadOnlyFilesystem, CrossesDevices].contains(&kind),
                    "{what}: {kind}"
                );
            };
            std::fs::write(inside.path().join("new"), "x").unwrap();
            std::fs::create_dir(inside.path().join("d")).unwrap();
            std::fs::hard_link(inside.path().join("new"), inside.path().join("d/new")).unwrap();
            std::os::unix::fs::symlink(&victim, inside.path().join("link")).unwrap();
            if !lacking.iter().any(|(name, _)| *name == "capabilities") {
                let chown = std::os::unix::fs::chown(inside.path().join("new"), Some(1), None);
                refused(chown, "a capability that was dropped");
            }
            if lacking.iter().any(|(name, _)| *name == "mount namespace") {
                return;
            }
            refused(std::fs::write(&victim, "x"), "a write");
            refused(std::fs::write(inside.path().join("link"), "x"), "a write through a link");
            refused(std::fs::write(outside.path().join("new"), "x"), "a new file");
            refused(std::fs::remove_file(&victim), "a removal");
            refused(std::fs::rename(inside.path().join("new"), &victim), "a rename");
            let mode = std::os::unix::fs::PermissionsExt::from_mode(0o777);
            refused(std::fs::set_permissions(&victim, mode), "a mode");
            if !lacking.iter().any(|(name, _)| *name == "landlock") {
                let back = mount_setattr(Path::new("/"), true, 0, libc::MOUNT_ATTR_RDONLY);
                refused(back, "taking the fence down");
            }
        });
        assert_eq!(std::fs::read_to_string(&victim).unwrap(), "whole");
        std::fs::write(&victim, "free again").unwrap();
    }
}
