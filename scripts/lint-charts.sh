#!/usr/bin/env bash
# The chart (helm lint, what it renders to, what it refuses), the alerts (promtool, their unit
# tests), their runbooks, and whether alerts and dashboard ask for metrics that exist, when
# METRICS names files with what GET /metrics of live processes says. Needs nothing that runs.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=${CARILLON_CACHE:-$HOME/.cache/carillon}/bin
chart=charts/carillon
promtool=$(command -v promtool || echo "$bin/promtool")

"$bin/helm" lint --quiet --strict $chart
for values in $chart/tests/cases/*.yaml; do
    "$bin/helm" lint --quiet --strict $chart --values "$values"
done
scripts/render-charts.sh --check

# refused WHAT OPTION...: the schema does not let it through, and names it.
refused() {
    local what=$1
    shift
    if answer=$("$bin/helm" template carillon $chart --kube-version 1.34.0 "$@" 2>&1); then
        echo "error: helm takes $*" >&2
        exit 1
    fi
    grep -q "$what" <<<"$answer" || {
        echo "error: helm refuses $* without naming $what: $answer" >&2
        exit 1
    }
}
refused scope --set scope=world
refused replica --set replica=3
refused namespace --set namespace=a
refused digest --set image.digest=latest
refused interval --set monitoring.podMonitor.interval=often
refused serviceAccount.name --set serviceAccount.create=false

"$promtool" check rules --lint=all $chart/files/alerts.yaml >/dev/null
"$promtool" test rules $chart/tests/alerts_test.yaml >/dev/null

# A page and a test for each alert, and no page for none.
alerts=$(sed -n 's/^ *- alert: //p' $chart/files/alerts.yaml)
for alert in $alerts; do
    [ -s "docs/runbooks/$alert.md" ] && grep -q "($alert.md)" docs/runbooks/README.md || {
        echo "error: the alert $alert has no page in docs/runbooks, or README.md there does not name it" >&2
        exit 1
    }
    grep -A1 "alertname: $alert\$" $chart/tests/alerts_test.yaml | grep -q exp_alerts || {
        echo "error: no test of the alert $alert sees it fire" >&2
        exit 1
    }
done
for page in docs/runbooks/Carillon*.md; do
    grep -qx "$(basename "$page" .md)" <<<"$alerts" || {
        echo "error: $page is of no alert" >&2
        exit 1
    }
done
if [ -n "${METRICS:-}" ]; then
    # shellcheck disable=SC2086
    scripts/check-metrics.py $METRICS
fi
echo "charts: ok"
