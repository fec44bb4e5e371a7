//! Where large temporary files belong (file-hierarchy(7)), and how much may go there.

use std::path::{Path, PathBuf};

/// `$TMPDIR`, else /var/tmp; /tmp is often memory.
pub fn folder() -> PathBuf {
    std::env::var_os("TMPDIR").filter(|t| !t.is_empty()).map_or("/var/tmp".into(), PathBuf::from)
}

/// Bytes that are free where `folder` lies; `None` where files are memory.
///
/// # Errors
/// Those of statfs(2).
pub fn room(folder: &Path) -> std::io::Result<Option<u64>> {
    const TMPFS_MAGIC: i64 = 0x0102_1994;
    let found = rustix::fs::statfs(folder)?;
    let free = found.f_bavail.saturating_mul(u64::try_from(found.f_bsize).unwrap_or(0));
    Ok((found.f_type != TMPFS_MAGIC).then_some(free))
}
