//! `slim trace`.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::Args;

use crate::model::Policy;
use crate::pipeline::{self, PipelineError, Reporter as _, TraceSpec};

use super::deliver_args::DeliverArgs;
use super::image_args::ImageArgs;
use super::output_args::OutputArgs;
use super::progress::Terminal;
use super::run_args::RunArgs;
use super::{complain, fail, report, say};

/// Run an image while a script exercises it, and write the slim image, its seccomp filter and why
///
/// Every option has an environment form, SLIM_TRACE_ and its name (lists: one a line), and a key of
/// its name in slim.toml. Flag goes before environment, environment before file.
#[derive(Args, Debug)]
pub(super) struct TraceArgs {
    /// Configuration file [default: slim.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    image: ImageArgs,
    /// Folder for the results [default: slim-out]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    #[command(flatten)]
    product: OutputArgs,
    #[command(flatten)]
    deliver: DeliverArgs,
    #[command(flatten)]
    run: RunArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Do not verify the result
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    no_verify: Option<bool>,
    /// Write the profile only
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    profile_only: Option<bool>,
    /// Write all results even if something failed
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    keep_going: Option<bool>,
    /// Folder for unpacked layers [default: /var/lib/slim; without root ~/.local/share/slim]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
    /// The script and its arguments
    #[arg(last = true, value_name = "SCRIPT")]
    script: Vec<OsString>,
}

/// What stays and what is allowed beyond the record.
#[derive(Args, Debug, Default)]
pub(super) struct PolicyArgs {
    /// Keep what matches, as in .gitignore (/** is everything)
    #[arg(long, value_name = "GLOB")]
    keep: Vec<String>,
    /// Drop what matches
    #[arg(long, value_name = "GLOB")]
    drop: Vec<String>,
    /// Read globs to keep from a file, one a line
    #[arg(long, value_name = "FILE")]
    keep_from: Vec<PathBuf>,
    /// Allow a system call that was not recorded
    #[arg(long, value_name = "SYSCALL")]
    allow: Vec<String>,
}

impl PolicyArgs {
    pub(super) fn policy(self) -> Result<Policy, PipelineError> {
        let mut keep = self.keep;
        for file in &self.keep_from {
            keep.extend(pipeline::read_globs(file)?);
        }
        Ok(Policy { keep, drop: self.drop, allow: self.allow, ..Policy::default() })
    }
}

impl TraceArgs {
    pub(super) fn run(mut self) -> Result<u8, PipelineError> {
        let deliver = std::mem::take(&mut self.deliver);
        deliver.check()?;
        let spec = self.spec()?;
        if spec.profile_only && !deliver.is_nothing() {
            return Err(PipelineError::Usage(
                "--profile-only makes no image that --load or --push could take".to_owned(),
            ));
        }
        crate::runtime::install_signal_handlers()?;
        let terminal = Terminal::new();
        let traced = pipeline::trace(&spec, &terminal);
        terminal.finish();
        let traced = traced?;
        for warning in &traced.summary.warnings {
            terminal.warn(warning);
        }
        let text = report::text(&traced.summary);
        say(text.trim_end());
        say(format_args!("  results    {}", spec.output.display()));
        let Some(failure) = &traced.failure else {
            if traced.summary.output.is_some() {
                return Ok(deliver.deliver(&spec.output, &spec.image, &spec.access.wire));
            }
            return Ok(pipeline::exit::OK);
        };
        let code = fail(failure);
        let could_go_on = matches!(
            failure,
            PipelineError::Script { .. }
                | PipelineError::Incomplete { .. }
                | PipelineError::Verify { .. }
        );
        if could_go_on && traced.summary.output.is_none() && !spec.profile_only {
            complain(&PipelineError::Usage(
                "no image and no filters were written; --keep-going writes them all the same"
                    .to_owned(),
            ));
        }
        Ok(code)
    }

    fn spec(self) -> Result<TraceSpec, PipelineError> {
        if self.script.is_empty() {
            return Err(PipelineError::Usage(
                "no script: give it behind --, as in `slim trace --image IMAGE -- ./coverage.sh`"
                    .to_owned(),
            ));
        }
        Ok(TraceSpec {
            access: self.image.access(),
            image: self.image.need("trace")?,
            output: self.output.unwrap_or_else(pipeline::default_output),
            product: self.product.spec()?,
            store: self.store,
            run: self.run.spec(self.script)?,
            policy: self.policy.policy()?,
            verify: !self.no_verify.unwrap_or(false),
            profile_only: self.profile_only.unwrap_or(false),
            keep_going: self.keep_going.unwrap_or(false),
        })
    }
}
