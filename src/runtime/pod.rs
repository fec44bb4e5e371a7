//! The main container of a run with its network and control socket, and the fresh containers that
//! SLIM_RUN starts beside it.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::cell::{Cell, CellInner, random_hex};
use super::container::{Container, Place, Refused, start_error};
use super::control::{self, Server};
use super::engine::Engine;
use super::listener::Doorman;
use super::net::PodNet;
use super::ready::{self, LogWatch};
use super::script::{self, Script};
use super::spec;
use super::stdio::{self, Console, Log, Stdio};
use super::{
    Ended, Network, PodSpec, Readiness, Ready, RuntimeError, ScriptEnd, Work, interrupted,
};
use crate::model::ExposedPort;
use crate::seccomp::Watch;

/// Docker's default for `--stop-timeout`.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// How often waiting loops look again.
const TICK: Duration = Duration::from_millis(20);

/// The main container of a run with its network, and the fresh ones that SLIM_RUN starts.
pub struct Pod {
    inner: Arc<PodInner>,
    server: Server,
}

/// What the control socket's threads share with the pod.
pub(super) struct PodInner {
    cell: Arc<CellInner>,
    pub spec: PodSpec,
    engine: Engine,
    net: Net,
    hostname: String,
    main: Container,
    log: Arc<Log>,
    /// Holds the container's stdin open with `-i`.
    stdin: Mutex<Option<OwnedFd>>,
    uppers: Mutex<Vec<PathBuf>>,
    /// Set when the pod goes: fresh containers that still run are killed.
    leaving: AtomicBool,
    warnings: Mutex<Vec<String>>,
    /// For runc, crun and hooks, where calls are to be notified.
    doorman: Option<Doorman>,
}

/// A network namespace as the pieces need it.
struct Net {
    pod: Option<PodNet>,
    /// Of `--network ns:PATH`.
    file: Option<File>,
    /// Where it is bound inside the cell; `None` is the host's namespace.
    bound: Option<PathBuf>,
}

impl Net {
    fn make(
        cell: &CellInner,
        spec: &PodSpec,
        exposed: &BTreeSet<ExposedPort>,
        publish: bool,
    ) -> Result<Self, RuntimeError> {
        let mut net = Self { pod: None, file: None, bound: None };
        match &spec.network {
            Network::Host => return Ok(net),
            Network::Ns(path) => {
                net.file = Some(open_namespace(path).map_err(|why| RuntimeError::Option {
                    option: "--network".into(),
                    value: format!("ns:{}", path.display()),
                    why,
                })?);
            }
            Network::Published | Network::Private => {
                net.pod = Some(PodNet::create(exposed, publish)?);
            }
        }
        let target = spec.run_dir.join(format!("netns-{}", random_hex()));
        let what = format!("create({target:?})");
        File::create(&target).map_err(|source| RuntimeError::Io { what, source })?;
        if let Some(fd) = net.fd() {
            cell.bind(fd, &target)?;
        }
        net.bound = Some(target);
        Ok(net)
    }

    fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.pod.as_ref().map(PodNet::netns).or(self.file.as_ref().map(AsFd::as_fd))
    }

    fn address(&self) -> Option<IpAddr> {
        self.pod.as_ref().map(PodNet::container_ip)
    }

    fn gateway(&self) -> Option<IpAddr> {
        self.pod.as_ref().map(PodNet::gateway_ip)
    }

    fn unbind(&self, cell: &CellInner) {
        if let Some(bound) = &self.bound {
            let _ = cell.detach(bound);
            let _ = std::fs::remove_file(bound);
        }
    }
}

/// Opens a network namespace; anything else at `path` is refused (NS_GET_NSTYPE, ioctl_ns(2)).
fn open_namespace(path: &Path) -> Result<File, String> {
    const WAY_OUT: &str = "give a network namespace, as /run/netns/NAME or /proc/PID/ns/net";
    let file = File::open(path).map_err(|error| format!("{error}; {WAY_OUT}"))?;
    if !crate::sys::netns::is_network_namespace(&file) {
        return Err(format!("that is no network namespace; {WAY_OUT}"));
    }
    Ok(file)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

impl Pod {
    /// Mounts the main container's overlay, makes its network, starts the control socket for
    /// `slim exec` and SLIM_RUN. Nothing of the image runs yet.
    pub fn create(cell: &Cell, spec: PodSpec) -> Result<Self, RuntimeError> {
        let cell = cell.inner();
        let engine = Engine::find(spec.runtime)?;
        let what = format!("open({:?})", spec.log);
        let log = Log::open(&spec.log).map_err(|source| RuntimeError::Io { what, source })?;
        let publish = spec.network == Network::Published;
        let net = Net::make(&cell, &spec, &spec.config.exposed_ports(), publish)?;
        let hostname = format!("{}{}", random_hex(), &random_hex()[..4]);
        let mut warnings = Vec::new();
        let doorman = doorman(&cell, &spec, &engine)?;
        let main = {
            let place = place(&cell, &spec, &engine, &net, &hostname);
            Container::prepare(&place, Work::Main, None, &mut warnings)?
        };
        let uppers = Mutex::new(vec![main.upper()]);
        let (stdin, warnings) = (Mutex::default(), Mutex::new(warnings));
        let inner = Arc::new(PodInner {
            cell,
            spec,
            engine,
            net,
            hostname,
            main,
            log,
            stdin,
            uppers,
            leaving: AtomicBool::new(false),
            warnings,
            doorman,
        });
        let server = Server::start(Arc::clone(&inner))?;
        Ok(Self { inner, server })
    }

    /// Warnings for the user: clamped limits and the like.
    pub fn warnings(&self) -> Vec<String> {
        lock(&self.inner.warnings).clone()
    }

    /// `embedded libcontainer 0.7.0`, `runc 1.1.5`, …
    pub fn runtime_version(&self) -> String {
        self.inner.engine.version.clone()
    }

    /// Starts the main container; again after it ended is a restart on the same writable layer.
    pub fn start(&self) -> Result<(), RuntimeError> {
        let inner = &self.inner;
        if inner.main.pid().is_some() && inner.main.ended(&inner.cell).is_none() {
            return Ok(());
        }
        inner.poststop(&inner.main, &inner.place());
        inner.log.settle(Duration::from_secs(1));
        let io = |source| RuntimeError::Io { what: "standard streams".into(), source };
        let console = if inner.main.wants_terminal() { Some(inner.console()?) } else { None };
        let stdio = if console.is_some() {
            let (stdin, stdout) = (stdio::null().map_err(io)?, stdio::null().map_err(io)?);
            let stderr = stdio::null().map_err(io)?;
            Stdio { stdin, stdout, stderr }
        } else {
            inner.logged_stdio().map_err(io)?
        };
        let master = match inner.main.start(&inner.place(), &stdio, console)? {
            Ok(master) => master,
            Err(refused) => return Err(start_error(refused)),
        };
        drop(stdio);
        lock(&inner.warnings).extend(inner.main.hook_warnings());
        if let Some(master) = master {
            let reader = master.try_clone().map_err(io)?;
            *lock(&inner.stdin) = Some(master);
            inner.log.copy(reader).map_err(io)?;
        }
        Ok(())
    }

    /// Waits for readiness. `entry` says whether the entrypoint was executed (asked repeatedly).
    ///
    /// An interruption counts as [`Readiness::TimedOut`]; ask [`interrupted`].
    pub fn wait_ready(
        &self,
        ready: &Ready,
        timeout: Duration,
        entry: &dyn Fn() -> bool,
    ) -> Result<Readiness, RuntimeError> {
        let deadline = Instant::now() + timeout;
        let mut watch = match ready {
            Ready::Log(regex) => Some(LogWatch::new(&self.inner.spec.log, regex)),
            _ => None,
        };
        loop {
            // An end comes before a look, so that a last look sees what the container did before it.
            let ended = self.ended();
            let looked = Instant::now();
            if self.is_ready(ready, watch.as_mut(), entry)? {
                return Ok(Readiness::Ready);
            }
            let look = looked.elapsed();
            if let Some(ended) = ended {
                return Ok(Readiness::Ended(ended));
            }
            if Instant::now() >= deadline || interrupted() {
                return Ok(Readiness::TimedOut);
            }
            std::thread::sleep(pause(ready, look));
        }
    }

    fn is_ready(
        &self,
        ready: &Ready,
        watch: Option<&mut LogWatch>,
        entry: &dyn Fn() -> bool,
    ) -> Result<bool, RuntimeError> {
        let inner = &self.inner;
        let netns = inner.net.fd();
        let lowest = self.lowest_tcp();
        let running = self.ended().is_none();
        Ok(match ready {
            Ready::None => true,
            Ready::Default => match lowest {
                Some(port) => ready::listening(netns, port),
                None => entry(),
            },
            Ready::Tcp(port) => ready::listening(netns, *port),
            Ready::Http(path) => {
                let port = lowest.ok_or_else(|| RuntimeError::Option {
                    option: "--ready".into(),
                    value: format!("http:{path}"),
                    why: "the image exposes no TCP port".into(),
                })?;
                inner.http_answers(port, path)
            }
            Ready::Log(_) => watch.is_some_and(|watch| watch.matched().unwrap_or(false)),
            Ready::Healthy => {
                running && self.unless_ended(self.health())?.flatten() == Some(Ended::Exited(0))
            }
            Ready::Exec(command) => {
                let words = control::shell_words(command);
                let asked = || inner.quiet_exec(Work::Exec, &words, None);
                running && self.unless_ended(asked())? == Some(Ended::Exited(0))
            }
        })
    }

    /// A container that ends while a command is on its way into it fails that command only.
    fn unless_ended<T>(&self, result: Result<T, RuntimeError>) -> Result<Option<T>, RuntimeError> {
        match result {
            Ok(value) => Ok(Some(value)),
            Err(_) if self.ended().is_some() => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn lowest_tcp(&self) -> Option<u16> {
        let ports = self.inner.spec.config.exposed_ports();
        ports.iter().find(|port| port.protocol == "tcp").map(|port| port.number)
    }

    /// How the main container ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        self.inner.main.ended(&self.inner.cell)
    }

    /// Runs the image's health check once; `None` if it has none. The value is its exit status.
    pub fn health(&self) -> Result<Option<Ended>, RuntimeError> {
        let Some(check) = self.inner.spec.config.healthcheck() else { return Ok(None) };
        self.inner.quiet_exec(Work::Health, &check.command, Some(check.timeout)).map(Some)
    }

    /// The script's variables: SLIM_HOST, SLIM_PORT, SLIM_PORT_N, SLIM_EXEC, SLIM_RUN, …
    pub fn script_env(&self, wait: Duration) -> BTreeMap<String, String> {
        let (inner, id) = (&self.inner, &self.inner.spec.id);
        let mut env = BTreeMap::new();
        let mut set = |name: &str, value: String| env.insert(name.to_owned(), value);
        let mut first = String::new();
        for port in inner.spec.config.exposed_ports() {
            let number = inner.script_port(&port).to_string();
            if first.is_empty() {
                first.clone_from(&number);
            }
            set(&format!("SLIM_PORT_{}", port.number), number);
        }
        let host = match (&inner.spec.network, inner.net.address()) {
            (Network::Private, Some(address)) => address.to_string(),
            _ => "127.0.0.1".to_owned(),
        };
        set("SLIM_HOST", host);
        set("SLIM_PORT", first);
        let program = self.server.program();
        set("SLIM_EXEC", format!("{program} {} {id} --", control::HIDDEN_EXEC));
        set("SLIM_RUN", format!("{program} {} {id} --", control::HIDDEN_RUN));
        set("SLIM_WAIT", wait.as_secs().to_string());
        set("SLIM_CONTAINER", id.clone());
        set("SLIM_IMAGE", inner.spec.image_name.clone());
        env
    }

    /// Runs the script to its end in the host's mount namespace, with slim's stdout and stderr, its
    /// stdin from /dev/null; kills it at the timeout or when interrupted.
    pub fn run_script(
        &self,
        argv: &[OsString],
        env: &BTreeMap<String, String>,
        timeout: Option<Duration>,
    ) -> Result<ScriptEnd, RuntimeError> {
        let inner = &self.inner;
        // Beside the run's cgroup, not below it: the script is not recorded.
        let name = format!("{}-script", inner.cell.name);
        let cgroup = inner.cell.hierarchies.unified.as_ref().map(|root| root.join(&name));
        let private = inner.spec.network == Network::Private;
        let script = Script {
            argv,
            env,
            timeout,
            cgroup: cgroup.as_deref(),
            mount_ns: crate::sys::mount::host_namespace(),
            netns: if private { inner.net.fd() } else { None },
            program: super::program_override(),
        };
        script::run_script(&script, &interrupted)
    }

    /// Sends the stop signal, after the stop timeout SIGKILL; waits for the end.
    pub fn stop(&self) -> Result<Ended, RuntimeError> {
        let inner = &self.inner;
        let Some(pid) = inner.main.pid() else {
            return Err(RuntimeError::Container {
                what: format!("container {}", inner.spec.id),
                why: "it was never started".into(),
            });
        };
        let options = &inner.spec.options;
        let wanted = options.stop_signal.as_deref().or(inner.spec.config.stop_signal());
        let signal = wanted.and_then(spec::signal_number).unwrap_or(libc::SIGTERM);
        let patience = options.stop_timeout.map_or(STOP_TIMEOUT, Duration::from_secs);
        if self.ended().is_none() {
            inner.cell.kill(pid, signal)?;
        }
        let deadline = Instant::now() + patience;
        let ended = inner.main.wait(&inner.cell, Some(deadline), &|| false).or_else(|| {
            let _ = inner.cell.kill(pid, libc::SIGKILL);
            inner.main.wait(&inner.cell, None, &|| false)
        });
        lock(&inner.stdin).take();
        inner.log.settle(Duration::from_secs(2));
        Ok(ended.unwrap_or(Ended::Killed(libc::SIGKILL)))
    }

    /// The upper directories of all containers of this run.
    pub fn uppers(&self) -> Vec<PathBuf> {
        lock(&self.inner.uppers).clone()
    }

    /// The programs of the image that the runtime runs before the entrypoint (`startContainer`).
    pub fn hooks_inside(&self) -> Vec<String> {
        self.inner.main.hooks_inside()
    }

    /// True if the container tried to reach the outside and could not (published and private).
    pub fn outside_tried(&self) -> bool {
        self.inner.net.pod.as_ref().is_some_and(PodNet::outside_tried)
    }

    /// Kills what still runs, unmounts, removes the pod's cgroups.
    pub fn destroy(self) {
        let calls = self.server.stop();
        self.inner.leaving.store(true, Ordering::SeqCst);
        self.inner.main.kill(&self.inner.cell);
        self.inner.poststop(&self.inner.main, &self.inner.place());
        self.inner.main.dismantle(&self.inner.cell);
        self.inner.net.unbind(&self.inner.cell);
        // An exec ended with its container, a fresh container is being killed: short waits. A call
        // that outlives this would still tell the observer of what it makes.
        for call in calls {
            let _ = call.join();
        }
        self.inner.log.settle(Duration::from_secs(1));
    }
}

fn place<'a>(
    cell: &'a CellInner,
    spec: &'a PodSpec,
    engine: &'a Engine,
    net: &Net,
    hostname: &'a str,
) -> Place<'a> {
    let netns = net.bound.clone();
    let (address, gateway) = (net.address(), net.gateway());
    Place { cell, spec, engine, netns, address, gateway, hostname, seccomp_socket: None }
}

/// runc and crun hand over the listeners of notifying filters at a socket, and so do hooks.
fn doorman(
    cell: &CellInner,
    spec: &PodSpec,
    engine: &Engine,
) -> Result<Option<Doorman>, RuntimeError> {
    let options = &spec.options;
    let hooks = !options.hooks_dirs.is_empty() || !options.devices.is_empty();
    if spec.watch == Watch::Nothing || (engine.is_embedded() && !hooks) {
        return Ok(None);
    }
    let path = control::socket_dir()?.join(format!("{}.seccomp", spec.id));
    let what = format!("bind({path:?})");
    let doorman = Doorman::start(path, cell.cgroup(), Arc::clone(&spec.observer));
    doorman.map(Some).map_err(|source| RuntimeError::Io { what, source })
}

impl PodInner {
    fn place(&self) -> Place<'_> {
        Place {
            seccomp_socket: self.doorman.as_ref().map(Doorman::path),
            ..place(&self.cell, &self.spec, &self.engine, &self.net, &self.hostname)
        }
    }

    /// Pipes into the log; stdin from nowhere, or held open with `-i`.
    fn logged_stdio(&self) -> io::Result<Stdio> {
        let (out, stdout) = stdio::pipe()?;
        let (err, stderr) = stdio::pipe()?;
        self.log.copy(out)?;
        self.log.copy(err)?;
        let stdin = if self.spec.options.interactive {
            let (stdin, open) = stdio::pipe()?;
            *lock(&self.stdin) = Some(open);
            stdin
        } else {
            stdio::null()?
        };
        Ok(Stdio { stdin, stdout, stderr })
    }

    fn console(&self) -> Result<Console, RuntimeError> {
        let path = control::socket_dir()?.join(format!("{}.tty", self.spec.id));
        let what = format!("bind({path:?})");
        Console::listen(path).map_err(|source| RuntimeError::Io { what, source })
    }

    /// The number under which the script reaches an exposed port.
    fn script_port(&self, port: &ExposedPort) -> u16 {
        let published = self.net.pod.as_ref().and_then(|pod| pod.ports().get(port).copied());
        published.unwrap_or(port.number)
    }

    fn http_answers(&self, port: u16, path: &str) -> bool {
        let timeout = Duration::from_secs(5);
        let exposed = ExposedPort { number: port, protocol: "tcp".into() };
        let local = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let (netns, address) = match &self.spec.network {
            Network::Published | Network::Host => (None, (local, self.script_port(&exposed))),
            Network::Private => (self.net.fd(), (self.net.address().unwrap_or(local), port)),
            Network::Ns(_) => (self.net.fd(), (local, port)),
        };
        ready::http_answers(netns, address.into(), path, timeout)
    }

    /// Runs a command in the main container, its output into a pipe that nobody reads for long.
    fn quiet_exec(
        &self,
        work: Work,
        argv: &[String],
        timeout: Option<Duration>,
    ) -> Result<Ended, RuntimeError> {
        let io = |source| RuntimeError::Io { what: "standard streams".into(), source };
        let (out, stdout) = stdio::pipe().map_err(io)?;
        let stderr = stdout.try_clone().map_err(io)?;
        let stdin = stdio::null().map_err(io)?;
        let drain = std::thread::spawn(move || io::copy(&mut File::from(out), &mut io::sink()));
        let stdio = Stdio { stdin, stdout, stderr };
        let result = self.main.exec(&self.place(), work, argv, stdio, timeout)?;
        drop(drain);
        Ok(result.unwrap_or_else(|refused| {
            tracing::debug!(?argv, why = refused.why, "a command could not be run");
            Ended::Exited(refused.code)
        }))
    }

    /// `slim exec`: runs `argv` in the main container.
    pub fn exec(
        &self,
        work: Work,
        argv: &[String],
        stdio: Stdio,
    ) -> Result<Result<Ended, Refused>, RuntimeError> {
        self.main.exec(&self.place(), work, argv, stdio, None)
    }

    /// SLIM_RUN: a fresh container of the image with `argv` as its command, to its end or until
    /// `abandoned`.
    pub fn run(
        &self,
        argv: &[String],
        stdio: Stdio,
        abandoned: &dyn Fn() -> bool,
    ) -> Result<Result<Ended, Refused>, RuntimeError> {
        let net = Net::make(&self.cell, &self.spec, &BTreeSet::new(), false)?;
        let hostname = format!("{}{}", random_hex(), &random_hex()[..4]);
        let place = Place {
            seccomp_socket: self.doorman.as_ref().map(Doorman::path),
            ..place(&self.cell, &self.spec, &self.engine, &net, &hostname)
        };
        let usual = self.usual_command();
        let argv = if argv.is_empty() { &usual } else { argv };
        let mut told = Vec::new();
        let container = Container::prepare(&place, Work::Run, Some(argv), &mut told)?;
        lock(&self.warnings).extend(told);
        lock(&self.uppers).push(container.upper());
        let result = container.start(&place, &stdio, None);
        drop(stdio);
        let result = result.map(|started| {
            let over = || abandoned() || self.leaving();
            started.map(|_| match container.wait(&self.cell, None, &over) {
                Some(ended) => ended,
                None => self.end(&container),
            })
        });
        lock(&self.warnings).extend(container.hook_warnings());
        self.poststop(&container, &place);
        container.dismantle(&self.cell);
        net.unbind(&self.cell);
        result
    }

    /// Runs the `poststop` hooks of a container that has ended. The specification lets their failure
    /// be no failure.
    fn poststop(&self, container: &Container, place: &Place<'_>) {
        if let Err(why) = container.delete(place) {
            lock(&self.warnings).push(format!("poststop hooks were not run: {why}"));
        }
        lock(&self.warnings).extend(container.hook_warnings());
    }

    /// The command of a container that is given none.
    fn usual_command(&self) -> Vec<String> {
        let (options, config) = (&self.spec.options, &self.spec.config);
        let image = || if options.entrypoint.is_some() { Vec::new() } else { config.cmd() };
        options.cmd.clone().unwrap_or_else(image)
    }

    /// Stops a container whose caller is gone.
    fn end(&self, container: &Container) -> Ended {
        if let Some(pid) = container.pid() {
            let _ = self.cell.kill(pid, libc::SIGTERM);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        container
            .wait(&self.cell, Some(deadline), &|| self.leaving())
            .unwrap_or(Ended::Killed(libc::SIGKILL))
    }

    fn leaving(&self) -> bool {
        self.leaving.load(Ordering::SeqCst)
    }
}

/// How long to wait for the next look, given what one took. A command run over and over is itself
/// recorded work; a look at a table is not. But the kernel walks all of its hash table of connections
/// for one (milliseconds on a large machine), so that looking all the time would take a processor.
fn pause(ready: &Ready, look: Duration) -> Duration {
    match ready {
        Ready::Healthy | Ready::Exec(_) => Duration::from_millis(500),
        _ => TICK.max((look * 20).min(Duration::from_millis(200))),
    }
}
