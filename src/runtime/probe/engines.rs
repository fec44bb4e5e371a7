//! Runtimes and engines: whether each is installed, and whether it answers.

use std::process::{Command, Stdio};

use crate::model::{Lack, Offer};
use crate::runtime::engine::look_up;
use crate::runtime::spec::caps;

/// The first line that `program` prints, or the last thing it complained about.
fn first_line(program: &str, args: &[&str]) -> Result<String, String> {
    let path = look_up(program).ok_or("not installed")?;
    let output = Command::new(path).args(args).stdin(Stdio::null()).output();
    let output = output.map_err(|error| error.to_string())?;
    let lines = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        text.lines().map(str::trim).find(|line| !line.is_empty()).map(str::to_owned)
    };
    match lines(&output.stdout) {
        Some(line) if output.status.success() => Ok(line),
        _ => Err(lines(&output.stderr).unwrap_or_else(|| output.status.to_string())),
    }
}

/// `PROGRAM --version`.
pub(super) fn version(program: &'static str, costs: &str) -> Offer {
    let found = first_line(program, &["--version"]);
    let way_out = format!("install {program}, or leave --runtime out: the embedded one needs none");
    Offer::new(program, found.map_err(|why| Lack::new(why, costs, &way_out)))
}

/// Docker's engine, asked.
pub(super) fn docker() -> Offer {
    let format =
        "{{.ServerVersion}}, {{.Driver}}, cgroup driver {{.CgroupDriver}} (v{{.CgroupVersion}})";
    // `docker info` without an engine fails differently from version to version
    let found = first_line("docker", &["version", "--format", "{{.Server.Version}}"])
        .and_then(|_| first_line("docker", &["info", "--format", format]));
    let costs = "nothing: slim needs no engine, its results load into one";
    Offer::new("docker", found.map_err(|why| Lack::new(why, costs, "install docker and start it")))
}

/// Podman, asked: it has no engine that would have to run.
///
/// Without `CAP_SYS_ADMIN` it is asked its version only: for anything else it would start a process
/// that keeps its user namespace and stays.
pub(super) fn podman() -> Offer {
    let format = "{{.Version.Version}}, {{.Host.OCIRuntime.Name}}, cgroup manager {{.Host.CgroupManager}} \
                  ({{.Host.CgroupsVersion}})";
    let args: &[&str] = match caps::effective().contains(&"SYS_ADMIN") {
        true => &["info", "--format", format],
        false => &["--version"],
    };
    let found = first_line("podman", args);
    let costs = "nothing: slim needs no engine, its results load into one";
    Offer::new("podman", found.map_err(|why| Lack::new(why, costs, "install podman")))
}
