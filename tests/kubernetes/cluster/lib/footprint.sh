#!/usr/bin/env bash
# Prints what a test bed could leave on this machine, one thing a line: two outputs are equal
# when it has left nothing.
set -euo pipefail
. "$(dirname "$0")/settings.sh"

# What it is, where it is from; numbers and options differ without anybody's doing.
awk '{for (i = 7; i <= NF; i++) if ($i == "-") break; print "mount", $5, $(i + 1)}' /proc/self/mountinfo
ip -brief link 2>/dev/null | awk '{print "link", $1}'
ip route 2>/dev/null | awk '{print "route", $0}'
for namespace in /run/netns/*; do
    [ ! -e "$namespace" ] || echo "netns $namespace"
done
find /sys/fs/cgroup -maxdepth 2 -type d -name "$BRIDGE*" 2>/dev/null | sed 's/^/cgroup /'
for device in /sys/block/loop*/loop/backing_file; do
    [ ! -e "$device" ] || echo "loop device $(cat "$device")"
done
for name in vm.overcommit_memory kernel.panic kernel.panic_on_oops kernel.keys.root_maxkeys \
    kernel.keys.root_maxbytes net.ipv4.ip_forward net.ipv4.conf.all.rp_filter; do
    echo "sysctl $name=$(sysctl --values $name 2>/dev/null)"
done
# By what they work on, not by the program: it may serve somebody else too.
for process in /proc/[0-9]*; do
    if grep -qsaF -e "$RUN/" -e "$KEYS/" -e "$BED/lib/" "$process/cmdline" &&
        [ "$(readlink -f "$process/exe")" != "$(readlink -f /proc/$$/exe)" ]; then
        echo "process $(tr '\0' ' ' <"$process/cmdline" | cut -c 1-100)"
    fi
done
