//! One test binary, one file per capability.

mod cli;
mod container;
mod images;
mod images_corpus;
mod layering;
mod losses;
mod main_job;
mod network;
mod options;
mod record;
mod rootless;
mod script;
mod seccomp;
mod support;
