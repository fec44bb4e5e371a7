//! Every unsafe line of slim, each block with the reason why it holds here.
//!
//! Thin and typed: what a system call does, since which kernel, with which privilege. Leaves policy
//! to its callers.

#![allow(unsafe_code)]

pub mod attach;
pub mod bpf;
pub mod child;
pub mod confine;
pub mod devices;
pub mod fanotify;
pub mod memory;
pub mod mount;
pub mod netns;
pub mod packet;
pub mod passing;
pub mod perf;
pub mod probe;
pub mod process;
pub mod ring;
pub mod seccomp;
pub mod section;
pub mod signals;
pub mod temporary;
pub mod userns;
