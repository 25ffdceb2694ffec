# A node's cgroup is a subtree of this machine's, named after the node; both layouts of
# cgroups. Sourced.

CGROUPS=/sys/fs/cgroup
one_hierarchy() { [ -e $CGROUPS/cgroup.controllers ]; }

# The node's directories, one in each hierarchy.
node_cgroups() {
    if one_hierarchy; then
        echo "$CGROUPS/$(node_link "$1")"
    else
        local controller
        for controller in $CGROUPS/*/; do
            echo "$controller$(node_link "$1")"
        done
    fi
}

make_cgroups() {
    local directory parent
    # What a killed node left: the kubelet would try for seconds on each of them.
    remove_cgroups "$1"
    for directory in $(node_cgroups "$1"); do
        parent=$(dirname "$directory")
        mkdir -p "$directory"
        case $directory in
            */cpuset/*)
                cat "$parent/cpuset.mems" >"$directory/cpuset.mems"
                cat "$parent/cpuset.cpus" >"$directory/cpuset.cpus"
                echo 1 >"$directory/cgroup.clone_children"
                ;;
        esac
    done
    if one_hierarchy; then
        delegate $CGROUPS
    fi
}

# Gives all controllers to the children of a cgroup.
delegate() {
    local controller
    for controller in $(cat "$1/cgroup.controllers"); do
        echo "+$controller" >"$1/cgroup.subtree_control"
    done
}

# The calling process, before it enters a cgroup namespace, whose root that becomes.
join_cgroups() {
    local directory
    for directory in $(node_cgroups "$1"); do
        echo $$ >"$directory/cgroup.procs"
    done
}

# Fails while something is left in them.
remove_cgroups() {
    local directory left=0
    for directory in $(node_cgroups "$1"); do
        [ -d "$directory" ] || continue
        find "$directory" -depth -type d -exec rmdir {} + 2>/dev/null || left=1
    done
    return $left
}

# Inside the node: only its own subtree is to be seen.
mount_cgroups() {
    if one_hierarchy; then
        umount --lazy /sys
        mount -t sysfs sysfs /sys
        mount -t cgroup2 cgroup2 $CGROUPS
        # A cgroup with processes in it cannot give controllers to children.
        mkdir -p $CGROUPS/init
        echo 1 >$CGROUPS/init/cgroup.procs
        delegate $CGROUPS
        return
    fi
    local controller controllers=()
    for controller in $CGROUPS/*/; do
        controller=$(basename "$controller")
        [ "$controller" = unified ] || controllers+=("$controller")
    done
    umount --lazy /sys
    mount -t sysfs sysfs /sys
    mount -t tmpfs -o mode=755 cgroups $CGROUPS
    for controller in "${controllers[@]}"; do
        mkdir $CGROUPS/"$controller"
        if [ "$controller" = systemd ]; then
            mount -t cgroup -o none,name=systemd cgroup $CGROUPS/systemd
        else
            mount -t cgroup -o "$controller" cgroup $CGROUPS/"$controller"
        fi
    done
}
