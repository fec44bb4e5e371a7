//! One run of one image: cell, recorder and pod around the acts of `play`.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

use crate::model::{Digest, Loss, LossKind, Phase};
use crate::record::{
    Backend, Recorder, RecorderSpec, Role, notified_calls_outlast_signals, ns_per_call,
};
use crate::runtime::{self, Cell, Observer, Pod, PodSpec, RuntimeKind, Work};
use crate::seccomp::Watch;

use super::play::Play;
use super::run_spec::{RecorderChoice, RunInput, RunOutcome};
use super::summary::Bystanders;
use super::{PipelineError, Reporter};

/// Said before a run, not only after it: it takes as long as any other.
const HALF_NOTIFIED: &str = "with runc and crun --recorder notify sees calls with paths only, and this \
    run will be marked as incomplete: leave --runtime out, or record with --recorder bpf or perf";
/// The embedded runtime asks for better, which Linux has from 5.19 on.
const INTERRUPTIBLE: &str = "a signal may have ended a call that the recorder was looking at with \
    EINTR: Linux 5.19 and the embedded runtime together rule that out";

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
    let Attached { recorder, backend, instead, bystanders } = Attached::start(input, &cell)?;
    let observer: Arc<dyn Observer> = match &recorder {
        Some(recorder) => Arc::new(Recorded(Arc::clone(recorder))),
        None => Arc::new(Unwatched),
    };
    let watch = recorder.as_ref().map_or(Watch::Nothing, |recorder| recorder.watch_calls());
    let foreign = input.spec.runtime != RuntimeKind::Embedded;
    if backend == Some(Backend::Notify) && foreign {
        reporter.warn(HALF_NOTIFIED);
    }
    let interruptible = watch != Watch::Nothing && (foreign || !notified_calls_outlast_signals());
    let pod = Pod::create(&cell, pod_spec(input, observer, watch))?;
    let mut play = Play::new(input, &pod, recorder.as_deref(), reporter);
    let played = play.play();
    let mut outcome = play.end();
    outcome.warnings.extend(pod.warnings());
    outcome.warnings.extend(instead);
    outcome.warnings.extend(interruptible.then(|| INTERRUPTIBLE.to_owned()));
    outcome.bystanders = bystanders;
    outcome.record.recorder = backend.map_or("none", Backend::name).to_owned();
    if runtime::without_root() {
        let text = without_root(backend);
        outcome.record.extra.insert("without_root".to_owned(), text);
    }
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
    if backend == Some(Backend::Notify) && foreign {
        outcome.record.losses.push(half_notified());
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

/// What records a run.
#[derive(Default)]
struct Attached {
    recorder: Option<Arc<Recorder>>,
    backend: Option<Backend>,
    /// Why it is not the best one.
    instead: Option<String>,
    bystanders: Option<Bystanders>,
}

impl Attached {
    /// Starts what the user chose.
    fn start(input: &RunInput<'_>, cell: &Cell) -> Result<Self, PipelineError> {
        let cgroup = cell.cgroup().map(Path::to_owned);
        let filter = input.seccomp.1.clone();
        let (backend, mut instead) = match input.spec.recorder {
            RecorderChoice::None => return Ok(Self::default()),
            RecorderChoice::Backend(backend) => (Some(backend), None),
            RecorderChoice::Auto if runtime::without_root() => {
                let why = "recording with notify: the other recorders are root's";
                (Some(Backend::Notify), Some(why.to_owned()))
            }
            RecorderChoice::Auto => (None, None),
        };
        if cgroup.is_none()
            && let Some(backend @ (Backend::Bpf | Backend::Perf)) = backend
        {
            return Err(needs_cgroup(backend));
        }
        let fanotify = cgroup.is_some();
        let spec = |backend| RecorderSpec { cgroup, backend, fanotify, filter };
        let before = ns_per_call();
        let (recorder, backend) = match backend {
            Some(backend) => (Recorder::start(spec(backend))?, backend),
            None => {
                let (recorder, backend, why) = Recorder::start_best(&spec(Backend::Bpf))?;
                instead = why.map(|why| format!("recording with {backend}: {why}"));
                (recorder, backend)
            }
        };
        Ok(Self {
            recorder: Some(Arc::new(recorder)),
            backend: Some(backend),
            instead,
            bystanders: Some(Bystanders { before, during: ns_per_call() }),
        })
    }
}

/// For the run record: the ids that there were, and what the recorder could not see.
fn without_root(backend: Option<Backend>) -> serde_json::Value {
    let blind = backend.map(Backend::blind_alone).unwrap_or_default();
    serde_json::json!({ "users": runtime::user_map(), "blind": blind })
}

/// runc and crun need calls of their own behind the filter and refuse to have them notified.
fn half_notified() -> Loss {
    let detail = "runc and crun let only path calls be notified; the embedded runtime lets all";
    Loss::new(LossKind::CallsNotNotified, 1, detail)
}

fn needs_cgroup(backend: Backend) -> PipelineError {
    PipelineError::Host {
        what: format!("--recorder {backend}"),
        why: "it filters by a cgroup, and slim runs without root and so without one".to_owned(),
        way_out: "run slim as root, or record nothing with --recorder none".to_owned(),
    }
}

fn finish_record(outcome: &mut RunOutcome) {
    if outcome.recording.is_none() {
        let detail = "nothing was recorded (--recorder none)";
        outcome.record.losses.push(Loss::new(LossKind::NotRecorded, 1, detail));
    }
    outcome.record.losses.sort();
    outcome.record.complete = outcome.record.losses.is_empty();
}

fn pod_spec(input: &RunInput<'_>, observer: Arc<dyn Observer>, watch: Watch) -> PodSpec {
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
        watch,
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

fn role(work: Work) -> Role {
    match work {
        Work::Main => Role::Main,
        Work::Exec => Role::Fixed(Phase::Exec),
        Work::Run => Role::Fixed(Phase::Run),
        Work::Health => Role::Fixed(Phase::Health),
        Work::Hook => Role::Hook,
        Work::Unrecorded => Role::Unrecorded,
    }
}

/// Tells the recorder what the runtime makes.
struct Recorded(Arc<Recorder>);

impl Observer for Recorded {
    fn mounted(&self, root: &Path) -> Result<(), String> {
        self.0.watch(root).map_err(|error| error.to_string())
    }

    fn leaf(&self, cgroup: &Path, work: Work) -> Result<(), String> {
        self.0.set_role(cgroup, role(work)).map_err(|error| error.to_string())
    }

    fn listener(
        &self,
        work: Option<Work>,
        cgroup: Option<&Path>,
        listener: OwnedFd,
    ) -> Result<(), String> {
        let added = self.0.add_listener(work.map(role), cgroup, listener);
        added.map_err(|error| error.to_string())
    }

    fn lost_listener(&self) {
        self.0.lost_listener();
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
