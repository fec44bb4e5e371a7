//! One test binary, one file per capability.

mod cli;
mod layering;
mod main_job;
mod support;
