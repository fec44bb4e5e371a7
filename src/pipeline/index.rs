//! `slim index`: results of several platforms become one image.

use std::path::PathBuf;

use crate::emit::{self, ImageFormat, Member};
use crate::model::Digest;
use crate::source::{self, Access, image_file};

use super::results::Results;
use super::{PipelineError, Reporter, io_at, tag};

/// `slim index`, checked and ready to run.
#[derive(Debug, Clone)]
pub struct IndexSpec {
    /// Folders of results or image files, one for each platform.
    pub members: Vec<PathBuf>,
    /// Name of the whole; the first member's where none is given.
    pub tag: Option<String>,
    pub format: ImageFormat,
    pub output: PathBuf,
}

/// What was joined.
pub struct Joined {
    pub tag: String,
    pub digest: Digest,
    /// `os/architecture[/variant]`, with the digest of its manifest.
    pub platforms: Vec<(String, Digest)>,
}

/// Joins images of several platforms under one name.
///
/// # Errors
/// A usage error for two members of one platform; whatever is wrong with a member.
pub fn index(spec: &IndexSpec, reporter: &dyn Reporter) -> Result<Joined, PipelineError> {
    spec.tag.as_deref().map_or(Ok(()), tag::check)?;
    let mut members: Vec<Member> = Vec::new();
    for path in &spec.members {
        let file = image_file(path);
        let stored = source::stored(&file)?;
        let platform = stored.top.platform.as_ref().map(ToString::to_string);
        let image = source::open(&file, &Access { platform, ..Access::default() })?;
        if let Some(other) = members.iter().find(|other| other.image.platform == image.platform) {
            return Err(PipelineError::Usage(format!(
                "{} is for {}, and so is another of the images ({}): an index has one for each \
                 platform",
                path.display(),
                image.platform,
                other.image.name.as_deref().unwrap_or("without a name")
            )));
        }
        let manifest = stored.manifest(&image);
        let manifest = manifest.map_err(io_at("cannot read the manifest of", path))?;
        members.push(Member { image, manifest });
    }
    let own = members.iter().find_map(|member| member.image.name.clone());
    let tag = spec.tag.clone().or(own).unwrap_or_else(|| "slim:latest".to_owned());
    let results = Results::open(&spec.output)?;
    reporter.step("joining the images");
    let digest = emit::write_index(&members, &tag, spec.format, &results.image(spec.format)?)?;
    results.remove_others(spec.format)?;
    let platforms =
        members.iter().map(|m| (m.image.platform.clone(), m.image.manifest_digest)).collect();
    Ok(Joined { tag, digest, platforms })
}
