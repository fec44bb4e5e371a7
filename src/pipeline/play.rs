//! The acts of a run in their order, each with its time and its outcome: start, readiness, health,
//! script, health, stop, restart.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::model::profile::PhaseRecord;
use crate::model::{Digest, Phase, RunRecord};
use crate::record::Recorder;
use crate::runtime::{self, Ended, Pod, Readiness, Ready, ScriptEnd};

use super::run_spec::{RunInput, RunOutcome, ended_text, script_text};
use super::{PipelineError, Reporter};

/// The acts of a run, with their times.
pub(super) struct Play<'a> {
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
    last_words: Option<String>,
}

impl<'a> Play<'a> {
    pub(super) fn new(
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
            last_words: None,
        }
    }

    /// Start, readiness, health, script, health, stop, restart. Stops early, but in order, when
    /// something fails or Ctrl-C came.
    pub(super) fn play(&mut self) -> Result<(), PipelineError> {
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
                let entered = self.entered();
                if !entered || given || exposed {
                    let how = ended_text(ended);
                    let hooks = if entered { Vec::new() } else { self.pod.hooks_inside() };
                    self.fail(PipelineError::Container(match hooks.as_slice() {
                        [] => format!(
                            "the container ended before it was ready ({how}); its output is in \
                             container.log"
                        ),
                        hooks => format!(
                            "the container ended ({how}) before its entrypoint was executed: its \
                             startContainer hook ({}), a program of the image, failed or is not \
                             there; see container.log, or leave its definition out",
                            hooks.join(", ")
                        ),
                    }));
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
        self.settle();
        self.pod.stop()?;
        Ok(((), Some(text)))
    }

    /// Where no port says that the container is up, its second start is given a moment to be recorded:
    /// stopped at its first instruction it would show nothing, and pid 1 has no handler yet.
    fn settle(&self) {
        let config = &self.input.image.config;
        if self.input.spec.ready.is_some() || !config.exposed_ports().is_empty() {
            return;
        }
        let until = Instant::now() + Duration::from_secs(1);
        while Instant::now() < until && self.pod.ended().is_none() && !runtime::interrupted() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn fail(&mut self, error: PipelineError) {
        if self.failure.is_none() {
            let printed = std::fs::read(&self.input.log).ok();
            self.last_words = printed.and_then(|printed| runtime::last_line(&printed));
            self.failure = Some(error);
        }
    }

    fn warn(&self, text: String) {
        self.warnings.lock().expect("no panic while held").push(text);
    }

    /// What filter and keep-set have to know beyond Docker's defaults: the runtime looks these paths
    /// up before the entrypoint, where uses are no reason to keep anything.
    fn extra(&self) -> crate::model::profile::Extra {
        let options = &self.input.spec.options;
        let mut extra = crate::model::profile::Extra::new();
        let dockers = options.cap_add.is_empty() && options.cap_drop.is_empty();
        if let (false, Ok(caps)) = (dockers, runtime::capabilities(options)) {
            extra.insert("capabilities".to_owned(), caps.into());
        }
        if let Ok(hooks) = runtime::hooks(options)
            && !hooks.is_empty()
        {
            extra.insert("hooks".to_owned(), hooks.into());
        }
        if let Some(workdir) = &options.workdir {
            extra.insert("workdir".to_owned(), workdir.as_str().into());
        }
        if let Ok(places) = runtime::mount_points(options)
            && !places.is_empty()
        {
            extra.insert("mount_points".to_owned(), places.into());
        }
        extra
    }

    pub(super) fn end(self) -> RunOutcome {
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
                recorder: String::new(),
                started: self.started,
                phases: self.phases,
                losses: Vec::new(),
                complete: false,
                extra,
            },
            recording: None,
            changes: Vec::new(),
            bystanders: None,
            script: self.script,
            outcomes: self.outcomes,
            warnings: self.warnings.into_inner().expect("no panic while held"),
            failure: self.failure,
            last_words: self.last_words,
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
