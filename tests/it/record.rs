//! The recorder on a real kernel: a small overlay, a cgroup, and a static program that plays runtime,
//! entrypoint and application. Needs root, fanotify, BPF, overlayfs and cgroup v2.

mod filters;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use slim::model::profile::{Extra, ImageIdentity, kind};
use slim::model::{
    ChainId, Digest, Loss, Node, NodeKind, Phase, Profile, RootPath, RunRecord, Tree,
};
use slim::record::{Injection, Recorder, RecorderSpec, Recording, Role};

use crate::support::{Need, cgroup2, have, kernel};

/// The tests share the machine's fanotify and their counts of losses: one at a time.
static ONE: Mutex<()> = Mutex::new(());

/// An overlay with a lower layer, a cgroup with two leaves, and a recorder.
struct Scene {
    dir: tempfile::TempDir,
    cgroup: PathBuf,
    tree: Tree,
    recorder: Option<Recorder>,
    _one: MutexGuard<'static, ()>,
}

fn tool() -> &'static Path {
    static TOOL: OnceLock<PathBuf> = OnceLock::new();
    TOOL.get_or_init(|| {
        let out = Path::new(env!("CARGO_TARGET_TMPDIR")).join("record-tool");
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/record/tool.c");
        let built = Command::new("cc")
            .args(["-static", "-pthread", "-O1", "-o"])
            .arg(&out)
            .arg(source)
            .status()
            .expect("a C compiler (cc) for the test's program");
        assert!(built.success());
        out
    })
}

impl Scene {
    /// `None`, with the reason, without root.
    fn new(name: &str) -> Option<Self> {
        Self::with(name, Recorder::start)
    }

    fn with(
        name: &str,
        start: impl FnOnce(RecorderSpec) -> Result<Recorder, slim::record::RecordError>,
    ) -> Option<Self> {
        if !have(&[Need::Root, Need::Cgroup2, Need::Program("cc")]) {
            return None;
        }
        let one = ONE.lock().unwrap_or_else(PoisonError::into_inner);
        let dir = tempfile::tempdir().unwrap();
        // slim-in-a-container: the store's overlay may not lie on an overlay, so a tmpfs it is
        let at = dir.path();
        mount(Some("tmpfs"), at, Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        for sub in ["lower", "upper", "work", "root"] {
            fs::create_dir(at.join(sub)).unwrap();
        }
        fill(&at.join("lower"));
        let tree = index(&at.join("lower"));
        // without redirect_dir an overlay lets nobody rename a folder of the image
        let options = format!(
            "lowerdir={0}/lower,upperdir={0}/upper,workdir={0}/work,redirect_dir=on",
            at.display()
        );
        let root = at.join("root");
        mount(Some("overlay"), &root, Some("overlay"), MsFlags::empty(), Some(options.as_str()))
            .unwrap();
        let cgroup = cgroup2().unwrap().join(format!("it-slim-{name}-{}", std::process::id()));
        for leaf in ["main", "unrecorded"] {
            fs::create_dir_all(cgroup.join(leaf)).unwrap();
        }
        let recorder = start(RecorderSpec::new(cgroup.clone())).unwrap();
        recorder.set_role(&cgroup.join("main"), Role::Main).unwrap();
        recorder.set_role(&cgroup.join("unrecorded"), Role::Unrecorded).unwrap();
        recorder.watch(&root).unwrap();
        Some(Self { dir, cgroup, tree, recorder: Some(recorder), _one: one })
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn recorder(&self) -> &Recorder {
        self.recorder.as_ref().unwrap()
    }

    /// Starts a runtime in a leaf: joins it, does `before` at the host's root, enters the overlay,
    /// does `inside` there, and executes `app`.
    fn start(&self, leaf: &str, enter: &str, inside: &str, app: &str) -> Child {
        let leaf = self.cgroup.join(leaf);
        let (leaf, root) = (leaf.to_str().unwrap(), self.root());
        let line =
            format!("join {leaf} newns {enter} {} {inside} exec /bin/tool {app}", root.display());
        Command::new(tool()).args(line.split_whitespace()).spawn().unwrap()
    }

    fn run(&self, leaf: &str, inside: &str, app: &str) {
        let status = self.start(leaf, "pivot", inside, app).wait().unwrap();
        assert!(status.success(), "{status}");
    }

    fn finish(mut self) -> Seen {
        let recording = self.recorder.take().unwrap().finish().unwrap();
        Seen::of(recording, &self.tree)
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        self.recorder.take();
        let _ = umount2(&self.root(), MntFlags::MNT_DETACH);
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
        for leaf in ["main", "unrecorded", ""] {
            let _ = fs::remove_dir(self.cgroup.join(leaf));
        }
    }
}

/// What the image holds.
fn fill(lower: &Path) {
    for dir in ["bin", "etc", "usr/lib", "mnt", "tmp", "srv/data", "jail/etc"] {
        fs::create_dir_all(lower.join(dir)).unwrap();
    }
    fs::copy(tool(), lower.join("bin/tool")).unwrap();
    fs::copy(tool(), lower.join("bin/other")).unwrap();
    fs::write(lower.join("bin/script"), "#!/bin/other sleep\n").unwrap();
    fs::set_permissions(lower.join("bin/script"), fs::Permissions::from_mode(0o755)).unwrap();
    for file in [
        "etc/passwd",
        "etc/conf",
        "usr/lib/a",
        "usr/lib/b",
        "usr/lib/unused",
        "srv/data/x",
        "etc/old",
        "jail/etc/in",
    ] {
        fs::write(lower.join(file), file).unwrap();
    }
    std::os::unix::fs::symlink("usr/lib", lower.join("lib")).unwrap();
    std::os::unix::fs::symlink("a", lower.join("usr/lib/link")).unwrap();
    fs::hard_link(lower.join("etc/conf"), lower.join("etc/conf2")).unwrap();
}

fn index(lower: &Path) -> Tree {
    let mut tree = Tree::default();
    for entry in walkdir::WalkDir::new(lower).min_depth(1) {
        let entry = entry.unwrap();
        let meta = entry.path().symlink_metadata().unwrap();
        let kind = if meta.is_dir() {
            NodeKind::Dir
        } else if meta.is_symlink() {
            let target = fs::read_link(entry.path()).unwrap();
            NodeKind::Symlink { target: target.to_str().unwrap().into() }
        } else {
            NodeKind::File { size: meta.len(), content: Digest::of(b""), facts: None }
        };
        let path = entry.path().strip_prefix(lower).unwrap().to_str().unwrap();
        let node = Node {
            kind,
            mode: meta.mode() & 0o7777,
            uid: 0,
            gid: 0,
            mtime: (0, 0),
            xattrs: slim::model::Xattrs::default(),
            layer: 0,
            inode: meta.ino(),
            implied: false,
        };
        tree.nodes.insert(RootPath::parse(path.as_bytes()).unwrap(), node.into());
    }
    tree
}

/// A profile of one run, with questions tests ask.
struct Seen {
    profile: Profile,
    losses: Vec<Loss>,
    /// By fanotify alone.
    opened: Vec<(String, String)>,
    /// fanotify events read.
    events: u64,
}

impl Seen {
    fn of(recording: Recording, tree: &Tree) -> Self {
        let mut profile = Profile::new(ImageIdentity {
            config_digest: Digest::of(b""),
            chain_id: ChainId::of(&[]),
            platform: "linux/amd64".into(),
            names: Default::default(),
            manifest_digests: Default::default(),
            extra: Extra::new(),
        });
        let (losses, opened) = (recording.losses.clone(), recording.opened());
        let events = recording.events;
        recording.fold(&mut profile, tree, &run());
        Self { profile, losses, opened, events }
    }

    /// `kind/phase` of every use of a file, sorted.
    fn uses(&self, path: &str) -> Vec<String> {
        let path = RootPath::parse(path.as_bytes()).unwrap();
        let Some(cell) = self.profile.files.get(&path) else { return Vec::new() };
        let uses =
            cell.access.iter().flat_map(|(kind, runs)| runs.values().map(move |by| (kind, by)));
        uses.map(|(kind, by)| format!("{kind}/{}", by.phase())).collect()
    }

    #[track_caller]
    fn has(&self, path: &str, want: &str) {
        let uses = self.uses(path);
        assert!(uses.iter().any(|u| u == want), "{path}: {uses:?}, not {want}");
    }

    /// The same, as the profile has it and as fanotify alone saw it: neither hides for the other.
    #[track_caller]
    fn opened(&self, path: &str, want: &str) {
        self.has(path, want);
        let opened = self.opened.iter().any(|(p, how)| p == path && how == want);
        assert!(opened, "fanotify saw {:?}, not {path} {want}", self.opened);
    }

    #[track_caller]
    fn lost_nothing(&self) {
        assert_eq!(self.losses, []);
    }

    fn call(&self, arch: &str, name: &str) -> Vec<String> {
        let cell = self.profile.syscalls.get(arch).and_then(|c| c.get(name)?.get(""));
        cell.map(|access| access.keys().map(ToString::to_string).collect()).unwrap_or_default()
    }
}

fn run() -> RunRecord {
    RunRecord {
        slim: String::new(),
        purpose: "trace".into(),
        script: None,
        arguments: Vec::new(),
        kernel: String::new(),
        runtime: String::new(),
        seccomp: String::new(),
        recorder: "bpf".into(),
        started: String::new(),
        phases: Vec::new(),
        losses: Vec::new(),
        complete: true,
        extra: Extra::new(),
    }
}

#[test]
fn every_kind_of_use_is_recorded_with_who_did_it() {
    let Some(scene) = Scene::new("kinds") else { return };
    assert!(!scene.recorder().wait_entry(Duration::ZERO));
    scene.run(
        "main",
        "",
        "open /etc/passwd open /usr/lib/b stat /lib/link cd /usr opath lib/b lack /etc/none \
         lack /nowhere/x create /tmp/new chmod /etc/conf unlink /etc/old lack /etc/old \
         openat /srv data/x bindsock /tmp/s \
         sleep 300", // its mounts are read while it lives
    );
    assert!(scene.recorder().wait_entry(Duration::ZERO));
    let seen = scene.finish();
    seen.lost_nothing();
    seen.opened("/bin/tool", "exec/start");
    seen.opened("/etc/passwd", "open/start");
    seen.has("/lib", "walk/start");
    seen.has("/usr/lib/link", "walk/start");
    seen.has("/usr/lib/a", "stat/start");
    seen.has("/usr/lib/b", "stat/start"); // O_PATH
    seen.opened("/usr/lib/b", "open/start");
    seen.has("/etc/conf", "change/start");
    seen.has("/etc/old", "remove/start");
    seen.opened("/srv/data/x", "open/start");
    assert_eq!(seen.uses("/usr/lib/unused"), [""; 0]);
    let paths =
        |map: &BTreeMap<RootPath, _>| map.keys().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(paths(&seen.profile.missing), ["/etc/none", "/nowhere/x", "/proc/self/exe"]);
    assert_eq!(paths(&seen.profile.written), ["/etc/conf", "/etc/old", "/tmp/new", "/tmp/s"]);
    let passwd = &seen.profile.files[&RootPath::parse(b"/etc/passwd").unwrap()];
    let by = passwd.access[kind::OPEN].values().next().unwrap().first_use();
    assert_eq!((by.exe.as_str(), by.argv0.as_str(), by.uid), ("/bin/tool", "/bin/tool", 0));
    assert_eq!(seen.call("x86_64", "openat"), ["call"]);
    let socket = &seen.profile.syscalls["x86_64"]["socket"];
    assert!(socket.contains_key("domain=AF_UNIX,type=SOCK_STREAM,protocol=0"), "{socket:?}");
}

#[test]
fn what_the_runtime_opened_first_still_counts_for_the_application() {
    let Some(scene) = Scene::new("runtime") else { return };
    // the kernel merges what one process opens while the queue is not read
    let before = "open /etc/passwd open /usr/lib/a stat /etc/conf sleep 300";
    scene.run("main", before, "open /etc/passwd");
    let seen = scene.finish();
    seen.lost_nothing();
    assert_eq!(seen.uses("/etc/passwd"), ["open/start"]);
    seen.opened("/etc/passwd", "open/start");
    assert_eq!(seen.uses("/usr/lib/a"), ["open/runtime"]);
    seen.opened("/usr/lib/a", "open/runtime");
    assert_eq!(seen.uses("/etc/conf"), ["stat/runtime"]);
    let chroot = &seen.profile.syscalls["x86_64"]["pivot_root"][""];
    assert!(chroot["call"].values().all(|by| by.phase() == "runtime"));
}

#[test]
fn an_unrecorded_exec_never_counts_and_never_hides() {
    let Some(scene) = Scene::new("unrecorded") else { return };
    // the main container first, so that files may be silenced from then on
    let mut main = scene.start("main", "pivot", "", "open /etc/conf sleep 600 open /usr/lib/a");
    assert!(scene.recorder().wait_entry(Duration::from_secs(5)));
    scene.run("unrecorded", "", "open /usr/lib/a open /usr/lib/b");
    assert!(main.wait().unwrap().success());
    let seen = scene.finish();
    seen.lost_nothing();
    assert_eq!(seen.uses("/usr/lib/b"), [""; 0]);
    assert_eq!(seen.uses("/usr/lib/a"), ["open/start"]);
    seen.opened("/usr/lib/a", "open/start");
}

#[test]
fn a_process_that_is_dead_when_its_open_is_read_is_still_known() {
    let Some(scene) = Scene::new("dead") else { return };
    let hold = scene.recorder().hold();
    scene.run("main", "open /etc/conf", "child 2 open /usr/lib/a child 2 open /usr/lib/b");
    drop(hold); // all of them are dead now, and nothing of theirs was read
    let seen = scene.finish();
    seen.lost_nothing();
    seen.opened("/usr/lib/a", "open/start");
    seen.opened("/usr/lib/b", "open/start");
    assert_eq!(seen.uses("/etc/conf"), ["open/runtime"]);
}

#[test]
fn both_names_of_a_hard_link_are_seen() {
    let Some(scene) = Scene::new("links") else { return };
    scene.run("main", "", "open /etc/conf sleep 50 open /etc/conf2");
    let seen = scene.finish();
    seen.lost_nothing();
    seen.opened("/etc/conf", "open/start");
    seen.opened("/etc/conf2", "open/start");
}

#[test]
fn paths_through_a_bind_mount_and_in_a_chroot_are_the_images() {
    let Some(scene) = Scene::new("bind") else { return };
    let app = "open /mnt/x sleep 300 chroot /jail open /etc/in stat /etc/in sleep 300";
    scene.run("main", "bind /srv/data /mnt", app);
    let seen = scene.finish();
    seen.lost_nothing();
    seen.opened("/srv/data/x", "open/start");
    seen.opened("/jail/etc/in", "open/start");
    seen.has("/jail/etc/in", "stat/start");
    assert_eq!(seen.uses("/mnt/x"), [""; 0]);
}

#[test]
fn a_container_that_was_chrooted_is_seen_as_well() {
    let Some(scene) = Scene::new("chroot") else { return };
    let mut child = scene.start("main", "chroot", "", "open /etc/passwd cd /usr/lib stat a");
    assert!(child.wait().unwrap().success());
    let seen = scene.finish();
    seen.lost_nothing();
    seen.opened("/etc/passwd", "open/start");
    seen.has("/usr/lib/a", "stat/start");
}

#[test]
fn refused_unknown_and_32_bit_calls_are_told_apart() {
    let Some(scene) = Scene::new("calls") else { return };
    // no number below zero is a call
    scene.run("main", "", "refuse compat call -1 call 1000 call -38");
    let seen = scene.finish();
    assert_eq!(seen.call("x86_64", "getppid"), ["refused:EPERM"]);
    assert_eq!(seen.call("x86", "getpid"), ["call"]);
    let kinds: Vec<_> = seen.losses.iter().map(|l| (l.kind.as_str(), l.number)).collect();
    assert_eq!(kinds, [("unknown_syscall", 1)]);
}

#[test]
fn a_programs_own_filters_are_known_by_their_answers() {
    for both in [false, true] {
        let Some(scene) = Scene::with("judged", |spec| Recorder::start_seeing(spec, both)) else {
            return;
        };
        scene.run("main", "", "judge");
        let seen = scene.finish();
        seen.lost_nothing();
        let calls = |name| seen.call("x86_64", name);
        assert_eq!(calls("getpriority"), ["call", "error:EINVAL", "refused:EINVAL"], "{both}");
        // what loads a filter that refuses it was not refused itself
        assert_eq!(calls("prctl"), ["call", "refused:EPERM"], "{both}");
        assert_eq!(calls("sched_yield"), ["call"], "{both}");
        assert_eq!(calls("rt_sigreturn"), ["call"], "{both}");
        assert_eq!(calls("exit_group"), ["call"], "{both}");
        for name in ["sysinfo", "getsid", "getpgid"] {
            let [refused] = &calls(name)[..] else { panic!("{name} {both}: {:?}", calls(name)) };
            assert!(refused.starts_with("refused:"), "{name} {both}: {refused}");
        }
    }
}

#[test]
fn calls_that_change_or_end_their_caller_are_known_by_their_numbers() {
    let Some(scene) = Scene::new("numbers") else { return };
    scene.run("main", "", "child 2 exec32 /bin/tool child 1 exit32 execat /bin/tool");
    let seen = scene.finish();
    seen.lost_nothing();
    assert_eq!(seen.call("x86", "execve"), ["call"]);
    assert_eq!(seen.call("x86", "exit_group"), ["call"]);
    assert_eq!(seen.call("x86_64", "execveat"), ["call"]);
    assert_eq!(seen.call("x86_64", "exit_group"), ["call"]);
    seen.has("/bin/tool", "exec/start");
}

#[test]
fn a_relative_chdir_starts_from_where_its_task_stood() {
    let Some(scene) = Scene::new("standing") else { return };
    let moved = "child 4 cd usr cd lib child 9 cd /jail rename /jail /kept cd etc stat in";
    scene.run("main", "", &format!("cd / {moved}"));
    let seen = scene.finish();
    seen.lost_nothing();
    for path in ["/usr", "/usr/lib", "/jail", "/jail/etc", "/jail/etc/in"] {
        seen.has(path, "stat/start");
    }
    assert_eq!(seen.uses("/lib"), [""; 0]);
    assert_eq!(seen.uses("/etc/etc"), [""; 0]);
}

#[test]
fn a_relative_chdir_starts_from_where_another_task_has_put_its_own() {
    let Some(scene) = Scene::new("pivoted") else { return };
    scene.run("main", "", "newns cd / child 2 pivot /jail cd etc stat in");
    let seen = scene.finish();
    seen.lost_nothing();
    seen.has("/jail/etc", "stat/start");
    seen.has("/jail/etc/in", "stat/start");
    assert_eq!(seen.uses("/etc"), [""; 0]);
}

#[test]
fn a_root_that_others_changed_too_often_is_a_loss() {
    for (changes, lost) in [(4, 0), (5, 1)] {
        let Some(scene) = Scene::new("pivoted") else { return };
        let more = " child 2 pivot /..".repeat(changes - 1);
        scene.run("main", "", &format!("newns cd / child 2 pivot /jail{more} cd etc stat in"));
        let seen = scene.finish();
        let losses = seen.losses.iter().filter(|loss| loss.kind == "string_fault");
        assert_eq!(losses.count(), lost, "{changes}: {:?}", seen.losses);
        if lost == 0 {
            seen.has("/jail/etc/in", "stat/start");
        }
    }
}

#[test]
fn a_call_belongs_to_the_phase_in_which_it_began() {
    let Some(scene) = Scene::new("waiting") else { return };
    let mut main = scene.start("main", "pivot", "", "wait 900");
    assert!(scene.recorder().wait_entry(Duration::from_secs(5)));
    std::thread::sleep(Duration::from_millis(300));
    scene.recorder().set_phase(Phase::Coverage);
    assert!(main.wait().unwrap().success());
    let seen = scene.finish();
    seen.lost_nothing();
    let uses = seen.profile.syscalls["x86_64"]["ppoll"][""]["call"].values();
    assert_eq!(uses.map(|by| by.phase().to_string()).collect::<Vec<_>>(), ["start"]);
}

#[test]
fn phases_follow_each_other() {
    let Some(scene) = Scene::new("phases") else { return };
    let mut main = scene.start("main", "pivot", "", "open /usr/lib/a sleep 500 open /usr/lib/b");
    assert!(scene.recorder().wait_entry(Duration::from_secs(5)));
    std::thread::sleep(Duration::from_millis(200));
    scene.recorder().set_phase(Phase::Coverage);
    assert!(main.wait().unwrap().success());
    let seen = scene.finish();
    seen.lost_nothing();
    assert_eq!(seen.uses("/usr/lib/a"), ["open/start"]);
    assert_eq!(seen.uses("/usr/lib/b"), ["open/coverage"]);
}

#[test]
fn what_slim_itself_opens_is_neither_a_use_nor_a_loss() {
    let Some(scene) = Scene::new("host") else { return };
    let path = scene.root().join("usr/lib/a");
    fs::read(&path).unwrap();
    assert!(Command::new("cat").arg(&path).output().unwrap().status.success());
    scene.run("main", "", "open /usr/lib/b");
    let seen = scene.finish();
    seen.lost_nothing();
    assert_eq!(seen.uses("/usr/lib/a"), [""; 0]);
}

#[test]
fn an_overflow_of_the_queue_is_a_loss() {
    let bounded = |spec| Recorder::start_bounded(spec);
    let Some(scene) = Scene::with("overflow", bounded) else { return };
    let hold = scene.recorder().hold();
    let mut main = scene.start("main", "pivot", "", "many /tmp 17000");
    assert!(main.wait().unwrap().success());
    drop(hold);
    let seen = scene.finish();
    assert!(seen.losses.iter().any(|l| l.kind == "fanotify_overflow"), "{:?}", seen.losses);
}

#[test]
fn a_plain_open_does_not_hide_a_later_exec() {
    let Some(scene) = Scene::new("exec") else { return };
    scene.run("main", "", "open /bin/other sleep 300 exec /bin/other open /usr/lib/a");
    let seen = scene.finish();
    seen.lost_nothing();
    seen.opened("/bin/other", "open/start");
    seen.opened("/bin/other", "exec/start");
}

#[test]
fn the_interpreter_of_a_script_is_executed_too() {
    let Some(scene) = Scene::new("script") else { return };
    scene.run("main", "", "exec /bin/script open /usr/lib/a");
    let seen = scene.finish();
    seen.lost_nothing();
    for path in ["/bin/script", "/bin/other"] {
        seen.opened(path, "exec/start");
    }
    seen.opened("/usr/lib/a", "open/start");
}

#[test]
fn an_exec_by_another_thread_than_the_leader_is_the_processs() {
    let Some(scene) = Scene::new("thread") else { return };
    scene.run("main", "", "threadexec /bin/other child 2 open /usr/lib/a open /usr/lib/b");
    let seen = scene.finish();
    seen.lost_nothing();
    seen.opened("/bin/other", "exec/start");
    for path in ["/usr/lib/a", "/usr/lib/b"] {
        seen.opened(path, "open/start");
        let cell = &seen.profile.files[&RootPath::parse(path.as_bytes()).unwrap()];
        let by = cell.access[kind::OPEN].values().next().unwrap().first_use();
        assert_eq!(by.exe, "/bin/other");
    }
}

#[test]
fn repeats_are_silenced_and_files_with_two_names_are_not() {
    let events = |name: &str, path: &str| {
        let scene = Scene::new(name)?;
        scene.run("main", "", &format!("open {path} sleep 300 again {path} 20000"));
        let seen = scene.finish();
        seen.lost_nothing();
        Some(seen.events)
    };
    let Some(once) = events("once", "/usr/lib/a") else { return };
    let audible = events("audible", "/etc/conf").unwrap();
    // the queue merges what is not read in time: 20,000 are not to be expected
    assert!(once < 20 && audible > 100, "{once} and {audible} events");
}

#[test]
fn marks_that_a_lack_of_memory_evicts_hide_nothing() {
    let events = |name: &str, evict: bool| {
        let scene = Scene::new(name)?;
        let app = "open /usr/lib/a open /bin/other sleep 2500 open /usr/lib/a open /usr/lib/b \
                   sleep 300 exec /bin/other open /etc/passwd sleep 300";
        let mut main = scene.start("main", "pivot", "", app);
        assert!(scene.recorder().wait_entry(Duration::from_secs(5)));
        std::thread::sleep(Duration::from_millis(500));
        if evict {
            fs::write("/proc/sys/vm/drop_caches", "2").unwrap(); // inodes, and the marks on them
        }
        assert!(main.wait().unwrap().success());
        let seen = scene.finish();
        seen.lost_nothing();
        for path in ["/usr/lib/a", "/usr/lib/b", "/bin/other", "/etc/passwd"] {
            seen.opened(path, "open/start");
        }
        seen.opened("/bin/other", "exec/start");
        Some(seen.events)
    };
    let Some(kept) = events("marked", false) else { return };
    let evicted = events("evicted", true).unwrap();
    // the second open of a file tells that its mark was gone
    assert!(evicted > kept, "{evicted} events, and {kept} with marks");
}

#[test]
fn a_full_ring_and_a_full_table_of_tasks_are_losses() {
    let kinds = |name: &str, ring, tasks, app: &str| {
        let scene = Scene::with(name, |spec| Recorder::start_small(spec, ring, tasks))?;
        let hold = scene.recorder().hold();
        let mut main = scene.start("main", "pivot", "", app);
        assert!(main.wait().unwrap().success());
        drop(hold);
        let seen = scene.finish();
        Some(seen.losses.into_iter().map(|l| l.kind).collect::<Vec<_>>())
    };
    let Some(lost) = kinds("ring", 65_536, 1000, "many /tmp 2000") else { return };
    assert!(lost.iter().any(|kind| kind == "ring_full"), "{lost:?}");
    let lost = kinds("tasks", 1 << 20, 2, "fork fork fork open /usr/lib/a").unwrap();
    assert!(lost.iter().any(|kind| kind == "map_full"), "{lost:?}");
}

#[test]
fn an_open_that_nobody_answers_for_is_kept_and_is_a_loss() {
    let place = tempfile::tempdir().unwrap();
    let (go, done) = (place.path().join("go"), place.path().join("done"));
    // Nobody's child before the recorder starts: neither in the cgroup nor a helper of slim.
    let text = format!(
        "(while [ ! -s {0} ]; do sleep 0.05; done; cat $(cat {0}) >/dev/null; : >{1}) &",
        go.display(),
        done.display()
    );
    assert!(Command::new("sh").args(["-c", &text]).status().unwrap().success());
    let scene = Scene::new("nobody");
    let path = scene.as_ref().map(|s| s.root().join("usr/lib/a")).unwrap_or("/dev/null".into());
    let hold = scene.as_ref().map(|s| s.recorder().hold());
    fs::write(&go, path.to_str().unwrap()).unwrap();
    let until = std::time::Instant::now() + Duration::from_secs(20);
    while !done.exists() && std::time::Instant::now() < until {
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(hold); // who opened it is dead
    let Some(scene) = scene else { return };
    let seen = scene.finish();
    let kinds: Vec<_> = seen.losses.iter().map(|l| (l.kind.as_str(), l.number)).collect();
    assert_eq!(kinds, [("unattributed", 1)]);
    seen.opened("/usr/lib/a", "open/start");
}

#[test]
fn arguments_errors_addresses_and_capabilities_are_recorded() {
    let Some(scene) = Scene::new("arguments") else { return };
    let port = 20_000 + std::process::id() % 20_000;
    let other = port + 20_000;
    let app = format!(
        "mkdirfails /etc maps /usr/lib/a listens {port} listensuring {other} ioctls 300 \
         chowns /etc/conf sleep 300"
    );
    scene.run("main", "", &app);
    let seen = scene.finish();
    seen.lost_nothing();
    seen.has("/usr/lib/a", "map/start");
    seen.has("/etc", "error:EEXIST/start");
    let calls = &seen.profile.syscalls["x86_64"];
    assert_eq!(seen.call("x86_64", "mkdir"), ["call", "error:EEXIST"]);
    for (call, args) in [
        ("socket", "domain=AF_INET,type=SOCK_STREAM,protocol=0"),
        ("setsockopt", "level=1,name=2"),
        ("mmap", "prot=PROT_READ|PROT_EXEC"),
        ("ioctl", "request=0x777000"),
        ("ioctl", "..."),
    ] {
        assert!(calls[call].contains_key(args), "{call} {args}: {:?}", calls[call].keys());
    }
    assert!(calls["ioctl"].len() < 80, "{}", calls["ioctl"].len());
    let done = |port| {
        let address = seen.profile.network.get(&format!("tcp 127.0.0.1:{port}"))?;
        Some(address.keys().map(AsRef::as_ref).collect::<Vec<_>>())
    };
    assert_eq!(done(port), Some(vec!["bind", "connect", "listen"]));
    // io_uring does both since 6.11
    let by_ring = (kernel() >= (6, 11)).then(|| vec!["bind", "listen"]);
    assert_eq!(done(other), by_ring);
    // the kernel tells of capabilities since 6.14
    if !seen.profile.capabilities.is_empty() {
        assert!(seen.profile.capabilities.contains_key("CAP_CHOWN"));
    }
}

#[test]
fn a_first_use_says_who_when_and_who_saw_it() {
    let Some(scene) = Scene::new("evidence") else { return };
    scene.run("main", "", "open /etc/passwd child 2 open /usr/lib/a sleep 300");
    let seen = scene.finish();
    let by = |path: &str| {
        let cell = &seen.profile.files[&RootPath::parse(path.as_bytes()).unwrap()];
        cell.access[kind::OPEN].values().next().unwrap().first_use()
    };
    let (parent, child) = (by("/etc/passwd"), by("/usr/lib/a"));
    assert_eq!((parent.pids.len(), child.pids.len()), (1, 2));
    assert_eq!(parent.pids[0], child.pids[1]);
    assert!(parent.at_us < child.at_us && parent.at_us.is_some());
    assert_eq!(parent.backends, ["bpf".to_owned(), "fanotify".to_owned()].into());
    let startup = seen.profile.startup.values().next().unwrap();
    let touched: Vec<String> = startup.touches.iter().map(|t| t.path.to_string()).collect();
    assert_eq!(touched, ["/bin/tool", "/etc/passwd", "/usr/lib/a"]);
    assert!(startup.touches[0].bytes > 1000 && !startup.more);
    let text: serde_json::Value = serde_json::from_str(&seen.profile.to_json()).unwrap();
    let schema = include_str!("../../profiles/slim.profile.v1.schema.json");
    let schema = jsonschema::validator_for(&serde_json::from_str(schema).unwrap()).unwrap();
    let wrong: Vec<_> = schema.iter_errors(&text).map(|error| error.to_string()).collect();
    assert_eq!(wrong, [""; 0]);
}

#[test]
fn what_a_hook_touches_is_neither_the_runtimes_nor_the_applications() {
    let Some(scene) = Scene::new("hook") else { return };
    let hook = "child 6 exec /bin/other open /usr/lib/a stat /etc/conf";
    scene.run("main", &format!("open /etc/old {hook}"), "open /usr/lib/b");
    let seen = scene.finish();
    seen.lost_nothing();
    assert_eq!(seen.uses("/etc/old"), ["open/runtime"]);
    seen.has("/bin/other", "exec/hook");
    seen.opened("/usr/lib/a", "open/hook");
    assert_eq!(seen.uses("/etc/conf"), ["stat/hook"]);
    seen.opened("/usr/lib/b", "open/start");
}

#[test]
fn a_mount_is_known_though_its_process_is_dead_and_a_folder_though_it_was_renamed() {
    let Some(scene) = Scene::new("mounts") else { return };
    let hold = scene.recorder().hold();
    let dead = "child 6 newns bind /srv/data /mnt stat /mnt/x";
    scene.run("main", "", &format!("{dead} renamed /jail /kept etc/in sleep 300"));
    drop(hold);
    let seen = scene.finish();
    seen.lost_nothing();
    seen.has("/srv/data/x", "stat/start");
    seen.has("/mnt", "stat/start");
    assert_eq!(seen.uses("/mnt/x"), [""; 0]);
    seen.has("/jail/etc/in", "stat/start");
}

#[test]
fn who_comes_late_or_leaves_is_a_loss() {
    let mut sleeper = Command::new("sleep").arg("60").spawn().unwrap();
    let pid = sleeper.id().to_string();
    let late = Scene::with("late", |spec| {
        let leaf = spec.cgroup.as_ref().unwrap().join("main/cgroup.procs");
        fs::write(leaf, &pid).unwrap();
        Recorder::start(spec)
    });
    let lost = |scene: Scene| {
        let kinds = scene.finish().losses.into_iter().map(|l| (l.kind, l.number));
        kinds.collect::<Vec<_>>()
    };
    sleeper.kill().unwrap();
    sleeper.wait().unwrap();
    let Some(scene) = late else { return };
    assert_eq!(lost(scene), [("late_attach".to_owned(), 1)]);

    let scene = Scene::new("left").unwrap();
    let mut main = scene.start("main", "pivot", "", "sleep 1000");
    assert!(scene.recorder().wait_entry(Duration::from_secs(5)));
    fs::write(cgroup2().unwrap().join("cgroup.procs"), main.id().to_string()).unwrap();
    assert!(main.wait().unwrap().success());
    assert_eq!(lost(scene), [("left_cgroup".to_owned(), 1)]);
}

#[test]
fn without_fanotify_a_call_that_may_open_any_file_is_a_loss() {
    let blind = |spec| Recorder::start(RecorderSpec { fanotify: false, ..spec });
    let Some(scene) = Scene::with("blind", blind) else { return };
    scene.run("main", "", &format!("call {} open /usr/lib/a", nix::libc::SYS_open_by_handle_at));
    let seen = scene.finish();
    let kinds: Vec<_> = seen.losses.iter().map(|l| (l.kind.as_str(), l.number)).collect();
    assert_eq!(kinds, [("opens_unseen", 1)]);
    seen.has("/usr/lib/a", "open/start");
}

#[test]
fn a_directory_too_deep_to_be_named_is_a_loss() {
    let Some(scene) = Scene::new("deep") else { return };
    scene.run("main", "", "cd /tmp deep 2100");
    let kinds: Vec<_> = scene.finish().losses.into_iter().map(|l| l.kind).collect();
    assert_eq!(kinds, ["string_cut"]);
}

#[test]
fn what_a_reader_loses_is_counted_by_kind() {
    for (what, kind) in [
        (Injection::Unreadable, "event_unreadable"),
        (Injection::ReadError, "fanotify_read"),
        (Injection::Missed, "program_missed"),
        (Injection::ReaderDies, "recorder_died"),
    ] {
        let Some(scene) = Scene::new("injected") else { return };
        scene.recorder().inject(what);
        let kinds = scene.finish().losses.into_iter().map(|l| l.kind);
        assert_eq!(kinds.collect::<Vec<_>>(), [kind]);
    }
}

/// What one call costs in ns of its own CPU: without a recorder, as a bystander of one, recorded.
#[test]
#[ignore = "measures; cargo test --test it -- --ignored --nocapture what_a_call_costs"]
fn what_a_call_costs() {
    const WORK: [(&str, u32); 5] = [
        ("getppid", 3_000_000),
        ("same", 1_000_000),
        ("new", 40_000),
        ("relative", 40_000),
        ("spawn", 2000),
    ];
    let words: String = WORK.iter().map(|(what, n)| format!(" bench {what} {n}")).collect();
    let outside = |inside: &str| {
        let line = format!("newns chroot {inside} cd /tmp{words}");
        let out = Command::new(tool()).args(line.split_whitespace()).output().unwrap();
        String::from_utf8(out.stdout).unwrap()
    };
    let mut rows: BTreeMap<&str, BTreeMap<&str, Vec<f64>>> = BTreeMap::new();
    let mut note = |which, text: &str| {
        for line in text.lines() {
            let (what, ns) = line.split_once(' ').unwrap();
            let what = WORK.iter().find(|w| w.0 == what).unwrap().0;
            rows.entry(what).or_default().entry(which).or_default().push(ns.parse().unwrap());
        }
    };
    for _ in 0..5 {
        let Some(mut scene) = Scene::new("cost") else { return };
        let root = scene.root().to_str().unwrap().to_owned();
        note("2 bystander", &outside(&root));
        let leaf = scene.cgroup.join("main");
        let line = format!(
            "join {} newns pivot {root} exec /bin/tool cd /tmp{words}",
            leaf.to_str().unwrap()
        );
        let out = Command::new(tool()).args(line.split_whitespace()).output().unwrap();
        assert!(out.status.success());
        note("3 recorded", &String::from_utf8(out.stdout).unwrap());
        scene.recorder.take();
        note("1 alone", &outside(&root));
    }
    for (what, columns) in rows {
        for (which, mut all) in columns {
            all.sort_by(f64::total_cmp);
            println!("{what:10} {which:12} {:8.1} ns  {all:.0?}", all[all.len() / 2]);
        }
    }
}
