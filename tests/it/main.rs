//! One test binary, one file per capability.

mod cli;
mod layering;
mod main_job;
mod seccomp;
mod support;
