use super::*;

/// A root file system and options, and the specification that comes of them.
struct Case {
    dir: tempfile::TempDir,
    config: Value,
    options: RunOptions,
    argv: Option<Vec<String>>,
    own_network: bool,
}

impl Case {
    fn new(config: Value) -> Self {
        let dir = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(dir.path().join("root/etc")).expect("a root");
        Self { dir, config, options: RunOptions::default(), argv: None, own_network: true }
    }

    fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    fn build(&self) -> Result<Built, RuntimeError> {
        let ip = |last| self.own_network.then(|| IpAddr::from([172, 17, 0, last]));
        build(&SpecInput {
            config: &ImageConfig(json!({ "config": self.config })),
            options: &self.options,
            rootfs: &self.root(),
            root_path: &self.root(),
            hostname: "abc",
            netns: self.own_network.then(|| "/proc/1/fd/9".into()),
            container_ip: ip(2),
            gateway_ip: ip(1),
            seccomp: None,
            cgroups_path: "/slim-1/main".into(),
            files_dir: &self.dir.path().join("files"),
            argv: self.argv.as_deref(),
            init: None,
            ids: None,
        })
    }

    fn spec(&self) -> Value {
        self.build().expect("a specification").spec
    }
}

fn own(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

#[test]
fn entrypoint_and_command_combine_as_in_docker() {
    type Words<'a> = Option<&'a [&'a str]>;
    let none: Words<'_> = None;
    for (entrypoint, cmd, argv, want) in [
        (None, none, none, &["ep", "a", "b"][..]),
        (None, Some(&["c"][..]), none, &["ep", "a", "c"]),
        (None, Some(&["c"][..]), Some(&["d"][..]), &["ep", "a", "d"]),
        (Some("new"), none, none, &["new"]),
        (Some("new"), Some(&["c"][..]), none, &["new", "c"]),
        (Some(""), Some(&["c"][..]), none, &["c"]),
        (Some("new"), none, Some(&["d"][..]), &["new", "d"]),
    ] {
        let mut case = Case::new(json!({ "Entrypoint": ["ep", "a"], "Cmd": ["b"] }));
        case.options.entrypoint = entrypoint.map(str::to_owned);
        case.options.cmd = cmd.map(own);
        case.argv = argv.map(own);
        assert_eq!(case.spec()["process"]["args"], json!(want), "{entrypoint:?} {cmd:?} {argv:?}");
    }
    let error = Case::new(json!({})).build().expect_err("no command").to_string();
    assert!(error.starts_with("image: no command specified"), "{error}");
}

#[test]
fn the_environment_is_dockers() {
    let image = own(&["PATH=/app", "A=1", "B=2", "GONE=1"]);
    let user = own(&["B=3", "C=a=b", "GONE"]);
    let env = environment(&image, &user, "abc", true, "/home/me");
    let want = ["PATH=/app", "HOSTNAME=abc", "TERM=xterm", "B=3", "C=a=b", "A=1", "HOME=/home/me"];
    assert_eq!(env, want);
    let env = environment(&own(&["HOME=/x"]), &[], "abc", false, "/root");
    assert_eq!(env, [DEFAULT_PATH, "HOSTNAME=abc", "HOME=/x"]);
}

#[test]
fn the_working_directory_is_made_through_links_inside_the_root() {
    let mut case = Case::new(json!({ "Cmd": ["x"], "WorkingDir": "/link/new" }));
    std::fs::create_dir(case.root().join("real")).expect("a directory");
    std::os::unix::fs::symlink("/real", case.root().join("link")).expect("a link");
    assert_eq!(case.spec()["process"]["cwd"], "/link/new");
    assert!(case.root().join("real/new").is_dir());
    case.options.workdir = Some("relative".into());
    assert!(matches!(case.build(), Err(RuntimeError::Option { .. })));
    case.options.workdir = Some("/file/x".into());
    std::fs::write(case.root().join("file"), "").expect("a file");
    let error = case.build().expect_err("a file in the way").to_string();
    assert!(error.starts_with("working directory /file/x: "), "{error}");
}

#[test]
fn volumes_of_the_image_are_mounts_of_their_own() {
    let config = json!({ "Cmd": ["x"], "Volumes": { "/data": {}, "/cache/": {}, "/mine": {} } });
    let mut case = Case::new(config);
    case.options.tmpfs = own(&["/cache"]);
    case.options.volumes = own(&["name:/mine:ro"]);
    std::fs::create_dir_all(case.root().join("srv/data")).expect("a directory");
    std::os::unix::fs::symlink("/srv/data", case.root().join("data")).expect("a link");
    let spec = case.spec();
    let mounts = spec["mounts"].as_array().expect("mounts");
    let of = |at: &str| mounts.iter().filter(|m| m["destination"] == at).collect::<Vec<_>>();
    let source = case.root().join("srv/data");
    let want = json!({ "destination": "/data", "type": "bind", "source": source.to_str(),
                       "options": ["rbind", "rprivate"] });
    assert_eq!(of("/data"), [&want]);
    assert!(case.root().join("mine").is_dir());
    assert_eq!(of("/mine").len(), 1);
    assert_eq!(of("/mine")[0]["options"], json!(["rbind", "rprivate", "ro"]));
    assert_eq!(mounts.iter().filter(|mount| mount["destination"] == "/cache").count(), 1);
    assert!(!case.root().join("cache").exists(), "the runtime makes mount points");
}

#[test]
fn the_network_decides_on_sysctls_and_files() {
    let mut case = Case::new(json!({ "Cmd": ["x"] }));
    let spec = case.spec();
    assert_eq!(spec["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "0");
    let read = |case: &Case, name: &str| {
        std::fs::read_to_string(case.dir.path().join("files").join(name)).expect(name)
    };
    assert!(read(&case, "hosts").ends_with("172.17.0.2\tabc\n"));
    assert!(read(&case, "resolv.conf").starts_with("nameserver 172.17.0.1\n"));
    assert_eq!(read(&case, "hostname"), "abc\n");
    case.own_network = false;
    let spec = case.spec();
    assert_eq!(spec["linux"]["sysctl"], Value::Null);
    let kinds = spec["linux"]["namespaces"].as_array().expect("namespaces");
    assert!(kinds.iter().all(|namespace| namespace["type"] != "network"));
}

#[test]
fn options_that_are_not_understood_are_named() {
    type Change = fn(&mut RunOptions);
    let changes: [(&str, Change); 6] = [
        ("--security-opt", |o| o.security_opt = own(&["label=type:x"])),
        ("--memory", |o| o.memory = Some(1024)),
        ("--cpus", |o| o.cpus = Some(-1.0)),
        ("--hostname", |o| o.hostname = Some("x".repeat(65))),
        ("--cap-add", |o| o.cap_add = own(&["FLY"])),
        ("--add-host", |o| o.add_host = own(&["x"])),
    ];
    for (option, change) in changes {
        let mut case = Case::new(json!({ "Cmd": ["x"] }));
        change(&mut case.options);
        let error = case.build().expect_err(option).to_string();
        assert!(error.starts_with(option), "{error}");
    }
}

#[test]
fn exec_is_the_same_process_with_other_words_and_no_terminal() {
    let mut case = Case::new(json!({ "Cmd": ["x"], "User": "7", "Env": ["A=1"] }));
    case.options.tty = true;
    let spec = case.spec();
    assert_eq!(spec["process"]["terminal"], true);
    let exec = exec_process(&spec, &own(&["id", "-u"]));
    assert_eq!(exec["args"], json!(["id", "-u"]));
    assert_eq!((&exec["terminal"], &exec["user"]["uid"]), (&json!(false), &json!(7)));
    assert_eq!(exec["env"], spec["process"]["env"]);
}

#[test]
fn the_specification_is_one_that_typed_readers_accept() {
    let mut case = Case::new(json!({ "Cmd": ["x"], "User": "1:2" }));
    case.options.memory = Some(64 << 20);
    case.options.cpus = Some(1.5);
    case.options.pids_limit = Some(100);
    case.options.read_only = true;
    let spec = case.spec();
    let typed: oci_spec::runtime::Spec = serde_json::from_value(spec.clone()).expect("typed");
    assert!(typed.root().as_ref().expect("a root").readonly().expect("set"));
    assert_eq!(spec["linux"]["resources"]["cpu"]["quota"], 150_000);
}
