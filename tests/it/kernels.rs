//! The table of kernels in the docs is what the runs found.

use std::path::Path;
use std::process::Command;

use crate::support::{Need, have, outcome};

#[test]
fn the_table_of_kernels_is_what_the_runs_gave() {
    if !have(&[Need::Program("python3")]) {
        return;
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/kernel-lab/table.py");
    let output = Command::new("python3").arg(script).arg("--check").output().unwrap();
    let (code, text) = outcome(&output);
    assert_eq!(code, 0, "{text}");
}
