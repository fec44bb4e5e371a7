//! Options, messages and exit codes of `slim trace` from outside, with real runs. Nothing is verified
//! and nothing restarted here: each trace is about one thing.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use crate::support::{Need, SERVICE, have, host_image, json, outcome, script, sh, slim};

const NEEDS: [Need; 3] = [Need::Root, Need::Program("umoci"), Need::Program("ldd")];

struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(config: &[&str]) -> Self {
        let folder = tempfile::Builder::new().prefix("slim-it-").tempdir_in("/var/tmp").unwrap();
        host_image(folder.path(), config);
        Self { folder }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = slim(self.path());
        command.args(["trace", "--image", "oci:image", "--store", "store"]);
        command.args(["--no-verify", "--no-restart"]).args(args);
        command
    }

    /// Runs the script `text` beside the image's service.
    fn trace(&self, args: &[&str], text: &str) -> (i32, String) {
        let script = script(self.path(), "coverage.sh", text);
        outcome(&self.command(args).arg("--").arg(script).output().unwrap())
    }

    /// What `sh -c inside` prints as the container's own command.
    fn printed(&self, args: &[&str], inside: &str) -> String {
        let mut command = self.command(&["--recorder", "none"]);
        command.args(["--cmd", "sh", "--cmd", "-c", "--cmd", inside]).args(args);
        let (code, said) = outcome(&command.args(["--", "true"]).output().unwrap());
        assert_eq!(code, 0, "{args:?}: {said}");
        std::fs::read_to_string(self.path().join("slim-out/container.log")).unwrap()
    }

    fn files(&self) -> Vec<String> {
        let entries = std::fs::read_dir(self.path().join("slim-out")).into_iter().flatten();
        let mut names: Vec<String> =
            entries.map(|e| e.unwrap().file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

/// A shell command and what it has to print.
type Asked = (&'static str, &'static str);

#[test]
fn options_of_docker_run_mean_what_they_mean_there() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let host = place.path().join("host");
    std::fs::create_dir(&host).unwrap();
    std::fs::write(host.join("f"), "from the host\n").unwrap();
    std::fs::write(place.path().join("vars"), "# no comment\nA=file\nB=x y\n").unwrap();
    let bound = format!("{}:/m:ro", host.display());
    let mount = format!("type=bind,source={},target=/m,readonly", host.display());
    let first = [
        "--env-file",
        "vars",
        "-e",
        "A=flag",
        "-u",
        "root",
        "-u",
        "app",
        "-w",
        "/made/here",
        "-v",
        &bound,
        "--tmpfs",
        "/t:size=1m,mode=0700",
        "--hostname",
        "box",
        "--add-host",
        "db:10.1.2.3",
        "--ulimit",
        "nofile=100:200",
        "--shm-size",
        "1m",
        "--security-opt",
        "no-new-privileges",
    ];
    let second = [
        "-u",
        "app:extra",
        "--mount",
        &mount,
        "--read-only",
        "--tmpfs",
        "/t",
        "-t",
        "--cap-drop",
        "ALL",
        "--security-opt",
        "seccomp=unconfined",
    ];
    let third = ["-u", "1234", "-v", "data:/srv/data", "-w", "/srv"];
    let cases: [(&[&str], &[Asked]); 4] = [
        (
            &first,
            &[
                ("echo $A-$B", "flag-x y"),
                ("id -u; id -G", "1000\n1000 2000"),
                ("pwd", "/made/here"),
                ("cat /m/f; touch /m/x || echo ro", "from the host\nro"),
                ("stat -f -c %T /t; stat -c %a /t", "tmpfs\n700"),
                ("cat /etc/hosts", "10.1.2.3\tdb"),
                ("cat /etc/hostname", "box"),
                ("ulimit -n; ulimit -Hn", "100\n200"),
                ("cat /proc/mounts", "size=1024k"),
                ("cat /proc/self/status", "NoNewPrivs:\t1"),
            ],
        ),
        (
            &second,
            &[
                ("id -u; id -G", "1000\n2000"),
                ("cat /m/f; touch /m/x || echo ro", "from the host\nro"),
                ("touch /x || echo ro; touch /dev/shm/x && echo rw", "ro\nrw"),
                ("test -t 0 && echo terminal", "terminal"),
                ("cat /proc/self/status", "CapBnd:\t0000000000000000"),
                ("cat /proc/self/status", "Seccomp:\t0"),
            ],
        ),
        (
            &third,
            &[
                ("id -u; id -g", "1234\n0"),
                ("pwd", "/srv"),
                ("cat /srv/data/used", "used"),
                ("cat; echo closed", "closed"),
                ("cat /proc/self/status", "Seccomp:\t2"),
            ],
        ),
        (&["--entrypoint", "id"], &[("", "uid=0(root)")]),
    ];
    for (args, asked) in cases {
        let inside: Vec<String> =
            asked.iter().map(|(command, _)| format!("echo ==; ({command})")).collect();
        let printed = match args {
            ["--entrypoint", _] => {
                let mut command = place.command(args);
                let output = command.args(["--recorder", "none", "--", "true"]).output().unwrap();
                assert_eq!(outcome(&output).0, 0, "{}", outcome(&output).1);
                std::fs::read_to_string(place.path().join("slim-out/container.log")).unwrap()
            }
            _ => place.printed(args, &format!("exec 2>/dev/null; {}; true", inside.join("; "))),
        };
        let printed = printed.replace("\r\n", "\n");
        let parts: Vec<&str> = printed.split("==\n").filter(|part| !part.is_empty()).collect();
        assert_eq!(parts.len(), asked.len(), "{printed}");
        for ((command, wanted), part) in asked.iter().zip(parts) {
            assert!(part.contains(wanted), "{args:?}, {command}: {part}");
        }
    }
    let passed = place.printed(&["-e", "PATH", "-e", "NO_SUCH_VARIABLE"], "echo $PATH");
    assert_eq!(passed.trim(), std::env::var("PATH").unwrap(), "-e K is slim's own value");
}

#[test]
fn what_cannot_be_is_refused_before_the_run() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    std::fs::write(place.path().join("text"), "{no filter").unwrap();
    let odd = script(place.path(), "odd.sh", "true");
    std::fs::write(&odd, "#!/no/such/interpreter\n").unwrap();
    std::fs::create_dir(place.path().join("ro")).unwrap();
    for (args, code, words) in [
        (&["--allow", "no_such_call"][..], 2, &["--allow", "no_such_call"][..]),
        (&["--tag", "Bad Tag"], 2, &["--tag", "Bad Tag", "lower-case", "NAME[:TAG]"]),
        (&["--stop-signal", "BOGUS"], 2, &["--stop-signal", "BOGUS"]),
        (&["--tmpfs", "/t:bogus=1"], 2, &["--tmpfs", "bogus=1"]),
        (&["--security-opt", "seccomp=none"], 2, &["--security-opt", "none", "No such file"]),
        (&["--security-opt", "seccomp=text"], 2, &["--security-opt", "text"]),
        (&["--network", "ns:text"], 2, &["--network", "text", "no network namespace"]),
        (&["--ready", "healthy"], 2, &["--ready healthy", "HEALTHCHECK", "exec:CMD"]),
        (&["--keep-from", "none"], 2, &["none"]),
        (&["-o", "text"], 4, &["text", "with -o"]),
        (&["-o", "/proc/no/such"], 4, &["/proc/no/such", "with -o"]),
        (&["--store", "text/store"], 4, &["text/store"]),
        (&["--ulimit", "nofile=9223372036854775807"], 4, &["--ulimit nofile", "or less"]),
    ] {
        let (got, said) = place.trace(args, "echo the script ran; exit 3");
        assert_eq!(got, code, "{args:?}: {said}");
        assert!(!said.contains("the script ran"), "{args:?}: {said}");
        assert!(words.iter().all(|word| said.contains(word)), "{args:?}: {said}");
        let results = ["image.tar", "profile.json", "summary.json", "seccomp.json"];
        assert!(!results.iter().any(|name| place.files().iter().any(|f| f == name)), "{args:?}");
    }
    let output = place.command(&[]).args(["--", "./odd.sh"]).output().unwrap();
    let (code, said) = outcome(&output);
    assert_eq!(code, 2, "{said}");
    assert!(said.contains("/no/such/interpreter") && !said.contains("starting"), "{said}");
}

#[test]
fn a_call_that_outlives_its_client_ends_with_the_pod() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let began = Instant::now();
    let text = "
        $SLIM_RUN sleep 100 & run=$!
        $SLIM_EXEC sleep 100 & exec=$!
        sleep 1
        kill -9 $run $exec
        wait || true";
    let (code, said) = place.trace(&[], text);
    assert_eq!(code, 0, "{said}");
    assert_eq!(json(&place.path().join("slim-out/summary.json"))["complete"], true, "{said}");
    assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
}

#[test]
fn ctrl_c_is_130_and_writes_nothing() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let script = script(place.path(), "coverage.sh", "echo the script runs; sleep 60");
    for phase in ["slim: unpacking", "slim: starting", "the script runs"] {
        let mut command = place.command(&["--stop-timeout", "1"]);
        command.arg("--").arg(&script).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        wait_for(&mut child, phase);
        sh("kill", &["-INT", &child.id().to_string()]);
        let began = Instant::now();
        let (code, said) = outcome(&child.wait_with_output().unwrap());
        assert_eq!(code, 130, "{phase}: {said}");
        assert!(began.elapsed() < Duration::from_secs(15), "{phase}: {:?}", began.elapsed());
        assert_eq!(place.files(), Vec::<String>::new(), "{phase}");
        let runs = std::fs::read_dir(place.path().join("store/runs")).unwrap().count();
        assert_eq!(runs, 0, "{phase}: the run's folder is gone");
    }
}

/// Reads what slim says until a line holds `word`.
fn wait_for(child: &mut std::process::Child, word: &str) {
    use std::io::Read as _;
    let mut said = String::new();
    let script_speaks = !word.starts_with("slim:");
    while !said.contains(word) {
        let mut byte = [0];
        let got = match script_speaks {
            true => child.stdout.as_mut().unwrap().read(&mut byte).unwrap(),
            false => child.stderr.as_mut().unwrap().read(&mut byte).unwrap(),
        };
        assert_eq!(got, 1, "slim ended before it said {word:?}: {said}");
        said.push(char::from(byte[0]));
    }
}

#[test]
fn the_environment_and_the_file_stand_in_for_flags() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let settings = "
        image = \"oci:image\"
        store = \"store\"
        no-verify = true
        no_restart = true
        recorder = \"none\"
        user = \"app\"
        hostname = \"of-file\"
        cmd = [\"sh\", \"-c\", \"id -u; cat /etc/hostname; echo $X\"]
        script = [\"true\"]
        [env]
        X = \"of-file\"";
    std::fs::write(place.path().join("slim.toml"), settings).unwrap();
    let told = |env: &[(&str, &str)], args: &[&str]| {
        let mut command = slim(place.path());
        command.arg("trace").args(args).envs(env.iter().copied());
        let (code, said) = outcome(&command.output().unwrap());
        assert_eq!(code, 0, "{env:?} {args:?}: {said}");
        std::fs::read_to_string(place.path().join("slim-out/container.log")).unwrap()
    };
    assert_eq!(told(&[], &[]), "1000\nof-file\nof-file\n");
    let env = [("SLIM_TRACE_USER", "7"), ("SLIM_TRACE_ENV", "X=of-env"), ("SLIM_TRACE_INIT", "0")];
    assert_eq!(told(&env, &["--hostname", "of-flag"]), "7\nof-flag\nof-env\n");
}

#[test]
fn a_full_disk_is_four_and_leaves_nothing_half_written() {
    if !have(&NEEDS) {
        return;
    }
    let place = Place::new(&SERVICE);
    let small = place.path().join("small");
    std::fs::create_dir(&small).unwrap();
    let text = small.to_str().unwrap();
    sh("mount", &["-t", "tmpfs", "-o", "size=512k", "slim-it", text]);
    let store = place.trace(&["--store", "small/store"], "true");
    let half = sh("sh", &["-c", &format!("ls -A {text}/store/layers")]);
    sh("rm", &["-rf", &format!("{text}/store")]);
    let out = place.trace(&["-o", "small/out"], "true");
    let left = sh("sh", &["-c", &format!("ls -A {text}/out")]);
    sh("umount", &[text]);
    assert_eq!(store.0, 4, "{}", store.1);
    assert!(store.1.contains("--store") && half.is_empty(), "{}{half}", store.1);
    assert_eq!(out.0, 4, "{}", out.1);
    assert!(out.1.contains("-o") && left.is_empty(), "{}{left}", out.1);
}
