//! Small trees by hand, and what stays of them.

use std::sync::Arc;

use serde_json::json;

use super::*;
use crate::model::profile::{Access, Extra, FileCell, ImageIdentity, RunId, RunRecord, kind};
use crate::model::{ChainId, Digest, ElfFacts, Facts, FirstUse, Node, SortedMap};

fn path(text: &str) -> RootPath {
    RootPath::parse(text.as_bytes()).unwrap()
}

fn node(kind: NodeKind, inode: u64) -> Node {
    Node {
        kind,
        mode: 0o755,
        uid: 0,
        gid: 0,
        mtime: (0, 0),
        xattrs: Default::default(),
        layer: 0,
        inode,
        implied: false,
    }
}

/// A tree in the making; parents come by themselves.
#[derive(Default)]
struct Image(Tree);

impl Image {
    fn put(mut self, at: &str, kind: NodeKind) -> Self {
        for parent in path(at).ancestors().filter(|p| !p.is_root()) {
            let inode = self.0.nodes.len() as u64 + 1;
            self.0.nodes.entry(parent).or_insert_with(|| node(NodeKind::Dir, inode).into());
        }
        let inode = self.0.nodes.len() as u64 + 1;
        self.0.nodes.insert(path(at), node(kind, inode).into());
        self
    }

    fn file(self, at: &str) -> Self {
        self.with(at, None)
    }

    fn with(self, at: &str, facts: Option<Facts>) -> Self {
        let content = Digest::of(at.as_bytes());
        self.put(at, NodeKind::File { size: 10, content, facts: facts.map(Box::new) })
    }

    fn elf(self, at: &str, needed: &[&str], edit: impl FnOnce(&mut ElfFacts)) -> Self {
        let needed = needed.iter().map(|n| (*n).to_owned()).collect();
        let mut elf = ElfFacts { class: 64, machine: 62, needed, ..ElfFacts::default() };
        edit(&mut elf);
        self.with(at, Some(Facts::Elf(elf)))
    }

    fn script(self, at: &str, line: &str) -> Self {
        self.with(at, Some(Facts::Shebang { interpreter: line.as_bytes().to_vec() }))
    }

    fn link(self, at: &str, to: &str) -> Self {
        self.put(at, NodeKind::Symlink { target: to.as_bytes().to_vec() })
    }

    fn dir(self, at: &str) -> Self {
        self.put(at, NodeKind::Dir)
    }
}

fn run(n: u8) -> RunId {
    Digest::of(&[n])
}

fn by(phase: &str) -> FirstUse {
    FirstUse { exe: "/app".into(), argv0: "app".into(), phase: phase.into(), ..FirstUse::default() }
}

fn access(kind: &str, phase: &str) -> Access {
    Access::from([(kind.to_owned().into(), [(run(1), by(phase).into())].into())])
}

fn nothing() -> Profile {
    Profile::new(ImageIdentity {
        config_digest: Digest::of(b"c"),
        chain_id: ChainId(Digest::of(b"l")),
        platform: "linux/amd64".into(),
        names: [].into(),
        manifest_digests: [].into(),
        extra: Extra::new(),
    })
}

fn touched(files: &[&str]) -> Profile {
    let mut profile = nothing();
    for file in files {
        let access = access(kind::OPEN, "start");
        let cell = FileCell { layer: None, content: None, access, extra: SortedMap::default() };
        profile.files.insert(path(file), cell.into());
    }
    profile
}

fn config(config: serde_json::Value) -> ImageConfig {
    ImageConfig(json!({ "config": config }))
}

fn globs(keep: &[&str], drop: &[&str]) -> Policy {
    let own = |globs: &[&str]| globs.iter().map(|g| (*g).to_owned()).collect();
    Policy { keep: own(keep), drop: own(drop), allow: Vec::new(), keep_base: 0 }
}

/// The keep-set as text, without the directories that stay because they are directories.
fn dump(keep: &KeepSet) -> String {
    let mut lines = Vec::new();
    for (path, reasons) in &keep.paths {
        let reasons: Vec<String> = reasons
            .iter()
            .filter(|r| **r != Reason::Directory)
            .map(|r| match r {
                Reason::TargetOf(of)
                | Reason::ParentOf(of)
                | Reason::InterpreterOf(of)
                | Reason::NeededBy(of)
                | Reason::ShebangOf(of)
                | Reason::PlainOf(of)
                | Reason::Volume(of) => format!("{} {of}", r.name()),
                Reason::Config(what) | Reason::Policy(what) => format!("{} {what}", r.name()),
                plain => plain.name().to_owned(),
            })
            .collect();
        if !reasons.is_empty() {
            lines.push(format!("{path}: {}", reasons.join(", ")));
        }
    }
    lines.join("\n")
}

fn decided(profile: &Profile, image: Image) -> String {
    dump(&decide(profile, &image.0, &config(json!({})), &Policy::default()).unwrap())
}

#[test]
fn a_program_stays_with_its_interpreter_and_libraries() {
    let image = Image::default()
        .link("/lib", "usr/lib")
        .link("/lib64", "usr/lib64")
        .elf("/usr/bin/app", &["libz.so.1", "libc.so.6"], |e| {
            e.interpreter = Some(b"/lib64/ld-linux-x86-64.so.2".to_vec());
        })
        .elf("/usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2", &[], |_| {})
        .link("/usr/lib64/ld-linux-x86-64.so.2", "/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2")
        .elf("/usr/lib/x86_64-linux-gnu/libc.so.6", &["ld-linux-x86-64.so.2"], |_| {})
        .link("/usr/lib/x86_64-linux-gnu/libz.so.1", "libz.so.1.2.13")
        .elf("/usr/lib/x86_64-linux-gnu/libz.so.1.2.13", &["libc.so.6"], |_| {})
        // Found first in the list of directories, but of another machine.
        .elf("/usr/local/lib/libz.so.1", &[], |e| e.machine = 183)
        .elf("/usr/lib/x86_64-linux-gnu/libm.so.6", &[], |_| {})
        .file("/usr/share/doc/app");
    insta::assert_snapshot!(decided(&touched(&["/usr/bin/app"]), image), @r"
    /lib: walked
    /lib64: walked
    /usr/bin/app: touched
    /usr/lib: target_of /lib
    /usr/lib/x86_64-linux-gnu/ld-linux-x86-64.so.2: target_of /usr/lib64/ld-linux-x86-64.so.2, interpreter_of /usr/bin/app, needed_by /usr/lib/x86_64-linux-gnu/libc.so.6
    /usr/lib/x86_64-linux-gnu/libc.so.6: needed_by /usr/bin/app, needed_by /usr/lib/x86_64-linux-gnu/libz.so.1.2.13
    /usr/lib/x86_64-linux-gnu/libz.so.1: walked
    /usr/lib/x86_64-linux-gnu/libz.so.1.2.13: target_of /usr/lib/x86_64-linux-gnu/libz.so.1, needed_by /usr/bin/app
    /usr/lib64: target_of /lib64
    /usr/lib64/ld-linux-x86-64.so.2: walked
    ");
}

#[test]
fn rpath_and_runpath_are_searched_as_the_loader_does() {
    let image = Image::default()
        .elf("/opt/app/bin/app", &["liba.so", "libown.so"], |e| {
            e.rpath = vec!["$ORIGIN/../rpath".into()];
        })
        // The executable's RPATH counts for its libraries too …
        .elf("/opt/app/rpath/liba.so", &["libb.so"], |_| {})
        .elf("/opt/app/rpath/libb.so", &["libc.so"], |e| e.runpath = vec!["${ORIGIN}/priv".into()])
        .elf("/opt/app/rpath/priv/libc.so", &[], |_| {})
        // … but not for one that has a RUNPATH: this one is not found by libb.so.
        .elf("/opt/app/rpath/libc.so", &[], |_| {})
        // Nowhere a rule looks, yet there is only one: ld.so.cache would name it.
        .elf("/srv/private/libown.so", &[], |_| {});
    insta::assert_snapshot!(decided(&touched(&["/opt/app/bin/app"]), image), @r"
    /opt/app/bin/app: touched
    /opt/app/rpath/liba.so: needed_by /opt/app/bin/app
    /opt/app/rpath/libb.so: needed_by /opt/app/rpath/liba.so
    /opt/app/rpath/priv/libc.so: needed_by /opt/app/rpath/libb.so
    /srv/private/libown.so: needed_by /opt/app/bin/app
    ");
}

#[test]
fn what_a_lesser_processor_loads_stays_too() {
    let library = |image: Image, dir: &str| {
        let image = image.elf(&format!("{dir}/libx.so.1.2"), &[], |_| {});
        image.link(&format!("{dir}/libx.so.1"), "libx.so.1.2")
    };
    let image = Image::default()
        .elf("/opt/lib/haswell/x86_64/liby.so", &[], |_| {})
        .elf("/opt/lib/liby.so", &[], |_| {})
        .elf("/opt/lib/haswell/libz.so", &[], |_| {})
        // In a folder that only ld.so.cache knows, and needed by what was not loaded.
        .elf("/usr/bin/app", &["libcached.so"], |_| {})
        .elf("/srv/lib/libcached.so", &[], |_| {})
        .elf("/srv/lib/glibc-hwcaps/x86-64-v3/libcached.so", &[], |_| {});
    let dirs = ["/usr/lib/glibc-hwcaps/x86-64-v3", "/usr/lib/glibc-hwcaps/x86-64-v2", "/usr/lib"];
    let image = dirs.into_iter().fold(image, library);
    let mut used = vec!["/opt/lib/haswell/x86_64/liby.so", "/opt/lib/haswell/libz.so"];
    used.extend(["/usr/lib/glibc-hwcaps/x86-64-v3/libx.so.1.2", "/usr/bin/app"]);
    let mut profile = touched(&used);
    let link = touched(&["/usr/lib/glibc-hwcaps/x86-64-v3/libx.so.1"]).files;
    for (path, mut cell) in link {
        cell.access = access(kind::WALK, "start");
        profile.files.insert(path, cell);
    }
    insta::assert_snapshot!(decided(&profile, image), @r"
    /opt/lib/haswell/libz.so: touched
    /opt/lib/haswell/x86_64/liby.so: touched
    /opt/lib/liby.so: plain_of /opt/lib/haswell/x86_64/liby.so
    /srv/lib/libcached.so: needed_by /usr/bin/app
    /usr/bin/app: touched
    /usr/lib/glibc-hwcaps/x86-64-v3/libx.so.1: walked
    /usr/lib/glibc-hwcaps/x86-64-v3/libx.so.1.2: touched, target_of /usr/lib/glibc-hwcaps/x86-64-v3/libx.so.1
    /usr/lib/libx.so.1: walked
    /usr/lib/libx.so.1.2: target_of /usr/lib/libx.so.1, plain_of /usr/lib/glibc-hwcaps/x86-64-v3/libx.so.1, plain_of /usr/lib/glibc-hwcaps/x86-64-v3/libx.so.1.2
    ");
}

#[test]
fn scripts_keep_their_interpreters() {
    let image = Image::default()
        .script("/run.sh", "/bin/sh")
        .script("/run.py", "/usr/bin/env -S python3 -u")
        .link("/bin", "usr/bin")
        .link("/usr/bin/sh", "dash")
        .elf("/usr/bin/dash", &[], |_| {})
        .elf("/usr/bin/env", &[], |_| {})
        .link("/usr/local/bin/python3", "python3.11")
        .elf("/usr/local/bin/python3.11", &[], |_| {})
        .elf("/usr/bin/python3", &[], |_| {})
        // Read as data only: git copies such templates.
        .script("/read.pl", "/usr/bin/perl")
        .elf("/usr/bin/perl", &[], |_| {});
    let mut profile = touched(&["/run.sh", "/run.py", "/read.pl"]);
    for path in ["/run.sh", "/run.py"] {
        let access =
            &mut profile.files.get_mut(&RootPath::parse(path.as_bytes()).unwrap()).unwrap().access;
        let used = access[kind::OPEN].clone();
        access.insert(kind::EXEC.into(), used);
    }
    insta::assert_snapshot!(decided(&profile, image), @r"
    /bin: walked
    /read.pl: touched
    /run.py: touched
    /run.sh: touched
    /usr/bin: target_of /bin
    /usr/bin/dash: target_of /usr/bin/sh, shebang_of /run.sh
    /usr/bin/env: shebang_of /run.py
    /usr/bin/sh: walked
    /usr/local/bin/python3: walked
    /usr/local/bin/python3.11: target_of /usr/local/bin/python3, shebang_of /run.py
    ");
}

#[test]
fn configuration_and_volumes_stay() {
    let image = Image::default()
        .file("/etc/passwd")
        .file("/etc/shadow")
        .link("/data", "/var/data")
        .file("/var/data/db/one")
        .file("/var/data-other")
        .link("/work", "srv")
        .dir("/srv");
    let config = config(json!({"Volumes": {"/data": {}, "/none": {}}, "WorkingDir": "/work"}));
    let keep = decide(&nothing(), &image.0, &config, &Policy::default()).unwrap();
    insta::assert_snapshot!(dump(&keep), @r"
    /data: config VOLUME
    /etc/passwd: config USER
    /srv: target_of /work, config WORKDIR
    /var/data: target_of /data, volume /var/data
    /var/data/db: volume /var/data
    /var/data/db/one: volume /var/data
    /work: config WORKDIR
    ");
    assert!(keep.paths[&path("/srv")].contains(&Reason::Directory));
}

#[test]
fn what_the_options_of_a_run_name_stays() {
    let image = Image::default()
        .link("/app", "srv")
        .dir("/srv")
        .link("/var/run", "/run")
        .dir("/run")
        .file("/etc/big")
        .link("/conf", "etc");
    let mut profile = nothing();
    for (purpose, workdir) in [("trace", "/app"), ("verify", "/conf")] {
        let mut run: RunRecord = serde_json::from_value(json!({
            "slim": "0", "purpose": purpose, "arguments": [], "kernel": "", "runtime": "",
            "seccomp": "", "recorder": "bpf", "started": "", "phases": [], "losses": [],
            "complete": true,
        }))
        .unwrap();
        run.extra.insert("workdir".into(), workdir.into());
        run.extra.insert("mount_points".into(), json!(["/var/run/x", "/etc/big", "/none"]));
        profile.runs.insert(run.id(), run);
    }
    let keep = decide(&profile, &image.0, &config(json!({})), &Policy::default()).unwrap();
    insta::assert_snapshot!(dump(&keep), @r"
    /app: config WORKDIR
    /run: target_of /var/run
    /srv: target_of /app, config WORKDIR
    /var/run: config mount
    ");
}

#[test]
fn what_a_run_changed_or_removed_stays_as_it_was() {
    let mut profile = nothing();
    profile.written.insert(path("/etc/app.conf"), access(kind::CHANGE, "start"));
    profile.written.insert(path("/old"), access(kind::REMOVE, "stop"));
    profile.written.insert(path("/new"), access(kind::CREATE, "start"));
    profile.written.insert(path("/etc/hosts"), access(kind::CREATE, "runtime"));
    let image = Image::default().file("/etc/app.conf").file("/old/a").file("/old.d").file("/etc/x");
    insta::assert_snapshot!(decided(&profile, image), @r"
    /etc/app.conf: changed
    /old: changed
    /old/a: changed
    ");
}

#[test]
fn uses_that_do_not_count() {
    let mut profile = touched(&["/a", "/b", "/gone"]);
    profile.files.get_mut(&path("/a")).unwrap().access = access(kind::OPEN, "runtime");
    profile.missing.insert(path("/c"), access(kind::STAT, "start"));
    let image = Image::default().file("/a").file("/b").file("/c");
    insta::assert_snapshot!(decided(&profile, image), @"/b: touched");
}

#[test]
fn one_name_of_a_hard_link_group_is_enough() {
    let mut image = Image::default().file("/a").file("/b").file("/c");
    let inode = image.0.nodes[&path("/a")].inode;
    Arc::make_mut(image.0.nodes.get_mut(&path("/b")).unwrap()).inode = inode;
    insta::assert_snapshot!(decided(&touched(&["/b"]), image), @"/b: touched");
}

#[test]
fn globs_keep_and_drop_and_must_match() {
    let image = || {
        Image::default()
            .file("/usr/share/a.txt")
            .file("/usr/share/b.bin")
            .file("/usr/lib/c.txt")
            .file("/etc/d")
            .put("/bytes", NodeKind::Fifo)
    };
    let decide = |keep: &[&str], drop: &[&str]| {
        super::decide(&touched(&["/etc/d"]), &image().0, &config(json!({})), &globs(keep, drop))
    };
    insta::assert_snapshot!(dump(&decide(&["*.txt", "!/usr/lib/**", "# why"], &[]).unwrap()), @r"
    /etc/d: touched
    /usr/share/a.txt: policy *.txt
    ");
    let all = decide(&["/**"], &["/usr/share/"]).unwrap();
    insta::assert_snapshot!(dump(&all), @r"
    /bytes: policy /**
    /etc: policy /**
    /etc/d: touched, policy /**
    /usr: policy /**
    /usr/lib: policy /**
    /usr/lib/c.txt: policy /**
    ");
    assert_eq!(all.dropped.len(), 3, "{:?}", all.dropped);
    let everything = decide(&["/**"], &[]).unwrap();
    assert_eq!(everything.paths.len(), image().0.nodes.len());
    // A directory above a kept path stays, whatever is dropped.
    let kept = decide(&[], &["/etc", "!/etc/d"]).unwrap();
    assert!(kept.paths.contains_key(&path("/etc/d")) && !kept.dropped.contains(&path("/etc")));
    insta::assert_snapshot!(decide(&["/nowhere"], &[]).unwrap_err(), @r#"--keep "/nowhere" matches nothing in the image"#);
    insta::assert_snapshot!(decide(&[], &["*.nothing"]).unwrap_err(), @r#"--drop "*.nothing" matches nothing in the image"#);
    assert!(matches!(decide(&["a{b"], &[]), Err(KeepError::BadGlob { .. })));
}

#[test]
fn a_dropped_library_takes_its_own_needs_along() {
    let image = Image::default()
        .elf("/bin/app", &["liba.so"], |_| {})
        .elf("/lib/liba.so", &["libb.so"], |_| {})
        .elf("/lib/libb.so", &[], |_| {});
    let policy = globs(&[], &["liba.so"]);
    let keep = decide(&touched(&["/bin/app"]), &image.0, &config(json!({})), &policy).unwrap();
    insta::assert_snapshot!(dump(&keep), @"/bin/app: touched");
}

fn kept(tree: &Tree) -> KeepSet {
    let paths = tree.nodes.keys().map(|p| (p.clone(), Reason::Touched.into())).collect();
    KeepSet { paths, ..KeepSet::default() }
}

fn static_findings(edit: impl FnOnce(&mut Tree, &mut KeepSet)) -> Vec<String> {
    let mut image =
        Image::default().file("/d/a").file("/d/b").link("/d/l", "a").put("/f", NodeKind::Fifo).0;
    let inode = image.nodes[&path("/d/a")].inode;
    Arc::make_mut(image.nodes.get_mut(&path("/d/b")).unwrap()).inode = inode;
    let (mut slim, mut keep) = (image.clone(), kept(&image));
    // Inode numbers of two trees have nothing to do with each other.
    slim.nodes.values_mut().for_each(|n| Arc::make_mut(n).inode += 100);
    edit(&mut slim, &mut keep);
    let said = |f: Finding| format!("{} {}", f.subject, f.what);
    verify_static(&image, &slim, &keep).into_iter().map(said).collect()
}

#[test]
fn static_verification_sees_each_difference() {
    assert_eq!(static_findings(|_, _| {}), Vec::<String>::new());
    let edit = |at: &'static str, change: fn(&mut Node)| {
        static_findings(move |slim, _| {
            change(Arc::make_mut(slim.nodes.get_mut(&path(at)).unwrap()))
        })
        .join("; ")
    };
    let said = [
        edit("/d/l", |n| n.mode = 0o4755),
        edit("/d/l", |n| n.uid = 7),
        edit("/d/l", |n| n.mtime = (1, 5)),
        edit("/d", |n| drop(n.xattrs.insert("user.x".into(), vec![1]))),
        edit("/d/l", |n| n.kind = NodeKind::Symlink { target: b"b".to_vec() }),
        edit("/f", |n| n.kind = NodeKind::Dir),
        edit("/d/b", |n| n.inode = 999),
        edit("/d", |n| n.implied = true),
        static_findings(|slim, _| drop(slim.nodes.remove(&path("/f")))).join("; "),
        static_findings(|_, keep| drop(keep.paths.remove(&path("/f")))).join("; "),
        // A parent that is in the image without being in the keep-set is in order.
        static_findings(|_, keep| drop(keep.paths.remove(&path("/d")))).join("; "),
    ];
    insta::assert_snapshot!(said.join("\n"), @r"
    /d/l has mode 4755, was 0755
    /d/l has owner 7:0, was 0:0
    /d/l has mtime 1.000000005, was 0.000000000
    /d has a user.x, had none
    /d/l points to b, pointed to a
    /f is a directory, was a FIFO
    /d/b is a hard link of /d/b, was one of /d/a
    /d has lost its entry: owner, mode and times are not the original's
    /f is missing from the slim image
    /f is in the slim image but not in the keep-set
    ");
}

#[test]
fn dynamic_verification_tells_losses_from_what_was_always_missing() {
    let tree = Image::default().file("/lib/x").file("/gone/y").file("/doc/z").file("/probe").0;
    let (mut original, mut slim) = (nothing(), nothing());
    original.missing.insert(path("/probe"), access(kind::STAT, "start"));
    for at in ["/lib/x", "/gone/y", "/doc/z", "/probe", "/never"] {
        slim.missing.insert(path(at), access(kind::OPEN, "coverage"));
    }
    slim.written.insert(path("/gone"), access(kind::REMOVE, "start"));
    let call = |profile: &mut Profile, name: &str, kind: &str| {
        let names = profile.syscalls.entry("x86_64".into()).or_default();
        names.entry(name.into()).or_default().insert(String::new(), access(kind, "stop"));
    };
    call(&mut original, "keyctl", "refused:EPERM");
    call(&mut original, "kill", kind::CALL);
    call(&mut slim, "keyctl", "refused:ENOSYS");
    call(&mut slim, "kill", "refused:ENOSYS");
    call(&mut slim, "read", kind::CALL);
    let keep = KeepSet { dropped: [path("/doc")].into(), ..KeepSet::default() };
    let said: Vec<String> = verify_dynamic(&original, &slim, &tree, &keep)
        .into_iter()
        .map(|f| format!("{} {} [{}]", f.subject, f.what, f.by.unwrap().phase))
        .collect();
    insta::assert_snapshot!(said.join("\n"), @r"
    kill x86_64 call was refused with ENOSYS; no run of the original saw that [stop]
    /lib/x was not found in the slim image; the original has it [coverage]
    ");
}
