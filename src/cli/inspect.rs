//! `slim inspect`.

use clap::Args;
use serde_json::json;

use crate::pipeline::{self, PipelineError, Reporter as _};

use super::image_args::ReachArgs;
use super::progress::Terminal;
use super::say;
use super::units::megabytes;

/// Say what an image holds: digests, layers, files, configuration
#[derive(Args, Debug)]
pub(super) struct InspectArgs {
    /// Image: oci:PATH[:TAG], oci-archive:PATH, docker-archive:PATH, - (an archive on standard
    /// input), docker-daemon:NAME, containers-storage:NAME, containerd:[NAMESPACE/]NAME,
    /// docker://NAME, container:NAME (what that container was made from) or a path; a bare name that is
    /// no path is looked for in Docker, Podman, containerd and its registry, in this order
    #[arg(allow_hyphen_values = true)]
    image: String,
    #[command(flatten)]
    reach: ReachArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

impl InspectArgs {
    pub(super) fn run(self) -> Result<u8, PipelineError> {
        let terminal = Terminal::new();
        terminal.step("reading the image");
        let found = pipeline::inspect(&self.image, &self.reach.access());
        terminal.finish();
        let found = found?;
        if self.json {
            say(serde_json::to_string_pretty(&found.to_json()).expect("plain data"));
        } else {
            print(&found);
        }
        Ok(pipeline::exit::OK)
    }
}

fn print(found: &pipeline::Inspected) {
    let image = &found.image;
    say(format_args!("name       {}", shown(image.name.as_deref().unwrap_or("(none)"))));
    say(format_args!("platform   {}", shown(&image.platform)));
    say(format_args!("manifest   {}", image.manifest_digest));
    say(format_args!("config     {}", image.config_digest));
    say(format_args!("chainID    {}", image.chain_id()));
    say(format_args!("files      {}, {}", found.files, megabytes(found.bytes)));
    for (index, layer) in image.layers.iter().enumerate() {
        say(format_args!("layer {index:<4} {} {}", layer.diff_id, layer.media_type));
    }
    let config = &image.config;
    let shown = json!({
        "entrypoint": config.entrypoint(), "cmd": config.cmd(), "user": config.user(),
        "workdir": config.workdir(), "volumes": config.volumes(),
    });
    for (key, value) in shown.as_object().into_iter().flatten() {
        say(format_args!("{key:<10} {value}"));
    }
}

/// A name from the image, on one line.
fn shown(text: &str) -> String {
    crate::model::escape(text.as_bytes())
}
