//! Fixtures that tests share.

pub mod image;
