//! `slim merge` and `slim seccomp`.

use std::path::{Path, PathBuf};

use clap::{Args, ValueEnum};

use crate::pipeline::{self, PipelineError};

use super::say;

/// Join profiles of one image, recorded by several runs or on several machines
#[derive(Args, Debug)]
pub(super) struct MergeArgs {
    /// Profiles
    #[arg(required = true)]
    profiles: Vec<PathBuf>,
    /// The joined profile
    #[arg(short, long, value_name = "OUT")]
    output: PathBuf,
}

impl MergeArgs {
    pub(super) fn run(self) -> Result<u8, PipelineError> {
        let joined = pipeline::merge(&self.profiles, &self.output)?;
        let state = if joined.is_complete() { "complete" } else { "INCOMPLETE" };
        say(format_args!(
            "{}: {} runs, {} files, {state}",
            self.output.display(),
            joined.runs.len(),
            joined.files.len()
        ));
        Ok(pipeline::exit::OK)
    }
}

/// Write the seccomp allowlist of a profile
#[derive(Args, Debug)]
pub(super) struct SeccompArgs {
    /// Profile that slim trace or slim merge wrote
    profile: PathBuf,
    /// docker (Docker, Podman) or oci (flat, for CRI, runc, crun)
    #[arg(long, value_enum, default_value = "docker")]
    format: SeccompFormat,
    /// Allow a system call that was not recorded
    #[arg(long, value_name = "SYSCALL")]
    allow: Vec<String>,
    /// Write to a file instead of stdout
    #[arg(short, long, value_name = "FILE")]
    output: Option<PathBuf>,
    /// Write one from an incomplete profile too
    #[arg(long)]
    keep_going: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SeccompFormat {
    Docker,
    Oci,
}

impl SeccompArgs {
    pub(super) fn run(self) -> Result<u8, PipelineError> {
        let docker = self.format == SeccompFormat::Docker;
        let text = pipeline::seccomp_text(&self.profile, docker, &self.allow, self.keep_going)?;
        match self.output.as_deref() {
            Some(path) if path != Path::new("-") => pipeline::write_whole(path, text.as_bytes())?,
            _ => say(text.trim_end()),
        }
        Ok(pipeline::exit::OK)
    }
}
