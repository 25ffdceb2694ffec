#!/usr/bin/env bash
# Starts the control plane on this machine: etcd, API server, controllers, scheduler, disks.
# Usage: control-plane.sh start|stop HOST:PORT of the API server, or
# control-plane.sh start-one|stop-one NAME HOST:PORT.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
HERE=$RUN/control-plane
PARTS=(etcd apiserver controllers scheduler disks)

flags_of() {
    case $1 in
        etcd) # Nothing here is to survive a crash of the machine.
            flags=(etcd --name carillon-test --data-dir "$HERE/etcd" --unsafe-no-fsync
                --listen-client-urls "http://$ETCD" --advertise-client-urls "http://$ETCD"
                --listen-peer-urls "http://$ETCD_PEER" --initial-advertise-peer-urls "http://$ETCD_PEER"
                --initial-cluster "carillon-test=http://$ETCD_PEER")
            ;;
        apiserver) # Pods leave a dead node soon, so that tests are short.
            flags=(kube-apiserver --etcd-servers="http://$ETCD"
                --bind-address="${api%:*}" --advertise-address="${api%:*}" --secure-port="${api#*:}"
                --tls-cert-file="$KEYS/apiserver.crt" --tls-private-key-file="$KEYS/apiserver.key"
                --client-ca-file="$KEYS/ca.crt" --service-cluster-ip-range=$SERVICE_NET
                --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction
                --service-account-issuer=https://kubernetes.default.svc
                --service-account-key-file="$KEYS/service-accounts.pub"
                --service-account-signing-key-file="$KEYS/service-accounts.key"
                --allow-privileged=true --endpoint-reconciler-type=master-count
                --kubelet-certificate-authority="$KEYS/ca.crt"
                --kubelet-client-certificate="$KEYS/admin.crt" --kubelet-client-key="$KEYS/admin.key"
                --kubelet-preferred-address-types=InternalIP --enable-aggregator-routing=true
                --requestheader-client-ca-file="$KEYS/ca.crt"
                --requestheader-allowed-names=front-proxy-client
                --requestheader-username-headers=X-Remote-User
                --requestheader-group-headers=X-Remote-Group
                --requestheader-extra-headers-prefix=X-Remote-Extra-
                --proxy-client-cert-file="$KEYS/front-proxy.crt"
                --proxy-client-key-file="$KEYS/front-proxy.key"
                --default-not-ready-toleration-seconds=10
                --default-unreachable-toleration-seconds=10 --profiling=false)
            ;;
        controllers) # With the default rates it starts slowly; a node is Unknown after 10 s.
            flags=(kube-controller-manager --kubeconfig="$RUN/controllers.kubeconfig"
                --authentication-kubeconfig="$RUN/controllers.kubeconfig"
                --authorization-kubeconfig="$RUN/controllers.kubeconfig"
                --bind-address=127.0.0.1 --leader-elect=false --use-service-account-credentials=true
                --service-account-private-key-file="$KEYS/service-accounts.key"
                --root-ca-file="$KEYS/ca.crt" --cluster-signing-cert-file="$KEYS/ca.crt"
                --cluster-signing-key-file="$KEYS/ca.key" --requestheader-client-ca-file="$KEYS/ca.crt"
                --allocate-node-cidrs=false --kube-api-qps=300 --kube-api-burst=600
                --node-monitor-period=2s --node-monitor-grace-period=10s)
            ;;
        scheduler)
            flags=(kube-scheduler --kubeconfig="$RUN/scheduler.kubeconfig"
                --authentication-kubeconfig="$RUN/scheduler.kubeconfig"
                --authorization-kubeconfig="$RUN/scheduler.kubeconfig"
                --bind-address=127.0.0.1 --leader-elect=false)
            ;;
        disks)
            flags=(disks -kubeconfig "$ADMIN" -root "$RUN/volumes")
            ;;
        *) fail "$1 is no part of the control plane; one of: ${PARTS[*]}" ;;
    esac
}

start() {
    if ours "$(cat "$HERE/$1.pid" 2>/dev/null)"; then
        return
    fi
    local flags
    flags_of "$1"
    # In a session of its own: Ctrl-C in the terminal is not for it.
    (cd "$HERE" && exec setsid "$BIN/kube" "${flags[@]}" >>"$HERE/$1.log" 2>&1 </dev/null) &
    echo $! >"$HERE/$1.pid"
}

# That the part is there at all, and answers when it is the API server.
answers() {
    local deadline=$((SECONDS + API_SECONDS_MAX))
    until kubectl get --raw /readyz >/dev/null 2>&1; do
        for part in etcd apiserver; do
            ours "$(cat "$HERE/$part.pid" 2>/dev/null)" || {
                tail -n 20 "$HERE/$part.log" >&2
                fail "$part ended when it was started" "look into $HERE/$part.log"
            }
        done
        [ "$SECONDS" -lt "$deadline" ] || {
            tail -n 20 "$HERE/apiserver.log" >&2
            fail "waited $API_SECONDS_MAX s for the API server"
        }
        sleep 0.2
    done
}

case ${1:-} in
    start)
        api=${2:?}
        mkdir -p "$HERE"
        start etcd
        start apiserver
        answers
        for part in controllers scheduler disks; do
            start $part
        done
        # Nodes wait for it.
        : >"$HERE/ready"
        ;;
    stop)
        for part in disks scheduler controllers apiserver etcd; do
            kill_process "$HERE/$part.pid"
        done
        ;;
    start-one)
        api=${3:?}
        start "${2:?}"
        [ "$2" != apiserver ] || answers
        ;;
    stop-one) kill_process "$HERE/${2:?}.pid" ;;
    *) fail "unknown: ${1:-nothing}" "control-plane.sh start|stop|start-one|stop-one" ;;
esac
