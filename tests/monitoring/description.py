"""The description of rules and dashboards in `docker/monitoring`, whose modules are scripts."""

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

import yaml

DOCKER = Path(__file__).parents[2] / "docker"
MONITORING = DOCKER / "monitoring"
PROMETHEUS = DOCKER / "prometheus"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"]
    for rule in group["rules"]
]
ALERTS = [rule for rule in RULES if "alert" in rule]


def module(name: str) -> Any:
    """Return a module of `docker/monitoring`, imported as its scripts import it."""
    sys.path.insert(0, str(MONITORING))
    try:
        return import_module(name)
    finally:
        sys.path.remove(str(MONITORING))
