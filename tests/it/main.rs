//! One test binary, one file per capability.

mod record;
