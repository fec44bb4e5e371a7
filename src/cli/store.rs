//! `slim clean` and `slim store`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use crate::pipeline::{self, PipelineError};

use super::say;
use super::units::megabytes;

#[derive(Args, Debug)]
pub(super) struct CleanArgs {
    /// Folder for unpacked layers [default: /var/lib/slim; without root ~/.local/share/slim]
    #[arg(long, value_name = "DIR")]
    store: Option<PathBuf>,
}

impl CleanArgs {
    pub(super) fn run(self) -> Result<u8, PipelineError> {
        for removed in pipeline::clean(self.store.as_deref())? {
            say(format_args!("removed {removed}"));
        }
        Ok(pipeline::exit::OK)
    }
}

/// List or remove the layers kept for the next run
#[derive(Args, Debug)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    verb: StoreVerb,
    /// Folder for unpacked layers [default: /var/lib/slim; without root ~/.local/share/slim]
    #[arg(long, value_name = "DIR", global = true)]
    store: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
enum StoreVerb {
    /// List the layers: unpacked ones of images, packed ones of results
    Ls,
    /// Remove every layer that no live run uses
    Gc,
}

impl StoreArgs {
    pub(super) fn run(self) -> Result<u8, PipelineError> {
        match self.verb {
            StoreVerb::Ls => {
                for layer in pipeline::store_list(self.store.as_deref())? {
                    let used = if layer.in_use { "  in use" } else { "" };
                    let packed = if layer.packed { "  packed" } else { "" };
                    let bytes = megabytes(layer.bytes);
                    say(format_args!("{}  {bytes:>10}{packed}{used}", layer.key));
                }
            }
            StoreVerb::Gc => {
                for removed in pipeline::store_gc(self.store.as_deref())? {
                    say(format_args!("removed {removed}"));
                }
            }
        }
        Ok(pipeline::exit::OK)
    }
}
