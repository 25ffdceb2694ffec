# What all scripts of the test bed agree on: where things are, names, addresses, limits, and
# how they wait and fail. Sourced.

BED=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
ROOT=$(cd "$BED/../../.." && pwd)

# Kept from one cluster to the next: programs, keys, images, Go's caches.
STATE=${CARILLON_CACHE:-$HOME/.cache/carillon}/kubernetes
BIN=$STATE/bin
KEYS=$STATE/keys
IMAGES=$STATE/images
# Of the cluster that runs; its being there says that one does.
RUN=$STATE/run
ADMIN=$RUN/admin.kubeconfig

BRIDGE=ckube
HOST_IP=10.99.0.1
NODE_NET=10.99.0
POD_NET=10.244
SERVICE_NET=10.96.0.0/16
SERVICE_API=10.96.0.1
SERVICE_DNS=10.96.0.10
# Without nodes nobody but this machine has to reach the API server.
LOOPBACK_API=127.0.0.1:26443
ETCD=127.0.0.1:26379
ETCD_PEER=127.0.0.1:26380

# A cluster starts with NODES; others can be powered on later.
NODES=${NODES:-3}
NODES_MAX=9
ZONES=3
REGISTRY=carillon.test

API_SECONDS_MAX=90
NODE_SECONDS_MAX=120
DNS_SECONDS_MAX=90
STOP_SECONDS_MAX=20

node_ip() { echo "$NODE_NET.$((10 + $1))"; }
node_zone() { echo "zone-$((($1 - 1) % ZONES + 1))"; }
# The node's end of the link in the machine's network.
node_link() { echo "$BRIDGE-n$1"; }

say() { echo "$*" >&2; }

# fail WHAT [DO]
fail() {
    say "error: $1"
    [ $# -lt 2 ] || say "  do:  $2"
    exit 1
}

# within SECONDS WHAT COMMAND...: until the command succeeds.
within() {
    local limit=$1 what=$2 deadline
    shift 2
    deadline=$((SECONDS + limit))
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$deadline" ] || fail "waited $limit s for $what"
        sleep 0.1
    done
}

# Whether PID is a process of this test bed: an old number may be anybody's by now.
ours() {
    [ -n "${1:-}" ] && grep -qsF -e "$BIN/" -e "$BED/" "/proc/$1/cmdline"
}

# Whether a process with all its threads has ended, buried or not: who buries it may take long.
gone() {
    local state
    state=$(sed -n 's/^State:\t\(.\).*/\1/p' "/proc/$1/status" 2>/dev/null) || return 0
    [ -z "$state" ] || { [ "$state" = Z ] && [ "$(ls "/proc/$1/task" | wc -l)" -le 1 ]; }
}

# Kills the process of a file with its id. Nothing that these processes would do before they
# end is worth the wait: what they know is thrown away, or is in etcd.
kill_process() {
    local pid
    pid=$(cat "$1" 2>/dev/null) || return 0
    rm -f "$1"
    ours "$pid" || return 0
    kill -KILL "$pid" 2>/dev/null || return 0
    within $STOP_SECONDS_MAX "process $pid to end" gone "$pid"
}

# The process 1 of a node, as this machine numbers it; fails when the node is off.
node_pid() {
    local outer pid=
    outer=$(cat "$RUN/node$1/pid" 2>/dev/null) && ours "$outer" || return 1
    # The kernel ends the list without a newline, which read takes for an error.
    read -r pid _ <"/proc/$outer/task/$outer/children" || [ -n "$pid" ] || return 1
    echo "$pid"
}

# Runs a command inside a node. Not by `ip netns exec`, which loses the node's mounts.
in_node() {
    local pid
    pid=$(node_pid "$1") || fail "node $1 is off" "$BED/node on $1"
    shift
    nsenter --target "$pid" --all -- "$@"
}

kubectl() { "$BIN/kubectl" --kubeconfig "$ADMIN" "$@"; }

must_run() {
    [ -d "$RUN" ] || fail "the test bed is not up" "$BED/up"
}
