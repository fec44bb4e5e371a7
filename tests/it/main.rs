//! One test binary, one file per capability.

mod backends;
mod bpf_stack;
mod cli;
mod container;
mod doctor;
mod engines;
mod fidelity;
mod hostile;
mod images;
mod images_corpus;
mod injections;
mod kernels;
mod layering;
mod losses;
mod main_job;
mod matrix;
mod network;
mod options;
mod record;
mod registry;
mod result;
mod rootless;
mod script;
mod seccomp;
mod storms;
mod support;
