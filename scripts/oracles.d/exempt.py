"""What scripts/oracles does not demand, with the reason."""

# Tests left out.
SKIPPED = {}

# (test, call) that strace prints and the program does not make when nobody traces it.
EXEMPT = {}
