//! `slim build`, `slim merge` and `slim seccomp`: from profiles alone, nothing is run.

use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};

use crate::emit::Places;
use crate::keep::Foresight;
use crate::model::{Policy, Profile};
use crate::rootfs::{self, Aside, Room, Wish};
use crate::seccomp;
use crate::source::{self, Access};

use super::image::same_image;
use super::product::{Original, ProductSpec};
use super::results::{Results, pretty, write_json};
use super::{PipelineError, Reporter, Summary};

/// `slim build`, checked and ready to run.
#[derive(Debug, Clone)]
pub struct BuildSpec {
    pub profile: PathBuf,
    pub image: String,
    pub access: Access,
    pub product: ProductSpec,
    /// Write a Dockerfile in place of an image.
    pub recipe: bool,
    pub policy: Policy,
    pub output: PathBuf,
    pub keep_going: bool,
}

/// Reads and checks a profile.
///
/// # Errors
/// A usage error that names the file and what is wrong with it.
pub fn read_profile(path: &Path) -> Result<Profile, PipelineError> {
    let bytes = std::fs::read(path).map_err(io_usage("cannot read", path))?;
    Profile::parse(&bytes)
        .map_err(|error| PipelineError::Usage(format!("{}: {error}", path.display())))
}

fn io_usage(what: &str, path: &Path) -> impl FnOnce(std::io::Error) -> PipelineError {
    let what = format!("{what} {}", path.display());
    move |error| PipelineError::Usage(format!("{what}: {error}"))
}

pub(super) fn complete(profile: &Profile, keep_going: bool) -> Result<(), PipelineError> {
    if profile.is_complete() || keep_going {
        return Ok(());
    }
    let losses = profile.losses();
    Err(PipelineError::Incomplete { losses })
}

/// Builds the image that a trace with the same options writes.
///
/// # Errors
/// As for `trace`; an incomplete profile is refused unless `keep_going`.
pub fn build(spec: &BuildSpec, reporter: &dyn Reporter) -> Result<Summary, PipelineError> {
    spec.product.check()?;
    crate::sys::memory::map_lists();
    let profile = read_profile(&spec.profile)?;
    let image = source::open(&spec.image, &spec.access)?;
    same_image(&image, &profile)?;
    complete(&profile, spec.keep_going)?;
    let wanted = spec.product.fit(&image, &spec.policy)?;
    reporter.step("reading the image");
    // The process ends soon: to free a million nodes one by one would only take time.
    let (tree, aside) = if spec.recipe {
        (rootfs::index(&image)?, Aside::default())
    } else {
        let foresight = Foresight::new([&profile], [&image.config], &wanted.policy)?;
        let (from, room) = (wanted.policy.keep_base, Room::now());
        rootfs::index_aside(&image, Wish { foresight: &foresight, from, room: &room })?
    };
    let tree = ManuallyDrop::new(tree);
    let places = Places { known: Some(&aside), ..Places::default() };
    let progress = &|done, total| reporter.progress(done, total);
    let original = Original { image: &image, tree: &tree, places, progress };
    let results = Results::open(&spec.output)?;
    let file = results.image(spec.product.format)?;
    if spec.recipe {
        reporter.step("writing the Dockerfile");
        let (summary, allowlist) = wanted.recipe(&original, &profile, &spec.output)?;
        results.remove_images(None)?;
        results.seccomp(&allowlist)?;
        return finish(spec, &results, &profile, summary);
    }
    reporter.step("building the slim image");
    let product = ManuallyDrop::new(wanted.produce(&original, &profile, &file)?);
    results.remove_others(spec.product.format)?;
    results.seccomp(&product.allowlist)?;
    let summary = wanted.summary(&original, &profile, &product);
    finish(spec, &results, &profile, summary)
}

fn finish(
    spec: &BuildSpec,
    results: &Results,
    profile: &Profile,
    summary: Summary,
) -> Result<Summary, PipelineError> {
    results.summary(&summary)?;
    if spec.profile != results.path("profile.json") {
        write_json(&results.path("profile.json"), profile)?;
    }
    Ok(summary)
}

/// Joins profiles of one image.
///
/// # Errors
/// A usage error for a file that is no profile, or is one of another image.
pub fn merge(profiles: &[PathBuf], output: &Path) -> Result<Profile, PipelineError> {
    let mut all = profiles.iter();
    let first = all.next().ok_or_else(|| PipelineError::Usage("nothing to merge".to_owned()))?;
    let mut joined = read_profile(first)?;
    for path in all {
        joined
            .merge(read_profile(path)?)
            .map_err(|error| PipelineError::Usage(format!("{}: {error}", path.display())))?;
    }
    write_json(output, &joined)?;
    Ok(joined)
}

/// The filter of a profile as text, in Docker's form or flat.
///
/// # Errors
/// As for [`build`].
pub fn seccomp_text(
    profile: &Path,
    docker: bool,
    allow: &[String],
    keep_going: bool,
) -> Result<String, PipelineError> {
    let profile = read_profile(profile)?;
    complete(&profile, keep_going)?;
    let policy = Policy { allow: allow.to_vec(), ..Policy::default() };
    let allowlist = seccomp::allowlist(&profile, &policy)?;
    Ok(pretty(if docker { &allowlist.docker } else { &allowlist.oci }))
}

/// Reads the globs of `--keep-from`: one a line, `#` starts a comment line.
///
/// # Errors
/// A usage error if the file cannot be read.
pub fn read_globs(path: &Path) -> Result<Vec<String>, PipelineError> {
    let text = std::fs::read_to_string(path).map_err(io_usage("cannot read", path))?;
    let lines = text.lines().map(str::trim).filter(|l| !l.is_empty() && !l.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}
