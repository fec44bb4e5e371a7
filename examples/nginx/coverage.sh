#!/usr/bin/env bash
# What this web server is used for: two pages, a missing one, a compressed one, a reload.
set -euo pipefail
base=http://$SLIM_HOST:$SLIM_PORT
for _ in $(seq 50); do curl -fsS "$base/" >/dev/null 2>&1 && break; sleep 0.2; done
curl -fsS "$base/" | grep -q 'It works'
curl -fsS "$base/page.txt" | grep -q 'plain text'
curl -fsS -H 'Accept-Encoding: gzip' -o /dev/null "$base/"
[ "$(curl -s -o /dev/null -w '%{http_code}' "$base/missing")" = 404 ]
$SLIM_EXEC nginx -t
$SLIM_EXEC nginx -s reload
sleep 0.5
curl -fsS "$base/" >/dev/null
