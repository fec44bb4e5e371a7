//! What slim reads out of programs and scripts.
#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = slim::inspect::wants(data);
    let facts = slim::inspect::facts(data);
    if !data.starts_with(b"#!") {
        assert_eq!(facts, slim::inspect::facts_of_program(std::io::Cursor::new(data)));
    }
});
