//! Plain values that the rest of slim speaks in: paths, digests, trees, profiles, keep-sets.
//!
//! Opens no file, reads no clock, starts no process. Leaves formats on disk to `oci` and `emit`,
//! decisions to `keep` and `seccomp`.

mod digest;
mod error;
mod image;
mod keep;
mod loss;
mod merge;
mod offer;
mod parse;
mod path;
pub mod profile;
mod seen;
mod sorted;
mod syscall;
mod tree;
mod xattrs;

pub use digest::{ChainId, DiffId, Digest, DigestError};
pub use error::chain;
pub use image::{ExposedPort, Healthcheck, ImageConfig};
pub use keep::{KeepSet, Policy, Reason, Reasons};
pub use loss::LossKind;
pub use merge::MergeError;
pub use offer::{Lack, Offer};
pub use parse::ProfileError;
pub use path::{RootPath, escape, unescape};
pub use profile::{FirstUse, Loss, Phase, Profile, RunRecord};
pub use seen::Seen;
pub use sorted::SortedMap;
pub use syscall::Arch;
pub use tree::{
    ElfFacts, Facts, LayerShape, Node, NodeKind, Past, Resolved, Totals, Tree, escaped,
};
pub use xattrs::Xattrs;
