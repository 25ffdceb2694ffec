#!/usr/bin/env bash
# Prints why this machine cannot run nodes, one line; nothing when it can.
set -euo pipefail
. "$(dirname "$0")/settings.sh"

if [ "$(id -u)" != 0 ]; then
    echo "only root may make namespaces and cgroups for nodes"
    exit
fi
for program in containerd ctr runc ip nft conntrack busybox nsenter unshare; do
    command -v "$program" >/dev/null || {
        echo "$program is not installed (scripts/install-tools.sh e2e installs it)"
        exit
    }
done
[ -x /usr/lib/cni/bridge ] || {
    echo "/usr/lib/cni/bridge is not installed (scripts/install-tools.sh e2e installs it)"
    exit
}
[ -d /sys/fs/cgroup/memory ] || [ -e /sys/fs/cgroup/cgroup.controllers ] || {
    echo "no cgroups are mounted at /sys/fs/cgroup"
    exit
}
# A container without the rights for it is root too.
unshare --net --mount --pid --fork --uts --ipc --cgroup true 2>/dev/null ||
    echo "this root may not make namespaces"
