#!/usr/bin/env bash
# Both pages, a wrong request and a missing page.
set -euo pipefail
base=http://$SLIM_HOST:$SLIM_PORT
for _ in $(seq 100); do curl -fsS "$base/" >/dev/null 2>&1 && break; sleep 0.2; done
curl -fsS "$base/?name=slim" | grep -qx 'hello slim'
curl -fsS -H 'Content-Type: application/json' -d '{"numbers":[1,2,3]}' "$base/sum" | grep -q '"total": *6'
# 400 up to Flask 2.2, 415 since.
curl -s -o /dev/null -w '%{http_code}' -d 'no json' "$base/sum" | grep -qE '^4(00|15)$'
[ "$(curl -s -o /dev/null -w '%{http_code}' "$base/missing")" = 404 ]
