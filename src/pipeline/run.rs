//! One run of one image: container, recorder, script, health checks, stop, restart.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::model::profile::{PhaseRecord, kind, note};
use crate::model::{Digest, FirstUse, Loss, Phase, Profile, RunRecord, Tree};
use crate::oci::Image;
use crate::record::{Recorder, RecorderSpec, Recording, Role};
use crate::rootfs::{self, Change};
use crate::runtime::{
    self, Cell, Ended, Network, Observer, Pod, PodSpec, Readiness, Ready, RunOptions, RuntimeKind,
    ScriptEnd, Work,
};

use super::{PipelineError, Reporter};

/// `--recorder`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RecorderChoice {
    /// fanotify and BPF.
    Bpf,
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
    recording: Option<Recording>,
    changes: Vec<PathBuf>,
    /// `exited 0`, … `None` where it was never started.
    pub script: Option<ScriptEnd>,
    /// Outcomes of the phases that verification compares.
    pub outcomes: BTreeMap<&'static str, String>,
    pub warnings: Vec<String>,
    /// What is to be reported once the results are written.
    pub failure: Option<PipelineError>,
}

/// Runs the image once from start to restart.
///
/// # Errors
/// Only what prevents a run or ends it with nothing worth keeping; a failed script or an image that
/// is never ready is in [`RunOutcome::failure`].
pub(super) fn run(
    input: &RunInput<'_>,
    reporter: &dyn Reporter,
) -> Result<RunOutcome, PipelineError> {
    if runtime::interrupted() {
        return Err(PipelineError::Interrupted);
    }
    let cell = Cell::enter()?;
    let recorder = match input.spec.recorder {
        RecorderChoice::None => None,
        RecorderChoice::Bpf => {
            let spec = RecorderSpec { cgroup: cell.cgroup().to_owned() };
            Some(Arc::new(Recorder::start(spec)?))
        }
    };
    let observer: Arc<dyn Observer> = match &recorder {
        Some(recorder) => Arc::new(Recorded(Arc::clone(recorder))),
        None => Arc::new(Unwatched),
    };
    let pod = Pod::create(&cell, pod_spec(input, observer))?;
    let mut play = Play::new(input, &pod, recorder.as_deref(), reporter);
    let played = play.play();
    let mut outcome = play.end();
    outcome.warnings.extend(pod.warnings());
    if pod.outside_tried() {
        outcome.warnings.push(
            "the container tried to reach the outside and could not: use --network host, or \
             ns:PATH with a network of yours"
                .to_owned(),
        );
    }
    outcome.record.runtime = pod.runtime_version();
    outcome.changes = pod.uppers();
    pod.destroy();
    if let Some(recorder) = recorder {
        let recorder = Arc::into_inner(recorder).ok_or_else(|| PipelineError::Io {
            what: "the recorder is still in use".to_owned(),
            source: std::io::Error::other("a container outlived its pod"),
        })?;
        let recording = recorder.finish()?;
        outcome.record.losses = recording.losses.clone();
        outcome.recording = Some(recording);
    }
    drop(cell);
    played?;
    if runtime::interrupted() {
        return Err(PipelineError::Interrupted);
    }
    if input.seccomp.1.is_none() {
        outcome.warnings.push(
            "the container ran without a seccomp filter (--security-opt seccomp=unconfined): under \
             an engine's filter it may take other paths than those recorded"
                .to_owned(),
        );
    }
    finish_record(&mut outcome);
    Ok(outcome)
}

fn finish_record(outcome: &mut RunOutcome) {
    if outcome.recording.is_none() {
        let detail = Some("nothing was recorded (--recorder none)".to_owned());
        outcome.record.losses.push(Loss { kind: "not_recorded".to_owned(), number: 1, detail });
    }
    outcome.record.losses.sort();
    outcome.record.complete = outcome.record.losses.is_empty();
}

fn pod_spec(input: &RunInput<'_>, observer: Arc<dyn Observer>) -> PodSpec {
    PodSpec {
        id: run_id(input),
        image_name: input.image_name.clone(),
        config: input.image.config.clone(),
        lowers: input.lowers.clone(),
        run_dir: input.run_dir.to_owned(),
        options: input.spec.options.clone(),
        network: input.spec.network.clone(),
        runtime: input.spec.runtime,
        seccomp: input.seccomp.1.clone(),
        log: input.log.clone(),
        observer,
    }
}

/// `slim-` and twelve hex digits: short enough for cgroup names, random enough for side by side.
fn run_id(input: &RunInput<'_>) -> String {
    let now = std::time::SystemTime::now();
    let seed = format!("{now:?} {} {}", std::process::id(), input.run_dir.display());
    format!("slim-{}", &Digest::of(seed.as_bytes()).hex()[..12])
}

impl RunOutcome {
    /// Adds the run and all it saw to `profile`; paths are those of `tree`, the original's.
    pub(super) fn fold(&self, profile: &mut Profile, tree: &Tree) -> Result<(), PipelineError> {
        let id = self.record.id();
        profile.runs.insert(id, self.record.clone());
        let Some(recording) = &self.recording else { return Ok(()) };
        recording.fold(profile, tree, &self.record);
        for (path, change) in &self.changed(tree)? {
            let by = FirstUse {
                exe: String::new(),
                argv0: "(found in the upper directory)".to_owned(),
                uid: 0,
                phase: Phase::Stop.name().to_owned(),
            };
            let what = match change {
                Change::Created => kind::CREATE,
                Change::Changed => kind::CHANGE,
                Change::Removed => kind::REMOVE,
            };
            let known =
                profile.written.get(path).is_some_and(|a| a.values().any(|r| r.contains_key(&id)));
            if !known {
                note(profile.written.entry(path.clone()).or_default(), what, id, &by);
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

fn script_text(end: &ScriptEnd) -> String {
    match end {
        ScriptEnd::Ended(ended) => ended_text(*ended),
        ScriptEnd::TimedOut => "ran out of time".to_owned(),
        ScriptEnd::Interrupted => "was interrupted".to_owned(),
    }
}

fn ended_text(ended: Ended) -> String {
    match ended {
        Ended::Exited(status) => format!("exited {status}"),
        Ended::Killed(signal) => format!("killed by signal {signal}"),
    }
}

/// Tells the recorder what the runtime makes.
struct Recorded(Arc<Recorder>);

impl Observer for Recorded {
    fn mounted(&self, root: &Path) -> Result<(), String> {
        self.0.watch(root).map_err(|error| error.to_string())
    }

    fn leaf(&self, cgroup: &Path, work: Work) -> Result<(), String> {
        let role = match work {
            Work::Main => Role::Main,
            Work::Exec => Role::Fixed(Phase::Exec),
            Work::Run => Role::Fixed(Phase::Run),
            Work::Health => Role::Fixed(Phase::Health),
            Work::Unrecorded => Role::Unrecorded,
        };
        self.0.set_role(cgroup, role).map_err(|error| error.to_string())
    }
}

/// `--recorder none`.
struct Unwatched;

impl Observer for Unwatched {
    fn mounted(&self, _: &Path) -> Result<(), String> {
        Ok(())
    }

    fn leaf(&self, _: &Path, _: Work) -> Result<(), String> {
        Ok(())
    }
}

/// The acts of a run, with their times.
struct Play<'a> {
    input: &'a RunInput<'a>,
    pod: &'a Pod,
    recorder: Option<&'a Recorder>,
    reporter: &'a dyn Reporter,
    began: Instant,
    started: String,
    phases: Vec<PhaseRecord>,
    outcomes: BTreeMap<&'static str, String>,
    script: Option<ScriptEnd>,
    warnings: Mutex<Vec<String>>,
    failure: Option<PipelineError>,
}

impl<'a> Play<'a> {
    fn new(
        input: &'a RunInput<'a>,
        pod: &'a Pod,
        recorder: Option<&'a Recorder>,
        reporter: &'a dyn Reporter,
    ) -> Self {
        let now = std::time::SystemTime::now();
        Self {
            input,
            pod,
            recorder,
            reporter,
            began: Instant::now(),
            started: humantime::format_rfc3339_millis(now).to_string(),
            phases: Vec::new(),
            outcomes: BTreeMap::new(),
            script: None,
            warnings: Mutex::default(),
            failure: None,
        }
    }

    /// Start, readiness, health, script, health, stop, restart. Stops early, but in order, when
    /// something fails or Ctrl-C came.
    fn play(&mut self) -> Result<(), PipelineError> {
        if matches!(self.input.spec.ready, Some(Ready::Healthy))
            && self.input.image.config.healthcheck().is_none()
        {
            return Err(PipelineError::Usage(
                "--ready healthy: the image has no HEALTHCHECK; use tcp:PORT, log:REGEX or exec:CMD"
                    .to_owned(),
            ));
        }
        let ready = self.act(Phase::Start, "starting the container", Self::start)?;
        if ready && !runtime::interrupted() {
            self.health("health after readiness")?;
            self.act(Phase::Coverage, "running the script", Self::coverage)?;
            if !runtime::interrupted() {
                self.health("health before the stop")?;
            }
        }
        self.act(Phase::Stop, "stopping the container", Self::stop)?;
        let worth = self.failure.is_none() && !runtime::interrupted();
        if self.input.spec.restart && worth {
            self.act(Phase::Restart, "starting it a second time", Self::restart)?;
        }
        Ok(())
    }

    fn act<T>(
        &mut self,
        phase: Phase,
        text: &str,
        work: impl FnOnce(&mut Self) -> Result<(T, Option<String>), PipelineError>,
    ) -> Result<T, PipelineError> {
        self.reporter.step(text);
        if let Some(recorder) = self.recorder {
            recorder.set_phase(phase);
        }
        self.timed(phase.name(), work)
    }

    fn timed<T>(
        &mut self,
        name: &str,
        work: impl FnOnce(&mut Self) -> Result<(T, Option<String>), PipelineError>,
    ) -> Result<T, PipelineError> {
        let offset = self.began.elapsed();
        let (value, outcome) = work(self)?;
        self.phases.push(PhaseRecord {
            name: name.to_owned(),
            offset_ms: millis(offset),
            duration_ms: millis(self.began.elapsed().saturating_sub(offset)),
            outcome,
        });
        Ok(value)
    }

    /// True if the script may run.
    fn start(&mut self) -> Result<(bool, Option<String>), PipelineError> {
        self.pod.start()?;
        let spec = self.input.spec;
        let given = spec.ready.is_some();
        let ready = spec.ready.clone().unwrap_or(Ready::Default);
        let readiness = self.wait(&ready)?;
        let exposed = !self.input.image.config.exposed_ports().is_empty();
        let text = readiness_text(&readiness);
        let run_script = match readiness {
            Readiness::Ready => true,
            Readiness::TimedOut => {
                let entered = self.entered();
                let limit = spec.timeout.as_secs_f64();
                if !entered {
                    self.fail(PipelineError::Container(
                        "the container's entrypoint was never executed".to_owned(),
                    ));
                } else if given {
                    self.fail(PipelineError::NotReady(format!(
                        "the container was not ready after {limit} s; --timeout gives it longer"
                    )));
                } else {
                    self.warn(format!(
                        "the container was not ready after {limit} s; the script runs all the same"
                    ));
                }
                self.failure.is_none()
            }
            Readiness::Ended(ended) => {
                if !self.entered() || given || exposed {
                    self.fail(PipelineError::Container(format!(
                        "the container ended before it was ready ({}); its output is in \
                         container.log",
                        ended_text(ended)
                    )));
                }
                self.failure.is_none()
            }
        };
        Ok((run_script, Some(text)))
    }

    fn wait(&self, ready: &Ready) -> Result<Readiness, PipelineError> {
        Ok(self.pod.wait_ready(ready, self.input.spec.timeout, &|| self.entered())?)
    }

    /// Whether the entrypoint was executed. Without a recorder the runtime's word is taken for it.
    fn entered(&self) -> bool {
        self.recorder.is_none_or(|recorder| recorder.wait_entry(Duration::ZERO))
    }

    fn health(&mut self, name: &'static str) -> Result<(), PipelineError> {
        if self.input.image.config.healthcheck().is_none() {
            return Ok(());
        }
        self.timed(name, |play| {
            // The service may need its time to get well: what counts is what it comes to.
            let until = Instant::now() + play.input.spec.timeout.min(Duration::from_secs(20));
            let text = loop {
                let ended = match play.pod.health() {
                    Ok(None) => return Ok(((), None)),
                    Ok(Some(ended)) => ended,
                    // Its own end is no error, also where it comes while a check is on its way in.
                    Err(_) if play.pod.ended().is_some() => break "not running".to_owned(),
                    Err(error) => return Err(error.into()),
                };
                let healthy = ended == Ended::Exited(0);
                let over = Instant::now() > until || play.pod.ended().is_some();
                if healthy || over || runtime::interrupted() {
                    break if healthy { "healthy".to_owned() } else { ended_text(ended) };
                }
                std::thread::sleep(Duration::from_millis(500));
            };
            play.outcomes.insert(name, text.clone());
            Ok(((), Some(text)))
        })
    }

    fn coverage(&mut self) -> Result<((), Option<String>), PipelineError> {
        let spec = self.input.spec;
        let env = self.pod.script_env(Duration::from_secs(60).max(spec.timeout));
        let end = self.pod.run_script(&spec.script, &env, spec.script_timeout)?;
        let text = script_text(&end);
        match &end {
            ScriptEnd::Ended(Ended::Exited(0)) | ScriptEnd::Interrupted => {}
            ScriptEnd::Ended(Ended::Killed(signal)) => {
                let how = format!("was killed by signal {signal}");
                self.fail(PipelineError::Script { how });
            }
            ScriptEnd::Ended(_) => self.fail(PipelineError::Script { how: text.clone() }),
            ScriptEnd::TimedOut => self.fail(PipelineError::NotReady(format!(
                "the script did not end within --script-timeout {} s",
                spec.script_timeout.unwrap_or_default().as_secs_f64()
            ))),
        }
        self.script = Some(end);
        Ok(((), Some(text)))
    }

    fn stop(&mut self) -> Result<((), Option<String>), PipelineError> {
        let text = ended_text(self.pod.stop()?);
        Ok(((), Some(text)))
    }

    fn restart(&mut self) -> Result<((), Option<String>), PipelineError> {
        self.pod.start()?;
        let readiness = self.wait(&self.input.spec.ready.clone().unwrap_or(Ready::Default))?;
        let text = readiness_text(&readiness);
        self.outcomes.insert("restart", text.clone());
        self.pod.stop()?;
        Ok(((), Some(text)))
    }

    fn fail(&mut self, error: PipelineError) {
        self.failure.get_or_insert(error);
    }

    fn warn(&self, text: String) {
        self.warnings.lock().expect("no panic while held").push(text);
    }

    /// What the filter has to know beyond Docker's defaults.
    fn extra(&self) -> crate::model::profile::Extra {
        let options = &self.input.spec.options;
        let mut extra = crate::model::profile::Extra::new();
        let dockers = options.cap_add.is_empty() && options.cap_drop.is_empty();
        if let (false, Ok(caps)) = (dockers, runtime::capabilities(options)) {
            extra.insert("capabilities".to_owned(), caps.into());
        }
        extra
    }

    fn end(self) -> RunOutcome {
        let extra = self.extra();
        RunOutcome {
            record: RunRecord {
                slim: env!("CARGO_PKG_VERSION").to_owned(),
                purpose: self.input.purpose.to_owned(),
                script: script_digest(&self.input.spec.script),
                arguments: self.input.spec.arguments.clone(),
                kernel: rustix::system::uname().release().to_string_lossy().into_owned(),
                runtime: String::new(),
                seccomp: self.input.seccomp.0.clone(),
                recorder: match self.input.spec.recorder {
                    RecorderChoice::Bpf => "bpf",
                    RecorderChoice::None => "none",
                }
                .to_owned(),
                started: self.started,
                phases: self.phases,
                losses: Vec::new(),
                complete: false,
                extra,
            },
            recording: None,
            changes: Vec::new(),
            script: self.script,
            outcomes: self.outcomes,
            warnings: self.warnings.into_inner().expect("no panic while held"),
            failure: self.failure,
        }
    }
}

fn readiness_text(readiness: &Readiness) -> String {
    match readiness {
        Readiness::Ready => "ready".to_owned(),
        Readiness::TimedOut => "not ready in time".to_owned(),
        Readiness::Ended(ended) => ended_text(*ended),
    }
}

fn millis(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

/// The digest of the script: of the first word that names a file here (`bash` in `bash script.sh` is
/// found by PATH and so is none).
fn script_digest(script: &[OsString]) -> Option<Digest> {
    let bytes = script.iter().find_map(|word| std::fs::read(word).ok());
    bytes.map(|bytes| Digest::of(&bytes))
}
