# The same recipes that CI runs, one by one.

# formatting, lints, unit and integration tests, documentation
check:
    cargo fmt --check
    cargo clippy --all-targets -- -D warnings
    cargo test
    cargo doc --no-deps

# everything, as CI has it
test:
    scripts/test

# storms, repetitions, all pairs
long:
    scripts/test-long

# the eight corpus images
corpus *NAMES:
    scripts/corpus-report {{NAMES}}

# the BPF object from its source
bpf:
    scripts/build-bpf
