//! Parse, start logging, dispatch, exit code: all in `cli`.

fn main() -> std::process::ExitCode {
    slim::cli::main()
}
