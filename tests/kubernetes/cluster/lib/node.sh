#!/usr/bin/env bash
# Powers a node on or off. On: its place in this machine's network and cgroups, then
# node-init.sh as process 1 of new namespaces; does not wait until it is Ready. Off: the end
# of all its processes at once; its disk stays. Usage: node.sh on|off N
set -euo pipefail
here=$(dirname "$0")
. "$here/settings.sh"
. "$here/network.sh"
. "$here/cgroups.sh"
what=${1:?usage: node.sh on|off N}
n=${2:?usage: node.sh on|off N}
disk=$RUN/node$n

on() {
    node_pid "$n" >/dev/null && return
    mkdir -p "$disk"/{containerd,kubelet,cni-conf,cni-lib,log-pods,log-containers}
    # Mount points for these, as on any machine with containerd.
    mkdir -p /var/lib/containerd /var/lib/kubelet /etc/cni/net.d /var/lib/cni \
        /var/log/pods /var/log/containers
    make_bridge
    make_node_network "$n"
    make_cgroups "$n" || fail "processes of an earlier node $n still run" "$BED/down"
    # Joins the cgroups before it makes a cgroup namespace. Mounts of this machine reach the
    # node (a volume is one), the node's do not reach this machine.
    # shellcheck disable=SC2016
    setsid bash -c '. "$0/settings.sh"; . "$0/cgroups.sh"; join_cgroups "$1"
        exec nsenter --net="/run/netns/$(node_link "$1")" \
            unshare --cgroup --mount --propagation slave --pid --fork --uts --ipc \
            --kill-child=SIGKILL "$0/node-init.sh" "$1"' \
        "$BED/lib" "$n" >"$disk/init.log" 2>&1 </dev/null &
    echo $! >"$disk/pid"
    within 5 "process 1 of node $n" node_pid "$n"
    route_services
}

off() {
    local outer pid
    outer=$(cat "$disk/pid" 2>/dev/null) || return 0
    if pid=$(node_pid "$n"); then
        kill -KILL "$pid" 2>/dev/null || true
    fi
    # It ends when the last process of the node has.
    if ours "$outer"; then
        within $STOP_SECONDS_MAX "the processes of node $n to end" gone "$outer"
    fi
    rm -f "$disk/pid"
    route_services
}

case $what in
    on) on ;;
    off) off ;;
    *) fail "unknown: $what" "node.sh on|off N" ;;
esac
