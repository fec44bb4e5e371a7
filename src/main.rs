//! Parse, start logging, dispatch, exit code: all in `cli`.

fn main() -> std::process::ExitCode {
    let args: Vec<std::ffi::OsString> = std::env::args_os().skip(1).collect();
    slim::runtime::run_hidden(&args);
    slim::cli::main()
}
