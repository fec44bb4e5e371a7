//! Where large temporary files belong (file-hierarchy(7)).

use std::path::PathBuf;

/// `$TMPDIR`, else /var/tmp; /tmp is often memory.
pub fn folder() -> PathBuf {
    std::env::var_os("TMPDIR").filter(|t| !t.is_empty()).map_or("/var/tmp".into(), PathBuf::from)
}
