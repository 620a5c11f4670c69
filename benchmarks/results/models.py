"""The models under measurement, and the facts of them that result files keep."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.errors import BenchmarkError
from distillery import unknown
from serving.model.repository import ModelEntry, load_repository

INT8 = "-int8"
FACTS = (
    "version",
    "sha256",
    "size_bytes",
    "precision",
    "architecture",
    "parameters",
    "test_errors",
    "test_accuracy",
)


def select_models(models_dir: Path, names: Sequence[str] = ()) -> dict[str, ModelEntry]:
    """Return the models called `names`, or all of them but cascades, which `distillery-bench cascade` measures.

    Raises `BenchmarkError` for an unknown name, or that of a cascade.
    """
    found = load_repository(models_dir)
    entries = {name: entry for name, entry in found.items() if entry.manifest.cascade is None}
    for name in names:
        if name in found and name not in entries:
            raise BenchmarkError(f"{name} is a cascade, which `distillery-bench cascade` measures")
        if name not in entries:
            raise BenchmarkError(f"{models_dir}: {unknown('model', name, entries)}")
    return {name: entries[name] for name in names or entries}


def model_facts(entries: Mapping[str, ModelEntry]) -> dict[str, dict[str, Any]]:
    """Return size, architecture, precision and test errors of the models by name."""
    return {name: entry.manifest.model_dump(include=set(FACTS)) for name, entry in entries.items()}


def speed_models(facts: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Return for each model the one whose speed is measured and shown for it.

    Models of one architecture and precision differ in their weights alone, a student and its control for instance: they
    have one speed, and a difference between measurements of them would be noise.
    """
    first: dict[tuple[str, str], str] = {}
    for name in sorted(facts):
        first.setdefault((facts[name]["architecture"], facts[name]["precision"]), name)
    return {name: first[fact["architecture"], fact["precision"]] for name, fact in facts.items()}
