//! What is mounted in a container: the usual file systems, `-v`, `--mount` and `--tmpfs`.
//!
//! Volumes, anonymous or named, are directories of the recorded file system mounted upon themselves:
//! another superblock would be outside the recorder's mark, and without a mount a program would see
//! none where it has one in production, so that renames and links into it would not fail (rename(2),
//! EXDEV).

use std::path::{Component, Path, PathBuf};

use serde_json::{Value, json};

use crate::runtime::{RunOptions, RuntimeError};

const SHM_DEFAULT: u64 = 64 << 20;

/// Mounts that the user asked for.
#[derive(Debug, Default)]
pub struct Wanted {
    pub mounts: Vec<Value>,
    pub volumes: Vec<Volume>,
}

/// A directory of the container that is a mount of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub inside: String,
    /// Of the mount.
    pub options: Vec<String>,
}

impl Volume {
    /// One that an image declares.
    pub fn anonymous(inside: &str) -> Self {
        let options = ["rbind", "rprivate"].map(str::to_owned).into();
        Self { inside: inside.to_owned(), options }
    }

    /// The mount, where `source` is the directory as the runtime reaches it.
    pub fn mount(self, source: &Path) -> Value {
        bind(source, &self.inside, self.options)
    }
}

/// What every container of Docker has; `shm_size` in bytes.
pub fn usual(shm_size: Option<u64>) -> Vec<Value> {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": source, "options": options });
    let shm = format!("size={}", shm_size.unwrap_or(SHM_DEFAULT));
    let quiet = ["nosuid", "noexec", "nodev"];
    let read_only = ["nosuid", "noexec", "nodev", "ro"];
    let dev = ["nosuid", "strictatime", "mode=755", "size=65536k"];
    let pts = ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"];
    vec![
        mount("/proc", "proc", "proc", &quiet),
        mount("/dev", "tmpfs", "tmpfs", &dev),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount("/sys", "sysfs", "sysfs", &read_only),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &read_only),
        mount("/dev/mqueue", "mqueue", "mqueue", &quiet),
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm]),
    ]
}

/// Puts `wanted` over `usual`: the same destination is replaced, parents come before children.
pub fn combine(mut usual: Vec<Value>, wanted: Vec<Value>) -> Vec<Value> {
    let depth = |mount: &Value| destination(mount).split('/').filter(|n| !n.is_empty()).count();
    usual.retain(|mount| wanted.iter().all(|other| destination(other) != destination(mount)));
    let mut wanted = wanted;
    wanted.sort_by_key(depth);
    usual.extend(wanted);
    usual
}

fn destination(mount: &Value) -> &str {
    mount["destination"].as_str().unwrap_or_default()
}

/// Reads `-v`, `--mount` and `--tmpfs`. Makes missing sources of `-v`, as Docker does.
pub fn wanted(options: &RunOptions) -> Result<Wanted, RuntimeError> {
    let mut all = Wanted::default();
    for text in &options.volumes {
        volume(text, &mut all)?;
    }
    for text in &options.mounts {
        mount(text, &mut all)?;
    }
    for text in &options.tmpfs {
        let (path, given) = text.split_once(':').unwrap_or((text, ""));
        if let Some(word) = given.split(',').find(|word| !tmpfs_takes(word)) {
            return Err(no(
                "--tmpfs",
                text,
                &format!("a tmpfs has no option {word:?}; see tmpfs(5)"),
            ));
        }
        all.mounts.push(tmpfs(&target("--tmpfs", text, path)?, given.split(',')));
    }
    let mut seen = std::collections::BTreeSet::new();
    let volumes = all.volumes.iter().map(|volume| volume.inside.as_str());
    for path in all.mounts.iter().map(destination).chain(volumes) {
        if !seen.insert(path) {
            return Err(no("--volume", path, "two mounts at the same place"));
        }
    }
    Ok(all)
}

/// Where [`wanted`] mounts and makes directories.
pub fn mount_points(options: &RunOptions) -> Result<Vec<String>, RuntimeError> {
    let all = wanted(options)?;
    let mounts = all.mounts.iter().map(|mount| destination(mount).to_owned());
    Ok(mounts.chain(all.volumes.into_iter().map(|volume| volume.inside)).collect())
}

fn no(option: &str, value: &str, why: &str) -> RuntimeError {
    RuntimeError::Option { option: option.into(), value: value.into(), why: why.into() }
}

/// An absolute path inside, cleaned of `.` and `..`; not the root itself.
fn target(option: &str, text: &str, path: &str) -> Result<String, RuntimeError> {
    if !path.starts_with('/') {
        return Err(no(option, text, "the path in the container must be absolute"));
    }
    let mut names = Vec::new();
    for component in Path::new(path).components() {
        match component {
            Component::Normal(name) => names.push(name.to_string_lossy()),
            Component::ParentDir => drop(names.pop()),
            _ => (),
        }
    }
    if names.is_empty() {
        return Err(no(option, text, "the path in the container cannot be /"));
    }
    Ok(format!("/{}", names.join("/")))
}

/// `DST`, `NAME:DST[:opts]` or `SRC:DST[:opts]`.
fn volume(text: &str, all: &mut Wanted) -> Result<(), RuntimeError> {
    const OPTION: &str = "--volume";
    let fields: Vec<&str> = text.split(':').collect();
    let (source, inside, given) = match fields[..] {
        [inside] => ("", inside, ""),
        [source, inside] => (source, inside, ""),
        [source, inside, given] => (source, inside, given),
        _ => return Err(no(OPTION, text, "want SRC:DST[:ro]")),
    };
    let inside = target(OPTION, text, inside)?;
    let options = bind_options(OPTION, text, given.split(','))?;
    if !source.starts_with(['/', '.']) {
        all.volumes.push(Volume { inside, options });
        return Ok(());
    }
    let source =
        std::path::absolute(source).map_err(|error| no(OPTION, text, &error.to_string()))?;
    if !source.exists() {
        let made = std::fs::create_dir_all(&source);
        made.map_err(|source_error| RuntimeError::Io {
            what: format!("cannot make {} for {OPTION} {text}", source.display()),
            source: source_error,
        })?;
    }
    all.mounts.push(bind(&source, &inside, options));
    Ok(())
}

/// Mount options of a bind from what `-v` takes after the second colon.
fn bind_options<'a>(
    option: &str,
    text: &str,
    given: impl Iterator<Item = &'a str>,
) -> Result<Vec<String>, RuntimeError> {
    const PROPAGATION: [&str; 6] = ["private", "rprivate", "shared", "rshared", "slave", "rslave"];
    let (mut propagation, mut read_only) = ("rprivate", false);
    for word in given {
        match word {
            "ro" | "readonly" => read_only = true,
            // Labels and caching hints mean nothing here.
            "" | "rw" | "z" | "Z" | "nocopy" | "consistent" | "cached" | "delegated" => (),
            _ if PROPAGATION.contains(&word) => propagation = word,
            _ => return Err(no(option, text, &format!("unknown option {word:?}"))),
        }
    }
    let mut options = vec!["rbind".to_owned(), propagation.to_owned()];
    options.extend(read_only.then(|| "ro".to_owned()));
    Ok(options)
}

fn bind(source: &Path, inside: &str, options: Vec<String>) -> Value {
    let source = source.to_string_lossy();
    json!({ "destination": inside, "type": "bind", "source": source, "options": options })
}

/// The options that Docker lets through to a tmpfs, and their values.
fn tmpfs_takes(word: &str) -> bool {
    const FLAGS: [&str; 26] = [
        "",
        "ro",
        "rw",
        "exec",
        "noexec",
        "suid",
        "nosuid",
        "dev",
        "nodev",
        "sync",
        "async",
        "atime",
        "noatime",
        "diratime",
        "nodiratime",
        "relatime",
        "norelatime",
        "strictatime",
        "nostrictatime",
        "mand",
        "nomand",
        "defaults",
        "private",
        "shared",
        "slave",
        "remount",
    ];
    let number = |value: &str| {
        let digits = value.trim_end_matches(['k', 'K', 'm', 'M', 'g', 'G', '%']);
        value.len() - digits.len() <= 1 && digits.parse::<u64>().is_ok()
    };
    match word.split_once('=') {
        None => FLAGS.contains(&word),
        Some(("size" | "nr_blocks" | "nr_inodes" | "uid" | "gid", value)) => number(value),
        Some(("mode", value)) => u32::from_str_radix(value, 8).is_ok(),
        Some((key, _)) => key == "mpol",
    }
}

/// A tmpfs with Docker's options, over which the given ones win.
fn tmpfs<'a>(inside: &str, given: impl Iterator<Item = &'a str>) -> Value {
    let mut options: Vec<&str> = vec!["noexec", "nosuid", "nodev"];
    for word in given.filter(|word| !word.is_empty()) {
        let opposite = match word {
            "exec" => "noexec",
            "suid" => "nosuid",
            "dev" => "nodev",
            same => same,
        };
        options.retain(|other| *other != opposite);
        options.push(word);
    }
    json!({ "destination": inside, "type": "tmpfs", "source": "tmpfs", "options": options })
}

/// The fields of one `--mount`.
#[derive(Default)]
struct Fields {
    kind: Option<String>,
    source: Option<PathBuf>,
    target: Option<String>,
    read_only: bool,
    propagation: Option<String>,
    tmpfs: Vec<String>,
}

/// `type=bind|volume|tmpfs,source=…,target=…[,readonly]`.
fn mount(text: &str, all: &mut Wanted) -> Result<(), RuntimeError> {
    const OPTION: &str = "--mount";
    let fields = parse_mount(text)?;
    let inside = fields.target.ok_or_else(|| no(OPTION, text, "target is missing"))?;
    let inside = target(OPTION, text, &inside)?;
    let mut words: Vec<&str> = fields.propagation.iter().map(String::as_str).collect();
    words.extend(fields.read_only.then_some("ro"));
    match fields.kind.as_deref().unwrap_or("volume") {
        "volume" => {
            let options = bind_options(OPTION, text, words.into_iter())?;
            all.volumes.push(Volume { inside, options });
        }
        "tmpfs" => {
            words.extend(fields.tmpfs.iter().map(String::as_str));
            all.mounts.push(tmpfs(&inside, words.into_iter()));
        }
        "bind" => {
            let source = fields.source.ok_or_else(|| no(OPTION, text, "source is missing"))?;
            if !source.is_absolute() {
                return Err(no(OPTION, text, "source must be an absolute path"));
            }
            if !source.exists() {
                return Err(no(OPTION, text, &format!("{} does not exist", source.display())));
            }
            let options = bind_options(OPTION, text, words.into_iter())?;
            all.mounts.push(bind(&source, &inside, options));
        }
        kind => return Err(no(OPTION, text, &format!("type {kind:?} is not supported"))),
    }
    Ok(())
}

fn parse_mount(text: &str) -> Result<Fields, RuntimeError> {
    let no = |why: String| no("--mount", text, &why);
    let mut fields = Fields::default();
    for field in text.split(',') {
        let (key, value) = field.split_once('=').unwrap_or((field, ""));
        let flag = || match value {
            "" | "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err(no(format!("{key} wants true or false"))),
        };
        match key {
            "type" => fields.kind = Some(value.to_owned()),
            "source" | "src" => fields.source = Some(value.into()),
            "target" | "dst" | "destination" => fields.target = Some(value.to_owned()),
            "readonly" | "ro" => fields.read_only = flag()?,
            "bind-propagation" => fields.propagation = Some(value.to_owned()),
            "tmpfs-size" => {
                let size = value.trim_end_matches(['b', 'B']);
                let digits = size.trim_end_matches(|c: char| "kmgKMG".contains(c));
                if digits.parse::<u64>().is_err() || size.len() > digits.len() + 1 {
                    return Err(no(format!("tmpfs-size {value:?} is no size")));
                }
                fields.tmpfs.push(format!("size={size}"));
            }
            "tmpfs-mode" => {
                u32::from_str_radix(value, 8)
                    .map_err(|_| no(format!("tmpfs-mode {value:?} is not octal")))?;
                fields.tmpfs.push(format!("mode={value}"));
            }
            // Volumes are directories here, whatever driver they would have had.
            "consistency" | "volume-nocopy" | "volume-driver" | "volume-label" | "volume-opt" => (),
            _ => return Err(no(format!("unknown field {key:?}"))),
        }
    }
    Ok(fields)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    fn plan(volumes: &[&str], mounts: &[&str], tmpfs: &[&str]) -> Result<Wanted, RuntimeError> {
        let (volumes, mounts, tmpfs) = (own(volumes), own(mounts), own(tmpfs));
        wanted(&RunOptions { volumes, mounts, tmpfs, ..RunOptions::default() })
    }

    #[test]
    fn volumes_and_host_paths_are_told_apart() {
        let dir = tempfile::tempdir().expect("a folder");
        let new = dir.path().join("new/deep");
        let text = format!("{}:/in/../data:ro", new.display());
        let got = plan(&["/anon", "name:/named:ro", &text], &[], &[]).expect("a plan");
        let named = Volume { options: own(&["rbind", "rprivate", "ro"]), inside: "/named".into() };
        assert_eq!(got.volumes, [Volume::anonymous("/anon"), named]);
        assert!(new.is_dir(), "a missing source is made");
        let options = ["rbind", "rprivate", "ro"];
        let want = json!({ "destination": "/data", "type": "bind",
                           "source": new.to_string_lossy(), "options": options });
        assert_eq!(got.mounts, [want]);
    }

    #[test]
    fn mount_and_tmpfs_take_dockers_fields() {
        let got = plan(
            &[],
            &[
                "type=bind,src=/proc,dst=/p,readonly",
                "type=tmpfs,target=/t,tmpfs-size=1m",
                "dst=/v",
            ],
            &["/run:exec,size=5m"],
        )
        .expect("a plan");
        assert_eq!(got.volumes, [Volume::anonymous("/v")]);
        let options: Vec<_> = got.mounts.iter().map(|mount| mount["options"].to_string()).collect();
        assert_eq!(
            options,
            [
                r#"["rbind","rprivate","ro"]"#,
                r#"["noexec","nosuid","nodev","size=1m"]"#,
                r#"["nosuid","nodev","exec","size=5m"]"#,
            ]
        );
    }

    #[test]
    fn what_cannot_be_mounted_is_refused_by_option() {
        for (option, bad) in [
            ("--volume", "relative"),
            ("--volume", "/a:/"),
            ("--volume", "/a:/b:loud"),
            ("--volume", "/a:/b:ro:x"),
            ("--mount", "type=bind,dst=/x"),
            ("--mount", "type=bind,src=/no/such/path,dst=/x"),
            ("--mount", "type=npipe,dst=/x"),
            ("--mount", "type=tmpfs,dst=/x,tmpfs-mode=9"),
            ("--mount", "type=tmpfs"),
            ("--mount", "colour=red,dst=/x"),
            ("--tmpfs", "run"),
        ] {
            let result = match option {
                "--volume" => plan(&[bad], &[], &[]),
                "--mount" => plan(&[], &[bad], &[]),
                _ => plan(&[], &[], &[bad]),
            };
            let error = result.expect_err(bad).to_string();
            assert!(error.starts_with(&format!("{option} {bad:?}: ")), "{error}");
        }
        assert!(plan(&["/proc:/x"], &[], &["/x"]).is_err(), "the same place twice");
    }

    #[test]
    fn a_wanted_mount_replaces_the_usual_one_and_parents_come_first() {
        let user =
            vec![bind(Path::new("/a"), "/x/y", vec![]), bind(Path::new("/b"), "/dev/shm", vec![])];
        let all = combine(usual(None), user);
        let at = |path: &str| all.iter().filter(|mount| destination(mount) == path).count();
        assert_eq!((at("/dev/shm"), at("/proc"), all.len()), (1, 1, 8));
    }
}
