"""`distillery-bench speed`, on real trainings."""

import json
from pathlib import Path

import pytest

import distillery
from benchmarks.commands.speed import Speed, measure_rates
from benchmarks.training.speed_cases import NETWORKS, Case, cases_of, compile_network, products, training_of
from training.loop.device import Device
from training.loop.trainer import Observer
from training.recipe.schema import Model
from training.sweep.search import multiply_adds

CPU = Device("cpu", bfloat16=False)
FLAGS = ["--batch-size=5", "--steps=1", "--rounds=3", "--seconds=0.1"]


def bench(*flags: str) -> int:
    return distillery.main("bench", {"speed": Speed}, arguments=["speed", *FLAGS, *flags])


def test_the_result_is_kept_and_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("--networks=tiny,cnn", "--compile=student", f"--results-dir={tmp_path}") == 0
    output = capsys.readouterr().out
    (file,) = tmp_path.iterdir()
    kept = json.loads(file.read_text())["data"]
    tiny, cnn = kept["rows"]
    assert {"default", "floor"} <= tiny["rounds"].keys()
    assert len(tiny["rounds"].keys() & {"float32", "bfloat16"}) == 1  # the other one is the default
    assert cnn["rounds"].keys() == tiny["rounds"].keys()
    for row in kept["rows"]:
        assert all(len(rounds) == 3 and min(rounds) > 0 for rounds in row["rounds"].values())
        assert row["images_per_s"] == pytest.approx(sorted(row["rounds"]["default"])[1], abs=1)
        of_floor = sorted(
            a / b for a, b in zip(row["rounds"]["default"], row["rounds"]["floor"], strict=True)
        )
        assert row["floor_share"] == pytest.approx(of_floor[1], abs=2e-3)
    assert tiny["speedups"].keys() >= {"bfloat16"}
    last = json.loads(output.splitlines()[-1])
    assert [row["images_per_s"] for row in last["rows"]] == [row["images_per_s"] for row in kept["rows"]]


def test_the_best_epoch_of_a_case_counts_in_every_round() -> None:
    order: list[str] = []

    def case(name: str, seconds: list[float]) -> Case:
        def run() -> float:
            order.append(name)
            return seconds.pop(0) if len(seconds) > 1 else seconds[0]

        return Case("tiny", name, 1, 10, run)

    rates = measure_rates([case("a", [5.0, 2.0]), case("b", [4.0])], rounds=2, seconds=0.1)
    assert rates[0] == [pytest.approx(5)] * 2  # 10 images in 2 s
    assert rates[1] == [pytest.approx(2.5)] * 2
    turns = [name for place, name in enumerate(order) if place == 0 or order[place - 1] != name]
    assert turns == ["a", "b", "a"]  # the second round runs backwards


@pytest.mark.parametrize("network", NETWORKS)
def test_the_floor_consists_of_the_matrix_products_of_the_network(network: str) -> None:
    model: Model = NETWORKS[network]  # type: ignore[index]
    forward = sum(rows * inputs * units for rows, inputs, units in products(model))
    assert forward == model.batch_size * multiply_adds(model.architecture)


def test_a_missing_compiler_is_the_reason_for_a_skipped_case(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    _, skipped = cases_of("tiny", device=CPU, batch_size=20, steps=1, compile_it=True)
    assert skipped["compiled"] == "there is no compiler g++"


@pytest.mark.slow
def test_a_compiled_network_trains() -> None:
    training = training_of(Model(hidden=[8], batch_size=20), CPU, steps=2)
    assert compile_network(training) == ""
    training.train_epoch(Observer())
    assert training.history[1]["loss"] < training.history[0]["loss"]
