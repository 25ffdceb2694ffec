#!/usr/bin/env bash
# Starts a cluster with a chat in it for a moment, from binaries that are built already, and
# checks that every metric and label that the alerts and the dashboard ask for is in what its
# nodes say. Metrics of the operator are looked up in the pages that are given: of one that
# has worked on an ImCluster and has seen its API server go away.
# Usage: check-live-metrics.sh [OPERATORS-METRICS.txt]...
set -euo pipefail
cd "$(dirname "$0")/.."
PORT_BASE=9400
READY_SECONDS_MAX=120
target=${CARGO_TARGET_DIR:-${CARILLON_CACHE:-$HOME/.cache/carillon}/target}
carillon=$target/release/carillon
[ -x "$carillon" ] || {
    echo "error: $carillon is not there" >&2
    echo "  do:  make test builds it" >&2
    exit 1
}
work=$(mktemp -d)
cluster=
stop() {
    if [ -n "$cluster" ]; then
        kill -TERM "$cluster" 2>/dev/null || true
        wait "$cluster" 2>/dev/null || true
    fi
    rm -rf "$work"
}
trap stop EXIT
trap 'exit 130' INT TERM

: >"$work/out"
"$carillon" -o json dev --demo --data "$work/cluster" --fresh --port-base $PORT_BASE \
    >"$work/out" 2>"$work/err" &
cluster=$!
deadline=$((SECONDS + READY_SECONDS_MAX))
# Its first line says that it is ready; the demo's calls come before it.
until grep -q '"ready"' "$work/out"; do
    kill -0 "$cluster" 2>/dev/null || {
        cat "$work/err" >&2
        echo "error: the cluster ended when it was started" >&2
        exit 1
    }
    [ "$SECONDS" -lt "$deadline" ] || {
        cat "$work/err" >&2
        echo "error: the cluster was not ready within $READY_SECONDS_MAX s" >&2
        exit 1
    }
    sleep 0.2
done
pages=()
for n in 1 2 3; do
    # By bash itself: not every machine has curl.
    exec 3<>"/dev/tcp/127.0.0.1/$((PORT_BASE + 200 + n))"
    printf 'GET /metrics HTTP/1.0\r\n\r\n' >&3
    sed '1,/^\r$/d' <&3 >"$work/metrics-$n"
    exec 3>&-
    pages+=("$work/metrics-$n")
done
# A counter with labels is there once it has counted. No client here is too slow or thrown out;
# what these are called is what the gateway's own test wants of them.
sed -n 's/^ *"\(gateway_.*\)",$/carillon_\1/p' node/server/src/gateway/metrics.rs |
    tr -d '\\' | grep -E '^carillon_gateway_(resyncs|kicks)_total\{' >"$work/seldom"
scripts/check-metrics.py "${pages[@]}" "$work/seldom" "$@"
