"""Write the rules of Prometheus, also as a PrometheusRule for Kubernetes, and the dashboards of Grafana.

    python docker/monitoring/generate.py            writes them
    python docker/monitoring/generate.py --check    fails if a file is out of date

expressions.py has the quantities that rules and dashboards share, slo.py the objectives, rules.py the rules and alerts,
distillation.py and service.py the dashboards, panels.py the kinds of panels; docs/operations.md has the runbooks.
tests/monitoring evaluates every expression in a real Prometheus, and checks the JSON against Grafana's types.
"""

import json
import sys
from pathlib import Path

from distillation import distillation
from panels import RUNBOOKS_UID, Json, dashboard, runbooks, text
from rules import as_custom_resource, as_yaml, rules
from service import service

DOCKER = Path(__file__).parents[1]
KUBERNETES = DOCKER.parent / "deploy/kubernetes/components/prometheus-operator"


def runbook_dashboard() -> Json:
    """Return the runbooks as a dashboard, to which panels link."""
    panels = [text(name, body, width=12, height=11) for name, body in runbooks().items()]
    return dashboard(RUNBOOKS_UID, "Distillery: runbooks", "What to do when an alert fires.", panels, [])


def files() -> dict[Path, str]:
    """Return the text of every generated file."""
    dashboards = {
        "distillation": distillation(),
        "service": service(),
        "runbooks": runbook_dashboard(),
    }
    written_rules = {
        DOCKER / "prometheus/rules.yml": as_yaml(rules()),
        KUBERNETES / "prometheus-rule.yaml": as_custom_resource(rules()),
    }
    return written_rules | {
        DOCKER / f"grafana/dashboards/{name}.json": json.dumps(made, indent=2, ensure_ascii=False) + "\n"
        for name, made in dashboards.items()
    }


def main() -> int:
    """Write the files; with --check, return 1 if one is out of date."""
    if "--check" not in sys.argv[1:]:
        for path, content in files().items():
            path.write_text(content, encoding="utf-8")
        return 0
    old = [str(path) for path, content in files().items() if path.read_text(encoding="utf-8") != content]
    if old:
        print(f"out of date: {', '.join(old)}; run python {__file__}", file=sys.stderr)
    return 1 if old else 0


if __name__ == "__main__":
    sys.exit(main())
