#!/usr/bin/env bash
# Process 1 of a node: its mounts, then containerd, kubelet and kube-proxy. When it dies, so
# does everything in the node. USR1 starts the kubelet again. Usage: node-init.sh N
set -euo pipefail
here=$(dirname "$0")
. "$here/settings.sh"
. "$here/cgroups.sh"
n=${1:?usage: node-init.sh N}
ip=$(node_ip "$n")
disk=$RUN/node$n

hostname "node$n"
umount --lazy /proc
mount -t proc proc /proc
mount_cgroups
mount -t tmpfs -o mode=755 run /run
mkdir -p /run/netns /run/lock
mount --bind "$disk/containerd" /var/lib/containerd
mount --bind "$disk/kubelet" /var/lib/kubelet
mount --bind "$disk/cni-conf" /etc/cni/net.d
mount --bind "$disk/cni-lib" /var/lib/cni
mount --bind "$disk/log-pods" /var/log/pods
mount --bind "$disk/log-containers" /var/log/containers
# As containerd and the kubelet want it.
mount --make-rshared /
sysctl --quiet --write net.ipv4.ip_forward=1 net.ipv4.conf.all.rp_filter=0

cat >/etc/cni/net.d/10-pods.conflist <<END
{"cniVersion": "0.4.0", "name": "pods", "plugins": [
 {"type": "bridge", "bridge": "cni0", "isGateway": true, "ipMasq": false, "hairpinMode": true,
  "ipam": {"type": "host-local", "ranges": [[{"subnet": "$POD_NET.$n.0/24"}]],
           "routes": [{"dst": "0.0.0.0/0"}]}},
 {"type": "portmap", "capabilities": {"portMappings": true}}]}
END

# Containers may be refused to lower a score of the OOM killer, root included.
cat >"$disk/containerd.toml" <<END
version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
[grpc]
  address = "/run/containerd/containerd.sock"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "$REGISTRY/pause:1"
  disable_apparmor = true
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "/etc/cni/net.d"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "runc"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
      runtime_type = "io.containerd.runc.v2"
      [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
        SystemdCgroup = false
END

cat >"$disk/kubelet.yaml" <<END
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
address: $ip
healthzBindAddress: 127.0.0.1
authentication:
  anonymous: {enabled: false}
  webhook: {enabled: true}
  x509: {clientCAFile: $KEYS/ca.crt}
authorization: {mode: Webhook}
tlsCertFile: $KEYS/node$n.crt
tlsPrivateKeyFile: $KEYS/node$n.key
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
cgroupDriver: cgroupfs
failCgroupV1: false
failSwapOn: false
clusterDNS: [$SERVICE_DNS]
clusterDomain: cluster.local
resolvConf: $disk/resolv.conf
registerNode: true
nodeStatusUpdateFrequency: 4s
nodeLeaseDurationSeconds: 8
syncFrequency: 10s
evictionHard:
  memory.available: 100Mi
  nodefs.available: 1%
  imagefs.available: 1%
  nodefs.inodesFree: 1%
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
maxPods: 60
serializeImagePulls: false
shutdownGracePeriod: 0s
oomScoreAdj: 0
END
: >"$disk/resolv.conf"

cat >"$disk/proxy.yaml" <<END
apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
clientConnection: {kubeconfig: $RUN/proxy.kubeconfig}
mode: nftables
bindAddress: $ip
healthzBindAddress: 127.0.0.1:10256
metricsBindAddress: 127.0.0.1:10249
hostnameOverride: node$n
clusterCIDR: $POD_NET.0.0/16
conntrack: {maxPerCore: 0, min: 0}
oomScoreAdj: 0
END

start_kubelet() {
    if kill -0 "$(cat /run/kubelet.pid 2>/dev/null)" 2>/dev/null; then
        return
    fi
    "$BIN/kube" kubelet --config="$disk/kubelet.yaml" --kubeconfig="$RUN/node$n.kubeconfig" \
        --hostname-override="node$n" --node-ip="$ip" \
        --node-labels="topology.kubernetes.io/zone=$(node_zone "$n"),topology.kubernetes.io/region=here" \
        --v=2 >>"$disk/kubelet.log" 2>&1 &
    echo $! >/run/kubelet.pid
}

containerd --config "$disk/containerd.toml" >>"$disk/containerd.log" 2>&1 &
within $NODE_SECONDS_MAX "containerd of node $n" ctr version
# Side by side, and only what containerd does not have from the last time.
imports=()
for archive in "$IMAGES"/*.tar "$RUN"/images/*.tar; do
    if [ -e "$archive" ] && [ ! -e "$disk/loaded/$(basename "$archive")" ]; then
        "$here/import.sh" "$n" "$archive" &
        imports+=($!)
    fi
done
for import in ${imports[@]+"${imports[@]}"}; do
    wait "$import"
done
# Both would wait longer and longer for an API server that is not there yet.
within $((API_SECONDS_MAX + NODE_SECONDS_MAX)) "the API server" test -e "$RUN/control-plane/ready"
trap start_kubelet USR1
start_kubelet
"$BIN/kube" kube-proxy --config="$disk/proxy.yaml" --v=2 >>"$disk/proxy.log" 2>&1 &

# Buries whoever dies, also what nobody else waits for. Without children it would not block.
set +e
while :; do
    wait -n
    [ $? != 127 ] || sleep 1
done
