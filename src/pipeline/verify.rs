//! Verification: the slim image against the original, path by path, then at work under its filter.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::keep::{self, Finding, verify_dynamic, verify_static};
use crate::model::{KeepSet, Phase, Profile, Reason, Tree, chain};
use crate::oci::Image;
use crate::rootfs::{self, Store};
use crate::runtime::{self, ScriptEnd};
use crate::seccomp;
use crate::source::{self, Access};

use super::image::{identity, open_file, same_image};
use super::run::run;
use super::run_spec::RunInput;
use super::{PipelineError, Reporter, RunSpec, Summary, Verified, io_at, read_profile};

/// Outcomes of a run's phases that the slim image must match.
pub(super) type Outcomes = BTreeMap<&'static str, String>;

/// A slim image to be verified.
pub(super) struct Candidate<'a> {
    pub original: &'a Image,
    pub tree: &'a Tree,
    pub profile: &'a Profile,
    pub keep: &'a KeepSet,
    pub image: Image,
    /// See `output.family_layers` in the summary.
    pub family_layers: usize,
    pub seccomp: Value,
    /// Of every traced run of the original; empty where they are not known.
    pub outcomes: &'a [Outcomes],
}

/// What verification came to.
pub struct Verdict {
    pub verified: Verified,
    pub findings: Vec<Finding>,
    pub warnings: Vec<String>,
}

/// Static check, and with a run specification the dynamic one. `scratch` is the live run's folder.
pub(super) fn check(
    candidate: &Candidate<'_>,
    spec: Option<&RunSpec>,
    scratch: &Path,
    reporter: &dyn Reporter,
) -> Result<Verdict, PipelineError> {
    // A store of its own: what is verified is gone with the run.
    let folder = scratch.join("verify");
    discard(&folder);
    let store = Store::open(Some(&folder.join("store")))?;
    let rootfs = store.unpack(&candidate.image, &|done, total| reporter.progress(done, total))?;
    let mut keep = candidate.keep.clone();
    let shared = rootfs.tree.names_at(candidate.family_layers);
    keep::add_names(&mut keep, candidate.tree, &shared, &Reason::Family)?;
    let mut findings = verify_static(candidate.tree, &rootfs.tree, &keep);
    // Under a recorder that answers for the filter it is never loaded.
    if let Err(why) = runtime::check_filter(&candidate.seccomp) {
        findings.push(Finding {
            check: "static",
            subject: "seccomp.oci.json".to_owned(),
            what: format!("no runtime can load it: {why}"),
            by: None,
        });
    }
    let mut verified = Verified { statically: findings.is_empty(), dynamic: None };
    let mut warnings = Vec::new();
    if let Some(spec) = spec {
        let lowers = rootfs.lowers.clone();
        let (dynamic, said) = exercise(candidate, spec, lowers, &folder, reporter)?;
        verified.dynamic = Some(dynamic.is_empty());
        findings.extend(dynamic);
        warnings = said;
    }
    drop(store);
    discard(&folder);
    Ok(Verdict { verified, findings, warnings })
}

fn discard(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::debug!(folder = %folder.display(), %error, "left behind");
    }
}

fn exercise(
    candidate: &Candidate<'_>,
    spec: &RunSpec,
    lowers: Vec<PathBuf>,
    folder: &Path,
    reporter: &dyn Reporter,
) -> Result<(Vec<Finding>, Vec<String>), PipelineError> {
    let run_dir = folder.join("run");
    std::fs::create_dir_all(&run_dir).map_err(io_at("cannot make", &run_dir))?;
    let took = script_took(candidate.profile);
    let bounded = spec.script_timeout.or_else(|| took.map(patience));
    let spec = &RunSpec { script_timeout: bounded, ..spec.clone() };
    let input = RunInput {
        spec,
        image: &candidate.image,
        image_name: candidate.image.name.clone().unwrap_or_else(|| "slim:latest".to_owned()),
        lowers,
        run_dir: &run_dir,
        purpose: "verify",
        seccomp: ("slim".to_owned(), Some(candidate.seccomp.clone())),
        log: run_dir.join("container.log"),
    };
    let mut outcome = match run(&input, reporter) {
        Ok(outcome) => outcome,
        Err(error @ (PipelineError::Interrupted | PipelineError::Record(_))) => return Err(error),
        Err(error) => {
            // The original ran here a moment ago: what fails now fails for what is missing.
            let what = format!("the slim image does not run: {}", chain(&error));
            return Ok((vec![finding("container", what)], Vec::new()));
        }
    };
    let mut seen = Profile::new(identity(candidate.original));
    outcome.fold(&mut seen, candidate.tree)?;
    let mut findings = verify_dynamic(candidate.profile, &seen, candidate.tree, candidate.keep);
    if let Some(failure) = &outcome.failure {
        let last = outcome.last_words.as_ref();
        let last = last.map(|line| format!(" (the container's last line: {line:?})"));
        let last = last.unwrap_or_default();
        let failure = match (took, &outcome.script) {
            (Some(took), Some(ScriptEnd::TimedOut)) => format!(
                "the script did not end within {} s; on the original it took {} s",
                bounded.unwrap_or_default().as_secs_f64(),
                took.as_secs_f64()
            ),
            _ => brief(failure),
        };
        findings.push(finding("script", format!("on the slim image: {failure}{last}")));
    }
    let mut warnings = outcome.warnings;
    if !outcome.record.complete && spec.recorder != super::RecorderChoice::None {
        let what = format!(
            "the record of the slim image's run is incomplete: {}",
            super::list_losses(&outcome.record.losses)
        );
        // What the original lost as well is no difference, and is reported as its loss.
        if candidate.profile.is_complete() {
            findings.push(finding("recorder", what));
        } else {
            warnings.push(what);
        }
    }
    findings.extend(other_outcomes(candidate.outcomes, &outcome.outcomes));
    Ok((findings, warnings))
}

/// What the script took on the original, at most.
fn script_took(profile: &Profile) -> Option<Duration> {
    let traces = profile.runs.values().filter(|run| run.purpose == "trace");
    let phases = traces.flat_map(|run| &run.phases);
    let scripts = phases.filter(|phase| phase.name == Phase::Coverage.name());
    scripts.map(|phase| Duration::from_millis(phase.duration_ms)).max()
}

/// How long the script may take on the slim image where the user set no bound: a call that the
/// filter refuses can make a program wait, or try again, for ever.
fn patience(original: Duration) -> Duration {
    (original * 10).max(Duration::from_secs(60))
}

fn brief(failure: &PipelineError) -> String {
    match failure {
        PipelineError::Script { how } => format!("the script {how}"),
        other => other.to_string(),
    }
}

/// What health checks and restart came to on the slim image but on no run of the original.
fn other_outcomes(original: &[Outcomes], slim: &Outcomes) -> Vec<Finding> {
    if original.is_empty() {
        return Vec::new();
    }
    let differs = |(name, text): (&&'static str, &String)| {
        let wanted: Vec<&str> =
            original.iter().filter_map(|o| o.get(name)).map(String::as_str).collect();
        let same = wanted.contains(&text.as_str());
        (!same).then(|| finding(name, format!("{text}; on the original: {}", wanted.join(" or "))))
    };
    slim.iter().filter_map(differs).collect()
}

fn finding(subject: &str, what: String) -> Finding {
    Finding { check: "dynamic", subject: subject.to_owned(), what, by: None }
}

/// `slim verify`, checked and ready to run.
#[derive(Debug, Clone)]
pub struct VerifySpec {
    /// The folder that trace or build wrote.
    pub folder: PathBuf,
    pub image: String,
    pub access: Access,
    pub store: Option<PathBuf>,
    /// `None`: no script was given, only the static check is made.
    pub run: Option<RunSpec>,
}

/// Verifies a result folder against the original.
///
/// # Errors
/// What prevents the check; what it finds is in the verdict.
pub fn verify(spec: &VerifySpec, reporter: &dyn Reporter) -> Result<Verdict, PipelineError> {
    let original = source::open(&spec.image, &spec.access)?;
    let profile = read_profile(&spec.folder.join("profile.json"))?;
    same_image(&original, &profile)?;
    let slim = open_result(&spec.folder)?;
    reporter.step("reading the original");
    let tree = rootfs::index(&original)?;
    let summary = read_summary(&spec.folder)?;
    let output = summary.as_ref().and_then(|summary| summary.output.as_ref());
    let family_layers = output.map_or(0, |output| output.family_layers);
    let policy = summary.map(|summary| summary.policy).unwrap_or_default();
    let keep = keep::decide_for(&profile, &tree, &[&original.config, &slim.config], &policy)?;
    let filter = spec.folder.join("seccomp.oci.json");
    let bytes = std::fs::read(&filter).map_err(io_at("cannot read", &filter))?;
    let seccomp = seccomp::parse_filter(&bytes)?;
    let candidate = Candidate {
        original: &original,
        tree: &tree,
        profile: &profile,
        keep: &keep,
        image: slim,
        family_layers,
        seccomp,
        outcomes: &recorded_outcomes(&profile),
    };
    let store = Store::open(spec.store.as_deref())?;
    let scratch = store.new_run()?;
    reporter.step("verifying the slim image");
    let mut verdict = check(&candidate, spec.run.as_ref(), &scratch.path, reporter)?;
    verdict.warnings.extend(spec.run.as_ref().and_then(|run| other_hooks(&profile, run)));
    let missing = seccomp::missing_calls(&candidate.seccomp, &profile, &policy)?;
    verdict.verified.statically &= missing.is_empty();
    verdict.findings.extend(missing.into_iter().map(|name| Finding {
        check: "static",
        subject: name,
        what: "was recorded, but seccomp.oci.json does not allow it".to_owned(),
        by: None,
    }));
    Ok(verdict)
}

/// A warning if the image was traced with hooks that this run does not have.
fn other_hooks(profile: &Profile, run: &RunSpec) -> Option<String> {
    let names = |hooks: &[Value]| -> BTreeSet<String> {
        hooks.iter().filter_map(|hook| hook["name"].as_str()).map(str::to_owned).collect()
    };
    let here = runtime::hooks(&run.options).map(|hooks| names(&hooks)).unwrap_or_default();
    let traced = profile.runs.values().filter(|run| run.purpose == "trace");
    let traced = traced.filter_map(|run| run.extra.get("hooks")?.as_array());
    let traced: BTreeSet<String> = traced.flat_map(|hooks| names(hooks)).collect();
    let lacking: Vec<&str> = traced.difference(&here).map(String::as_str).collect();
    (!lacking.is_empty()).then(|| {
        format!(
            "the original was traced with the hooks {}, this run has none of them: give the same \
             --hooks-dir and --device",
            lacking.join(", ")
        )
    })
}

fn open_result(folder: &Path) -> Result<Image, PipelineError> {
    let candidates = ["image.tar", "image"].map(|name| folder.join(name));
    let found = candidates.iter().find(|path| path.exists()).ok_or_else(|| {
        PipelineError::Usage(format!(
            "{} holds neither image.tar nor image/: give the folder that slim trace wrote",
            folder.display()
        ))
    })?;
    open_file(found)
}

/// What trace or build said of the folder, where that is still there.
fn read_summary(folder: &Path) -> Result<Option<Summary>, PipelineError> {
    let path = folder.join("summary.json");
    match std::fs::read(&path) {
        Ok(bytes) => {
            let summary: Summary = serde_json::from_slice(&bytes)
                .map_err(|error| PipelineError::Usage(format!("{}: {error}", path.display())))?;
            Ok(Some(summary))
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io_at("cannot read", &path)(error)),
    }
}

/// The outcomes of health checks and restarts, as the run records have them.
fn recorded_outcomes(profile: &Profile) -> Vec<Outcomes> {
    let names = ["health after readiness", "health before the stop", "restart"];
    let of_run = |run: &crate::model::RunRecord| -> Outcomes {
        let find = |name: &'static str| {
            let phase = run.phases.iter().find(|phase| phase.name == name)?;
            Some((name, phase.outcome.clone()?))
        };
        names.into_iter().filter_map(find).collect()
    };
    profile.runs.values().filter(|run| run.purpose == "trace").map(of_run).collect()
}
