//! What several test files share: needs, a small real image, running slim.

pub mod engines;
pub mod image;
pub mod registry;

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// A privilege or program that a test cannot do without.
#[derive(Debug, Clone, Copy)]
pub enum Need {
    Root,
    Program(&'static str),
    /// An environment variable that names what the test works on.
    Variable(&'static str),
    /// A mounted cgroup v2 hierarchy.
    Cgroup2,
}

impl Need {
    fn missing(self) -> Option<String> {
        match self {
            Self::Root if rustix::process::geteuid().is_root() => None,
            Self::Root => Some("not root".to_owned()),
            Self::Program(name) => {
                let found = std::env::var_os("PATH").is_some_and(|path| {
                    std::env::split_paths(&path).any(|folder| folder.join(name).exists())
                });
                (!found).then(|| format!("no {name}"))
            }
            Self::Variable(name) => {
                std::env::var_os(name).is_none().then(|| format!("{name} is not set"))
            }
            Self::Cgroup2 => cgroup2().is_none().then(|| "no cgroup v2 is mounted".to_owned()),
        }
    }
}

/// False, with the reason on stderr, if the host lacks a need. In CI a lack is a failure, so that a
/// skip cannot pass for a success.
pub fn have(needs: &[Need]) -> bool {
    let Some(why) = needs.iter().find_map(|need| need.missing()) else { return true };
    assert!(std::env::var_os("CI").is_none(), "would skip: {why}");
    eprintln!("SKIP: {why}");
    false
}

/// Where the cgroup v2 hierarchy is mounted.
pub fn cgroup2() -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").ok()?;
    let mut lines = mounts.lines().filter(|line| line.split(' ').nth(2) == Some("cgroup2"));
    Some(lines.next()?.split(' ').nth(1)?.into())
}

/// Runs a command that has to work.
pub fn sh(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output().unwrap_or_else(|error| {
        panic!("{program}: {error}");
    });
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {args:?}: {stderr}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A slim command without the settings of whoever runs the tests.
pub fn slim(folder: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_slim"));
    for (key, _) in std::env::vars_os().filter(|(k, _)| k.to_string_lossy().starts_with("SLIM_")) {
        command.env_remove(key);
    }
    command.current_dir(folder).stdin(Stdio::null());
    command
}

/// Exit code and everything that was said.
pub fn outcome(output: &Output) -> (i32, String) {
    let text = [&output.stdout[..], &output.stderr[..]].concat();
    (output.status.code().unwrap_or(-1), String::from_utf8_lossy(&text).into_owned())
}

/// The version of the running kernel.
pub fn kernel() -> (u32, u32) {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut numbers = release.split(['.', '-']).map_while(|n| n.parse().ok());
    (numbers.next().unwrap(), numbers.next().unwrap())
}

/// Writes an executable script.
pub fn script(folder: &Path, name: &str, text: &str) -> PathBuf {
    use std::os::unix::fs::PermissionsExt as _;
    let path = folder.join(name);
    std::fs::write(&path, format!("#!/bin/bash\nset -euo pipefail\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// An image of the host's own dash and a few tools with their libraries, and files of all kinds beside
/// them: `folder/image`, tag `latest`. `config` are options of `umoci config`.
pub fn host_image(folder: &Path, config: &[&str]) -> PathBuf {
    let root = folder.join("root");
    for dir in ["usr/bin", "etc", "tmp", "srv/data", "usr/lib/unused", "var/empty"] {
        std::fs::create_dir_all(root.join(dir)).unwrap();
    }
    for (link, target) in [("bin", "usr/bin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")] {
        std::os::unix::fs::symlink(target, root.join(link)).unwrap();
    }
    for tool in ["dash", "cat", "sleep", "stat", "ls", "id", "touch", "chown", "rm", "mv"] {
        copy_program(&root, tool);
    }
    std::os::unix::fs::symlink("dash", root.join("usr/bin/sh")).unwrap();
    for (path, text) in [
        ("etc/passwd", "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"),
        ("etc/group", "root:x:0:\napp:x:1000:\nextra:x:2000:app\n"),
        ("etc/app.conf", "port = 80\n"),
        ("etc/other.conf", "never read\n"),
        ("srv/data/used", "used\n"),
        ("srv/data/statted", "only looked at\n"),
        ("srv/data/unused", "unused\n"),
        ("usr/lib/unused/blob", "unused\n"),
    ] {
        std::fs::write(root.join(path), text).unwrap();
    }
    std::fs::hard_link(root.join("srv/data/used"), root.join("srv/data/second-name")).unwrap();
    std::os::unix::fs::symlink("/srv/data/used", root.join("srv/link")).unwrap();
    let root = root.to_str().unwrap();
    sh("chown", &["-R", "0:0", root]);
    sh("chown", &["1000:1000", &format!("{root}/srv/data/used")]);
    sh("chmod", &["1777", &format!("{root}/tmp")]);
    let layout = folder.join("image");
    let (tar, text) = (folder.join("root.tar"), layout.to_str().unwrap());
    let tar = tar.to_str().unwrap();
    sh("tar", &["-C", root, "--numeric-owner", "--sort=name", "-cf", tar, "."]);
    let tagged = format!("{text}:latest");
    sh("umoci", &["init", "--layout", text]);
    sh("umoci", &["new", "--image", &tagged]);
    sh("umoci", &["raw", "add-layer", "--image", &tagged, tar]);
    sh("umoci", &[&["config", "--image", &tagged][..], config].concat());
    layout
}

/// Copies a program of the host with the libraries that ldd names.
fn copy_program(root: &Path, tool: &str) {
    let from = ["/usr/bin", "/bin"].map(|dir| Path::new(dir).join(tool));
    let from = from.iter().find(|path| path.exists()).unwrap();
    std::fs::copy(from, root.join("usr/bin").join(tool)).unwrap();
    for word in sh("ldd", &[from.to_str().unwrap()]).split_whitespace() {
        if !word.starts_with('/') {
            continue;
        }
        let inside = word.strip_prefix("/usr").unwrap_or(word);
        let to = root.join("usr").join(inside.trim_start_matches('/'));
        std::fs::create_dir_all(to.parent().unwrap()).unwrap();
        std::fs::copy(word, &to).unwrap();
    }
}

/// A running loop that ends on SIGTERM, for images whose script does the work.
pub const SERVICE: [&str; 6] = [
    "--config.cmd",
    "sh",
    "--config.cmd",
    "-c",
    "--config.cmd",
    "cat /etc/app.conf; trap 'exit 0' TERM; while :; do sleep 0.1; done",
];

/// The JSON of a result.
pub fn json(path: &Path) -> serde_json::Value {
    let bytes = std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_slice(&bytes).unwrap()
}
