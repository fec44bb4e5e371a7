#!/usr/bin/env bash
# SLIM_RUN starts a fresh container of the image with these arguments as its command.
set -euo pipefail
[ "$(echo '{"a": [1, 2, 3]}' | $SLIM_RUN -c '.a | map(. * 2)')" = '[2,4,6]' ]
[ "$(echo '"x"' | $SLIM_RUN -r .)" = x ]
if echo '{' | $SLIM_RUN . 2>/dev/null; then exit 1; fi
$SLIM_RUN --help >/dev/null
