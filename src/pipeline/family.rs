//! `slim build --family`: images that share layers share the slim ones too.
//!
//! A shared layer is filtered by the union of what its images use of it, once; each image's own layers
//! then lie above it. Images may share layers in turn: two of three may have more in common.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::emit::{self, Base, ImageFormat, Order, Places};
use crate::keep::{self, Foresight, KeepError};
use crate::model::{DiffId, Digest, KeepSet, NodeKind, Policy, Profile, Reason, Tree};
use crate::oci::Image;
use crate::rootfs::{self, Aside, Room, Wish};
use crate::source::{self, Access};

use super::build::{complete, read_profile};
use super::product::{Original, Product, ProductSpec, Wanted};
use super::results::{Results, write_json};
use super::summary::BeforeAfter;
use super::{PipelineError, Reporter, Summary, io_at};

/// `slim build --family`, checked and ready to run.
#[derive(Debug, Clone)]
pub struct FamilySpec {
    pub profiles: Vec<PathBuf>,
    /// The images that the profiles are about, in any order.
    pub images: Vec<String>,
    pub access: Access,
    pub product: ProductSpec,
    pub policy: Policy,
    /// Gets a folder for each image.
    pub output: PathBuf,
    pub keep_going: bool,
}

/// `family.json`.
#[derive(Debug, Serialize)]
pub struct Family {
    pub schema: &'static str,
    /// Bytes of all layers as they are stored, each once: what a registry or an engine has to hold.
    pub stored_bytes: BeforeAfter,
    /// The same if each image had its layers for itself.
    pub unshared_bytes: BeforeAfter,
    pub images: Vec<FamilyImage>,
    #[serde(skip)]
    pub summaries: Vec<(PathBuf, Summary)>,
}

/// One image of a family.
#[derive(Debug, Serialize)]
pub struct FamilyImage {
    /// Its folder below the family's.
    pub folder: String,
    pub tags: Vec<String>,
    pub manifest_digest: Digest,
    /// How many of its layers, from the lowest, others have too.
    pub family_layers: usize,
    pub stored_bytes: BeforeAfter,
}

/// One image with everything that is known of it.
struct Member {
    image: Image,
    profile: Profile,
    wanted: Wanted,
    folder: String,
    tree: Tree,
    aside: Aside,
    /// The tree after as many layers.
    cuts: BTreeMap<usize, Tree>,
    keep: KeepSet,
}

/// Builds the slim images of a family.
///
/// # Errors
/// As for `build`; a usage error for a profile without its image, or an image without its profile.
pub fn build_family(spec: &FamilySpec, reporter: &dyn Reporter) -> Result<Family, PipelineError> {
    spec.product.check()?;
    crate::sys::memory::map_lists();
    if spec.product.keep_base.is_some() {
        return Err(PipelineError::Usage(
            "--keep-base keeps layers whole, --family filters those that images share: give one of \
             them"
            .to_owned(),
        ));
    }
    let members = members(spec, reporter)?;
    let results = Results::open(&spec.output)?;
    let scratch = emit::unfinished(&spec.output);
    let (scratch, _lock) = scratch.map_err(io_at("cannot write in", &spec.output))?;
    reporter.step("building the slim images");
    let mut made = BTreeMap::new();
    let all: Vec<usize> = (0..members.len()).collect();
    let work = Work { spec, members: &members, scratch: scratch.path(), reporter };
    work.branch(&all, None, &mut made)?;
    let mut family = Family {
        schema: "slim.family/v1",
        stored_bytes: BeforeAfter::default(),
        unshared_bytes: BeforeAfter::default(),
        images: Vec::new(),
        summaries: Vec::new(),
    };
    let (mut before, mut after) = (BTreeMap::new(), BTreeMap::new());
    for (at, member) in members.iter().enumerate() {
        let (product, summary) = made.remove(&at).expect("every member is written");
        let own = stored(member, &product, &mut before, &mut after);
        family.unshared_bytes.before += own.before;
        family.unshared_bytes.after += own.after;
        family.images.push(FamilyImage {
            folder: member.folder.clone(),
            tags: product.tags,
            manifest_digest: product.emitted.manifest_digest,
            family_layers: product.family_layers,
            stored_bytes: own,
        });
        family.summaries.push((spec.output.join(&member.folder), summary));
    }
    family.stored_bytes.before = before.values().sum();
    family.stored_bytes.after = after.values().sum();
    write_json(&results.path("family.json"), &family)?;
    Ok(family)
}

/// Notes the layers of an image before and after; its own sums.
fn stored(
    member: &Member,
    product: &Product,
    before: &mut BTreeMap<DiffId, u64>,
    after: &mut BTreeMap<Digest, u64>,
) -> BeforeAfter {
    let mut own = BeforeAfter::default();
    for (at, layer) in member.image.layers.iter().enumerate() {
        let size = layer.blob.map(|(_, size)| size).or_else(|| member.image.blobs.size(at));
        own.before += size.unwrap_or(0);
        before.insert(layer.diff_id, size.unwrap_or(0));
    }
    for layer in &product.emitted.layers {
        own.after += layer.size;
        after.insert(layer.digest, layer.size);
    }
    own
}

fn members(spec: &FamilySpec, reporter: &dyn Reporter) -> Result<Vec<Member>, PipelineError> {
    let mut images = Vec::new();
    for reference in &spec.images {
        images.push((reference, source::open(reference, &spec.access)?));
    }
    let profiles: Result<Vec<Profile>, _> = spec.profiles.iter().map(|p| read_profile(p)).collect();
    let profiles = profiles?;
    let mut pairs = Vec::new();
    for (path, profile) in spec.profiles.iter().zip(profiles) {
        complete(&profile, spec.keep_going)?;
        let of = |(_, image): &(&String, Image)| {
            profile.image.chain_id == image.chain_id()
                && profile.image.config_digest == image.config_digest
        };
        let at = images.iter().position(of).ok_or_else(|| {
            let names: Vec<&String> = profile.image.names.iter().collect();
            PipelineError::Usage(format!(
                "{}: its image ({names:?}, configuration {}) is not among the images: give it with \
                 --image, and each image one profile (`slim merge` joins several)",
                path.display(),
                profile.image.config_digest
            ))
        })?;
        pairs.push((images.remove(at).1, profile, path));
    }
    if let Some((reference, _)) = images.first() {
        return Err(PipelineError::Usage(format!("no profile is about the image {reference}")));
    }
    reporter.step("reading the images");
    let policies = policies(spec);
    let ids: Vec<Vec<DiffId>> = pairs.iter().map(|(image, ..)| image.diff_ids()).collect();
    let named = pairs.iter().map(|(image, _, path)| (image.name.as_deref(), path.as_path()));
    let folders = folder_names(&named.collect::<Vec<_>>());
    // What one image's profile does not name of a layer, another's may.
    let profiles = pairs.iter().map(|(_, profile, _)| profile);
    let configs = pairs.iter().map(|(image, ..)| &image.config);
    let foresight = Foresight::new(profiles, configs, &spec.policy)?;
    let room = Room::now();
    let mut members: Vec<Member> = Vec::new();
    for (at, ((image, profile, _), folder)) in pairs.into_iter().zip(folders).enumerate() {
        let shared = |other: &Vec<DiffId>| common(&ids[at], other);
        let cuts = ids.iter().enumerate().filter(|(other, _)| *other != at);
        let cuts: BTreeSet<usize> = cuts.map(|(_, other)| shared(other)).collect();
        // What it shares with an earlier one is written from that one's layers.
        let from = ids[..at].iter().map(shared).max().unwrap_or(0);
        let wish = Wish { foresight: &foresight, from, room: &room };
        let (tree, cuts, aside) = rootfs::index_at(&image, &cuts, Some(wish))?;
        let wanted = spec.product.fit(&image, &policies)?;
        let keep = KeepSet::default();
        members.push(Member { image, profile, wanted, folder, tree, aside, cuts, keep });
    }
    decide(&mut members, &spec.policy)?;
    let mut names = BTreeSet::new();
    for member in &members {
        if let Some(twice) = member.wanted.tags.iter().find(|tag| !names.insert(*tag)) {
            return Err(PipelineError::Usage(format!(
                "two images of the family would be called {twice}: give --tag with {{repository}} \
                 or {{config}} in it"
            )));
        }
    }
    Ok(members)
}

/// Globs are fitted to each image apart, see [`decide`].
fn policies(spec: &FamilySpec) -> Policy {
    Policy { keep: Vec::new(), drop: Vec::new(), ..spec.policy.clone() }
}

/// Decides each keep-set. A glob counts for the images that have something it matches, and has to
/// match in one of them.
fn decide(members: &mut [Member], policy: &Policy) -> Result<(), PipelineError> {
    let mut matched: BTreeSet<(&str, String)> = BTreeSet::new();
    let mut unmatched: Vec<KeepError> = Vec::new();
    for member in members {
        let mut mine = policy.clone();
        loop {
            member.wanted.policy = Policy { keep_base: 0, ..mine.clone() };
            match member.wanted.decide(&member.image, &member.tree, &member.profile) {
                Ok(keep) => {
                    member.keep = keep;
                    break;
                }
                Err(KeepError::NoMatch { option, glob }) => {
                    let globs = if option == "keep" { &mut mine.keep } else { &mut mine.drop };
                    globs.retain(|other| *other != glob);
                    unmatched.push(KeepError::NoMatch { option, glob });
                }
                Err(error) => return Err(error.into()),
            }
        }
        matched.extend(mine.keep.into_iter().map(|glob| ("keep", glob)));
        matched.extend(mine.drop.into_iter().map(|glob| ("drop", glob)));
    }
    let nowhere = unmatched.into_iter().find(|error| match error {
        KeepError::NoMatch { option, glob } => !matched.contains(&(*option, glob.clone())),
        _ => true,
    });
    nowhere.map_or(Ok(()), |error| Err(error.into()))
}

/// How many of the lowest layers two images share.
fn common(a: &[DiffId], b: &[DiffId]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// How the folders of the images are called: the last part of the image's name; for one without a name
/// the profile's file name or, where several are called the same, the folder that it lies in.
fn folder_names(members: &[(Option<&str>, &Path)]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for (image, profile) in members {
        let stem = profile.file_stem();
        let alike = members.iter().filter(|(_, other)| other.file_stem() == stem).count();
        let folder = || profile.canonicalize().ok()?.parent()?.file_name().map(OsStr::to_owned);
        let of_profile = || {
            let folder = if alike > 1 { folder() } else { None };
            folder.as_deref().or(stem).unwrap_or_default().to_string_lossy().into_owned()
        };
        let of_image = |name: &str| {
            let name = name.split('@').next().unwrap_or(name);
            name.rsplit('/').next().unwrap_or(name).replace(':', "-")
        };
        let name = harmless(&image.map_or_else(of_profile, of_image));
        let numbered = (2..).map(|n| format!("{name}-{n}"));
        let all = std::iter::once(name.clone()).chain(numbered);
        names.extend(all.into_iter().find(|name| !names.contains(name)));
    }
    names
}

/// A name that is one folder below the results, beside `family.json`.
fn harmless(name: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let name: String = name.chars().map(|c| if word(c) { c } else { '_' }).collect();
    match name.as_str() {
        "" | "family.json" => format!("image-{name}"),
        hidden if hidden.starts_with('.') => format!("image{hidden}"),
        _ => name,
    }
}

struct Work<'a> {
    spec: &'a FamilySpec,
    members: &'a [Member],
    scratch: &'a Path,
    reporter: &'a dyn Reporter,
}

type Made = BTreeMap<usize, (Product, Summary)>;

impl Work<'_> {
    /// Writes the images of `group`, which have `base` in common.
    fn branch(
        &self,
        group: &[usize],
        base: Option<&Base>,
        made: &mut Made,
    ) -> Result<(), PipelineError> {
        let [first, others @ ..] = group else { return Ok(()) };
        if others.is_empty() {
            made.insert(*first, self.image(*first, base)?);
            return Ok(());
        }
        let ids = |at: &usize| &self.members[*at].tree.layers;
        let shared = others.iter().map(|at| common(ids(first), ids(at))).min().unwrap_or(0);
        let below = base.map_or(0, |base| base.layers);
        let grown = if shared > below { Some(self.shared(group, shared, base)?) } else { None };
        let base = grown.as_ref().or(base);
        let mut parts: BTreeMap<Option<DiffId>, Vec<usize>> = BTreeMap::new();
        for at in group {
            parts.entry(ids(at).get(shared).copied()).or_default().push(*at);
        }
        for (next, part) in parts {
            match next {
                Some(_) => self.branch(&part, base, made)?,
                // They have these layers and no others: the same image under several names.
                None => {
                    for at in part {
                        made.insert(at, self.image(at, base)?);
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes the lowest `layers`, which the images of `group` share.
    fn shared(
        &self,
        group: &[usize],
        layers: usize,
        base: Option<&Base>,
    ) -> Result<Base, PipelineError> {
        let first = &self.members[group[0]];
        let tree = first.cuts.get(&layers).unwrap_or(&first.tree);
        let mut keep = KeepSet::default();
        for member in group.iter().map(|at| &self.members[*at]) {
            // What an image's own layers replace is not used of the shared ones; folders add up.
            let used = member.keep.paths.keys().filter(|path| {
                let own = member.tree.get(path);
                let below = own.is_some_and(|n| n.layer() < layers || n.kind == NodeKind::Dir);
                below && tree.has(path)
            });
            keep.paths.extend(used.map(|path| (path.clone(), Reason::Family.into())));
        }
        if let Some(base) = base {
            keep::add_names(&mut keep, tree, &base.names, &Reason::Family)?;
        }
        let mut image = first.image.clone();
        image.layers.truncate(layers);
        let order = Order {
            places: Places { known: Some(&first.aside), ..Places::default() },
            base,
            packing: self.spec.product.packing,
            progress: &|done, total| self.reporter.progress(done, total),
            ..Order::new(&image, tree, &keep, &[], &self.spec.product.edits)
        };
        Ok(emit::write_shared(&order, self.scratch)?)
    }

    fn image(&self, at: usize, base: Option<&Base>) -> Result<(Product, Summary), PipelineError> {
        let member = &self.members[at];
        let Member { image, tree, profile, wanted, .. } = member;
        let places = Places { known: Some(&member.aside), ..Places::default() };
        let mut keep = member.keep.clone();
        if let Some(base) = base {
            keep::add_names(&mut keep, tree, &base.names, &Reason::Family)?;
        }
        let folder = self.spec.output.join(&member.folder);
        let results = Results::open(&folder)?;
        let format: ImageFormat = self.spec.product.format;
        let file = results.image(format)?;
        let progress = &|done, total| self.reporter.progress(done, total);
        let original = Original { image, tree, places, progress };
        let product = wanted.write(&original, profile, keep, base, &file)?;
        results.seccomp(&product.allowlist)?;
        results.remove_others(format)?;
        let summary = wanted.summary(&original, profile, &product);
        results.summary(&summary)?;
        write_json(&results.path("profile.json"), profile)?;
        Ok((product, summary))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_are_called_as_the_images_or_as_what_tells_the_profiles_apart() {
        let dir = tempfile::tempdir().unwrap();
        let put = |name: &str| {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(&path, "").unwrap();
            path
        };
        let paths = ["web/profile.json", "db/profile.json", "old/db/profile.json", "cli.json"];
        let paths = paths.map(put);
        for (images, want) in [
            ([None; 4], ["web", "db", "db-2", "cli"]),
            (
                [Some("shop/web:1"), Some("h:5000/x/web:1@sha256:0"), None, Some("cli")],
                ["web-1", "web-1-2", "db", "cli"],
            ),
        ] {
            let members: Vec<_> =
                images.iter().zip(&paths).map(|(image, path)| (*image, path.as_path())).collect();
            assert_eq!(folder_names(&members), want);
        }
        for (name, want) in [
            ("x/..", "image.."),
            ("x/.", "image."),
            ("x/", "image-"),
            ("x/family.json", "image-family.json"),
            ("x/.hidden", "image.hidden"),
            ("x/a\nb\u{1b}", "a_b_"),
        ] {
            assert_eq!(folder_names(&[(Some(name), &paths[0])]), [want]);
        }
        // One profile needs nothing to be told apart by.
        assert_eq!(folder_names(&[(None, &paths[0])]), ["profile"]);
    }
}
