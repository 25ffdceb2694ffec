#!/usr/bin/env bash
# The measurements of docs/performance.md: a cluster of its own, on ports of its own, in a
# directory of its own; stopped and removed at the end. Takes about seven minutes.
# Results: $CARGO_TARGET_DIR/bench. RATES, WARMUP and DURATION change the standard
# workload, FAILOVER_RATE the load under which a node is lost.
set -euo pipefail

PORT_BASE=8400
LIMIT_SECONDS=900
target=${CARGO_TARGET_DIR:-${CARILLON_CACHE:-$HOME/.cache/carillon}/target}
carillon=$target/release/carillon
out=$target/bench
rates=${RATES:-1000,2000,4000,6000,8000,10000,12000}
warmup=${WARMUP:-3s}
duration=${DURATION:-10s}
FAILOVER_RATE=${FAILOVER_RATE:-6000}
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

# The standard load at a rate, in the background, and a node lost in the middle of it.
under_load() {
    "$carillon" bench --rate "$FAILOVER_RATE" --warmup "$warmup" --duration 20s \
        --out "$out/loaded" >"$scratch/load.log" 2>"$scratch/load.err" &
    load=$!
    # Its connections and groups are there once it says what it sends.
    until grep -q "sends/s" "$scratch/load.err"; do
        kill -0 "$load" 2>/dev/null || {
            cat "$scratch/load.err" >&2
            exit 1
        }
        sleep 0.2
    done
    # The window is longer than what follows takes.
    sleep 8
    bench failover "$@"
    wait "$load" || true
    echo "the load meanwhile, $FAILOVER_RATE sends/s:"
    cat "$scratch/load.log"
}

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
under_load --silent --out "$out/loaded"
# After each of these a node is missing.
under_load --out "$out/loaded"
stop
start
bench failover --out "$out"
stop
echo
echo "results: $out"
