//! `slim verify`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::pipeline::{self, PipelineError, Reporter as _, VerifySpec};

use super::image_args::ImageArgs;
use super::progress::Terminal;
use super::run_args::RunArgs;
use super::say;

/// Check a result folder against the original: path by path, and with a script at work
#[derive(Args, Debug)]
pub(super) struct VerifyArgs {
    /// Folder that slim trace or slim build wrote
    dir: PathBuf,
    /// Configuration file [default: slim.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    run: RunArgs,
    /// Folder for unpacked layers [default: /var/lib/slim; without root ~/.local/share/slim]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The script and its arguments; without one only the static check is made
    #[arg(last = true, value_name = "SCRIPT")]
    script: Vec<OsString>,
}

impl VerifyArgs {
    pub(super) fn run(self) -> Result<u8, PipelineError> {
        let scripted = !self.script.is_empty();
        let run = self.run.spec(self.script)?;
        let spec = VerifySpec {
            folder: self.dir,
            access: self.image.access(),
            image: self.image.need("verify")?,
            store: self.store,
            run: scripted.then_some(run),
        };
        crate::runtime::install_signal_handlers()?;
        let terminal = Terminal::new();
        let verdict = pipeline::verify(&spec, &terminal);
        terminal.finish();
        let verdict = verdict?;
        for warning in &verdict.warnings {
            terminal.warn(warning);
        }
        let word = |passed: bool| if passed { "passed" } else { "FAILED" };
        say(format_args!("static   {}", word(verdict.verified.statically)));
        say(format_args!("dynamic  {}", verdict.verified.dynamic.map_or("not run", word)));
        if verdict.findings.is_empty() {
            return Ok(pipeline::exit::OK);
        }
        for finding in &verdict.findings {
            say(format_args!("  {}: {}: {}", finding.check, finding.subject, finding.what));
        }
        Err(PipelineError::Verify { findings: verdict.findings })
    }
}
