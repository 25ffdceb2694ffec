#!/usr/bin/env python3
"""Checks that everything that the alerts and the dashboard ask of Carillon's metrics exists in
the text that live processes give: every metric, and every label of it where it has a sample.

usage: check-metrics.py METRICS.txt...      what GET /metrics said, of nodes and of the operator

Labels that a scrape adds (namespace, job, pod and the like) and metrics of others are known
here. A metric that nothing uses is not an error.
"""

import json
import pathlib
import re
import sys

FILES = pathlib.Path(__file__).parent.parent / "charts/carillon/files"
FROM_SCRAPING = {"namespace", "job", "pod", "instance", "container", "endpoint", "le"}
# Prometheus' own, and those of the kubelets.
FROM_OTHERS = {"up", "ALERTS", "kubelet_volume_stats_available_bytes", "kubelet_volume_stats_capacity_bytes"}
OPERATOR = "carillon_operator_"
# NAME{LABELS} VALUE; a metric without a sample has no labels to compare with.
SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? ")
LABEL = re.compile(r'(\w+)="')
NAME = re.compile(r"\b((?:carillon|kubelet|kube)_\w+|up|ALERTS)\b(?:\{([^}]*)\})?")
MATCHER = re.compile(r'(\w+)\s*(?:=~|!~|!=|=)\s*"')


def exported(paths):
    """Metrics of the pages: names and their labels; families that have no sample yet."""
    labels, families = {}, {}
    for path in paths:
        for line in pathlib.Path(path).read_text().splitlines():
            if line.startswith("# TYPE "):
                _, _, name, kind = line.split()
                families[name] = kind
            elif match := SAMPLE.match(line):
                labels.setdefault(match[1], set()).update(LABEL.findall(match[2] or ""))
    for name, kind in families.items():
        suffixes = {"counter": ["_total"], "histogram": ["_sum", "_count", "_bucket"]}.get(kind, [""])
        for suffix in suffixes:
            labels.setdefault(name + suffix, None)
    return labels


def expressions():
    """What is asked, and where."""
    for line in (FILES / "alerts.yaml").read_text().splitlines():
        # Everything but prose; comments and annotations name no metrics in this form.
        if not re.match(r"\s*(#|summary:|description:|runbook_url:|- alert:|- name:)", line):
            yield "alerts.yaml", line
    dashboard = json.loads((FILES / "dashboard.json").read_text())
    for panel in dashboard["panels"]:
        for target in panel.get("targets", []):
            yield f"dashboard.json, {panel['title']}", target["expr"]
    for variable in dashboard["templating"]["list"]:
        if isinstance(variable["query"], dict):
            yield f"dashboard.json, {variable['name']}", variable["query"]["query"]


def main():
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    known = exported(sys.argv[1:])
    has_operator = any(name.startswith(OPERATOR) for name in known)
    asked, wrong = set(), []
    for where, expression in expressions():
        for name, selector in NAME.findall(expression):
            if name.startswith(OPERATOR) and not has_operator:
                continue
            asked.add(name)
            if name in FROM_OTHERS:
                continue
            if name not in known:
                wrong.append(f"{where}: no process exports {name}")
                continue
            if known[name] is None:
                continue
            for label in set(MATCHER.findall(selector)) - FROM_SCRAPING - known[name]:
                wrong.append(f"{where}: {name} has no label {label}, only {sorted(known[name])}")
    if not known or len(asked) < 10:
        wrong.append(f"{len(known)} metrics are exported and {len(asked)} asked: something is read wrongly")
    for line in sorted(set(wrong)):
        print(f"error: {line}", file=sys.stderr)
    if wrong:
        sys.exit(1)
    print(f"{len(asked)} metrics of alerts and dashboard exist")
    if not has_operator:
        print("skipped: those of the operator, since no page of one is given")


main()
