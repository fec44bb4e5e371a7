//! One test binary, one file per capability.

mod cli;
mod images;
mod images_corpus;
mod layering;
mod main_job;
mod seccomp;
mod support;
