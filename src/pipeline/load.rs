//! `slim load`: a result into an engine of this host.

use std::path::PathBuf;

use crate::oci::Image;
use crate::sink::{self, Parcel, Target};
use crate::source::{self, Access, Stored, image_file};
use crate::wire::Reference;

use super::{PipelineError, Reporter};

/// `slim load`, checked and ready to run.
#[derive(Debug, Clone)]
pub struct LoadSpec {
    /// The folder of results, or an image.
    pub path: PathBuf,
    pub to: Target,
    /// Names for it; none leaves it its own.
    pub tags: Vec<String>,
    pub access: Access,
}

/// What was loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    /// As the engine calls it.
    pub names: Vec<String>,
    /// The engine's id of it.
    pub id: String,
}

/// Loads the image and has the engine say that it is the same one.
///
/// # Errors
/// There is no such image or no such engine, or the engine made another image of it.
pub fn load(spec: &LoadSpec, reporter: &dyn Reporter) -> Result<Loaded, PipelineError> {
    let reference = image_file(&spec.path);
    reporter.step("reading the image");
    let image = source::open(&reference, &spec.access)?;
    let stored = source::stored(&reference).ok();
    let names = names(spec, &image, stored.as_ref())?;
    if names.is_empty() && matches!(spec.to, Target::Containerd(_)) {
        let text = "the image has no name, and containerd knows images by name only: give --tag";
        return Err(PipelineError::Usage(text.to_owned()));
    }
    let manifest = stored.as_ref().and_then(|stored| stored.manifest(&image).ok());
    reporter.step(&format!("loading the image into {}", spec.to));
    let progress = |done, total| reporter.progress(done, total);
    let (image, manifest) = (&image, manifest.as_deref());
    let parcel = Parcel { image, manifest, names: &names, progress: &progress };
    let id = sink::load(parcel, &spec.to)?;
    Ok(Loaded { names: names.iter().map(Reference::familiar).collect(), id })
}

/// What was asked for, else what the image is called where it lies.
fn names(
    spec: &LoadSpec,
    image: &Image,
    stored: Option<&Stored>,
) -> Result<Vec<Reference>, PipelineError> {
    let parse = |text: &String| text.parse::<Reference>().map(Reference::or_latest);
    if spec.tags.is_empty() {
        let own = stored.map(Stored::names).unwrap_or_default();
        let own = if own.is_empty() { image.name.clone().into_iter().collect() } else { own };
        return Ok(own.iter().filter_map(|text| parse(text).ok()).collect());
    }
    let parsed: Result<Vec<Reference>, _> = spec.tags.iter().map(parse).collect();
    let parsed = parsed.map_err(|error| PipelineError::Usage(format!("--tag: {error}")))?;
    match parsed.iter().find(|name| name.digest.is_some()) {
        None => Ok(parsed),
        Some(name) => Err(PipelineError::Usage(format!(
            "--tag {name}: leave the digest out, it comes from the content"
        ))),
    }
}
