//! Where a finished image goes besides the folder of results.

use std::path::Path;

use clap::Args;

use crate::pipeline::{self, LoadSpec, PipelineError, PushSpec};
use crate::sink::Target;
use crate::source::Access;
use crate::wire::Options;

use super::progress::Terminal;
use super::{fail, note, push, say};

/// What is done with the image once it is there and, in a trace, verified.
#[derive(Args, Debug, Default)]
pub(super) struct DeliverArgs {
    /// Load the finished image into docker, podman or containerd[:NAMESPACE]; may be repeated
    #[arg(long, value_name = "ENGINE")]
    load: Vec<Target>,
    /// Push the finished image: [HOST[:PORT]/]NAME[:TAG]; may be repeated
    #[arg(long, value_name = "NAME")]
    push: Vec<String>,
    /// Attach the results to the pushed image, as OCI referrers
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    attach: Option<bool>,
    /// Push ordinary layers in place of those that the manifest says are elsewhere too (`urls`): for
    /// registries that take no such layers. The pushed manifest and its digest are others then
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    drop_urls: Option<bool>,
}

impl DeliverArgs {
    /// True if the image goes nowhere else.
    pub(super) fn is_nothing(&self) -> bool {
        self.load.is_empty() && self.push.is_empty()
    }

    /// Refuses what cannot come to a good end, before the work is done.
    pub(super) fn check(&self) -> Result<(), PipelineError> {
        let of_a_push = [
            (self.attach, "--attach adds the results to a pushed image"),
            (self.drop_urls, "--drop-urls says how an image is pushed"),
        ];
        for (given, what) in of_a_push {
            if given == Some(true) && self.push.is_empty() {
                return Err(PipelineError::Usage(format!("{what}: give --push NAME too")));
            }
        }
        pipeline::check_names(&self.push)
    }

    /// Loads and pushes the image in `folder`; `original` is where it came from. What fails is printed
    /// here, with how to go on from the results, which stay; returns the exit code.
    pub(super) fn deliver(&self, folder: &Path, original: &str, wire: &Options) -> u8 {
        let done = self.load(folder).and_then(|()| self.push(folder, original, wire));
        let Err(error) = done else { return pipeline::exit::OK };
        let code = fail(&error);
        note(&format!(
            "the results are whole in {0}; `slim load {0}` and `slim push {0}` go on from there",
            folder.display()
        ));
        code
    }

    fn load(&self, folder: &Path) -> Result<(), PipelineError> {
        for to in &self.load {
            // Our own result: no policy speaks of it.
            let access = Access { ours: true, ..Access::default() };
            let (path, to) = (folder.to_owned(), to.clone());
            let spec = LoadSpec { path, to, tags: Vec::new(), access };
            let terminal = Terminal::new();
            let loaded = pipeline::load(&spec, &terminal);
            terminal.finish();
            say(format_args!("  loaded     {} into {}", loaded?.names.join(", "), spec.to));
        }
        Ok(())
    }

    fn push(&self, folder: &Path, original: &str, wire: &Options) -> Result<(), PipelineError> {
        if self.push.is_empty() {
            return Ok(());
        }
        let from = original.strip_prefix("docker://").map(str::to_owned);
        let spec = PushSpec {
            path: folder.to_owned(),
            names: self.push.clone(),
            mount_from: from.into_iter().collect(),
            attach: self.attach.unwrap_or(false),
            drop_urls: self.drop_urls.unwrap_or(false),
            wire: wire.clone(),
        };
        let terminal = Terminal::new();
        let receipts = pipeline::push(&spec, &terminal);
        terminal.finish();
        receipts?.iter().for_each(push::print);
        Ok(())
    }
}
