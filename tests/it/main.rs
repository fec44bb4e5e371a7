//! One test binary, one file per capability.

mod container;
mod network;
mod script;
