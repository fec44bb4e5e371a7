//! `slim doctor`.

use std::path::PathBuf;

use clap::Args;

use crate::pipeline::{self, Check, PipelineError};

use super::say;

/// Say what this host offers and what it lacks, found by trying it
///
/// Every part that tracing stands on is used once and undone. Exit code 4 if something is missing
/// without which nothing can be traced.
#[derive(Args, Debug)]
pub(super) struct DoctorArgs {
    /// Print JSON
    #[arg(long)]
    json: bool,
    /// Folder for unpacked layers [default: /var/lib/slim]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

impl DoctorArgs {
    pub(super) fn run(self) -> Result<u8, PipelineError> {
        // What cannot be entered is a row of its own.
        let _ = crate::runtime::enter_user_namespace();
        let checks = pipeline::doctor(self.store.as_deref());
        if self.json {
            say(serde_json::to_string_pretty(&checks).expect("plain data"));
        } else {
            checks.iter().for_each(tell);
        }
        let able = checks.iter().all(|check| check.ok || !check.needed);
        Ok(if able { pipeline::exit::OK } else { pipeline::exit::HOST })
    }
}

/// A row, and below it what a lack costs and what helps.
fn tell(check: &Check) {
    let mark = match (check.ok, check.needed) {
        (true, _) => "ok  ",
        (false, true) => "MISS",
        (false, false) => "-   ",
    };
    say(format_args!("{mark} {:<20} {}", check.name, check.found));
    let more = [("costs", &check.costs), ("way out", &check.way_out)];
    for (what, text) in more.into_iter().filter_map(|(what, text)| Some((what, text.as_ref()?))) {
        say(format_args!("     {:<20} {what}: {text}", ""));
    }
    for what in &check.blind {
        say(format_args!("     {:<20} blind to: {what}", ""));
    }
}
