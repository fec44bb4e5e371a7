#!/usr/bin/env bash
# Strings, lists, a script, persistence: all through the container's own client.
set -euo pipefail
r() { $SLIM_EXEC redis-cli "$@"; }
for _ in $(seq 50); do [ "$(r ping 2>/dev/null)" = PONG ] && break; sleep 0.2; done
[ "$(r set greeting hello)" = OK ]
[ "$(r get greeting)" = hello ]
[ "$(r rpush list a b c)" = 3 ]
[ "$(r eval 'return 1 + 2' 0)" = 3 ]
r bgsave >/dev/null
sleep 1
r info persistence | grep -q rdb_last_bgsave_status:ok
