#!/usr/bin/env bash
# Makes anew what is made from something else: the chart's copy of the CRDs, what the chart
# renders to with the values of charts/carillon/tests/cases (tests/golden), and
# charts/bundle.yaml, the chart for people without Helm. With --check it changes nothing and
# fails when one of them is not current.
set -euo pipefail
cd "$(dirname "$0")/.."
helm=${CARILLON_CACHE:-$HOME/.cache/carillon}/bin/helm
chart=charts/carillon
namespace=carillon-system
check=
case ${1:-} in
    '') ;;
    --check) check=1 ;;
    *)
        echo "usage: scripts/render-charts.sh [--check]" >&2
        exit 2
        ;;
esac
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
stale=0

# current MADE FILE: the file is as it is made, or becomes it.
current() {
    if [ -z "$check" ]; then
        mkdir -p "$(dirname "$2")"
        cp "$1" "$2"
    elif ! diff -u "$2" "$1" >"$work/diff" 2>&1; then
        head -n 40 "$work/diff" >&2
        echo "error: $2 is not current" >&2
        stale=1
    fi
}

# The chart packs no links, and nothing from outside of it.
for crd in crds/*.yaml; do
    if [ ! -e "$crd" ]; then
        echo "skipped: there are no crds/*.yaml to compare the chart's copy with"
        continue
    fi
    current "$crd" "$chart/files/$crd"
done

# A Kubernetes of which no server has to be asked.
render() {
    "$helm" template carillon $chart --namespace $namespace --kube-version 1.34.0 "$@"
}
for values in $chart/tests/cases/*.yaml; do
    render --values "$values" >"$work/rendered.yaml"
    current "$work/rendered.yaml" "$chart/tests/golden/$(basename "$values")"
done
{
    echo "# The operator of Carillon, for kubectl apply --server-side -f. Made from charts/carillon by"
    echo "# scripts/render-charts.sh."
    echo "---"
    echo "apiVersion: v1"
    echo "kind: Namespace"
    echo "metadata:"
    echo "  name: $namespace"
    echo "  labels:"
    echo "    pod-security.kubernetes.io/enforce: restricted"
    # What only Helm understands is left out.
    render | sed -e '/^ *helm\.sh\//d' -e '/^# Source: /d' \
        -e 's|managed-by: Helm|managed-by: kubectl|'
} >"$work/bundle.yaml"
current "$work/bundle.yaml" charts/bundle.yaml
if [ $stale = 1 ]; then
    echo "  do:  scripts/render-charts.sh, and look at what changed" >&2
    exit 1
fi
