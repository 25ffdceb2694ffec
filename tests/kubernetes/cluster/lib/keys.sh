#!/usr/bin/env bash
# Makes the cluster's certificate authority and everybody's keys, once; the kubeconfig files
# of the cluster that starts anew each time. Usage: keys.sh HOST:PORT of the API server.
set -euo pipefail
. "$(dirname "$0")/settings.sh"
api=${1:?usage: keys.sh HOST:PORT}
DAYS=3650
# Made again when what is in them changes.
GENERATION=1

if [ "$(cat "$KEYS/generation" 2>/dev/null)" != $GENERATION ]; then
    rm -rf "$KEYS"
fi
mkdir -p "$KEYS"
chmod 700 "$KEYS"
cd "$KEYS"
umask 077

quiet() {
    "$@" 2>openssl.log || {
        cat openssl.log >&2
        fail "$* failed"
    }
}

key() { quiet openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1"; }

# certificate NAME SUBJECT [ALTERNATIVE NAMES]
certificate() {
    [ ! -e "$1.crt" ] || return 0
    key "$1.key"
    quiet openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
    {
        echo keyUsage=critical,digitalSignature,keyEncipherment
        echo extendedKeyUsage=clientAuth,serverAuth
        [ -z "${3:-}" ] || echo "subjectAltName=$3"
    } >"$1.ext"
    quiet openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial \
        -days $DAYS -extfile "$1.ext" -out "$1.crt.new"
    mv "$1.crt.new" "$1.crt"
    rm "$1.csr" "$1.ext"
}

kubeconfig() {
    cat >"$RUN/$1.kubeconfig" <<END
apiVersion: v1
kind: Config
clusters: [{name: carillon-test, cluster: {server: "https://$api", certificate-authority-data: $(base64 -w0 ca.crt)}}]
users: [{name: $1, user: {client-certificate-data: $(base64 -w0 "$1.crt"), client-key-data: $(base64 -w0 "$1.key")}}]
contexts: [{name: carillon-test, context: {cluster: carillon-test, user: $1}}]
current-context: carillon-test
END
}

if [ ! -e generation ]; then
    key ca.key
    quiet openssl req -x509 -new -key ca.key -subj /CN=carillon-test-ca -days $DAYS -out ca.crt
    quiet openssl genrsa -out service-accounts.key 2048
    quiet openssl rsa -in service-accounts.key -pubout -out service-accounts.pub
    echo $GENERATION >generation
fi
service=kubernetes.default.svc
certificate apiserver /CN=kube-apiserver "IP:$HOST_IP,IP:$SERVICE_API,IP:127.0.0.1,DNS:localhost,DNS:kubernetes,DNS:kubernetes.default,DNS:$service,DNS:$service.cluster.local"
certificate front-proxy /CN=front-proxy-client
certificate admin /O=system:masters/CN=admin
certificate controllers /CN=system:kube-controller-manager
certificate scheduler /CN=system:kube-scheduler
certificate proxy /CN=system:kube-proxy
for name in admin controllers scheduler proxy; do
    kubeconfig $name
done
for n in $(seq $NODES_MAX); do
    certificate "node$n" "/O=system:nodes/CN=system:node:node$n" "DNS:node$n,IP:$(node_ip "$n")"
    kubeconfig "node$n"
done
