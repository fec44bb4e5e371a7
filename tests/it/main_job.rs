//! The main job from outside: a real image, a real script, the files that come out.

use std::path::Path;

use crate::support::image::{ImageFixture, LayerFixture};
use crate::support::{Need, SERVICE, have, host_image, json, outcome, script, sh, slim};

pub const NEEDS: [Need; 4] =
    [Need::Root, Need::Program("umoci"), Need::Program("skopeo"), Need::Program("ldd")];

pub struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    pub fn new(config: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("slim-it-").tempdir_in("/var/tmp").unwrap();
        host_image(folder.path(), config);
        Self { folder }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    pub fn trace(&self, args: &[&str], text: &str) -> (i32, String) {
        let script = script(self.path(), "coverage.sh", text);
        let mut command = slim(self.path());
        command.args(["trace", "--image", "oci:image", "--store", "store"]).args(args);
        outcome(&command.arg("--").arg(script).output().unwrap())
    }

    /// `slim verify` of what a trace left.
    pub fn verify(&self, args: &[&str]) -> (i32, String) {
        let mut command = slim(self.path());
        command.args(["verify", "slim-out", "--image", "oci:image", "--store", "store"]);
        outcome(&command.args(args).output().unwrap())
    }

    pub fn out(&self, name: &str) -> std::path::PathBuf {
        self.path().join("slim-out").join(name)
    }
}

/// What the tests' script does unless they are about something else.
const COVERAGE: &str = "
[ \"$($SLIM_EXEC cat /srv/link)\" = used ]
$SLIM_EXEC stat /srv/data/statted >/dev/null
$SLIM_EXEC sh -c 'test ! -e /srv/data/none'
[ \"$($SLIM_RUN id -u)\" = 0 ]
";

#[test]
fn an_image_and_a_script_go_in_and_a_slim_image_comes_out() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let (code, said) = place.trace(&["--tag", "host:slim"], COVERAGE);
    assert_eq!(code, 0, "{said}");
    let summary = json(&place.out("summary.json"));
    assert_eq!(summary["complete"], true, "{summary}");
    assert_eq!(summary["verified"], serde_json::json!({"static": true, "dynamic": true}));
    assert_eq!(summary["losses"], serde_json::json!([]));
    let profile = json(&place.out("profile.json"));
    let schema =
        json(&Path::new(env!("CARGO_MANIFEST_DIR")).join("profiles/slim.profile.v1.schema.json"));
    let schema = jsonschema::validator_for(&schema).unwrap();
    let wrong: Vec<String> = schema.iter_errors(&profile).map(|e| e.to_string()).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    for (path, kept) in [
        ("/srv/data/used", true),
        ("/srv/link", true),
        ("/srv/data/statted", true),
        ("/etc/app.conf", true),
        ("/usr/bin/sh", true),
        ("/etc/other.conf", false),
        ("/srv/data/unused", false),
        ("/srv/data/second-name", false),
        ("/usr/lib/unused/blob", false),
    ] {
        assert_eq!(profile["files"].get(path).is_some(), kept, "{path} in the profile");
    }
    assert!(profile["missing"].get("/srv/data/none").is_some(), "failed look-ups are apart");
    let exec = profile["files"]["/srv/data/used"]["access"]["open"].as_object().unwrap();
    let first = exec.values().next().unwrap();
    assert_eq!(first["exe"], "/usr/bin/cat", "{first}");
    assert_eq!(first["phase"], "exec", "{first}");
    let log = std::fs::read_to_string(place.out("container.log")).unwrap();
    assert!(log.contains("port = 80"), "{log}");

    // Somebody else's tools read it, and it holds what was used and no more.
    let (archive, layout) = (place.out("image.tar"), place.path().join("read"));
    let from = format!("oci-archive:{}", archive.display());
    let docker = format!("docker-archive:{}", archive.display());
    sh("skopeo", &["inspect", &docker]);
    sh("skopeo", &["copy", "-q", &from, &format!("oci:{}:x", layout.display())]);
    let bundle = place.path().join("bundle");
    let image = format!("{}:x", layout.display());
    sh("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
    let rootfs = bundle.join("rootfs");
    assert_eq!(std::fs::read_to_string(rootfs.join("srv/data/used")).unwrap(), "used\n");
    assert!(rootfs.join("var/empty").is_dir());
    assert!(!rootfs.join("etc/other.conf").exists());
    assert!(!rootfs.join("srv/data/second-name").exists());

    // Building from the profile gives the same bytes.
    let built = place.path().join("built");
    let output = slim(place.path())
        .args([
            "build",
            "slim-out/profile.json",
            "--image",
            "oci:image",
            "--tag",
            "host:slim",
            "-o",
        ])
        .arg(&built)
        .output()
        .unwrap();
    assert_eq!(outcome(&output).0, 0, "{}", outcome(&output).1);
    let same = std::fs::read(built.join("image.tar")).unwrap() == std::fs::read(&archive).unwrap();
    assert!(same, "slim build writes what slim trace wrote");
    let filters = ["seccomp.json", "seccomp.oci.json"];
    for name in filters {
        assert_eq!(json(&built.join(name)), json(&place.out(name)), "{name}");
    }
    nothing_is_left();
}

/// No process, mount or cgroup of a run is there any more.
fn nothing_is_left() {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains("slim-it-"), "{mounts}");
}

#[test]
fn a_failing_script_leaves_evidence_but_no_image() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let (code, said) = place.trace(&[], "exit 3");
    assert_eq!(code, 5, "{said}");
    for (name, there) in [
        ("profile.json", true),
        ("summary.json", true),
        ("container.log", true),
        ("image.tar", false),
        ("seccomp.json", false),
        ("seccomp.oci.json", false),
    ] {
        assert_eq!(place.out(name).exists(), there, "{name}");
    }
    let (code, said) = place.trace(&["--keep-going"], "exit 3");
    assert_eq!(code, 5, "{said}");
    assert!(place.out("image.tar").exists());
    assert!(place.out("seccomp.json").exists());
}

#[test]
fn the_container_decides_readiness_and_death() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    for (args, code) in [
        (&["--cmd", "no-such-program"][..], 10),
        (&["--ready", "log:never", "--timeout", "1"], 6),
        (&["--ready", "log:port = 80", "--no-verify", "--no-restart"], 0),
        (&["--ready", "log:never", "--cmd", "true"], 10),
        (&["--script-timeout", "1", "--no-restart"], 6),
        (&["--recorder", "none"], 0),
    ] {
        let text = if args[0] == "--script-timeout" { "sleep 30" } else { "true" };
        let (got, said) = place.trace(args, text);
        assert_eq!(got, code, "{args:?}: {said}");
    }
    assert!(!place.out("image.tar").exists(), "nothing is recorded, nothing is built");
}

#[test]
fn a_container_that_ends_in_the_script_is_not_asked_for_its_health() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&[]);
    let layer = LayerFixture::of_tar(std::fs::read(place.path().join("root.tar")).unwrap());
    let layout = ImageFixture::default().layer(layer).config(serde_json::json!({
        "Cmd": ["/bin/sh", "-c", "while ! test -e /tmp/end; do sleep 0.1; done"],
        "Healthcheck": { "Test": ["CMD-SHELL", "true"] },
    }));
    let layout = layout.write(place.path());
    sh("rm", &["-r", place.path().join("image").to_str().unwrap()]);
    std::fs::rename(layout, place.path().join("image")).unwrap();
    for code in [0, 5] {
        let text = format!("$SLIM_EXEC sh -c '> /tmp/end'; sleep 0.5; exit {code}");
        let (got, said) = place.trace(&[], &text);
        assert_eq!(got, code, "{said}");
        let profile = json(&place.out("profile.json"));
        let run = profile["runs"].as_object().unwrap().values().next().unwrap();
        let phases = run["phases"].as_array().unwrap();
        let health = phases.iter().find(|p| p["name"] == "health before the stop").unwrap();
        assert_eq!(health["outcome"], "not running", "{phases:?}");
    }
}

#[test]
fn globs_keep_and_drop_and_must_match() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let args = ["--keep", "/usr/lib/unused/**", "--drop", "/srv/data/statted", "--no-verify"];
    let (code, said) = place.trace(&args, COVERAGE);
    assert_eq!(code, 0, "{said}");
    let output =
        slim(place.path()).args(["inspect", "--json", "slim-out/image.tar"]).output().unwrap();
    assert!(output.status.success());
    let reasons = json(&place.out("summary.json"))["kept_by_reason"].clone();
    assert_eq!(reasons["policy"], 1, "{reasons}");
    let (code, said) = place.trace(&["--keep", "/no/such/**"], "exit 99");
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("/no/such/**"), "{said}");
}

#[test]
fn verification_catches_mutations() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let (code, said) = place.trace(&["--format", "layout"], COVERAGE);
    assert_eq!(code, 0, "{said}");
    let verify =
        |with_script: bool| place.verify(if with_script { &["--", "./coverage.sh"] } else { &[] });
    let (code, said) = verify(true);
    assert_eq!(code, 0, "{said}");

    let layout = place.out("image");
    let pristine = place.path().join("pristine");
    sh("cp", &["-a", layout.to_str().unwrap(), pristine.to_str().unwrap()]);
    let libc = sh("sh", &["-c", "ldd /bin/cat | grep -o '/[^ ]*libc.so.6'"]);
    let libc = format!("rm {{}}/usr{}", libc.trim().strip_prefix("/usr").unwrap_or(libc.trim()));
    for (change, word) in
        [(libc.as_str(), "libc.so.6"), ("chown 7:7 {}/etc/app.conf", "/etc/app.conf")]
    {
        mutate(&place, &layout, change);
        let (code, said) = verify(false);
        assert_eq!(code, 8, "{change}: {said}");
        assert!(said.contains(word), "{change}: {said}");
        sh("rm", &["-rf", layout.to_str().unwrap()]);
        sh("cp", &["-a", pristine.to_str().unwrap(), layout.to_str().unwrap()]);
    }

    disallow(&place, "fadvise64");
    let (code, said) = verify(true);
    assert_eq!(code, 8, "{said}");
    assert!(said.contains("fadvise64"), "{said}");
}

/// A shell that sleeps for its child may try for ever where it may not sleep.
#[test]
fn a_slim_image_that_never_ends_fails_its_verification() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let waits = "$SLIM_EXEC sh -c 'sleep 0.3 & wait'";
    let (code, said) = place.trace(&["--no-restart"], waits);
    assert_eq!(code, 0, "{said}");
    disallow(&place, "rt_sigsuspend");
    let args = ["--no-restart", "--script-timeout", "3", "--", "./coverage.sh"];
    let (code, said) = place.verify(&args);
    assert_eq!(code, 8, "{said}");
    assert!(said.contains("did not end within 3 s; on the original it took"), "{said}");
    assert!(said.contains("rt_sigsuspend"), "{said}");
    nothing_is_left();
}

/// Takes a call out of the flat filter.
pub fn disallow(place: &Place, call: &str) {
    let filter = place.out("seccomp.oci.json");
    let text = std::fs::read_to_string(&filter).unwrap();
    let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
    for rule in value["syscalls"].as_array_mut().unwrap() {
        if rule["action"] == "SCMP_ACT_ALLOW" {
            let names = rule["names"].as_array_mut().unwrap();
            names.retain(|name| name != call);
        }
    }
    std::fs::write(&filter, value.to_string()).unwrap();
}

/// Changes the root file system of a layout with a shell command; `{}` is its root.
pub fn mutate(place: &Place, layout: &Path, change: &str) {
    let bundle = place.path().join("mutant");
    let index = json(&layout.join("index.json"));
    let annotations = &index["manifests"][0]["annotations"];
    let tag = annotations["org.opencontainers.image.ref.name"].as_str().unwrap().to_owned();
    let image = format!("{}:{tag}", layout.display());
    sh("umoci", &["unpack", "--image", &image, bundle.to_str().unwrap()]);
    let rootfs = bundle.join("rootfs");
    sh("sh", &["-c", &change.replace("{}", rootfs.to_str().unwrap())]);
    sh("umoci", &["repack", "--image", &image, bundle.to_str().unwrap()]);
    sh("rm", &["-rf", bundle.to_str().unwrap()]);
}

/// `docker run --init` puts a program before the entrypoint, under the same filter.
#[test]
fn what_was_traced_without_an_init_runs_under_one() {
    if !have(&[&NEEDS[..], &[Need::Program("docker-init")]].concat()) {
        return;
    }
    let place = Place::new(&SERVICE);
    let (code, said) = place.trace(&["--no-restart"], "$SLIM_EXEC cat /etc/app.conf >/dev/null");
    assert_eq!(code, 0, "{said}");
    let verify = || place.verify(&["--no-restart", "--init", "--", "./coverage.sh"]);
    let (code, said) = verify();
    assert_eq!(code, 0, "{said}");
    disallow(&place, "rt_sigtimedwait");
    let (code, said) = verify();
    assert_eq!(code, 8, "{said}");
}

/// What it loads, without being linked to it.
const LOADER: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(void)
{
	void *library = dlopen("libchosen.so", RTLD_NOW);
	const char **which = library ? dlsym(library, "which") : 0;
	puts(which ? *which : dlerror());
	return !which;
}
"#;

/// The recording knows one processor.
#[test]
fn a_library_for_better_processors_stays_with_the_one_for_all() {
    if !have(&[&NEEDS[..], &[Need::Program("cc")]].concat()) {
        return;
    }
    let place = Place::new(&SERVICE);
    std::fs::write(place.path().join("loader.c"), LOADER).unwrap();
    let libraries = "usr/lib/x86_64-linux-gnu";
    let plant = format!(
        "mkdir -p {{}}/{libraries}/glibc-hwcaps/x86-64-v2 && cd {} && cc -o {{}}/usr/bin/loader loader.c && \
         echo 'const char *which = \"plain\";' | cc -shared -xc -o {{}}/{libraries}/libchosen.so - && \
         echo 'const char *which = \"better\";' | cc -shared -xc -o {{}}/{libraries}/glibc-hwcaps/x86-64-v2/libchosen.so -",
        place.path().display()
    );
    mutate(&place, &place.path().join("image"), &plant);
    let (code, said) = place.trace(&["--no-restart"], "[ \"$($SLIM_EXEC loader)\" = better ]");
    assert_eq!(code, 0, "{said}");
    let lesser = "$SLIM_EXEC /lib64/ld-linux-x86-64.so.2 --glibc-hwcaps-mask none /usr/bin/loader";
    script(place.path(), "lesser.sh", &format!("[ \"$({lesser})\" = plain ]"));
    let (code, said) = place.verify(&["--no-restart", "--", "./lesser.sh"]);
    assert_eq!(code, 0, "{said}");
}

#[test]
fn two_traces_run_side_by_side() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let traces: Vec<_> = (0..2)
        .map(|n| {
            let text = format!("{COVERAGE}\nsleep 1; $SLIM_EXEC cat /etc/passwd >/dev/null # {n}");
            let script = script(place.path(), &format!("coverage-{n}.sh"), &text);
            let mut command = slim(place.path());
            command.args(["trace", "--image", "oci:image", "--store", "store", "-o"]);
            command.arg(format!("out-{n}")).arg("--").arg(script);
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            command.spawn().unwrap()
        })
        .collect();
    for (n, trace) in traces.into_iter().enumerate() {
        let (code, said) = outcome(&trace.wait_with_output().unwrap());
        assert_eq!(code, 0, "{n}: {said}");
        let summary = json(&place.path().join(format!("out-{n}/summary.json")));
        assert_eq!(summary["complete"], true, "{n}: {summary}");
    }
    let blobs = |n: usize| std::fs::read(place.path().join(format!("out-{n}/image.tar"))).unwrap();
    assert!(blobs(0) == blobs(1), "equal keep-sets of equal sources give equal images");
}

#[test]
fn a_clean_that_sees_no_processes_leaves_a_live_run_alone() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let script = script(place.path(), "coverage.sh", COVERAGE);
    let mut command = slim(place.path());
    command.args(["trace", "--image", "oci:image", "--store", "store", "--no-verify", "--"]);
    let mut trace = command.arg(script).spawn().unwrap();
    // In another pid namespace, as in a container, the run's processes are not to be seen.
    while trace.try_wait().unwrap().is_none() {
        let program = env!("CARGO_BIN_EXE_slim");
        let store = place.path().join("other").display().to_string();
        let inside = ["--pid", "--fork", "--mount-proc", program, "clean", "--store", &store];
        sh("unshare", &inside);
    }
    assert!(trace.wait().unwrap().success());
}

#[test]
fn kill_at_any_moment_leaves_nothing_running() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let script = script(place.path(), "coverage.sh", &format!("{COVERAGE}\nsleep 30"));
    let kills: u64 = std::env::var("SLIM_KILLS").map_or(50, |n| n.parse().unwrap());
    for round in 0..kills {
        let mut command = slim(place.path());
        command.args(["trace", "--image", "oci:image", "--store", "store", "--"]).arg(&script);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
        let mut child = command.spawn().unwrap();
        // Spread over the first two seconds, in no order that repeats.
        let moment = (round * 7919 + u64::from(child.id()) * 31) % 2000;
        std::thread::sleep(std::time::Duration::from_millis(moment));
        child.kill().unwrap();
        child.wait().unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(2);
        loop {
            let left = processes_under(place.path());
            if left.is_empty() {
                break;
            }
            assert!(std::time::Instant::now() < until, "killed at {moment} ms: {left:?}");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
    }
    let (code, said) =
        outcome(&slim(place.path()).args(["clean", "--store", "store"]).output().unwrap());
    assert_eq!(code, 0, "{said}");
    let runs = place.path().join("store/runs");
    let left: Vec<_> = std::fs::read_dir(&runs).map(|d| d.collect()).unwrap_or_default();
    assert!(left.is_empty(), "{left:?}");
    nothing_is_left();
}

/// Processes that have something to do with a folder: command line, working directory, root or mounts.
fn processes_under(folder: &Path) -> Vec<String> {
    let name = folder.to_str().unwrap();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        if pid.parse::<u32>().is_err() || pid == std::process::id().to_string() {
            continue;
        }
        let read =
            |file: &str| std::fs::read_to_string(entry.path().join(file)).unwrap_or_default();
        let state = read("stat");
        let zombie = state.rsplit(')').next().is_some_and(|s| s.trim_start().starts_with('Z'));
        let cmdline = read("cmdline").replace('\0', " ");
        let mounts = read("mountinfo");
        if !zombie && (cmdline.contains(name) || mounts.contains(name)) {
            found.push(format!("{pid} {cmdline}"));
        }
    }
    found
}
