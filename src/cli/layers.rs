//! Flag, environment, file, default: where an option's value comes from.
//!
//! Options are declared once, for the command line. What it does not give is looked up in
//! `SLIM_<VERB>_<OPTION>`, then in `slim.toml`, and is put on the command line as if it had been
//! typed; so all three accept the same words and fail with the same messages. A source replaces
//! the whole of a list, it never adds to it.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

/// Why the options of a command line could not be gathered.
#[derive(Debug, thiserror::Error)]
pub(super) enum LayerError {
    #[error(transparent)]
    Clap(#[from] clap::Error),
    #[error("{error}{}", .from.join(""))]
    Sourced { error: String, from: Vec<String> },
    #[error("cannot read {}: {source}", .path.display())]
    Read { path: PathBuf, source: std::io::Error },
    #[error("{}: {why}", .path.display())]
    Toml { path: PathBuf, why: String },
    #[error("{} has the key {key:?}, which is no option of slim; `slim trace --help` lists them", .path.display())]
    UnknownKey { path: PathBuf, key: String },
}

/// The default configuration file, in the working directory.
const FILE: &str = "slim.toml";

/// Parses `argv` and adds what environment and file give.
pub(super) fn matches(command: Command, argv: Vec<OsString>) -> Result<ArgMatches, LayerError> {
    let first = command.clone().try_get_matches_from(&argv)?;
    let Some((verb, given)) = first.subcommand() else { return Ok(first) };
    let Some(definition) = command.find_subcommand(verb).cloned() else { return Ok(first) };
    if !definition.get_arguments().any(|arg| arg.get_id() == "config") {
        return Ok(first);
    }
    let file = read_file(&command, verb, given)?;
    let mut added: Vec<OsString> = Vec::new();
    let mut script: Vec<OsString> = Vec::new();
    let mut origins: Vec<String> = Vec::new();
    for arg in definition.get_arguments() {
        let typed = given.value_source(arg.get_id().as_str()) == Some(ValueSource::CommandLine);
        let Some(name) = name_of(arg).filter(|name| !typed && *name != "config") else { continue };
        let Some((values, origin)) = lookup(verb, &name, arg, file.as_ref())? else { continue };
        origins.push(format!("\nnote: {name} is set by {origin}"));
        for value in values {
            if arg.is_last_set() {
                script.push(value.into());
            } else {
                added.push(format!("--{name}={value}").into());
            }
        }
    }
    let mut whole = argv;
    whole.splice(2..2, added);
    if !script.is_empty() {
        whole.push("--".into());
        whole.extend(script);
    }
    command.try_get_matches_from(whole).map_err(|error| {
        if origins.is_empty() {
            return error.into();
        }
        LayerError::Sourced { error: error.to_string().trim_end().to_owned(), from: origins }
    })
}

/// The long name, or `script` for what stands behind `--`.
fn name_of(arg: &Arg) -> Option<String> {
    match arg.get_long() {
        Some("help" | "version") => None,
        Some(long) => Some(long.to_owned()),
        None => arg.is_last_set().then(|| arg.get_id().to_string()),
    }
}

fn is_list(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Append) || arg.is_last_set()
}

/// An option that may stand without a value.
fn is_switch(arg: &Arg) -> bool {
    arg.get_num_args().is_some_and(|range| range.min_values() == 0)
}

/// Environments say 1 and 0 where a command line says true and false.
fn truth(text: &str) -> &str {
    match text.to_ascii_lowercase().as_str() {
        "1" | "yes" | "on" | "true" => "true",
        "" | "0" | "no" | "off" | "false" => "false",
        _ => text,
    }
}

/// The configuration file's tables that count for a verb.
struct File {
    path: PathBuf,
    top: toml::Table,
    verb: toml::Table,
}

fn read_file(
    command: &Command,
    verb: &str,
    given: &ArgMatches,
) -> Result<Option<File>, LayerError> {
    let named = given
        .get_one::<PathBuf>("config")
        .cloned()
        .or_else(|| std::env::var_os(variable(verb, "config")).map(PathBuf::from));
    let path = match named {
        Some(path) => path,
        None if Path::new(FILE).exists() => PathBuf::from(FILE),
        None => return Ok(None),
    };
    let text = std::fs::read_to_string(&path)
        .map_err(|source| LayerError::Read { path: path.clone(), source })?;
    let mut top: toml::Table = text.parse().map_err(|error: toml::de::Error| LayerError::Toml {
        path: path.clone(),
        why: error.to_string().trim_end().to_owned(),
    })?;
    let known = known_keys(command);
    let mut mine = toml::Table::new();
    for sub in command.get_subcommands() {
        if let Some(toml::Value::Table(table)) = top.get(sub.get_name()).cloned()
            && !known.contains(sub.get_name())
        {
            top.remove(sub.get_name());
            check_keys(&table, &known, &path)?;
            if sub.get_name() == verb {
                mine = table;
            }
        }
    }
    check_keys(&top, &known, &path)?;
    Ok(Some(File { path, top, verb: mine }))
}

fn known_keys(command: &Command) -> BTreeSet<String> {
    command.get_subcommands().flat_map(|sub| sub.get_arguments()).filter_map(name_of).collect()
}

fn check_keys(
    table: &toml::Table,
    known: &BTreeSet<String>,
    path: &Path,
) -> Result<(), LayerError> {
    let unknown = table.keys().find(|key| !known.contains(&key.replace('_', "-")));
    unknown.map_or(Ok(()), |key| {
        Err(LayerError::UnknownKey { path: path.to_owned(), key: key.clone() })
    })
}

fn variable(verb: &str, name: &str) -> String {
    format!("SLIM_{}_{}", verb, name).to_uppercase().replace('-', "_")
}

type Found = Option<(Vec<String>, String)>;

fn lookup(verb: &str, name: &str, arg: &Arg, file: Option<&File>) -> Result<Found, LayerError> {
    let variable = variable(verb, name);
    if let Ok(text) = std::env::var(&variable) {
        let values = if is_list(arg) {
            text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
        } else if is_switch(arg) {
            vec![truth(&text).to_owned()]
        } else {
            vec![text]
        };
        return Ok(Some((values, variable)));
    }
    let Some(file) = file else { return Ok(None) };
    let keys = [name.to_owned(), name.replace('-', "_")];
    let find = |table: &toml::Table| keys.iter().find_map(|key| table.get(key).cloned());
    let Some(value) = find(&file.verb).or_else(|| find(&file.top)) else { return Ok(None) };
    let bad = |why: String| LayerError::Toml { path: file.path.clone(), why };
    let values = match value {
        toml::Value::Array(items) if is_list(arg) => {
            let texts: Option<Vec<String>> = items.iter().map(plain).collect();
            texts.ok_or_else(|| bad(format!("{name} is to be a list of plain values")))?
        }
        toml::Value::Table(pairs) if is_list(arg) => {
            let pair =
                |(key, value): (&String, &toml::Value)| Some(format!("{key}={}", plain(value)?));
            let texts: Option<Vec<String>> = pairs.iter().map(pair).collect();
            texts.ok_or_else(|| bad(format!("{name} is to hold plain values")))?
        }
        value => {
            vec![plain(&value).ok_or_else(|| bad(format!("{name} is to be one plain value")))?]
        }
    };
    Ok(Some((values, file.path.display().to_string())))
}

fn plain(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Float(number) => Some(number.to_string()),
        toml::Value::Boolean(flag) => Some(flag.to_string()),
        _ => None,
    }
}
