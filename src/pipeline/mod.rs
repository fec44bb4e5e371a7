//! The long verbs, each a plain sequence of steps: trace, build, verify.
