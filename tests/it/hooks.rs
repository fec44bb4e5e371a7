//! OCI hooks with every runtime and backend: what they use of the image is kept, at whichever stage and
//! by whichever way they look; and what goes wrong is told by name.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::main_job::{NEEDS, Place};
use crate::support::{Need, SERVICE, have, json as read_json, script, sh};

/// Stage, who of the hook's looks at its file in which way, and the kind of use. `$root` is the container's
/// root on the host, `$pid` its first process, `$file` the file's path inside.
const STAGES: [(&str, &str, &str); 9] = [
    ("prestart", "cat $root$file", "open"),
    ("prestart", "test -e $root$file", "stat"),
    ("createRuntime", "chroot $root /usr/bin/cat $file", "open"),
    ("createRuntime", "cd $root/srv; stat ..$file", "stat"),
    ("createContainer", "chroot $root /usr/bin/stat $file", "stat"),
    ("createContainer", "cat $root$file", "open"),
    ("poststart", "nsenter -t $pid -m /usr/bin/stat $file", "stat"),
    ("poststart", "cat /proc/$pid/root$file", "open"),
    ("poststop", "cat $root$file", "open"),
];

/// An image with data files of random names, and the folder with the hooks that use them.
struct Scene {
    place: Place,
    /// In the order of [`STAGES`].
    files: Vec<String>,
    /// Of the hook that runs inside.
    inside: String,
}

impl Scene {
    /// Without files and hooks.
    fn bare() -> Self {
        Self { place: Place::new(&SERVICE), files: Vec::new(), inside: String::new() }
    }

    fn new() -> Self {
        let place = Place::new(&SERVICE);
        let random = || {
            let name = tempfile::Builder::new().rand_bytes(12).tempfile().unwrap();
            let name = name.path().file_name().unwrap().to_string_lossy().replace('.', "x");
            format!("/srv/{name}")
        };
        let (files, inside): (Vec<String>, _) =
            (STAGES.iter().map(|_| random()).collect(), random());
        let layer = place.path().join("layer");
        std::fs::create_dir_all(layer.join("srv")).unwrap();
        for file in files.iter().chain([&inside]) {
            std::fs::write(layer.join(&file[1..]), "data only\n").unwrap();
        }
        add_layer(place.path(), &layer);
        let scene = Self { place, files, inside };
        for (number, ((stage, text, _), file)) in STAGES.iter().zip(&scene.files).enumerate() {
            let name = format!("{number}-{stage}");
            scene.host_hook(&name, stage, &text.replace("$file", file));
        }
        // crun 1.8 fails if a hook ends before it has read its input
        let cat = json!({ "path": "/usr/bin/cat", "args": ["cat", "-", scene.inside] });
        scene.hook("inside", "startContainer", cat);
        scene
    }

    fn hooks(&self) -> PathBuf {
        self.place.path().join("hooks.d")
    }

    fn hook(&self, name: &str, stage: &str, hook: Value) {
        let text = json!({
            "version": "1.0.0", "hook": hook, "when": { "always": true }, "stages": [stage],
        });
        std::fs::create_dir_all(self.hooks()).unwrap();
        std::fs::write(self.hooks().join(format!("{name}.json")), text.to_string()).unwrap();
    }

    /// A hook of the host's that runs `text` in bash.
    fn host_hook(&self, name: &str, stage: &str, text: &str) -> PathBuf {
        let known = "state=$(cat)\n\
            bundle=$(sed -n 's/.*\"bundle\" *: *\"\\([^\"]*\\)\".*/\\1/p' <<<\"$state\")\n\
            pid=$(sed -n 's/.*\"pid\" *: *\\([0-9]*\\).*/\\1/p' <<<\"$state\")\n\
            root=$(sed -n 's/.*\"root\":{\"path\":\"\\([^\"]*\\)\".*/\\1/p' <\"$bundle/config.json\")\n\
            [ -n \"$root\" ]\n";
        let path = script(self.place.path(), name, &format!("{known}{text}"));
        self.hook(
            name,
            stage,
            json!({ "path": path, "args": [name], "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"] }),
        );
        path
    }

    fn trace(&self, args: &[&str]) -> (i32, String) {
        self.trace_with(args, "[ \"$($SLIM_RUN sh -c 'sleep 2; id -u')\" = 0 ]")
    }

    fn trace_with(&self, args: &[&str], script: &str) -> (i32, String) {
        let hooks = self.hooks();
        let all = [&["--hooks-dir", hooks.to_str().unwrap()][..], args].concat();
        self.place.trace(&all, script)
    }
}

fn add_layer(folder: &Path, layer: &Path) {
    let tar = folder.join("layer.tar");
    let tar = tar.to_str().unwrap();
    sh(
        "tar",
        &[
            "-C",
            layer.to_str().unwrap(),
            "--numeric-owner",
            "--owner=0",
            "--group=0",
            "-cf",
            tar,
            ".",
        ],
    );
    let image = format!("{}:latest", folder.join("image").display());
    sh("umoci", &["raw", "add-layer", "--image", &image, tar]);
}

/// The phases in which a file was used, with the kinds of use.
fn uses(profile: &Value, path: &str) -> Vec<String> {
    let access = profile["files"][path]["access"].as_object().cloned().unwrap_or_default();
    let mut all: Vec<String> = access
        .iter()
        .flat_map(|(kind, runs)| {
            let users = runs.as_object().unwrap().values();
            users.map(|by| format!("{kind}/{}", by["phase"].as_str().unwrap())).collect::<Vec<_>>()
        })
        .collect();
    all.sort();
    all.dedup();
    all
}

/// A trace with all the hooks gives a slim image in which they all still work.
fn hooks_find_their_files(runtime: &str, backend: &str) {
    if !have(&NEEDS) || !have(&[Need::Program("nsenter")]) {
        return;
    }
    if runtime != "embedded"
        && !have(&[Need::Program(if runtime == "runc" { "runc" } else { "crun" })])
    {
        return;
    }
    let scene = Scene::new();
    let half = backend == "notify" && runtime != "embedded";
    let mut args = vec!["--runtime", runtime, "--recorder", backend];
    if half {
        // that record has too few calls for a filter
        args.extend(["--keep-going", "--no-verify"]);
    }
    let (code, said) = scene.trace(&args);
    assert_eq!(code, 0, "{said}");
    let summary = read_json(&scene.place.out("summary.json"));
    if !half {
        assert_eq!(summary["verified"], json!({ "static": true, "dynamic": true }), "{said}");
    }
    let lost: Vec<&str> =
        summary["losses"].as_array().unwrap().iter().map(|l| l["kind"].as_str().unwrap()).collect();
    assert_eq!(lost, if half { vec!["calls_not_notified"] } else { vec![] });
    assert_eq!(summary["recordings"], 1, "nothing had to be found by verification: {said}");
    let profile = read_json(&scene.place.out("profile.json"));
    for ((stage, text, kind), file) in STAGES.iter().zip(&scene.files) {
        let got = uses(&profile, file);
        assert!(got.contains(&format!("{kind}/hook")), "{stage}: {text}: {got:?}");
        assert!(got.iter().all(|used| used.ends_with("/hook")), "{stage}: {text}: {got:?}");
    }
    assert!(uses(&profile, &scene.inside).contains(&"open/hook".to_owned()));
    // what hooks outside call is no reason to allow it inside
    for call in ["chroot", "setns"] {
        let access = &profile["syscalls"]["x86_64"][call][""]["call"];
        let by = access.as_object().into_iter().flat_map(|runs| runs.values());
        assert!(by.clone().all(|by| by["phase"] == "runtime"), "{call}: {access}");
    }
}

#[test]
fn files_of_hooks_are_kept_embedded_bpf() {
    hooks_find_their_files("embedded", "bpf");
}

#[test]
fn files_of_hooks_are_kept_runc_bpf() {
    hooks_find_their_files("runc", "bpf");
}

#[test]
fn files_of_hooks_are_kept_crun_bpf() {
    hooks_find_their_files("crun", "bpf");
}

#[test]
fn files_of_hooks_are_kept_embedded_perf() {
    hooks_find_their_files("embedded", "perf");
}

#[test]
fn files_of_hooks_are_kept_runc_perf() {
    hooks_find_their_files("runc", "perf");
}

#[test]
fn files_of_hooks_are_kept_crun_perf() {
    hooks_find_their_files("crun", "perf");
}

#[test]
fn files_of_hooks_are_kept_embedded_notify() {
    hooks_find_their_files("embedded", "notify");
}

#[test]
fn files_of_hooks_are_kept_runc_notify() {
    hooks_find_their_files("runc", "notify");
}

/// Options that make a short trace.
const SHORT: [&str; 4] = ["--recorder", "none", "--no-restart", "--no-verify"];

#[test]
fn a_hook_that_fails_is_named_with_the_reason() {
    if !have(&NEEDS) || !have(&[Need::Program("runc"), Need::Program("crun")]) {
        return;
    }
    let scene = Scene::bare();
    let program = scene.host_hook("bad", "createRuntime", "echo no gpu here >&2; exit 3");
    let failing = |runtime: &str| {
        let (code, said) = scene.trace(&[&["--runtime", runtime][..], &SHORT].concat());
        (code, said.lines().filter(|line| line.starts_with("slim:")).collect::<String>())
    };
    for stage in ["prestart", "createRuntime", "createContainer"] {
        let own = json!({ "path": program, "args": ["bad"], "env": ["PATH=/usr/bin:/bin"] });
        scene.hook("bad", stage, own);
        for runtime in ["embedded", "runc", "crun"] {
            let (code, said) = failing(runtime);
            assert_eq!(code, 4, "{runtime} {stage}: {said}");
            for word in [
                &format!("the {stage} hook {}", program.display()),
                "hooks.d/bad.json",
                "it exited with 3 (its last line: \"no gpu here\")",
                "run the hook by hand",
            ] {
                assert!(said.contains(word), "{runtime} {stage}: {word}: {said}");
            }
        }
    }
    for (name, hook, why) in [
        (
            "bad",
            json!({ "path": "/usr/bin/sleep", "args": ["sleep", "60"], "timeout": 1 }),
            "timeout of 1 s",
        ),
        ("bad", json!({ "path": "/etc/passwd" }), "cannot execute /etc/passwd: Permission denied"),
        (
            "bad",
            json!({ "path": "/usr/bin/sh", "args": ["sh", "-c", "kill -9 $$"] }),
            "killed by signal 9",
        ),
    ] {
        scene.hook(name, "createRuntime", hook);
        for runtime in ["embedded", "runc", "crun"] {
            let (code, said) = failing(runtime);
            assert_eq!(code, 4, "{runtime}: {said}");
            assert!(said.contains(why), "{runtime}: {said}");
        }
    }
    scene.hook("bad", "startContainer", json!({ "path": "/no/such/in-image" }));
    for runtime in ["embedded", "runc", "crun"] {
        let (code, said) = scene.trace(&["--runtime", runtime]);
        assert!(code == 4 || code == 10, "{runtime} {code}: {said}");
        assert!(said.contains("startContainer hook (/no/such/in-image)"), "{runtime}: {said}");
    }

    // nothing is started for a definition that is none
    scene.hook("bad", "createRuntime", json!({ "path": "/no/such/hook" }));
    let (code, said) = failing("embedded");
    assert_eq!(code, 2, "{said}");
    assert!(
        said.contains("hooks.d/bad.json") && said.contains("/no/such/hook is not there"),
        "{said}"
    );
}

/// A GPU toolkit's way: the host's ldconfig, in a chroot, over what the container has.
#[test]
fn a_hook_that_runs_ldconfig_finds_in_the_slim_image_what_it_found() {
    if !have(&NEEDS) || !have(&[Need::Program("cc"), Need::Program("runc"), Need::Program("crun")])
    {
        return;
    }
    for (runtime, stage) in
        [("embedded", "createContainer"), ("runc", "prestart"), ("crun", "createRuntime")]
    {
        let scene = Scene::bare();
        let layer = scene.place.path().join("layer");
        std::fs::create_dir_all(layer.join("opt/gpu")).unwrap();
        std::fs::create_dir_all(layer.join("etc")).unwrap();
        std::fs::write(layer.join("etc/ld.so.conf"), "/opt/gpu\n").unwrap();
        let source = layer.join("../gpu.c");
        std::fs::write(&source, "int gpu(void) { return 1; }\n").unwrap();
        let library = layer.join("opt/gpu/libgpu.so.1.2");
        let (source, library) = (source.to_str().unwrap(), library.to_str().unwrap());
        sh("cc", &["-shared", "-fPIC", "-Wl,-soname,libgpu.so.1", "-o", library, source]);
        add_layer(scene.place.path(), &layer);
        scene.host_hook("ldconfig", stage, "ldconfig -r $root");
        let script = "$SLIM_EXEC cat /etc/ld.so.cache | grep -qa libgpu.so.1\n\
                      $SLIM_EXEC sh -c 'test -h /opt/gpu/libgpu.so.1'";
        let (code, said) = scene.trace_with(&["--runtime", runtime, "--no-restart"], script);
        assert_eq!(code, 0, "{runtime}: {said}");
        let profile = read_json(&scene.place.out("profile.json"));
        for path in ["/opt/gpu/libgpu.so.1.2", "/etc/ld.so.conf"] {
            let got = uses(&profile, path);
            assert!(got.contains(&"open/hook".to_owned()), "{runtime}: {path}: {got:?}");
        }
        let summary = read_json(&scene.place.out("summary.json"));
        assert_eq!(summary["verified"]["dynamic"], true, "{runtime}: {said}");
        let hooks = profile["runs"].as_object().unwrap().values().next().unwrap()["hooks"].clone();
        assert_eq!(
            (&hooks[0]["name"], &hooks[0]["stages"]),
            (&"ldconfig.json".into(), &json!([stage]))
        );

        // on its own, with the same options, it verifies; without the hook it says what differs
        let run = ["--runtime", runtime, "--no-restart", "--", "./coverage.sh"];
        let hooks = scene.hooks();
        let (code, said) =
            scene.place.verify(&[&["--hooks-dir", hooks.to_str().unwrap()][..], &run].concat());
        assert_eq!(code, 0, "{runtime}: {said}");
        let (code, said) = scene.place.verify(&run);
        assert_eq!(code, 8, "{runtime}: {said}");
        assert!(said.contains("traced with the hooks ldconfig.json"), "{runtime}: {said}");
    }
}

/// A device by name brings its node, mounts, variables and hooks, and the slim image works with all of it.
#[test]
fn a_cdi_device_is_traced_with_its_hooks_mounts_and_nodes() {
    if !have(&NEEDS) || !have(&[Need::Program("cc"), Need::Program("runc"), Need::Program("crun")])
    {
        return;
    }
    let scene = Scene::bare();
    let folder = scene.place.path();
    let source = folder.join("gpu.c");
    std::fs::write(&source, "int gpu(void) { return 1; }\n").unwrap();
    let library = folder.join("libgpu.so.1.2");
    let (source, library) = (source.to_str().unwrap(), library.to_str().unwrap());
    sh("cc", &["-shared", "-fPIC", "-Wl,-soname,libgpu.so.1", "-o", library, source]);
    let hook = scene.host_hook(
        "toolkit",
        "createContainer",
        "cat $root/srv/data/unused; ldconfig -r $root",
    );
    std::fs::remove_dir_all(scene.hooks()).unwrap();
    std::fs::create_dir(scene.hooks()).unwrap();
    let cdi = folder.join("cdi");
    std::fs::create_dir(&cdi).unwrap();
    let text = format!(
        "cdiVersion: 0.5.0\nkind: example.com/gpu\ncontainerEdits:\n  env: [GPU=yes]\n  mounts:\n\
         \x20 - {{hostPath: {library}, containerPath: /usr/lib/libgpu.so.1.2, options: [ro, nosuid, bind]}}\n\
         \x20 hooks:\n  - {{hookName: createContainer, path: {}, args: [toolkit], env: [PATH=/usr/sbin:/usr/bin:/bin]}}\n\
         devices:\n- name: \"0\"\n  containerEdits:\n    deviceNodes: [{{path: /dev/gpu0, hostPath: /dev/zero}}]\n",
        hook.display()
    );
    std::fs::write(cdi.join("gpu.yaml"), text).unwrap();
    let script = "$SLIM_EXEC sh -c 'test -c /dev/gpu0 && test \"$GPU\" = yes && read -r x </usr/lib/libgpu.so.1.2'\n\
                  $SLIM_EXEC sh -c 'exec 3</dev/gpu0 && test -c /dev/other'\n\
                  $SLIM_EXEC cat /etc/ld.so.cache | grep -qa libgpu.so.1";
    for (runtime, recorder) in
        [("embedded", "bpf"), ("runc", "bpf"), ("crun", "bpf"), ("embedded", "perf")]
    {
        let args = [
            "--runtime",
            runtime,
            "--recorder",
            recorder,
            "--no-restart",
            "--cdi-spec-dir",
            cdi.to_str().unwrap(),
            "--device",
            "example.com/gpu=0",
            "--device",
            "/dev/null:/dev/other",
        ];
        let (code, said) = scene.place.trace(&args, script);
        assert_eq!(code, 0, "{runtime}: {said}");
        let profile = read_json(&scene.place.out("profile.json"));
        assert_eq!(uses(&profile, "/srv/data/unused"), ["open/hook"], "{runtime} {recorder}");
        // the runtime's own look at the users is known as such
        let users = uses(&profile, "/etc/passwd");
        assert!(users.iter().all(|used| used.ends_with("/runtime")), "{runtime}: {users:?}");
        assert!(runtime != "runc" || !users.is_empty(), "{users:?}");
        let run = profile["runs"].as_object().unwrap().values().next().unwrap();
        assert_eq!(run["hooks"][0]["name"], "gpu.yaml");
        let summary = read_json(&scene.place.out("summary.json"));
        assert_eq!(summary["verified"]["dynamic"], true, "{runtime}: {said}");
        assert_eq!(summary["recordings"], 1, "{runtime}: {said}");
    }
    let args = ["--cdi-spec-dir", cdi.to_str().unwrap(), "--device", "example.com/gpu=7"];
    let (code, said) = scene.place.trace(&args, script);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("have example.com/gpu=0;"), "{said}");
}
