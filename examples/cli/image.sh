# A command-line tool: jq, run afresh for each job.
PACKAGES=jq
CONFIG=(--config.entrypoint jq --config.cmd --version)
