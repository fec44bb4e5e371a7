//! One test binary, one file per capability.

mod images;
mod images_corpus;
mod support;
