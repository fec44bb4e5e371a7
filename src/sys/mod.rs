//! Every unsafe line of slim, each block with the reason why it holds here.
//!
//! Thin and typed: what a system call does, since which kernel, with which privilege. Leaves policy
//! to its callers.

#![allow(unsafe_code)]

pub mod bpf;
pub mod fanotify;
