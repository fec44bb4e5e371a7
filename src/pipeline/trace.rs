//! `slim trace`: record, decide, emit, verify; record again where verification asks for it.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::emit::{PackedLayers, Places};
use crate::keep::{self, Finding};
use crate::model::{Digest, Policy, Profile, RootPath};
use crate::oci::Image;
use crate::rootfs::{Folders, RunDir, Shelf, Store};
use crate::runtime::{self, RunOptions};
use crate::seccomp;
use crate::source::{self, Access};

use super::image::{identity, open_file};
use super::product::{Original, Product, ProductSpec, Wanted};
use super::results::{Results, write_json};
use super::run::run;
use super::run_spec::{RunInput, RunOutcome};
use super::verify::{Candidate, Verdict, check};
use super::{PipelineError, RecorderChoice, Reporter, RunSpec, Summary};

/// How often the original is recorded again when verification finds something.
const RETRIES: u64 = 2;

/// `slim trace`, checked and ready to run.
#[derive(Debug, Clone)]
pub struct TraceSpec {
    pub image: String,
    pub access: Access,
    pub output: PathBuf,
    pub product: ProductSpec,
    pub store: Option<PathBuf>,
    pub run: RunSpec,
    pub policy: Policy,
    pub verify: bool,
    pub profile_only: bool,
    pub keep_going: bool,
}

/// What a trace leaves behind beside its files.
pub struct Traced {
    pub summary: Summary,
    /// A failure that `--keep-going` or the kind of failure let pass into the results.
    pub failure: Option<PipelineError>,
}

/// Runs the main job.
///
/// # Errors
/// What ends a trace with no results at all. A failure with results (script, record, verification)
/// is in [`Traced::failure`].
pub fn trace(spec: &TraceSpec, reporter: &dyn Reporter) -> Result<Traced, PipelineError> {
    runtime::check_script(&spec.run.script)?;
    runtime::check_options(&spec.run.options)?;
    seccomp::check_allow(&spec.policy)?;
    spec.product.check()?;
    let mut work = Work::open(spec, reporter)?;
    let mut profile = Profile::new(identity(&work.image));
    let mut summary = Summary::of(&work.image, work.shelf.tree()?, &profile, &work.wanted.policy);
    summary.warnings.clone_from(&work.store_warnings);
    summary.warnings.extend(work.wanted.warnings());
    let first = work.record(&mut profile, &mut summary)?;
    let mut failure = first.failure;
    let script = first.script;
    let mut outcomes = vec![first.outcomes];
    summary.script = script;
    if spec.run.recorder == RecorderChoice::None {
        summary.losses = profile.losses();
        return work.close_unrecorded(summary, failure);
    }
    let bad = failure.is_some() || !profile.is_complete();
    if spec.profile_only || (bad && !spec.keep_going) {
        work.close(&profile, &mut summary, None)?;
        return Ok(Traced { summary, failure: failure.or(incomplete(&profile, spec)) });
    }
    let mut product = work.produce(&profile)?;
    if spec.verify && failure.is_none() {
        loop {
            let verdict = work.verify(&profile, &product, &outcomes)?;
            summary.verified = Some(verdict.verified);
            for warning in verdict.warnings {
                if !summary.warnings.contains(&warning) {
                    summary.warnings.push(warning);
                }
            }
            if verdict.findings.is_empty() {
                break;
            }
            // A recording teaches nothing about a path or a filter that is not what was decided.
            if summary.recordings > RETRIES || !verdict.verified.statically {
                summary.findings = verdict.findings.iter().map(Into::into).collect();
                failure = Some(PipelineError::Verify { findings: verdict.findings });
                break;
            }
            reporter.warn(&again(&verdict.findings));
            let more = work.record(&mut profile, &mut summary)?;
            outcomes.push(more.outcomes);
            product = work.produce(&profile)?;
            if more.failure.is_some() {
                // What fails on both is not the slim image's fault, and not to be learnt from it.
                reporter.warn(UNSTEADY);
                summary.findings = verdict.findings.iter().map(Into::into).collect();
                (failure, summary.script) = (more.failure, more.script);
                break;
            }
        }
    }
    if runtime::interrupted() {
        return Err(PipelineError::Interrupted);
    }
    failure = failure.or(incomplete(&profile, spec));
    let publish = failure.is_none() || spec.keep_going;
    work.close(&profile, &mut summary, publish.then_some(&product))?;
    let failure = failure.filter(|f| !(spec.keep_going && is_incomplete(f)));
    Ok(Traced { summary, failure })
}

/// Said where the original fails after it passed.
const UNSTEADY: &str = "the original, which passed before, fails now too: script or image does not do the same \
    each time (see container.log and what the script printed)";

fn is_incomplete(failure: &PipelineError) -> bool {
    matches!(failure, PipelineError::Incomplete { .. })
}

fn incomplete(profile: &Profile, spec: &TraceSpec) -> Option<PipelineError> {
    let nothing = profile.is_complete() || spec.run.recorder == RecorderChoice::None;
    (!nothing).then(|| PipelineError::Incomplete { losses: profile.losses() })
}

fn again(findings: &[Finding]) -> String {
    let first = findings.first().map(|f| format!("{}: {}", f.subject, f.what));
    format!(
        "verification found {} thing{} the trace had not seen ({}); recording the original once \
         more",
        findings.len(),
        if findings.len() == 1 { "" } else { "s" },
        first.unwrap_or_default()
    )
}

/// What recording gave besides the profile.
struct Recorded {
    failure: Option<PipelineError>,
    script: Option<String>,
    outcomes: std::collections::BTreeMap<&'static str, String>,
}

/// Everything a trace works with.
struct Work<'a> {
    spec: &'a TraceSpec,
    reporter: &'a dyn Reporter,
    image: Image,
    wanted: Wanted,
    /// Folders with the unpacked layers, lowest first.
    lowers: Vec<PathBuf>,
    folders: Folders,
    shelf: Shelf,
    run_dir: RunDir,
    results: Results,
    store_warnings: Vec<String>,
    store: Store,
}

impl<'a> Work<'a> {
    fn open(spec: &'a TraceSpec, reporter: &'a dyn Reporter) -> Result<Self, PipelineError> {
        crate::sys::memory::share_arena();
        needs_root()?;
        filter_of(&spec.run.options)?;
        let image = source::open(&spec.image, &spec.access)?;
        let results = Results::open(&spec.output)?;
        results.image(spec.product.format)?;
        let wanted = spec.product.fit(&image, &spec.policy)?;
        let store = Store::open(spec.store.as_deref())?;
        let run_dir = store.new_run()?;
        reporter.step("unpacking the image");
        let rootfs = store.unpack(&image, &|done, total| reporter.progress(done, total))?;
        // A glob without a match is an error before the run, not after it.
        let nothing = Profile::new(identity(&image));
        keep::decide(&nothing, &rootfs.tree, &image.config, &wanted.policy)?;
        let mut store_warnings = runtime::rootless_warnings();
        store_warnings.extend(store.warnings());
        let shelf = Shelf::new(rootfs.tree, &run_dir.path.join("tree"));
        let (lowers, folders) = (rootfs.lowers, rootfs.folders);
        Ok(Self {
            spec,
            reporter,
            image,
            wanted,
            lowers,
            folders,
            shelf,
            run_dir,
            results,
            store_warnings,
            store,
        })
    }

    /// Records the original once and joins what it saw to `profile`.
    fn record(
        &mut self,
        profile: &mut Profile,
        summary: &mut Summary,
    ) -> Result<Recorded, PipelineError> {
        summary.recordings += 1;
        self.shelf.put_away()?;
        let folder = self.run_dir.path.join(format!("trace-{}", summary.recordings));
        std::fs::create_dir_all(&folder).map_err(super::io_at("cannot make", &folder))?;
        let input = RunInput {
            spec: &self.spec.run,
            image: &self.image,
            image_name: self.image.name.clone().unwrap_or_else(|| self.spec.image.clone()),
            lowers: self.lowers.clone(),
            run_dir: &folder,
            purpose: "trace",
            seccomp: filter_of(&self.spec.run.options)?,
            log: self.log(),
        };
        let outcome: Result<RunOutcome, _> = run(&input, self.reporter);
        if outcome.as_ref().is_err_and(|error| !matches!(error, PipelineError::Interrupted)) {
            // Whatever the container said may be the only hint at why; an earlier trace's image
            // beside it would pass for this one's.
            self.results.log(&self.log())?;
            self.results.remove_products()?;
        }
        let mut outcome = outcome?;
        outcome.fold(profile, self.shelf.tree()?)?;
        self.run_dir.discard(folder);
        for warning in &outcome.warnings {
            if !summary.warnings.contains(warning) {
                summary.warnings.push(warning.clone());
            }
        }
        summary.bystanders = outcome.bystanders;
        let script = outcome.script_text();
        Ok(Recorded { failure: outcome.failure, script, outcomes: outcome.outcomes })
    }

    fn log(&self) -> PathBuf {
        self.run_dir.path.join("container.log")
    }

    /// Decides and writes the image beside its final place.
    fn produce(&self, profile: &Profile) -> Result<Product, PipelineError> {
        self.reporter.step("building the slim image");
        let tree = self.shelf.tree()?;
        let file = self.results.path(".image.slim-partial");
        let unpacked = |layer, path: &RootPath| self.folders.open(layer, path);
        let progress = &|done, total| self.reporter.progress(done, total);
        let packed = InStore(&self.store);
        let places = Places { unpacked: Some(&unpacked), packed: Some(&packed), known: None };
        let original = Original { image: &self.image, tree, places, progress };
        self.wanted.produce(&original, profile, &file)
    }

    fn verify(
        &self,
        profile: &Profile,
        product: &Product,
        outcomes: &[std::collections::BTreeMap<&'static str, String>],
    ) -> Result<Verdict, PipelineError> {
        self.reporter.step("verifying the slim image");
        let candidate = Candidate {
            original: &self.image,
            tree: self.shelf.tree()?,
            profile,
            keep: &product.keep,
            image: open_file(&product.file)?,
            family_layers: product.family_layers,
            seccomp: product.allowlist.oci.clone(),
            outcomes,
        };
        check(&candidate, Some(&self.spec.run), &self.run_dir.path, self.reporter)
    }

    /// Writes the results: always profile, summary and log; image and filters if there is a product.
    fn close(
        &self,
        profile: &Profile,
        summary: &mut Summary,
        product: Option<&Product>,
    ) -> Result<(), PipelineError> {
        let tree = self.shelf.tree()?;
        let decided = Summary::uncounted(&self.image, profile, &self.wanted.policy);
        summary.complete = decided.complete;
        summary.losses = decided.losses;
        summary.syscalls = decided.syscalls;
        write_json(&self.results.path("profile.json"), profile)?;
        self.results.log(&self.log())?;
        self.results.remove_products()?;
        if let Some(product) = product {
            self.results.place(&product.file, &self.results.image(self.spec.product.format)?)?;
            self.results.seccomp(&product.allowlist)?;
            summary.produced(tree, product);
        } else {
            discard(&self.results.path(".image.slim-partial"));
        }
        self.results.summary(summary)
    }

    fn close_unrecorded(
        &self,
        mut summary: Summary,
        failure: Option<PipelineError>,
    ) -> Result<Traced, PipelineError> {
        self.results.log(&self.log())?;
        summary.complete = false;
        self.results.summary(&summary)?;
        Ok(Traced { summary, failure })
    }
}

/// Layers of results, in the store.
struct InStore<'a>(&'a Store);

impl PackedLayers for InStore<'_> {
    fn find(&self, key: Digest) -> Option<(Vec<u8>, File)> {
        self.0.packed(key)
    }

    fn keep(&self, key: Digest, note: &[u8], blob: &Path) {
        self.0.keep_packed(key, note, blob);
    }
}

impl Drop for Work<'_> {
    fn drop(&mut self) {
        discard(&self.results.path(".image.slim-partial"));
    }
}

fn discard(path: &Path) {
    let _ = std::fs::remove_file(path);
    let _ = std::fs::remove_dir_all(path);
}

/// The filter that the traced container runs under, with its name.
fn filter_of(options: &RunOptions) -> Result<(String, Option<serde_json::Value>), PipelineError> {
    let given = options
        .security_opt
        .iter()
        .find_map(|o| o.strip_prefix("seccomp=").or_else(|| o.strip_prefix("seccomp:")));
    match given {
        Some("unconfined") => Ok(("unconfined".to_owned(), None)),
        Some(file) if file != "builtin" => {
            let path = Path::new(file);
            let named =
                |why: String| PipelineError::Usage(format!("--security-opt seccomp={file}: {why}"));
            let bytes = std::fs::read(path).map_err(|error| named(error.to_string()))?;
            let value = seccomp::parse_filter(&bytes).map_err(|error| named(error.to_string()))?;
            Ok((crate::model::Digest::of(&bytes).to_string(), Some(value)))
        }
        _ => {
            let caps = runtime::capabilities(options)?;
            let (name, value) = seccomp::docker_default(&caps);
            Ok((name, Some(value)))
        }
    }
}

fn needs_root() -> Result<(), PipelineError> {
    if rustix::process::geteuid().is_root() {
        return Ok(());
    }
    Err(PipelineError::Host {
        what: "tracing".to_owned(),
        why: "this process is neither root nor in a user namespace".to_owned(),
        way_out: "call runtime::enter_user_namespace first, or run as root".to_owned(),
    })
}
