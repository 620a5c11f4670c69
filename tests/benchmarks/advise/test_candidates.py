"""What may be configured: shapes of a service, models that are accurate enough, and what they cost at least."""

from pathlib import Path

import pytest

from benchmarks.advise.candidates import (
    Candidate,
    SessionCosts,
    Shape,
    choose_models,
    powers_of_two,
    shapes,
)
from benchmarks.errors import BenchmarkError
from benchmarks.results.models import select_models
from serving.model.repository import ModelEntry, load_repository


@pytest.fixture
def entries(model_repository: Path) -> dict[str, ModelEntry]:
    return select_models(model_repository)


def with_errors(entries: dict[str, ModelEntry], **errors: int) -> dict[str, ModelEntry]:
    """The same models with these test errors, in which the fixture's networks hardly differ."""
    return {
        name: entry.model_copy(
            update={
                "manifest": entry.manifest.model_copy(
                    update={"test_errors": errors[name], "test_accuracy": 1 - errors[name] / 10_000}
                )
            }
        )
        for name, entry in entries.items()
        if name in errors
    }


def test_the_default_settings_come_first_and_no_service_has_more_threads_than_cores() -> None:
    found = shapes(["inprocess", "workers"], [1, 2], [1, 2, 4], [8, 64], cores=4)
    assert found[:3] == [
        Shape("inprocess", 1, 1, 64),
        Shape("inprocess", 1, 2, 64),
        Shape("inprocess", 1, 4, 64),
    ]
    assert all(shape.threads * shape.api_servers <= 4 for shape in found)
    assert len(found) == 2 * 2 * (3 + 2)
    assert found[-1].executor == "workers"


def test_more_processes_than_cores_are_an_error_that_names_both() -> None:
    with pytest.raises(
        BenchmarkError, match="--api-servers 64 × --threads 1: more threads than the 2 usable cores"
    ):
        shapes(["inprocess"], [1], [64], [64], cores=2)


def test_powers_of_two_include_the_number_of_cores() -> None:
    assert [powers_of_two(cores) for cores in (1, 2, 6, 8)] == [[1], [1, 2], [1, 2, 4, 6], [1, 2, 4, 8]]


def test_a_shape_is_options_of_the_service() -> None:
    flags = Shape("workers", 2, 3, 8).flags()
    assert flags == ["--executor=workers", "--threads=2", "--api-servers=3", "--max-batch=8"]


def test_models_that_are_not_accurate_enough_are_left_out(entries: dict[str, ModelEntry]) -> None:
    several = with_errors(entries, teacher=80, student=91)
    assert choose_models(several, max_errors=None, min_accuracy=None) == (["teacher", "student"], {})
    assert choose_models(several, max_errors=85, min_accuracy=None) == (
        ["teacher"],
        {"student": "91 test errors"},
    )
    assert choose_models(several, max_errors=None, min_accuracy=0.992)[0] == ["teacher"]


def test_of_models_with_one_speed_the_most_accurate_one_is_measured(entries: dict[str, ModelEntry]) -> None:
    several = with_errors(entries, student=91)
    several["copy"] = with_errors(entries, student=90)["student"]
    models, left_out = choose_models(several, max_errors=None, min_accuracy=None)
    assert models == ["copy"]
    assert "the speed of copy" in left_out["student"]


def test_without_an_accurate_model_the_best_one_is_named(entries: dict[str, ModelEntry]) -> None:
    several = with_errors(entries, teacher=80, student=91)
    with pytest.raises(BenchmarkError, match=r"--max-errors 3: no model.*teacher with 80 test errors"):
        choose_models(several, max_errors=3, min_accuracy=None)


def test_more_images_cost_more_and_a_larger_batch_less_per_image(entries: dict[str, ModelEntry]) -> None:
    costs = SessionCosts(entries)
    alone = Candidate(Shape("inprocess", 1, 1, 1), "student")
    batched = Candidate(Shape("inprocess", 1, 1, 64), "student")
    assert 0 < costs.seconds(alone, 1) < costs.seconds(alone, 64)
    assert costs.seconds(batched, 1) <= costs.seconds(alone, 1)


def test_a_cascade_costs_more_than_its_student_alone(cascade_repository: Path) -> None:
    entries = load_repository(cascade_repository)
    cascade = entries["cascade"].manifest.cascade
    assert cascade
    costs = SessionCosts(entries)
    shape = Shape("inprocess", 1, 1, 64)
    student = costs.seconds(Candidate(shape, cascade.student.name), 1)
    assert student <= costs.seconds(Candidate(shape, "cascade"), 1)
    assert "cascade" in choose_models(entries, max_errors=None, min_accuracy=None)[0]
