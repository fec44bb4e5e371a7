//! How the slim image is to be: name, shape, compression, whole layers, edits.

use clap::{Arg, Args, ValueEnum};

use crate::emit::{Compression, Edits, ImageFormat, Packing, Removals};
use crate::pipeline::{PipelineError, ProductSpec};

/// What the written image is like.
#[derive(Args, Debug)]
pub(super) struct OutputArgs {
    /// Name of the slim image, may be given several times; {repository}, {tag}, {os}, {arch} and
    /// {config} (twelve digits of its digest) stand for the original's
    /// [default: {repository}-slim:{tag}]
    #[arg(long, value_name = "NAME")]
    tag: Vec<String>,
    /// archive (image.tar) or layout (image/); slim build also: dockerfile, a recipe for another
    /// builder [default: archive]
    #[arg(long, value_enum)]
    format: Option<FormatArg>,
    /// How layers are stored [default: gzip]
    #[arg(long, value_enum, value_name = "HOW")]
    compress: Option<CompressArg>,
    /// 0 to 9 for gzip [default: 5], 1 to 22 for zstd [default: 3]
    #[arg(long, value_name = "N")]
    level: Option<u32>,
    /// Threads that compress; they change the time it takes, never the bytes [default: all processors]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    threads: Option<u16>,
    /// Keep the lowest layers whole, so that they stay shared: how many, or the digest of the last
    /// one (diffID, blob or chainID)
    #[arg(long, value_name = "N|DIGEST")]
    keep_base: Option<String>,
    #[command(flatten)]
    edits: EditArgs,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
pub(super) enum FormatArg {
    Archive,
    Layout,
    Dockerfile,
}

impl FormatArg {
    /// The shape of the image, for verbs that write one.
    pub(super) fn format(given: Option<Self>) -> Result<ImageFormat, PipelineError> {
        Ok(match given {
            Some(Self::Dockerfile) => {
                return Err(PipelineError::Usage(
                    "--format dockerfile is for `slim build PROFILE`, which makes a recipe for \
                     another builder; here give archive or layout"
                        .to_owned(),
                ));
            }
            None | Some(Self::Archive) => ImageFormat::Archive,
            Some(Self::Layout) => ImageFormat::Layout,
        })
    }
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum CompressArg {
    Gzip,
    Zstd,
    None,
}

/// Edits of the result's configuration. `slim trace` has `--entrypoint` and the like already, for the
/// run, so the edits are called new there; `slim build` knows them by the short names too.
#[derive(Args, Debug, Default)]
pub(super) struct EditArgs {
    /// Entrypoint of the slim image: one word, or a JSON list of words; takes the command away, as
    /// in a Dockerfile
    #[arg(long, value_name = "E")]
    new_entrypoint: Option<String>,
    /// Word of the slim image's command, or a JSON list of words
    #[arg(long, value_name = "ARG", allow_hyphen_values = true)]
    new_cmd: Vec<String>,
    /// Variable of the slim image's environment
    #[arg(long, value_name = "K=V")]
    new_env: Vec<String>,
    /// Label of the slim image
    #[arg(long, value_name = "K=V")]
    new_label: Vec<String>,
    /// User of the slim image
    #[arg(long, value_name = "USER")]
    new_user: Option<String>,
    /// Working directory of the slim image
    #[arg(long, value_name = "DIR")]
    new_workdir: Option<String>,
    /// Port that the slim image exposes
    #[arg(long, value_name = "PORT[/PROTO]")]
    new_expose: Vec<String>,
    /// Volume of the slim image
    #[arg(long, value_name = "PATH")]
    new_volume: Vec<String>,
    /// Remove a variable
    #[arg(long, value_name = "K")]
    remove_env: Vec<String>,
    /// Remove a label
    #[arg(long, value_name = "K")]
    remove_label: Vec<String>,
    /// Remove an exposed port
    #[arg(long, value_name = "PORT[/PROTO]")]
    remove_expose: Vec<String>,
    /// Remove a volume
    #[arg(long, value_name = "PATH")]
    remove_volume: Vec<String>,
    /// Remove the entrypoint
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    remove_entrypoint: Option<bool>,
    /// Remove the command
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    remove_cmd: Option<bool>,
    /// Remove the user: root
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    remove_user: Option<bool>,
    /// Remove the working directory
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    remove_workdir: Option<bool>,
    /// Remove the health check
    #[arg(long, num_args = 0..=1, require_equals = true, default_missing_value = "true", value_name = "BOOL")]
    remove_healthcheck: Option<bool>,
}

/// The edits' names without `new-`, for verbs that run nothing.
pub(super) fn short_names(arg: Arg) -> Arg {
    const SHORT: [&str; 8] =
        ["entrypoint", "cmd", "env", "label", "user", "workdir", "expose", "volume"];
    let long = arg.get_long().unwrap_or_default();
    let short = SHORT.into_iter().find(|short| long.strip_prefix("new-") == Some(short));
    match short {
        Some(short) => arg.visible_alias(short),
        None => arg,
    }
}

impl OutputArgs {
    /// Takes the wish for a recipe out, if it is there.
    pub(super) fn take_dockerfile(&mut self) -> bool {
        let wanted = matches!(self.format, Some(FormatArg::Dockerfile));
        if wanted {
            self.format = None;
        }
        wanted
    }

    pub(super) fn spec(self) -> Result<ProductSpec, PipelineError> {
        let compression = match self.compress {
            None | Some(CompressArg::Gzip) => Compression::Gzip,
            Some(CompressArg::Zstd) => Compression::Zstd,
            Some(CompressArg::None) => Compression::None,
        };
        check_level(compression, self.level)?;
        let usual = Packing::default();
        let threads = self.threads.map_or(usual.threads, usize::from);
        Ok(ProductSpec {
            tags: self.tag,
            format: FormatArg::format(self.format)?,
            packing: Packing { compression, level: self.level, threads },
            keep_base: self.keep_base,
            edits: self.edits.edits()?,
        })
    }
}

fn check_level(compression: Compression, level: Option<u32>) -> Result<(), PipelineError> {
    let Some(level) = level else { return Ok(()) };
    match compression.levels() {
        Some(levels) if levels.contains(&level) => Ok(()),
        Some(levels) => Err(PipelineError::Usage(format!(
            "--level {level}: give {} to {} for this compression",
            levels.start(),
            levels.end()
        ))),
        None => Err(PipelineError::Usage(format!(
            "--level {level} with --compress none: nothing is compressed there; leave it out"
        ))),
    }
}

impl EditArgs {
    fn edits(self) -> Result<Edits, PipelineError> {
        let pairs =
            |what: &str, given: &[String]| -> Result<Vec<(String, String)>, PipelineError> {
                given.iter().map(|text| pair(what, text)).collect()
            };
        let ports = |what: &str, given: &[String]| -> Result<Vec<String>, PipelineError> {
            let all: Result<Vec<Vec<String>>, _> =
                given.iter().map(|text| port(what, text)).collect();
            Ok(all?.concat())
        };
        let entrypoint =
            self.new_entrypoint.map(|e| words("--new-entrypoint", &[e])).transpose()?;
        let cmd = (!self.new_cmd.is_empty()).then(|| words("--new-cmd", &self.new_cmd));
        let keys = [
            ("Entrypoint", self.remove_entrypoint),
            ("Cmd", self.remove_cmd),
            ("User", self.remove_user),
            ("WorkingDir", self.remove_workdir),
            ("Healthcheck", self.remove_healthcheck),
        ];
        let keys = keys.into_iter().filter(|(_, remove)| *remove == Some(true));
        Ok(Edits {
            entrypoint,
            cmd: cmd.transpose()?,
            env: pairs("--new-env", &self.new_env)?,
            labels: pairs("--new-label", &self.new_label)?.into_iter().collect(),
            user: self.new_user.map(user).transpose()?,
            workdir: self.new_workdir.map(|path| absolute("--new-workdir", path)).transpose()?,
            expose: ports("--new-expose", &self.new_expose)?,
            volumes: (self.new_volume.into_iter())
                .map(|path| absolute("--new-volume", path))
                .collect::<Result<_, _>>()?,
            remove: Removals {
                env: self.remove_env,
                labels: self.remove_label,
                expose: ports("--remove-expose", &self.remove_expose)?,
                volumes: self.remove_volume,
                keys: keys.map(|(key, _)| key).collect(),
            },
        })
    }
}

/// Words given one by one, or one JSON list of them; an empty word alone is no words.
fn words(what: &str, given: &[String]) -> Result<Vec<String>, PipelineError> {
    let [only] = given else { return Ok(given.to_vec()) };
    if only.trim_start().starts_with('[') {
        return serde_json::from_str(only).map_err(|error| {
            PipelineError::Usage(format!("{what} {only:?} is no JSON list of strings: {error}"))
        });
    }
    Ok(if only.is_empty() { Vec::new() } else { vec![only.clone()] })
}

fn pair(what: &str, text: &str) -> Result<(String, String), PipelineError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(PipelineError::Usage(format!("{what} {text:?}: give KEY=VALUE"))),
    }
}

fn absolute(what: &str, path: String) -> Result<String, PipelineError> {
    if path.starts_with('/') {
        return Ok(path);
    }
    Err(PipelineError::Usage(format!("{what} {path:?}: give an absolute path, as /{path}")))
}

/// `USER[:GROUP]`, each a name or a number (image-spec v1.1, config.md).
fn user(text: String) -> Result<String, PipelineError> {
    let word = |part: &str| {
        !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    let parts: Vec<&str> = text.split(':').collect();
    if parts.len() <= 2 && parts.iter().all(|part| word(part)) {
        return Ok(text);
    }
    Err(PipelineError::Usage(format!(
        "--new-user {text:?}: give USER or USER:GROUP, names or numbers"
    )))
}

/// `PORT/PROTOCOL`, as configurations have it; a range is as many entries, as Docker writes it.
fn port(what: &str, text: &str) -> Result<Vec<String>, PipelineError> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let good = |n: &str| n.parse::<u16>().ok().filter(|n| *n > 0);
    let (from, to) = number.split_once('-').unwrap_or((number, number));
    if let (Some(from), Some(to)) = (good(from), good(to))
        && from <= to
        && matches!(protocol, "tcp" | "udp" | "sctp")
    {
        return Ok((from..=to).map(|number| format!("{number}/{protocol}")).collect());
    }
    let hint = "give PORT or FROM-TO, with /tcp, /udp or /sctp";
    Err(PipelineError::Usage(format!("{what} {text:?}: {hint}")))
}
