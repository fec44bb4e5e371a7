//! `--device` in a runtime configuration: nodes by their path, as Docker has it, and CDI devices by name.

use std::os::unix::fs::{FileTypeExt, MetadataExt};

use serde_json::{Value, json};

use super::{mounts, refuse};
use crate::runtime::cdi::{self, Edits, Node, Wanted};
use crate::runtime::{RunOptions, RuntimeError, hooks};

const OPTION: &str = "--device";

/// What the options' devices change, in their order.
pub fn wanted(options: &RunOptions) -> Result<Vec<Wanted>, RuntimeError> {
    let names = options.devices.iter().map(String::as_str).filter(|name| cdi::is_name(name));
    let names: Vec<&str> = names.collect();
    cdi::find(&names, &options.cdi_spec_dirs)
}

/// Nodes that are given by their path: `HOST[:CONTAINER[:rwm]]`.
fn plain(options: &RunOptions) -> Result<Vec<Node>, RuntimeError> {
    let paths = options.devices.iter().filter(|device| !cdi::is_name(device));
    paths.map(|text| node(text)).collect()
}

fn node(text: &str) -> Result<Node, RuntimeError> {
    const WANT: &str = "want HOST[:CONTAINER[:rwm]] with absolute paths, or the name of a CDI device, \
                        VENDOR/CLASS=NAME";
    let fields: Vec<&str> = text.split(':').collect();
    let letters = |word: &str| !word.is_empty() && word.chars().all(|c| "rwm".contains(c));
    let (host, path, access) = match fields[..] {
        [host] => (host, host, "rwm"),
        [host, access] if letters(access) => (host, host, access),
        [host, path] => (host, path, "rwm"),
        [host, path, access] if letters(access) => (host, path, access),
        _ => return Err(refuse(OPTION, text, WANT)),
    };
    if !host.starts_with('/') || !path.starts_with('/') {
        return Err(refuse(OPTION, text, WANT));
    }
    Ok(Node {
        path: path.into(),
        host_path: Some(host.into()),
        permissions: Some(access.into()),
        ..Node::default()
    })
}

/// Checks what can be checked without a container.
pub fn check(options: &RunOptions) -> Result<(), RuntimeError> {
    let mut nodes = plain(options)?;
    nodes.extend(wanted(options)?.into_iter().flat_map(|from| from.edits.device_nodes));
    nodes.iter().try_for_each(|node| described(node).map(drop))
}

/// Puts the devices into `spec`. `bound`: nodes cannot be made (in a user namespace), so the host's are
/// bound, as the usual ones are.
pub fn apply(spec: &mut Value, options: &RunOptions, bound: bool) -> Result<(), RuntimeError> {
    let add_node = if bound { bind_node } else { add_node };
    for node in plain(options)? {
        add_node(spec, &node)?;
    }
    for Wanted { file, edits, .. } in wanted(options)? {
        let Edits { env, device_nodes, mounts, hooks, additional_gids, .. } = &edits;
        env.iter().for_each(|pair| set_variable(spec, pair));
        for node in device_nodes {
            add_node(spec, node)?;
        }
        mounts.iter().for_each(|mount| add_mount(spec, mount));
        for hook in hooks {
            let program = &hook.program;
            hooks::add(spec, hook.hook_name, program, &file.display().to_string());
        }
        let groups = &mut spec["process"]["user"]["additionalGids"];
        let groups = groups.as_array_mut().into_iter();
        groups.for_each(|groups| groups.extend(additional_gids.iter().map(|gid| json!(gid))));
    }
    Ok(())
}

fn set_variable(spec: &mut Value, pair: &str) {
    let Some(env) = spec.pointer_mut("/process/env").and_then(Value::as_array_mut) else { return };
    let name = |pair: &str| pair.split_once('=').map_or(pair, |(name, _)| name).to_owned();
    env.retain(|other| other.as_str().map(name) != Some(name(pair)));
    env.push(pair.into());
}

fn add_mount(spec: &mut Value, mount: &cdi::Mount) {
    let mut options = mount.options.clone();
    let bound = options.iter().any(|option| option == "bind" || option == "rbind");
    if !bound && mount.kind.is_none() {
        options.push("rbind".into());
    }
    let kind = mount.kind.as_deref().unwrap_or("bind");
    let new = json!({
        "destination": mount.container_path, "type": kind, "source": mount.host_path, "options": options,
    });
    let all = spec["mounts"].as_array().cloned().unwrap_or_default();
    spec["mounts"] = mounts::combine(all, vec![new]).into();
}

/// Kind, numbers, mode and owner of a node, the host's where it does not say.
fn described(node: &Node) -> Result<Value, RuntimeError> {
    let host = node.host_path.as_deref().unwrap_or(&node.path);
    let mut device = json!({ "path": node.path });
    if let (Some(kind), Some(major), Some(minor)) = (&node.kind, node.major, node.minor) {
        device["type"] = json!(kind);
        (device["major"], device["minor"]) = (json!(major), json!(minor));
    } else {
        let found = std::fs::metadata(host)
            .map_err(|error| refuse(OPTION, host, &format!("{error}; is its driver loaded?")))?;
        let kind = match found.file_type() {
            kind if kind.is_char_device() => "c",
            kind if kind.is_block_device() => "b",
            kind if kind.is_fifo() => "p",
            _ => {
                return Err(refuse(
                    OPTION,
                    host,
                    "that is no device; to share a file use --volume",
                ));
            }
        };
        device["type"] = json!(node.kind.as_deref().unwrap_or(kind));
        if kind != "p" {
            let number = found.rdev();
            device["major"] = json!(nix::sys::stat::major(number));
            device["minor"] = json!(nix::sys::stat::minor(number));
        }
        device["fileMode"] = json!(found.mode() & 0o7777);
        (device["uid"], device["gid"]) = (json!(found.uid()), json!(found.gid()));
    }
    let given = [("fileMode", node.file_mode), ("uid", node.uid), ("gid", node.gid)];
    for (key, value) in given {
        if let Some(value) = value {
            device[key] = json!(value);
        }
    }
    Ok(device)
}

fn bind_node(spec: &mut Value, node: &Node) -> Result<(), RuntimeError> {
    described(node)?;
    let host_path = node.host_path.as_ref().unwrap_or(&node.path).clone();
    let (container_path, options) = (node.path.clone(), vec!["bind".to_owned()]);
    add_mount(spec, &cdi::Mount { host_path, container_path, options, kind: None });
    Ok(())
}

fn add_node(spec: &mut Value, node: &Node) -> Result<(), RuntimeError> {
    let device = described(node)?;
    if let (Some("b" | "c" | "u"), Some(rules)) = (
        device["type"].as_str(),
        spec.pointer_mut("/linux/resources/devices").and_then(Value::as_array_mut),
    ) {
        let kind = if device["type"] == "b" { "b" } else { "c" };
        let access = node.permissions.as_deref().unwrap_or("rwm");
        rules.push(json!({
            "allow": true, "type": kind, "access": access,
            "major": device["major"], "minor": device["minor"],
        }));
    }
    let all = &mut spec["linux"]["devices"];
    if !all.is_array() {
        *all = json!([]);
    }
    if let Some(all) = all.as_array_mut() {
        all.retain(|other| other["path"] != device["path"]);
        all.push(device);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(devices: &[&str]) -> RunOptions {
        let devices = devices.iter().map(|device| (*device).to_owned()).collect();
        RunOptions { devices, ..RunOptions::default() }
    }

    #[test]
    fn a_node_has_the_host_s_numbers_and_a_rule() {
        let mut spec = json!({ "linux": { "resources": { "devices": [] } } });
        apply(&mut spec, &options(&["/dev/null:/dev/nothing:r", "/dev/zero"]), false).unwrap();
        let devices = &spec["linux"]["devices"];
        assert_eq!(
            (&devices[0]["path"], &devices[0]["type"]),
            (&json!("/dev/nothing"), &json!("c"))
        );
        assert_eq!((&devices[0]["major"], &devices[0]["minor"]), (&json!(1), &json!(3)));
        assert_eq!(devices[1]["path"], "/dev/zero");
        let rule = json!({ "allow": true, "type": "c", "access": "r", "major": 1, "minor": 3 });
        assert_eq!(spec["linux"]["resources"]["devices"][0], rule);
    }

    #[test]
    fn what_is_no_device_is_refused() {
        for (text, why) in [
            ("dev", "want HOST"),
            ("/dev/null:x", "want HOST"),
            ("/dev/null:/x:q", "want HOST"),
            ("/no/such/device", "is its driver loaded?"),
            ("/etc/passwd", "no device"),
            ("example.invalid/gpu=0", "no CDI specification names it"),
        ] {
            let error = check(&options(&[text])).unwrap_err().to_string();
            assert!(error.starts_with("--device \"") && error.contains(why), "{error}");
        }
    }
}
