//! What slim reads out of programs and scripts.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = slim::inspect::wants(data);
    let _ = slim::inspect::facts(data);
});
