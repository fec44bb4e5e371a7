//! One file per subcommand: arguments in, one library call, text out.
//!
//! The only room that prints and the only one that knows chains of causes: an error is printed
//! once, with them, and becomes an exit code ([`crate::pipeline::exit`]).

mod build;
mod deliver_args;
mod doctor;
mod exec;
mod image_args;
mod index;
mod inspect;
mod layers;
mod load;
mod output_args;
mod profiles;
mod progress;
mod push;
mod report;
mod run_args;
mod store;
mod trace;
mod units;
mod verify;

use std::ffi::OsString;
use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::model::chain;
use crate::pipeline::{PipelineError, exit};

/// Watch a container do its real work and keep only that
///
/// Runs an image under file and system-call recording while your coverage script exercises it, then
/// writes a minimal image, a seccomp allowlist and the evidence for both.
#[derive(Parser, Debug)]
#[command(name = "slim", version, max_term_width = 100, args_override_self = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    command: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    Trace(Box<trace::TraceArgs>),
    Build(Box<build::BuildArgs>),
    Verify(Box<verify::VerifyArgs>),
    Merge(profiles::MergeArgs),
    Index(index::IndexArgs),
    Seccomp(profiles::SeccompArgs),
    Exec(exec::ExecArgs),
    #[command(name = exec::RUN_VERB, hide = true)]
    Run(exec::RunArgs),
    Push(push::PushArgs),
    Load(load::LoadArgs),
    Inspect(inspect::InspectArgs),
    Doctor(doctor::DoctorArgs),
    /// Remove what dead runs left: cgroup folders, upper folders, half-unpacked layers
    ///
    /// Never touches whole layers or a live run.
    Clean(store::CleanArgs),
    Store(store::StoreArgs),
}

impl Verb {
    /// Whether it runs containers, or touches files that they or their layers left behind: without
    /// root that takes a user namespace, entered before anything else is done.
    fn needs_ids(&self) -> bool {
        matches!(self, Self::Trace(_) | Self::Verify(_) | Self::Clean(_) | Self::Store(_))
    }
}

/// Runs the command line of this process.
pub fn main() -> ExitCode {
    let argv: Vec<OsString> = std::env::args_os().collect();
    crate::runtime::run_hidden(argv.get(1..).unwrap_or_default());
    start_logging();
    let code = match parse(argv) {
        Ok(cli) => dispatch(cli.command),
        Err(code) => code,
    };
    crate::runtime::leave_user_namespace();
    let _ = std::io::stdout().flush();
    ExitCode::from(code)
}

fn dispatch(verb: Verb) -> u8 {
    if verb.needs_ids()
        && let Err(error) = crate::runtime::enter_user_namespace()
    {
        return fail(&error.into());
    }
    let done = match verb {
        Verb::Trace(args) => args.run(),
        Verb::Build(args) => args.run(),
        Verb::Verify(args) => args.run(),
        Verb::Merge(args) => args.run(),
        Verb::Index(args) => args.run(),
        Verb::Seccomp(args) => args.run(),
        Verb::Exec(args) => return args.run(),
        Verb::Run(args) => return args.run(),
        Verb::Push(args) => args.run(),
        Verb::Load(args) => args.run(),
        Verb::Inspect(args) => args.run(),
        Verb::Doctor(args) => args.run(),
        Verb::Clean(args) => args.run(),
        Verb::Store(args) => args.run(),
    };
    done.unwrap_or_else(|error| fail(&error))
}

/// Prints an error with its causes and returns its exit code.
fn fail(error: &PipelineError) -> u8 {
    complain(error);
    error.exit()
}

fn complain(error: &dyn std::error::Error) {
    note(&chain(error).to_string());
}

/// Prints a line to stderr that goes with an error.
fn note(line: &str) {
    let _ = writeln!(std::io::stderr(), "slim: {}", tame(line));
}

/// Prints a line to stdout; a reader that went away is no error of ours.
fn say(line: impl std::fmt::Display) {
    let _ = writeln!(std::io::stdout(), "{}", tame(&line.to_string()));
}

/// Text without what a terminal would obey: names in an image are a stranger's. Control characters but
/// line ends and tabs, and those that turn the direction of writing, become `\u{…}`.
fn tame(text: &str) -> String {
    let wild = |c: char| {
        (c.is_control() && c != '\n' && c != '\t')
            || matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    let escape = |c: char| if wild(c) { c.escape_unicode().to_string() } else { c.to_string() };
    text.chars().map(escape).collect()
}

fn parse(argv: Vec<OsString>) -> Result<Cli, u8> {
    let matches = layers::matches(Cli::command(), argv).map_err(|error| match error {
        layers::LayerError::Clap(error) => {
            let _ = error.print();
            if error.use_stderr() { exit::USAGE } else { exit::OK }
        }
        other => {
            complain(&other);
            exit::USAGE
        }
    })?;
    Cli::from_arg_matches(&matches).map_err(|error| {
        let _ = error.print();
        exit::USAGE
    })
}

/// Logs go to stderr, warnings and worse unless RUST_LOG says otherwise.
fn start_logging() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,aya=error,libcontainer=off"));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .without_time()
        .try_init();
}
