//! `slim push`.

use std::path::PathBuf;

use clap::Args;
use serde_json::json;

use crate::pipeline::{self, PipelineError, PushSpec};
use crate::sink::Receipt;

use super::image_args::WireArgs;
use super::progress::Terminal;
use super::say;
use super::units::megabytes;

/// Push a slim image to registries, and the evidence with it
///
/// What a registry has is not sent; what it has in another repository is mounted from there; an
/// upload that breaks off goes on where it stopped.
#[derive(Args, Debug)]
pub(super) struct PushArgs {
    /// Folder that slim trace or slim build wrote, or an image file (OCI archive or layout)
    path: PathBuf,
    /// Names to push to: [HOST[:PORT]/]NAME[:TAG]
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Configuration file [default: slim.toml, if there is one]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Attach profile.json, seccomp.json, seccomp.oci.json and summary.json as OCI referrers
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    attach: Option<bool>,
    /// Repository of the same registry that may have some of the layers: the original's
    #[arg(long, value_name = "NAME")]
    mount_from: Vec<String>,
    /// Make ordinary layers of those that the manifest says are elsewhere too (`urls`): for registries
    /// that take no such layers. The manifest and its digest are others then
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    drop_urls: Option<bool>,
    #[command(flatten)]
    wire: WireArgs,
    /// Print JSON
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    json: Option<bool>,
}

impl PushArgs {
    pub(super) fn run(self) -> Result<u8, PipelineError> {
        let spec = PushSpec {
            path: self.path,
            names: self.names,
            mount_from: self.mount_from,
            attach: self.attach.unwrap_or(false),
            drop_urls: self.drop_urls.unwrap_or(false),
            wire: self.wire.options(),
        };
        let terminal = Terminal::new();
        let receipts = pipeline::push(&spec, &terminal);
        terminal.finish();
        let receipts = receipts?;
        if self.json.unwrap_or(false) {
            let list: Vec<_> = receipts.iter().map(as_json).collect();
            say(serde_json::to_string_pretty(&list).expect("plain data"));
        } else {
            receipts.iter().for_each(print);
        }
        Ok(pipeline::exit::OK)
    }
}

pub(super) fn print(receipt: &Receipt) {
    say(format_args!("pushed {}@{}", receipt.name, receipt.digest));
    say(format_args!(
        "  blobs: {} sent ({}), {} mounted, {} already there",
        receipt.sent,
        megabytes(receipt.sent_bytes),
        receipt.mounted,
        receipt.present
    ));
}

fn as_json(receipt: &Receipt) -> serde_json::Value {
    json!({
        "name": receipt.name, "digest": receipt.digest,
        "blobs": { "sent": receipt.sent, "mounted": receipt.mounted, "present": receipt.present },
        "sent_bytes": receipt.sent_bytes,
    })
}
