# The network of the test bed: nodes hang on one bridge of this machine, each in a network
# namespace of its own, with routes to the pods of all others. Sourced.

make_bridge() {
    ip link show $BRIDGE >/dev/null 2>&1 && return
    ip link add $BRIDGE type bridge
    ip address add $HOST_IP/24 dev $BRIDGE
    ip link set $BRIDGE up
}

# The namespace stays when the node is powered off, as its cable would.
make_node_network() {
    local n=$1 other link
    link=$(node_link "$n")
    [ ! -e "/run/netns/$link" ] || return 0
    ip netns add "$link"
    ip link add "$link" type veth peer name eth0 netns "$link"
    ip link set "$link" master $BRIDGE up
    ip -netns "$link" link set lo up
    ip -netns "$link" address add "$(node_ip "$n")/24" dev eth0
    ip -netns "$link" link set eth0 up
    ip -netns "$link" route add default via $HOST_IP
    for other in $(seq $NODES_MAX); do
        [ "$other" = "$n" ] ||
            ip -netns "$link" route add "$POD_NET.$other.0/24" via "$(node_ip "$other")"
    done
    ip route replace "$POD_NET.$n.0/24" via "$(node_ip "$n")" dev $BRIDGE
}

# This machine reaches services through the first node that is on and not cut off: a test
# that powers node 1 off goes on using them.
route_services() {
    local n
    for n in $(seq $NODES_MAX); do
        if node_pid "$n" >/dev/null && ! ip link show "$(node_link "$n")" | grep -q 'state DOWN'; then
            ip route replace $SERVICE_NET via "$(node_ip "$n")" dev $BRIDGE
            return
        fi
    done
    ip route delete $SERVICE_NET dev $BRIDGE 2>/dev/null || true
}

remove_network() {
    local n link
    for n in $(seq $NODES_MAX); do
        link=$(node_link "$n")
        [ ! -e "/run/netns/$link" ] || ip netns delete "$link"
        # Until the kernel has taken the namespace apart its other end is still here.
        ip link delete "$link" 2>/dev/null || true
    done
    ip link delete $BRIDGE 2>/dev/null || true
}
