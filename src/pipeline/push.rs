//! `slim push`: a result into a registry, and the evidence beside it.

use std::path::{Path, PathBuf};

use crate::sink::{self, Attachment, Receipt};
use crate::source::{self, image_file};
use crate::wire::{Options, Reference};

use super::{PipelineError, Reporter, io_at};

/// `slim push`, checked and ready to run.
#[derive(Debug, Clone)]
pub struct PushSpec {
    /// The folder of results, or an image file.
    pub path: PathBuf,
    pub names: Vec<String>,
    /// Repositories of the same registry that may have layers of the image.
    pub mount_from: Vec<String>,
    /// Whether the results beside the image go up too.
    pub attach: bool,
    /// Make layers that are said to be elsewhere ordinary ones.
    pub drop_urls: bool,
    pub wire: Options,
}

/// What of a folder of results is attached, and as what.
const RESULTS: [(&str, &str); 4] = [
    ("profile.json", "application/vnd.slim.profile.v1+json"),
    ("seccomp.json", "application/vnd.slim.seccomp.v1+json"),
    ("seccomp.oci.json", "application/vnd.slim.seccomp.oci.v1+json"),
    ("summary.json", "application/vnd.slim.summary.v1+json"),
];

/// Pushes the image under each name, and attaches the results to it in each repository.
///
/// # Errors
/// There is no such image or name, or a registry does not take it.
pub fn push(spec: &PushSpec, reporter: &dyn Reporter) -> Result<Vec<Receipt>, PipelineError> {
    let names = spec.names.iter().map(|name| parse(name)).collect::<Result<Vec<_>, _>>()?;
    let mut from = spec.mount_from.iter().map(|name| parse(name)).collect::<Result<Vec<_>, _>>()?;
    let files = if spec.attach { results(&spec.path)? } else { Vec::new() };
    let stored = source::stored(&image_file(&spec.path))?;
    let image = sink::Image { top: &stored.top, content: &stored };
    let mut receipts = Vec::new();
    for name in &names {
        reporter.step(&format!("pushing {name}"));
        let progress = |done, total| reporter.progress(done, total);
        let pushed = sink::push(image, name, &from, spec.drop_urls, &spec.wire, &progress);
        let attached = pushed.and_then(|receipt| {
            if !files.is_empty() {
                reporter.step(&format!("attaching the results to {name}"));
                sink::attach(&receipt.top, name, &files, &spec.wire)?;
            }
            Ok(receipt)
        });
        match attached {
            Ok(receipt) => receipts.push(receipt),
            Err(error) => {
                let there = |done: &Receipt| format!("{}@{} is pushed", done.name, done.digest);
                receipts.iter().for_each(|done| reporter.warn(&there(done)));
                return Err(error.into());
            }
        }
        // Further repositories of the same registry can take the blobs from this one.
        from.insert(0, name.clone());
    }
    Ok(receipts)
}

/// Checks names to push to as far as that goes without a registry.
///
/// # Errors
/// A usage error for what is no name.
pub fn check_names(names: &[String]) -> Result<(), PipelineError> {
    names.iter().try_for_each(|name| parse(name).map(drop))
}

/// A name to push to, or to mount from.
fn parse(text: &str) -> Result<Reference, PipelineError> {
    let name = text.strip_prefix("docker://").unwrap_or(text);
    let parsed: Result<Reference, _> = name.parse();
    parsed
        .map(Reference::or_latest)
        .map_err(|error| PipelineError::Usage(format!("{error}; give HOST[:PORT]/NAME[:TAG]")))
}

fn results(folder: &Path) -> Result<Vec<Attachment>, PipelineError> {
    let mut files = Vec::new();
    for (title, kind) in RESULTS {
        let path = folder.join(title);
        if path.exists() {
            let bytes = std::fs::read(&path).map_err(io_at("cannot read", &path))?;
            files.push(Attachment { title: title.to_owned(), kind: kind.to_owned(), bytes });
        }
    }
    if files.is_empty() {
        let text = format!(
            "--attach: {} has no profile.json or seccomp.json; give the folder that slim trace or build wrote",
            folder.display()
        );
        return Err(PipelineError::Usage(text));
    }
    Ok(files)
}
