"""The simulation of release decisions: it runs the test of the service, and its figures are those of the theory."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.release.simulation import Setting, first_requests, log_e_values, simulate, z_values
from benchmarks.results.files import latest, read_result
from distillery import main
from serving.release.sequential import Comparison


def test_the_simulated_values_are_those_of_the_test_in_the_service() -> None:
    setting = Setting(rate=0.05, share=0.3)
    streams = setting.draw(np.random.default_rng(0), 3, 40, 1.7)
    comparison = Comparison(setting.alpha, setting.tolerance)
    worse = np.exp(log_e_values(streams, *comparison.worse_test))
    as_good = np.exp(log_e_values(streams, *comparison.as_good_test))
    for stream in range(3):
        comparison = Comparison(setting.alpha, setting.tolerance)
        for block in range(40):
            stable, candidate, requests = (int(counts[stream, block]) for counts in streams[:3])
            comparison.update((stable, setting.block - requests), (candidate, requests))
            assert worse[stream, block] == pytest.approx(comparison.worse)
            assert as_good[stream, block] == pytest.approx(comparison.as_good)


def test_the_fixed_sample_has_its_power() -> None:
    setting = Setting(rate=0.02, share=0.5, block=100)
    blocks = setting.fixed_requests // setting.block
    z = z_values(setting.draw(np.random.default_rng(0), 2000, blocks, 2.0))[:, -1]
    assert np.mean(z >= 1.645) == pytest.approx(0.95, abs=0.03)


def test_the_first_crossing_is_counted_in_requests() -> None:
    values = np.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]])
    assert first_requests(values, 1.0, 100).tolist() == [200.0, np.inf]


def test_the_sequential_test_decides_sooner_than_the_fixed_sample_and_is_seldom_wrong() -> None:
    row = simulate(Setting(rate=0.05, share=0.5), streams=200, horizon=10, seed=0)
    assert row["stop"]["share"] == 1
    assert row["stop"]["median"] < row["fixed_requests"]
    assert row["stop"]["median"] <= row["stop_turner"]["median"]
    assert row["promote_better"]["median"] < row["promote_equal"]["median"]
    assert row["false_stops"] < 0.1  # 0.05 and four standard errors
    assert row["false_promotions"] < 0.1
    assert row["false_stops_z"] > 0.15


def test_the_command_keeps_a_result_and_prints_its_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = ["--rates=0.05,0.1", "--shares=0.5", "--streams=60", "--horizon=5"]
    assert (
        main("distillery-bench", COMMANDS, arguments=["sequential", *load, f"--results-dir={tmp_path}"]) == 0
    )
    path = latest("sequential", folder=tmp_path)
    assert path
    rows = read_result(path)["data"]["rows"]
    assert [row["rate"] for row in rows] == [0.05, 0.1]
    assert all(more["fixed_requests"] > less["fixed_requests"] for more, less in pairwise(rows))
    assert "Turner" in capsys.readouterr().out


@pytest.mark.parametrize("option", ["--rates=0", "--shares=1", "--alpha=0", "--tolerance=1", "--block=0"])
def test_impossible_settings_are_rejected(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("distillery-bench", COMMANDS, arguments=["sequential", option]) == 2
    assert option.partition("=")[0].strip("-") in capsys.readouterr().err
