//! The image a verb works on, and how it is reached.

use clap::Args;

use crate::pipeline::PipelineError;
use crate::source::Access;

/// Which image, and how to reach it.
#[derive(Args, Debug)]
pub(super) struct ImageArgs {
    /// Image: oci:PATH[:TAG], oci-archive:PATH, docker-archive:PATH or a path
    #[arg(long)]
    image: Option<String>,
    #[command(flatten)]
    reach: ReachArgs,
}

/// How to reach an image.
#[derive(Args, Debug)]
pub(super) struct ReachArgs {
    /// Platform to pick from an index, os/arch[/variant]
    #[arg(long)]
    platform: Option<String>,
}

impl ReachArgs {
    pub(super) fn access(&self) -> Access {
        Access { platform: self.platform.clone() }
    }
}

impl ImageArgs {
    pub(super) fn access(&self) -> Access {
        self.reach.access()
    }

    /// The image, which is needed and may come from flag, environment or file.
    pub(super) fn need(self, verb: &str) -> Result<String, PipelineError> {
        need_image(self.image, verb)
    }
}

/// The same, from wherever it comes.
pub(super) fn need_image(image: Option<String>, verb: &str) -> Result<String, PipelineError> {
    image.ok_or_else(|| {
        PipelineError::Usage(format!(
            "no image: give --image, SLIM_{}_IMAGE or image in slim.toml",
            verb.to_uppercase()
        ))
    })
}
