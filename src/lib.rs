//! `slim` turns *what a container was seen to use* into *the smallest image and seccomp profile that
//! still work*.
//!
//! The tour, in the order of a run: [`source`] finds an image, [`rootfs`] unpacks its layers into a
//! store and indexes them into a [`model::Tree`], [`runtime`] runs the container and the user's
//! script, [`record`] watches and folds what it saw into a [`model::Profile`], [`keep`] and
//! [`seccomp`] decide, [`emit`] writes image and filter, and [`pipeline`] strings these together and
//! runs the result once more to verify it. [`cli`] is arguments in, text out.

#![deny(unsafe_code)]

pub mod cli;
pub mod emit;
pub mod inspect;
pub mod keep;
pub mod model;
pub mod oci;
pub mod pipeline;
pub mod record;
pub mod rootfs;
pub mod runtime;
pub mod seccomp;
pub mod sink;
pub mod source;
pub mod sys;
pub mod wire;
