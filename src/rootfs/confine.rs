//! Unpacking runs confined: a bug in how names are walked must not become an escape.

use std::path::Path;

use rustix::thread::CapabilitySet;

use crate::model::{Lack, Offer};
use crate::sys::confine::{self, Fences};

/// What making a layer's files takes: owners (CHOWN), folders and files of others (`DAC_OVERRIDE`,
/// FOWNER), setgid with a foreign group (FSETID), devices and whiteouts (MKNOD), file capabilities
/// (SETFCAP), `trusted.` and `security.` attributes, the overlay's own marks among them (`SYS_ADMIN`).
const NEEDED: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::MKNOD)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::SYS_ADMIN);

/// Runs `work` where only `folder` can be written.
pub(super) fn within<T: Send>(folder: &Path, work: impl FnOnce() -> T + Send) -> T {
    confine::run(folder, NEEDED, |fences| {
        for (fence, why) in fences.lacking() {
            tracing::debug!(fence, why, "unpacking without it");
        }
        work()
    })
}

/// What of it is in force on this host, as tried in `folder`.
pub fn probe(folder: &Path) -> Offer {
    Offer::new("confinement", confine::run(folder, NEEDED, judge))
}

fn judge(fences: &Fences) -> Result<String, Lack> {
    let lacking = fences.lacking();
    if lacking.is_empty() {
        return Ok(
            "unpacking has a read-only mount namespace, landlock and few capabilities".into()
        );
    }
    let why: Vec<String> = lacking.iter().map(|(name, why)| format!("no {name} ({why})")).collect();
    Err(Lack::new(
        why.join(", "),
        "a fence around unpacking, should a layer ever find a hole in slim itself",
        "run slim as root on Linux 5.19 or later with landlock among its security modules",
    ))
}
