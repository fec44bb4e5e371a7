//! The slim image as a recipe for somebody else's builder: a Dockerfile that copies what is kept out of
//! the original, and a small archive of what COPY cannot carry over.
//!
//! COPY follows symlinks, makes hard links two files, and gives folders times and owners of its own. So
//! plain files are copied, folder by folder, and everything else is unpacked from `skeleton.tar`, which
//! `ADD` does as a layer's tar is unpacked, after them.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::io::{BufWriter, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::model::{Node, NodeKind, RootPath};
use crate::oci::layer::Meta;

use super::contents::Contents;
use super::entry::{What, pad, write_header};
use super::{EmitError, Order, plan};

/// Docker loads 120 layers: no stage of the recipe has more.
const COPIES: usize = 100;

/// The first line of a Dockerfile that is slim's.
const OURS: &str = "# Written by slim; build it in this folder.\n";

/// The files of a recipe that an earlier run left in `folder`; none where the Dockerfile is somebody's own.
pub fn recipe_in(folder: &Path) -> Vec<PathBuf> {
    let ours = std::fs::read(folder.join("Dockerfile"))
        .is_ok_and(|text| text.starts_with(OURS.as_bytes()));
    let files = ["Dockerfile", "keep.list", "skeleton.tar"].map(|name| folder.join(name));
    if ours { files.into() } else { Vec::new() }
}

/// What a recipe came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Recipe {
    /// Files that the builder copies out of the original.
    pub copied: usize,
    /// Paths in `skeleton.tar`.
    pub added: usize,
    /// What a Dockerfile cannot say as the configuration does.
    #[serde(skip)]
    pub warnings: Vec<String>,
}

/// Writes `Dockerfile`, `keep.list` and `skeleton.tar` into the folder `target`, which is there; what
/// the order says of format and compression is the builder's business then.
pub fn write_recipe(order: &Order<'_>, target: &Path) -> Result<Recipe, EmitError> {
    let kept = plan::kept(order.tree, order.keep);
    let mut names: HashMap<u64, usize> = HashMap::new();
    for (_, node) in &kept {
        *names.entry(node.inode).or_default() += 1;
    }
    let is_plain =
        |(path, node): &(&RootPath, &Node)| is_plain(path, node) && names[&node.inode] == 1;
    let (copied, added): (Vec<_>, Vec<_>) = kept.iter().copied().partition(is_plain);
    skeleton(order, &added, target)?;
    let list: String = kept.iter().map(|(path, _)| format!("{path}\n")).collect();
    whole(target, "keep.list", list.as_bytes())?;
    let mut config = crate::model::ImageConfig(
        serde_json::from_slice(&order.image.config_bytes).map_err(|_| EmitError::Config)?,
    );
    config = order.edits.config(&config);
    let mut warnings = warnings(&order.image.config.0["config"], &config.0["config"]);
    let (settings, left_out) = settings(&config.0["config"]);
    warnings.extend(left_out);
    let text = dockerfile(order.image.name.as_deref(), &copied, &settings);
    whole(target, "Dockerfile", text.as_bytes())?;
    Ok(Recipe { copied: copied.len(), added: added.len(), warnings })
}

/// True for what COPY carries over as it is. Names that a Dockerfile takes for patterns, variables or
/// more than one line go the other way.
fn is_plain(path: &RootPath, node: &Node) -> bool {
    let plain = |c: char| !c.is_control() && !"*?[]$\\\"'`#".contains(c);
    matches!(node.kind, NodeKind::File { .. })
        && node.mode & 0o7000 == 0
        && node.xattrs.is_empty()
        && node.mtime.1 == 0
        && std::str::from_utf8(path.as_bytes()).is_ok_and(|text| text.chars().all(plain))
}

fn whole(folder: &Path, name: &str, bytes: &[u8]) -> Result<(), EmitError> {
    let target = folder.join(name);
    let error = |e| EmitError::write(&target, e);
    let mut file = super::part(folder).map_err(error)?;
    file.write_all(bytes).map_err(error)?;
    publish(file, &target)
}

fn publish(file: tempfile::NamedTempFile, target: &Path) -> Result<(), EmitError> {
    let error = |e| EmitError::write(target, e);
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o644);
    file.as_file().set_permissions(mode).map_err(error)?;
    file.as_file().sync_all().map_err(error)?;
    file.persist(target).map(drop).map_err(|e| error(e.error))
}

/// Folders, links, devices, and the files that COPY would change.
fn skeleton(
    order: &Order<'_>,
    added: &[(&RootPath, &Node)],
    folder: &Path,
) -> Result<(), EmitError> {
    let target = folder.join("skeleton.tar");
    let error = |e| EmitError::write(&target, e);
    let file = super::part(folder).map_err(error)?;
    let mut out = BufWriter::new(file.as_file());
    let is_dir = |(_, node): &&(&RootPath, &Node)| node.kind == NodeKind::Dir;
    for (path, node) in added.iter().filter(is_dir).filter(|(_, node)| !node.implied) {
        write_header(&mut out, path, &What::Node(&node.kind), &Meta::of(node)).map_err(error)?;
    }
    let mut others: Vec<_> = added.iter().filter(|entry| !is_dir(entry)).copied().collect();
    others.sort_by_key(|(_, node)| node.inode);
    let content = |group: &[(&RootPath, &Node)]| match group[0].1 {
        Node { kind: NodeKind::File { size: 1.., .. }, inode, .. } => Some(*inode),
        _ => None,
    };
    let same = |a: &(&RootPath, &Node), b: &(&RootPath, &Node)| a.1.inode == b.1.inode;
    let wanted = others.chunk_by(same).filter_map(content).collect();
    let mut contents = Contents::of(order.image, wanted, &target);
    for group in others.chunk_by(same) {
        let (first, node) = group[0];
        let meta = Meta::of(node);
        write_header(&mut out, first, &What::Node(&node.kind), &meta).map_err(error)?;
        if let NodeKind::File { size: size @ 1.., content, .. } = node.kind {
            contents.copy(group, content, &mut out)?;
            pad(&mut out, size).map_err(error)?;
        }
        for (other, _) in &group[1..] {
            write_header(&mut out, other, &What::Link(first), &meta).map_err(error)?;
        }
    }
    out.write_all(&[0; 1024]).and_then(|()| out.flush()).map_err(error)?;
    drop(out);
    publish(file, &target)
}

fn dockerfile(name: Option<&str>, copied: &[(&RootPath, &Node)], settings: &str) -> String {
    let mut text = String::from(OURS);
    match name {
        Some(name) => text.extend(["FROM ", name, " AS full\n"]),
        None => text += "ARG ORIGINAL\nFROM ${ORIGINAL} AS full\n",
    }
    let mut folders: BTreeMap<RootPath, Vec<&RootPath>> = BTreeMap::new();
    for (path, _) in copied {
        folders.entry(path.parent().unwrap_or_else(RootPath::root)).or_default().push(path);
    }
    let copies: Vec<String> = folders.iter().map(|(folder, files)| copy(folder, files)).collect();
    let stages = copies.chunks(COPIES).len();
    for (at, stage) in copies.chunks(COPIES).enumerate() {
        let _ = writeln!(text, "\nFROM scratch AS kept{at}");
        text += &stage.concat();
    }
    text += "\nFROM scratch\n";
    text.extend((0..stages).map(|at| format!("COPY --from=kept{at} / /\n")));
    text += "ADD skeleton.tar /\n";
    text += settings;
    text
}

/// The files of one folder.
fn copy(folder: &RootPath, files: &[&RootPath]) -> String {
    let to = if folder.is_root() { "/".to_owned() } else { format!("{folder}/") };
    let words: Vec<String> = files.iter().map(|path| path.to_string()).chain([to]).collect();
    format!("COPY --from=full {}\n", Value::from(words))
}

/// `config` of the configuration as instructions, and what is left out of them: a configuration is a
/// stranger's, and what it names may only fill its own place in the builder's file.
fn settings(config: &Value) -> (String, Vec<String>) {
    let mut text = String::new();
    let mut left_out = Vec::new();
    let strings = |key: &str| -> Vec<&str> {
        config[key].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
    };
    let keys = |key: &str| -> Vec<&String> {
        config[key].as_object().into_iter().flat_map(|map| map.keys()).collect()
    };
    let mut say = |instruction: &str, value: &str, is_said: bool| {
        if is_said {
            text.extend([instruction, " ", value, "\n"]);
        } else {
            let value = crate::model::escape(value.as_bytes());
            left_out.push(format!("{instruction} {value}: a Dockerfile cannot say it, left out"));
        }
    };
    for variable in strings("Env") {
        let (name, value) = variable.split_once('=').unwrap_or((variable, ""));
        let wild = |c: char| c.is_whitespace() || c.is_control() || "\"'\\$`#".contains(c);
        let fits = !name.is_empty() && !name.contains(wild);
        say("ENV", &format!("{name}={}", quoted(value)), fits);
    }
    for (name, value) in config["Labels"].as_object().into_iter().flatten() {
        let value = quoted(value.as_str().unwrap_or_default());
        say("LABEL", &format!("{}={value}", quoted(name)), true);
    }
    for port in keys("ExposedPorts") {
        let word = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '-');
        say("EXPOSE", port, !port.is_empty() && port.chars().all(word));
    }
    for volume in keys("Volumes") {
        say("VOLUME", &Value::from(vec![volume.as_str()]).to_string(), !volume.contains('$'));
    }
    for (key, instruction) in
        [("WorkingDir", "WORKDIR"), ("User", "USER"), ("StopSignal", "STOPSIGNAL")]
    {
        if let Some(value) = config[key].as_str().filter(|value| !value.is_empty()) {
            say(instruction, &escaped(value), is_line(value));
        }
    }
    for (key, instruction) in [("Shell", "SHELL"), ("Entrypoint", "ENTRYPOINT"), ("Cmd", "CMD")] {
        if config[key].as_array().is_some_and(|words| !words.is_empty()) {
            say(instruction, &config[key].to_string(), true);
        }
    }
    if let Some(check) = health(&config["Healthcheck"], &config["Shell"]) {
        say("HEALTHCHECK", &check, true);
    }
    strings("OnBuild").into_iter().for_each(|step| say("ONBUILD", step, is_line(step)));
    (text, left_out)
}

/// True for text that ends where its line does.
fn is_line(text: &str) -> bool {
    !text.contains(char::is_control) && !text.ends_with('\\')
}

/// What comes out otherwise: of the original, which the builder begins with, and of the result.
fn warnings(original: &Value, result: &Value) -> Vec<String> {
    let mut all = Vec::new();
    if original["OnBuild"].as_array().is_some_and(|steps| !steps.is_empty()) {
        all.push(
            "the original has ONBUILD steps: its builder runs them before it copies".to_owned(),
        );
    }
    let broken = |text: &str| text.contains(['\n', '\r']);
    for variable in result["Env"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if broken(variable) {
            let name = variable.split('=').next().unwrap_or_default();
            let name = crate::model::escape(name.as_bytes());
            all.push(format!("the variable {name} has line breaks; a Dockerfile has blanks there"));
        }
    }
    for (name, value) in result["Labels"].as_object().into_iter().flatten() {
        if broken(name) || value.as_str().is_some_and(broken) {
            let name = crate::model::escape(name.as_bytes());
            all.push(format!("the label {name} has line breaks; a Dockerfile has blanks there"));
        }
    }
    all
}

/// Docker's image specification, "Healthcheck": durations are nanoseconds. A command for the shell that
/// is more than one line, or looks like a list of words, is given to the shell by name.
fn health(check: &Value, shell: &Value) -> Option<String> {
    let test: Vec<&str> = check["Test"].as_array()?.iter().filter_map(Value::as_str).collect();
    let mut line = String::new();
    for (key, flag) in
        [("Interval", "interval"), ("Timeout", "timeout"), ("StartPeriod", "start-period")]
    {
        if let Some(nanos) = check[key].as_u64().filter(|nanos| *nanos > 0) {
            let _ = write!(line, "--{flag}={}ms ", nanos.div_ceil(1_000_000));
        }
    }
    if let Some(retries) = check["Retries"].as_u64().filter(|retries| *retries > 0) {
        let _ = write!(line, "--retries={retries} ");
    }
    match test.split_first() {
        Some((&"NONE", _)) => Some("NONE".to_owned()),
        Some((&"CMD-SHELL", [command]))
            if is_line(command) && serde_json::from_str::<Vec<String>>(command).is_err() =>
        {
            Some(format!("{line}CMD {command}"))
        }
        Some((&"CMD-SHELL", [command])) => {
            let mut words = match shell.as_array() {
                Some(words) if !words.is_empty() => words.clone(),
                _ => vec!["/bin/sh".into(), "-c".into()],
            };
            words.push((*command).into());
            Some(format!("{line}CMD {}", Value::from(words)))
        }
        Some((&"CMD", words)) => Some(format!("{line}CMD {}", Value::from(words.to_vec()))),
        _ => None,
    }
}

/// A word of a Dockerfile in double quotes; a line break ends an instruction, so there it is a blank.
fn quoted(text: &str) -> String {
    format!("\"{}\"", escaped(text).replace('"', "\\\""))
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('$', "\\$").replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_a_dockerfile_cannot_say_is_said() {
        let config =
            json!({ "OnBuild": ["RUN x"], "Env": ["A=b", "B=c\nd"], "Labels": { "l": "x\r" } });
        let all = warnings(&config, &config).join("; ");
        for part in ["ONBUILD", "variable B has", "label l has"] {
            assert!(all.contains(part), "{part}: {all}");
        }
        assert!(!all.contains("variable A"), "{all}");
        assert!(warnings(&json!({ "Env": ["A=b"] }), &Value::Null).is_empty());
    }

    /// A configuration is a stranger's; each instruction stays one line.
    #[test]
    fn a_configuration_adds_no_instruction() {
        let config = json!({
            "Env": ["A=b\nRUN evil", "B\nRUN=evil", "C D=evil", "PLAIN=$x"],
            "Labels": { "l\nRUN evil": "v\nRUN evil" },
            "ExposedPorts": { "80/tcp": {}, "81/tcp\nCOPY profile.json /leak": {}, "82 83": {} },
            "Volumes": { "/v\nRUN evil": {}, "/$HOME": {} },
            "WorkingDir": "/w\\",
            "User": "u\nRUN evil",
            "StopSignal": "TERM\rRUN evil",
            "Cmd": ["c\nRUN evil"],
            "Healthcheck": { "Test": ["CMD-SHELL", "true\nRUN evil"], "Retries": 2 },
            "OnBuild": ["RUN fine", "RUN evil\nRUN more", "RUN evil \\"],
        });
        let (text, left_out) = settings(&config);
        insta::assert_snapshot!(text, @r#"
        ENV A="b RUN evil"
        ENV PLAIN="\$x"
        LABEL "l RUN evil"="v RUN evil"
        EXPOSE 80/tcp
        VOLUME ["/v\nRUN evil"]
        CMD ["c\nRUN evil"]
        HEALTHCHECK --retries=2 CMD ["/bin/sh","-c","true\nRUN evil"]
        ONBUILD RUN fine
        "#);
        insta::assert_snapshot!(left_out.join("\n"), @r#"
        ENV B\x0aRUN="evil": a Dockerfile cannot say it, left out
        ENV C D="evil": a Dockerfile cannot say it, left out
        EXPOSE 81/tcp\x0aCOPY profile.json /leak: a Dockerfile cannot say it, left out
        EXPOSE 82 83: a Dockerfile cannot say it, left out
        VOLUME ["/$HOME"]: a Dockerfile cannot say it, left out
        WORKDIR /w\\\\: a Dockerfile cannot say it, left out
        USER u RUN evil: a Dockerfile cannot say it, left out
        STOPSIGNAL TERM RUN evil: a Dockerfile cannot say it, left out
        ONBUILD RUN evil\x0aRUN more: a Dockerfile cannot say it, left out
        ONBUILD RUN evil \\: a Dockerfile cannot say it, left out
        "#);
    }

    #[test]
    fn a_health_check_keeps_its_form_where_a_line_can_say_it() {
        let check = |test: Value| health(&json!({ "Test": test }), &Value::Null).unwrap();
        assert_eq!(check(json!(["CMD-SHELL", "test -f /x || exit 1"])), "CMD test -f /x || exit 1");
        assert_eq!(check(json!(["CMD-SHELL", "[ -f /x ]"])), "CMD [ -f /x ]");
        assert_eq!(check(json!(["CMD-SHELL", "[\"a\"]"])), r#"CMD ["/bin/sh","-c","[\"a\"]"]"#);
        assert_eq!(check(json!(["CMD", "a", "b c"])), r#"CMD ["a","b c"]"#);
        assert_eq!(check(json!(["NONE"])), "NONE");
    }
}
