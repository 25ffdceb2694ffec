#!/usr/bin/env bash
# make e2e: starts the test bed (NODES nodes, 3), gives it the images, runs the tests, and takes
# everything down again, whatever happens. With KUBECONFIG set it uses that cluster and starts
# nothing. Arguments go to the tests, for example a part of a test's name.
#   CARILLON_NODE_IMAGE   on somebody else's cluster: an image of a node that it can pull
#   KEEP=1                leaves the test bed up
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
root=$(cd "$here/../.." && pwd)
export CARILLON_CACHE=${CARILLON_CACHE:-$HOME/.cache/carillon}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$CARILLON_CACHE/target}
bed=$here/cluster
# The selection of the Makefile, so that nothing is compiled again.
read -ra select <<<"${CARILLON_E2E_SELECT:---workspace}"
untested=()

work=$(mktemp -d)
started=
finish() {
    status=$?
    trap - EXIT
    # A second Ctrl-C does not stop the cleaning.
    trap '' INT TERM
    if [ -n "$started" ]; then
        if [ $status != 0 ]; then
            echo "what is not well in the cluster:" >&2
            "$bed/kubectl" get pods --all-namespaces --output wide --request-timeout 10s >&2 || true
            "$bed/kubectl" get events --all-namespaces --field-selector type=Warning \
                --request-timeout 10s 2>/dev/null | tail -n 30 >&2 || true
        fi
        if [ -n "${KEEP:-}" ]; then
            echo "the test bed is left up; $bed/down ends it"
        else
            logs=()
            [ $status = 0 ] || logs=(--keep-logs)
            "$bed/down" ${logs[@]+"${logs[@]}"}
            "$bed/lib/footprint.sh" | sort >"$work/after"
            # What is gone is somebody else's.
            left=$(comm -13 "$work/before" "$work/after")
            if [ -n "$left" ]; then
                echo "error: the test bed has left on this machine:" >&2
                echo "$left" >&2
                status=1
            fi
        fi
    fi
    rm -rf "$work"
    exit $status
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM

cd "$root"
if [ -n "${KUBECONFIG:-}" ]; then
    echo "uses the cluster of KUBECONFIG; its machines are not hurt"
    untested+=("what hurts machines: this cluster is not the test bed")
else
    "$bed/lib/footprint.sh" | sort >"$work/before"
    started=1
    "$bed/up"
    KUBECONFIG=$CARILLON_CACHE/kubernetes/run/admin.kubeconfig
    export KUBECONFIG CARILLON_BED=$bed
    reason=
    if [ "$("$bed/kubectl" get nodes --no-headers 2>/dev/null | wc -l)" = 0 ]; then
        reason=$("$bed/lib/why-no-nodes.sh")
        untested+=("all that needs nodes: ${reason:-CONTROL_PLANE_ONLY is set}")
    elif [ -x "$CARGO_TARGET_DIR/release/carillon-node" ]; then
        export CARILLON_NODE_IMAGE=carillon.test/node:one CARILLON_SECOND_NODE_IMAGE=carillon.test/node:two
        for image in "$CARILLON_NODE_IMAGE" "$CARILLON_SECOND_NODE_IMAGE"; do
            scripts/build-image.sh node "$image" "$work/node.tar"
            "$bed/load" "$work/node.tar"
        done
        scripts/build-image.sh operator carillon.test/operator:one "$work/operator.tar"
        "$bed/load" "$work/operator.tar"
        # An older release of the chart becomes this one, as far as there is an older one: first
        # one operator, then two.
        for replicas in 1 2; do
            "$CARILLON_CACHE/bin/helm" upgrade --install carillon charts/carillon \
                --namespace carillon-system --create-namespace --wait --timeout 2m \
                --set replicas=$replicas --set image.repository=carillon.test/operator \
                --set-string image.tag=one >/dev/null
        done
        # What people begin with is taken as it is.
        "$bed/kubectl" apply --dry-run=server --filename docs/examples/kubernetes >/dev/null
        "$bed/kubectl" apply --dry-run=server --server-side --force-conflicts \
            --filename charts/bundle.yaml >/dev/null
    else
        untested+=("the image of a node: carillon-node is not built")
    fi
fi
export CARILLON_COMMAND=$CARGO_TARGET_DIR/release/carillon
cargo test --release "${select[@]}" --locked --test smoke -- --include-ignored --test-threads 1 "$@"
# Most of their time they wait; those that hurt machines take turns by themselves.
cargo test --release "${select[@]}" --locked --test operator -- \
    --include-ignored --show-output --test-threads 3 "$@"

if [ ${#untested[@]} = 0 ]; then
    echo "all tests on Kubernetes passed"
else
    printf -v list '; %s' "${untested[@]}"
    echo "all tests on Kubernetes passed, but NOT tested: ${list:2}"
fi
