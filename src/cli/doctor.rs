//! `slim doctor`.

use clap::Args;

use crate::pipeline::{self, PipelineError};

use super::say;

/// Say what this host offers and what it lacks, found by trying it
#[derive(Args, Debug)]
pub(super) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl DoctorArgs {
    pub(super) fn run(self) -> Result<u8, PipelineError> {
        let checks = pipeline::doctor();
        if self.json {
            say(serde_json::to_string_pretty(&checks).expect("plain data"));
        } else {
            for check in &checks {
                let mark = if check.ok { "ok  " } else { "MISS" };
                say(format_args!("{mark} {:<24} {}", check.name, check.detail));
            }
        }
        let able = checks.iter().all(|check| check.ok || !check.needed);
        Ok(if able { pipeline::exit::OK } else { pipeline::exit::HOST })
    }
}
