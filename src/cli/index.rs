//! `slim index`.

use std::path::PathBuf;

use clap::Args;

use crate::pipeline::{self, IndexSpec, PipelineError};

use super::output_args::FormatArg;
use super::progress::Terminal;
use super::say;

/// Join slim images of several platforms under one name
///
/// Each platform is traced on a machine of its own; the results become one image, an index, which
/// `slim push` pushes as such.
#[derive(Args, Debug)]
pub(super) struct IndexArgs {
    /// Folders that slim trace or slim build wrote, or image files; one for each platform
    #[arg(required = true, value_name = "DIR|ARCHIVE")]
    members: Vec<PathBuf>,
    /// Name of the image; further ones are for slim push and slim load [default: the first one's]
    #[arg(long, value_name = "NAME")]
    tag: Vec<String>,
    /// archive (image.tar) or layout (image/) [default: archive]
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// Folder for the result
    #[arg(short, long, value_name = "DIR")]
    output: PathBuf,
}

impl IndexArgs {
    pub(super) fn run(self) -> Result<u8, PipelineError> {
        let tag = match &self.tag[..] {
            [] => None,
            [tag] => Some(tag.clone()),
            [_, other, ..] => {
                return Err(PipelineError::Usage(format!(
                    "--tag {other}: an index has one name here; give further ones to slim push or \
                     slim load"
                )));
            }
        };
        let spec = IndexSpec {
            members: self.members,
            tag,
            format: FormatArg::format(self.format)?,
            output: self.output,
        };
        crate::runtime::install_signal_handlers()?;
        let terminal = Terminal::new();
        let joined = pipeline::index(&spec, &terminal);
        terminal.finish();
        let joined = joined?;
        say(format_args!("{} {}", joined.tag, joined.digest));
        for (platform, digest) in &joined.platforms {
            say(format_args!("  {platform:<14} {digest}"));
        }
        Ok(pipeline::exit::OK)
    }
}
