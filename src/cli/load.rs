//! `slim load`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::pipeline::{self, LoadSpec, PipelineError};
use crate::sink::Target;

use super::image_args::ReachArgs;
use super::progress::Terminal;
use super::say;

/// Load a slim image into Docker, Podman or containerd
///
/// The engine is asked afterwards whether what it has is the image that was loaded. Docker is reached as
/// its client does it (DOCKER_HOST, context, socket), Podman by `podman`, containerd by `ctr`
/// (CONTAINERD_ADDRESS, CONTAINERD_NAMESPACE).
#[derive(Args, Debug)]
pub(super) struct LoadArgs {
    /// Folder that slim trace or slim build wrote, or an image (any that --image takes)
    #[arg(value_name = "DIR|ARCHIVE")]
    path: PathBuf,
    /// Engine: docker, podman or containerd[:NAMESPACE]
    #[arg(long, value_name = "ENGINE")]
    to: Target,
    /// Name for the image there, may be repeated [default: its own]
    #[arg(short, long, value_name = "NAME")]
    tag: Vec<String>,
    #[command(flatten)]
    reach: ReachArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl LoadArgs {
    pub(super) fn run(self) -> Result<u8, PipelineError> {
        let access = self.reach.access();
        let spec = LoadSpec { path: self.path, to: self.to, tags: self.tag, access };
        crate::runtime::install_signal_handlers()?;
        let terminal = Terminal::new();
        let loaded = pipeline::load(&spec, &terminal);
        terminal.finish();
        let loaded = loaded?;
        if self.json {
            let shown = json!({ "names": loaded.names, "id": loaded.id });
            say(serde_json::to_string_pretty(&shown).expect("plain data"));
            return Ok(pipeline::exit::OK);
        }
        let names =
            if loaded.names.is_empty() { "(no name)".into() } else { loaded.names.join(", ") };
        say(format_args!("loaded {names} into {}", spec.to));
        say(format_args!("  id {}", loaded.id));
        Ok(pipeline::exit::OK)
    }
}
