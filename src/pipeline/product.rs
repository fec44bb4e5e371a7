//! From a profile to the slim image and its filter: what trace and build have in common.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::emit::{self, Base, Compression, Edits, Emitted, ImageFormat, Order, Packing, Places};
use crate::keep::{self, KeepError};
use crate::model::{KeepSet, Policy, Profile, Tree};
use crate::oci::Image;
use crate::seccomp::{self, Allowlist};

use super::image::log_reasons;
use super::summary::{OutputIds, OutputLayer};
use super::tag;
use super::{PipelineError, Summary};

/// What the written image is to be like.
#[derive(Debug, Clone)]
pub struct ProductSpec {
    /// Names or templates of names; empty for the original's with `-slim`.
    pub tags: Vec<String>,
    pub format: ImageFormat,
    pub packing: Packing,
    /// How many of the lowest layers stay whole, or the digest of the last one.
    pub keep_base: Option<String>,
    pub edits: Edits,
}

/// A specification that fits an image.
pub(super) struct Wanted {
    pub tags: Vec<String>,
    pub policy: Policy,
    format: ImageFormat,
    packing: Packing,
    edits: Edits,
}

impl ProductSpec {
    /// Checks what can be checked without the image.
    pub(super) fn check(&self) -> Result<(), PipelineError> {
        self.tags.iter().try_for_each(|tag| tag::check_template(tag))
    }

    /// Fits the specification to an image.
    ///
    /// # Errors
    /// A usage error for a base or for something to be removed that the image does not have.
    pub(super) fn fit(&self, image: &Image, policy: &Policy) -> Result<Wanted, PipelineError> {
        let keep_base = self.keep_base.as_deref().map_or(Ok(0), |text| base_layers(text, image))?;
        let config: Value = serde_json::from_slice(&image.config_bytes).unwrap_or_default();
        if let Some(missing) = self.edits.missing(&config) {
            return Err(PipelineError::Usage(missing));
        }
        let policy = Policy { keep_base, ..policy.clone() };
        Ok(Wanted {
            tags: tag::fill(&self.tags, image)?,
            policy,
            format: self.format,
            packing: self.packing,
            edits: self.edits.clone(),
        })
    }
}

/// The image that is made slim.
#[derive(Clone, Copy)]
pub(super) struct Original<'a> {
    pub image: &'a Image,
    pub tree: &'a Tree,
    pub places: Places<'a>,
    /// See [`Order::progress`].
    pub progress: &'a dyn Fn(u64, u64),
}

/// An emitted image under its temporary name, with what decided it.
pub(super) struct Product {
    pub keep: KeepSet,
    pub allowlist: Allowlist,
    pub emitted: Emitted,
    pub file: PathBuf,
    pub tags: Vec<String>,
    /// See [`OutputIds::family_layers`].
    pub family_layers: usize,
    /// What the user should know of it.
    pub warnings: Vec<String>,
}

impl Wanted {
    /// Decides and writes the image to `file`.
    pub(super) fn produce(
        &self,
        original: &Original<'_>,
        profile: &Profile,
        file: &Path,
    ) -> Result<Product, PipelineError> {
        let Original { image, tree, .. } = *original;
        let keep = self.decide(image, tree, profile)?;
        log_reasons(&keep);
        let layers = self.policy.keep_base;
        let base = (layers > 0).then(|| Base::whole(tree, layers));
        self.write(original, profile, keep, base.as_ref(), file)
    }

    pub(super) fn decide(
        &self,
        image: &Image,
        tree: &Tree,
        profile: &Profile,
    ) -> Result<KeepSet, KeepError> {
        let edited = self.edits.config(&image.config);
        let keep = keep::decide_for(profile, tree, &[&image.config, &edited], &self.policy);
        // Deciding leaves free pages behind.
        crate::sys::memory::give_back();
        keep
    }

    /// Writes a Dockerfile and what it needs into `folder`.
    pub(super) fn recipe(
        &self,
        original: &Original<'_>,
        profile: &Profile,
        folder: &Path,
    ) -> Result<(Summary, Allowlist), PipelineError> {
        let Original { image, tree, .. } = *original;
        let keep = self.decide(image, tree, profile)?;
        let allowlist = seccomp::allowlist(profile, &self.policy)?;
        let recipe = emit::write_recipe(&self.order(original, &keep, None), folder)?;
        let mut summary = Summary::uncounted(image, profile, &self.policy);
        summary.decided(tree, &keep, &allowlist);
        summary.warnings.extend(recipe.warnings.iter().cloned());
        summary.recipe = Some(recipe);
        Ok((summary, allowlist))
    }

    /// Writes an image whose keep-set is decided.
    pub(super) fn write(
        &self,
        original: &Original<'_>,
        profile: &Profile,
        keep: KeepSet,
        base: Option<&Base>,
        file: &Path,
    ) -> Result<Product, PipelineError> {
        let allowlist = seccomp::allowlist(profile, &self.policy)?;
        let emitted = emit::write(&self.order(original, &keep, base), file)?;
        let shared = base.and_then(|base| base.written.as_ref());
        let family_layers = shared.map_or(0, |shared| shared.layers.len());
        let (file, tags) = (file.to_owned(), self.tags.clone());
        let notes =
            [self.other_blobs(original.image, &emitted), self.lost_program(original, &keep)];
        let warnings = notes.into_iter().flatten().collect();
        Ok(Product { keep, allowlist, emitted, file, tags, family_layers, warnings })
    }

    fn order<'a>(
        &'a self,
        original: &Original<'a>,
        keep: &'a KeepSet,
        base: Option<&'a Base>,
    ) -> Order<'a> {
        let Original { image, tree, places, progress } = *original;
        let Self { tags, format, packing, edits, .. } = self;
        let (format, packing) = (*format, *packing);
        Order { image, places, tree, keep, base, tags, format, packing, edits, progress }
    }

    /// What is said of a written image where nothing was run.
    pub(super) fn summary(
        &self,
        original: &Original<'_>,
        profile: &Profile,
        product: &Product,
    ) -> Summary {
        let Original { image, tree, .. } = *original;
        let mut summary = Summary::uncounted(image, profile, &self.policy);
        summary.warnings.extend(self.warnings());
        summary.produced(tree, product);
        summary
    }

    /// Says so where layers that are to stay shared are stored another way than in the original.
    fn other_blobs(&self, image: &Image, emitted: &Emitted) -> Option<String> {
        let pairs = image.layers.iter().zip(&emitted.layers).take(self.policy.keep_base);
        let other = |(old, new): (&crate::oci::Layer, &emit::Written)| {
            old.blob.is_some_and(|(digest, _)| digest != new.digest)
        };
        let n = pairs.filter(|pair| other(*pair)).count();
        (n > 0).then(|| {
            format!(
                "{n} of the layers that --keep-base keeps whole are compressed another way than in \
                 the original, so a registry does not share them: give its --compress"
            )
        })
    }

    /// Says so where an edit names a program that the result does not have.
    fn lost_program(&self, original: &Original<'_>, keep: &KeepSet) -> Option<String> {
        if self.edits.entrypoint.is_none() && self.edits.cmd.is_none() {
            return None;
        }
        let config = self.edits.config(&original.image.config);
        let program = config.entrypoint().into_iter().chain(config.cmd()).next()?;
        let found = keep::program(&program, original.tree, &config);
        let kept = found.as_ref().is_some_and(|path| keep.paths.contains_key(path));
        (!kept).then(|| match found {
            Some(path) => format!(
                "the slim image is to start {program:?}, which no run used: keep it with --keep {path}"
            ),
            None => format!("the slim image is to start {program:?}, which the image does not have"),
        })
    }

    /// What the user should know of the result.
    pub(super) fn warnings(&self) -> Vec<String> {
        let zstd = self.packing.compression == Compression::Zstd;
        let archive = self.format == ImageFormat::Archive;
        let text = "Docker's `load` reads layers compressed with zstd only where the engine keeps \
                    its images in containerd; Podman, skopeo and registries take them";
        (zstd && archive).then(|| text.to_owned()).into_iter().collect()
    }
}

/// How many layers `--keep-base` means: a number, or the digest of the last one, all of it or its
/// first digits (diffID, blob or chainID).
fn base_layers(text: &str, image: &Image) -> Result<usize, PipelineError> {
    let all = image.layers.len();
    let bad = |why: String| Err(PipelineError::Usage(format!("--keep-base {text}: {why}")));
    if let Ok(number) = text.parse::<usize>()
        && text.len() < 7
    {
        return match number <= all {
            true => Ok(number),
            false => bad(format!("the image has {all} layers")),
        };
    }
    let wanted = text.strip_prefix("sha256:").unwrap_or(text).to_ascii_lowercase();
    if wanted.len() < 7 || !wanted.bytes().all(|b| b.is_ascii_hexdigit()) {
        return bad("give how many layers, or the digest of the last of them".to_owned());
    }
    let diff_ids = image.diff_ids();
    let fits = |at: &usize| {
        let layer = &image.layers[*at];
        let chain = crate::model::ChainId::of(&diff_ids[..=*at]);
        let blob = layer.blob.map(|(digest, _)| digest.hex());
        let names = [Some(layer.diff_id.0.hex()), Some(chain.0.hex()), blob];
        names.iter().flatten().any(|name| name.starts_with(&wanted))
    };
    // A layer may occur twice: all of the base is meant then.
    let found = (0..all).rev().find(fits).map(|at| at + 1);
    found.map_or_else(
        || {
            let list: Vec<String> = diff_ids.iter().map(|id| id.to_string()).collect();
            bad(format!("no layer of the image has this digest; they are {}", list.join(", ")))
        },
        Ok,
    )
}

impl Summary {
    /// Adds the written image.
    pub(super) fn produced(&mut self, tree: &Tree, product: &Product) {
        self.decided(tree, &product.keep, &product.allowlist);
        self.warnings.extend(product.warnings.iter().cloned());
        self.generated = product.emitted.generated.iter().take(20).cloned().collect();
        self.output = Some(OutputIds {
            tag: product.tags.first().cloned().unwrap_or_default(),
            tags: product.tags.clone(),
            config_digest: product.emitted.config_digest,
            manifest_digest: product.emitted.manifest_digest,
            layers: product.emitted.layers.iter().map(OutputLayer::of).collect(),
            family_layers: product.family_layers,
        });
    }
}
