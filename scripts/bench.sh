#!/usr/bin/env bash
# The measurements of docs/performance.md: a cluster of its own, on ports of its own, in a
# directory of its own; stopped and removed at the end. Takes about seven minutes.
# Results: $CARGO_TARGET_DIR/bench. RATES, WARMUP and DURATION change the standard workload,
# MOVES_GIB how much is stored when replicas move, FAILOVER_RATE the load under which a node
# is lost.
set -euo pipefail

PORT_BASE=8400
LIMIT_SECONDS=900
target=${CARGO_TARGET_DIR:-${CARILLON_CACHE:-$HOME/.cache/carillon}/target}
carillon=$target/release/carillon
out=$target/bench
rates=${RATES:-1000,2000,4000,6000,8000,10000,12000}
warmup=${WARMUP:-3s}
duration=${DURATION:-10s}
failover_rate=${FAILOVER_RATE:-6000}
moves_gib=${MOVES_GIB:-1}
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
load=
stop() {
    for running in $load $cluster; do
        kill -TERM "$running" 2>/dev/null || true
        wait "$running" 2>/dev/null || true
    done
    cluster=
    load=
}
trap 'stop; rm -rf "$scratch"' EXIT
trap 'exit 130' INT TERM

start() {
    : >"$scratch/dev.log"
    "$carillon" -o json dev --data "$scratch/cluster" --fresh --port-base "$PORT_BASE" \
        "$@" >"$scratch/dev.log" 2>"$scratch/dev.err" &
    cluster=$!
    # The first line says that the cluster is ready.
    until_said '"ready"' "$scratch/dev.log" "$cluster" "$scratch/dev.err"
}

# Waits until a file has a line; the process that writes it limits the wait, and when it ends
# before, its errors are shown.
until_said() {
    until grep -q "$1" "$2"; do
        kill -0 "$3" 2>/dev/null || {
            cat "$4" >&2
            exit 1
        }
        sleep 0.2
    done
}

# Seconds until the limit.
left() {
    [ "$SECONDS" -lt "$LIMIT_SECONDS" ] || {
        echo "error: not done within $LIMIT_SECONDS s" >&2
        exit 1
    }
    echo $((LIMIT_SECONDS - SECONDS))
}

bench() {
    echo
    echo "== $*"
    remaining=$(left)
    timeout --signal INT "$remaining" "$carillon" bench "$@"
}

mkdir -p "$out"
echo "$(nproc) cores, $(awk '/MemTotal/ {printf "%.0f GiB", $2 / 1048576}' /proc/meminfo), $(uname -sr)"

# A node lost in the middle of the standard load; $1 is where the results go.
under_load() {
    results=$1
    shift
    : >"$scratch/load.err"
    remaining=$(left)
    timeout --signal INT "$remaining" "$carillon" bench --rate "$failover_rate" \
        --warmup "$warmup" --duration 20s --out "$results" \
        >"$scratch/load.log" 2>"$scratch/load.err" &
    load=$!
    # Its connections and groups are there once it says what it sends.
    until_said "sends/s" "$scratch/load.err" "$load" "$scratch/load.err"
    # Into its window, which is longer than what follows takes.
    sleep 8
    bench failover "$@" --out "$results"
    wait "$load" || true
    load=
    echo "the load meanwhile, $failover_rate sends/s:"
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
under_load "$out/loaded-silent" --silent
# After each of these a node is missing.
under_load "$out/loaded-killed"
stop
start
bench failover --out "$out"
stop
start
bench roll --out "$out"
bench split --out "$out"
bench merge --out "$out"
stop
# One node more than there are replicas.
start --nodes 4
bench moves --gib "$moves_gib" --out "$out"
stop
echo
echo "results: $out"
