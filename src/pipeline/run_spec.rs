//! What a run is given and what comes of it.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::model::profile::{kind, note};
use crate::model::{FirstUse, Phase, Profile, RunRecord, Tree};
use crate::oci::Image;
use crate::record::{Backend, Recording};
use crate::rootfs::{self, Change};
use crate::runtime::{Ended, Network, Ready, RunOptions, RuntimeKind, ScriptEnd};

use super::PipelineError;
use super::summary::Bystanders;

/// `--recorder`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecorderChoice {
    /// The best that works here.
    Auto,
    /// This one, or an error.
    Backend(Backend),
    /// Nothing is recorded: the baseline for measurements.
    None,
}

/// How a container of the image is to be run and exercised.
#[derive(Debug, Clone)]
pub struct RunSpec {
    pub options: RunOptions,
    pub network: Network,
    pub runtime: RuntimeKind,
    /// `None`: not given, the default.
    pub ready: Option<Ready>,
    /// Bounds each wait for readiness.
    pub timeout: Duration,
    pub script: Vec<OsString>,
    pub script_timeout: Option<Duration>,
    pub restart: bool,
    pub recorder: RecorderChoice,
    /// The command line with values that may be secrets redacted, for the run record.
    pub arguments: Vec<String>,
}

/// What one run needs beside its [`RunSpec`].
pub(super) struct RunInput<'a> {
    pub spec: &'a RunSpec,
    pub image: &'a Image,
    pub image_name: String,
    pub lowers: Vec<PathBuf>,
    pub run_dir: &'a Path,
    /// `trace` or `verify`.
    pub purpose: &'static str,
    /// Name of the filter and `linux.seccomp`.
    pub seccomp: (String, Option<Value>),
    pub log: PathBuf,
}

/// What came of a run. Folding it into a profile is separate, so that a failure in between loses
/// nothing.
pub(super) struct RunOutcome {
    pub record: RunRecord,
    pub recording: Option<Recording>,
    /// Upper directories of the run.
    pub changes: Vec<PathBuf>,
    pub bystanders: Option<Bystanders>,
    /// `exited 0`, … `None` where it was never started.
    pub script: Option<ScriptEnd>,
    /// Outcomes of the phases that verification compares.
    pub outcomes: BTreeMap<&'static str, String>,
    pub warnings: Vec<String>,
    /// What is to be reported once the results are written.
    pub failure: Option<PipelineError>,
    /// What the container had printed last when that happened; stopping it makes it say other things.
    pub last_words: Option<String>,
}

impl RunOutcome {
    /// Adds the run and all it saw to `profile`, once; paths are those of `tree`, the original's.
    pub(super) fn fold(&mut self, profile: &mut Profile, tree: &Tree) -> Result<(), PipelineError> {
        let id = self.record.id();
        profile.runs.insert(id, self.record.clone());
        let Some(recording) = self.recording.take() else { return Ok(()) };
        recording.fold(profile, tree, &self.record);
        for (path, change) in &self.changed(tree)? {
            let by = FirstUse {
                argv0: "(found in the upper directory)".to_owned(),
                phase: Phase::Stop.name().to_owned(),
                backends: ["upper".to_owned()].into(),
                ..FirstUse::default()
            };
            let what = match change {
                Change::Created => kind::CREATE,
                Change::Changed => kind::CHANGE,
                Change::Removed => kind::REMOVE,
            };
            let known =
                profile.written.get(path).is_some_and(|a| a.values().any(|r| r.contains_key(&id)));
            if !known {
                note(profile.written.entry(path.clone()).or_default(), what, id, &by.into());
            }
        }
        Ok(())
    }

    fn changed(&self, tree: &Tree) -> Result<Vec<(crate::model::RootPath, Change)>, PipelineError> {
        let mut all = Vec::new();
        for upper in &self.changes {
            all.extend(rootfs::changes(upper, tree)?);
        }
        Ok(all)
    }

    /// `exited 0`, `killed by signal 9`, …
    pub(super) fn script_text(&self) -> Option<String> {
        self.script.as_ref().map(script_text)
    }
}

pub(super) fn script_text(end: &ScriptEnd) -> String {
    match end {
        ScriptEnd::Ended(ended) => ended_text(*ended),
        ScriptEnd::TimedOut => "ran out of time".to_owned(),
        ScriptEnd::Interrupted => "was interrupted".to_owned(),
    }
}

pub(super) fn ended_text(ended: Ended) -> String {
    match ended {
        Ended::Exited(status) => format!("exited {status}"),
        Ended::Killed(signal) => format!("killed by signal {signal}"),
    }
}
