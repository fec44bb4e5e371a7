//! `slim build`.

use std::path::PathBuf;

use clap::Args;

use crate::pipeline::{self, BuildSpec, FamilySpec, PipelineError, Reporter as _};

use super::deliver_args::DeliverArgs;
use super::image_args::{ReachArgs, need_image};
use super::output_args::{OutputArgs, short_names};
use super::progress::Terminal;
use super::trace::PolicyArgs;
use super::units::megabytes;
use super::{report, say};

/// Build the slim image from a profile; nothing is run
///
/// With the options of the trace it writes the same image, byte for byte.
#[derive(Args, Debug)]
#[command(mut_args(short_names))]
pub(super) struct BuildArgs {
    /// Profile that slim trace or slim merge wrote; with --family one of each image
    #[arg(required = true, value_name = "PROFILE")]
    profiles: Vec<PathBuf>,
    /// Build several images, each profile's own: the layers that they share are filtered by what all
    /// of them use, and stay shared. Each image gets a folder below the results', called as the image; one
    /// without a name as its profile's file, or as the folder of that where several files are called the
    /// same
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    family: Option<bool>,
    /// Image, as `slim trace --image` takes it; with --family each of them, in any order
    #[arg(long, value_name = "IMAGE", allow_hyphen_values = true)]
    image: Vec<String>,
    /// Configuration file [default: slim.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    #[command(flatten)]
    reach: ReachArgs,
    #[command(flatten)]
    product: OutputArgs,
    #[command(flatten)]
    deliver: DeliverArgs,
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
    pub(super) fn run(mut self) -> Result<u8, PipelineError> {
        self.deliver.check()?;
        if self.family == Some(true) {
            return self.run_family();
        }
        let [profile] = &self.profiles[..] else {
            return Err(PipelineError::Usage(
                "several profiles: `slim merge` joins those of one image, --family builds several \
                 images"
                    .to_owned(),
            ));
        };
        if self.image.len() > 1 {
            return Err(PipelineError::Usage("several images: that takes --family".to_owned()));
        }
        let spec = BuildSpec {
            profile: profile.clone(),
            access: self.reach.access(),
            recipe: self.product.take_dockerfile(),
            image: need_image(self.image.into_iter().next(), "build")?,
            product: self.product.spec()?,
            policy: self.policy.policy()?,
            output: self.output.unwrap_or_else(pipeline::default_output),
            keep_going: self.keep_going.unwrap_or(false),
        };
        if spec.recipe && !self.deliver.is_nothing() {
            return Err(PipelineError::Usage(
                "--format dockerfile makes no image that --load or --push could take".to_owned(),
            ));
        }
        crate::runtime::install_signal_handlers()?;
        let terminal = Terminal::new();
        let built = pipeline::build(&spec, &terminal);
        terminal.finish();
        let built = built?;
        for warning in &built.warnings {
            terminal.warn(warning);
        }
        say(report::text(&built).trim_end());
        say(format_args!("  results    {}", spec.output.display()));
        // A recipe goes nowhere: that was refused above.
        Ok(self.deliver.deliver(&spec.output, &spec.image, &spec.access.wire))
    }

    fn run_family(self) -> Result<u8, PipelineError> {
        if !self.deliver.is_nothing() {
            return Err(PipelineError::Usage(
                "--family makes several images: give each folder to `slim load` or `slim push`"
                    .to_owned(),
            ));
        }
        if self.image.is_empty() {
            need_image(None, "build")?;
        }
        let spec = FamilySpec {
            profiles: self.profiles,
            images: self.image,
            access: self.reach.access(),
            product: self.product.spec()?,
            policy: self.policy.policy()?,
            output: self.output.unwrap_or_else(pipeline::default_output),
            keep_going: self.keep_going.unwrap_or(false),
        };
        crate::runtime::install_signal_handlers()?;
        let terminal = Terminal::new();
        let built = pipeline::build_family(&spec, &terminal);
        terminal.finish();
        let family = built?;
        for (folder, summary) in &family.summaries {
            summary.warnings.iter().for_each(|warning| terminal.warn(warning));
            say(report::text(summary).trim_end());
            say(format_args!("  results    {}", folder.display()));
        }
        let (stored, apart) = (&family.stored_bytes, &family.unshared_bytes);
        say(format_args!(
            "stored: {} of {} (each image for itself: {} of {})",
            megabytes(stored.after),
            megabytes(stored.before),
            megabytes(apart.after),
            megabytes(apart.before)
        ));
        Ok(pipeline::exit::OK)
    }
}
