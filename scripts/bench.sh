#!/usr/bin/env bash
# The measurements of docs/performance.md: a cluster of its own, on ports of its own, in a
# directory of its own; stopped and removed at the end. Takes about five minutes.
# Results: $CARGO_TARGET_DIR/bench. RATES, WARMUP and DURATION change the standard workload.
set -euo pipefail

PORT_BASE=8400
LIMIT_SECONDS=900
target=${CARGO_TARGET_DIR:-${CARILLON_CACHE:-$HOME/.cache/carillon}/target}
carillon=$target/release/carillon
out=$target/bench
rates=${RATES:-1000,2000,4000,6000,8000,10000,12000}
warmup=${WARMUP:-3s}
duration=${DURATION:-10s}
# One thread a node: three nodes and the load share the machine.
export CARILLON_NODE__WORKER_THREADS=${CARILLON_NODE__WORKER_THREADS:-1}
CARILLON_ENDPOINTS=$(printf '127.0.0.1:%d,' $((PORT_BASE + 1)) $((PORT_BASE + 2)) $((PORT_BASE + 3)))
export CARILLON_ENDPOINTS=${CARILLON_ENDPOINTS%,}

[ -x "$carillon" ] || {
    echo "error: $carillon is not there; run make bench" >&2
    exit 1
}
# 10,000 connections need as many files, in the generator and in the nodes.
ulimit -n "$(ulimit -Hn)"
scratch=$(mktemp -d)
cluster=
stop() {
    [ -n "$cluster" ] || return 0
    kill -TERM "$cluster" 2>/dev/null || true
    wait "$cluster" 2>/dev/null || true
    cluster=
}
trap 'stop; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

start() {
    : >"$scratch/dev.log"
    "$carillon" -o json dev --data "$scratch/cluster" --fresh --port-base "$PORT_BASE" \
        >"$scratch/dev.log" 2>"$scratch/dev.err" &
    cluster=$!
    # The first line says that the cluster is ready; the command itself limits the wait.
    until grep -q '"ready"' "$scratch/dev.log"; do
        kill -0 "$cluster" 2>/dev/null || {
            cat "$scratch/dev.err" >&2
            exit 1
        }
        sleep 0.2
    done
}

bench() {
    echo
    echo "== $*"
    left=$((LIMIT_SECONDS - SECONDS))
    [ "$left" -gt 0 ] || {
        echo "error: not done within $LIMIT_SECONDS s" >&2
        exit 1
    }
    timeout --signal INT "$left" "$carillon" bench "$@"
}

mkdir -p "$out"
echo "$(nproc) cores, $(awk '/MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo), $(uname -sr)"

# What loads the cluster most comes with a fresh one each, so that no leftover work of one
# measurement is in the next.
start
bench history --out "$out"
bench idle --out "$out"
bench append --out "$out"
stop
start
bench --rate "$rates" --warmup "$warmup" --duration "$duration" --out "$out"
stop
start
bench --direct --rate "$rates" --warmup "$warmup" --duration "$duration" --out "$out/direct"
stop
start
bench store --out "$out"
bench failover --silent --out "$out"
# After this one a node is missing.
bench failover --out "$out"
stop
echo
echo "results: $out"
