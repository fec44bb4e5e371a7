//! `slim exec`, and the hidden verb behind SLIM_RUN.

use std::ffi::OsString;

use clap::Args;

use crate::runtime;

use super::complain;

/// The hidden verb that SLIM_RUN names.
pub(super) const RUN_VERB: &str = "run-beside";

/// Run a command in a container that is being traced, as docker exec -i does
///
/// SLIM_EXEC in a coverage script is this command for the container of its trace.
#[derive(Args, Debug)]
pub(super) struct ExecArgs {
    /// The container, SLIM_CONTAINER in a coverage script
    container: String,
    /// What it uses is not recorded
    #[arg(long)]
    unrecorded: bool,
    /// The command and its arguments
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<OsString>,
}

impl ExecArgs {
    pub(super) fn run(self) -> u8 {
        code(runtime::exec_client(&self.container, self.unrecorded, &self.command), 126)
    }
}

/// Start a fresh container of the image that is being traced, as docker run --rm -i does
#[derive(Args, Debug)]
pub(super) struct RunArgs {
    container: String,
    #[arg(last = true, value_name = "ARG")]
    command: Vec<OsString>,
}

impl RunArgs {
    pub(super) fn run(self) -> u8 {
        code(runtime::run_client(&self.container, &self.command), 125)
    }
}

/// The command's own status, or `failed` where slim could not even ask for it.
fn code(ended: Result<i32, runtime::RuntimeError>, failed: u8) -> u8 {
    match ended {
        Ok(status) => u8::try_from(status).unwrap_or(255),
        Err(error) => {
            complain(&error);
            failed
        }
    }
}
