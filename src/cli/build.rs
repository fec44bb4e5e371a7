//! `slim build`.

use std::path::PathBuf;

use clap::Args;

use crate::pipeline::{self, BuildSpec, PipelineError};

use super::image_args::ImageArgs;
use super::output_args::{OutputArgs, short_names};
use super::progress::Terminal;
use super::trace::PolicyArgs;
use super::{report, say};

/// Build the slim image from a profile; nothing is run
///
/// With the options of the trace it writes the same image, byte for byte.
#[derive(Args, Debug)]
#[command(mut_args(short_names))]
pub(super) struct BuildArgs {
    /// Profile that slim trace or slim merge wrote
    profile: PathBuf,
    /// Configuration file [default: slim.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    image: ImageArgs,
    #[command(flatten)]
    product: OutputArgs,
    #[command(flatten)]
    policy: PolicyArgs,
    /// Folder for the results [default: slim-out]
    #[arg(short, long, value_name = "DIR")]
    output: Option<PathBuf>,
    /// Build from an incomplete profile too
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    keep_going: Option<bool>,
}

impl BuildArgs {
    pub(super) fn run(self) -> Result<u8, PipelineError> {
        let spec = BuildSpec {
            profile: self.profile,
            access: self.image.access(),
            image: self.image.need("build")?,
            product: self.product.spec()?,
            policy: self.policy.policy()?,
            output: self.output.unwrap_or_else(pipeline::default_output),
            keep_going: self.keep_going.unwrap_or(false),
        };
        crate::runtime::install_signal_handlers()?;
        let terminal = Terminal::new();
        let built = pipeline::build(&spec, &terminal);
        terminal.finish();
        say(report::text(&built?).trim_end());
        say(format_args!("  results    {}", spec.output.display()));
        Ok(pipeline::exit::OK)
    }
}
