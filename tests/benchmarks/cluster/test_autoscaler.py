"""The number of replicas by the HorizontalPodAutoscaler's algorithm, with the settings of KEDA's manifest."""

from itertools import pairwise

import pytest
import yaml

from benchmarks.cluster.autoscaler import SYNC_S, Autoscaler, Scaling
from benchmarks.cluster.replay import DAY, SCALED_OBJECT, shares, shortened, turns
from benchmarks.results.files import RESULTS, latest, read_result
from tests.support.service import ROOT

SCALING = Scaling.read(SCALED_OBJECT)
HPA = ROOT / "deploy/kubernetes/components/hpa/horizontal-pod-autoscaler.yaml"
UP, DOWN = SCALING.behavior["scaleUp"], SCALING.behavior["scaleDown"]
[DOUBLE], [ONE] = UP["policies"], DOWN["policies"]


def autoscaler(minimum: int = 1, maximum: int = 20) -> Autoscaler:
    return Autoscaler(SCALING.behavior, minimum, maximum)


def test_both_autoscalers_have_the_same_target_of_cpu_time() -> None:
    [metric] = yaml.safe_load(HPA.read_text())["spec"]["metrics"]
    target = metric["containerResource"]["target"]["averageUtilization"]
    assert {trigger.name: trigger.threshold for trigger in SCALING.triggers}["cpu"] == target / 100


@pytest.mark.parametrize(
    ("value", "wanted"),
    [(3.0, 5), (1.2, 2), (1.31, 2), (1.33, 3), (0.6 * 1.81, 2)],
    ids=["above", "equal", "above by less than the tolerance", "above by more", "below by less"],
)
def test_the_number_of_replicas_follows_the_value(value: float, wanted: int) -> None:
    assert autoscaler().desired(0, 2, [(value, 0.6)]) == min(wanted, 4)  # doubled at most


def test_the_greatest_of_several_metrics_counts() -> None:
    assert autoscaler().desired(0, 4, [(0.6, 0.6), (7.0, 1.0), (0.0, 0.25)]) == 7


def test_a_metric_without_a_value_prevents_that_replicas_are_removed() -> None:
    scaler = autoscaler()
    assert scaler.desired(0, 4, [(None, 0.6), (1.0, 1.0)]) == 4
    assert scaler.desired(1, 4, [(None, 0.6), (6.0, 1.0)]) == 6


def test_replicas_are_doubled_at_most_within_a_period() -> None:
    scaler = autoscaler()
    assert scaler.desired(0, 3, [(100.0, 1.0)]) == 6
    assert scaler.desired(SYNC_S, 6, [(100.0, 1.0)]) == 6
    assert scaler.desired(DOUBLE["periodSeconds"] + SYNC_S, 6, [(100.0, 1.0)]) == 12


def test_replicas_are_removed_one_at_a_time_after_the_window() -> None:
    scaler, replicas, removed = autoscaler(), 5, []
    scaler.desired(0, replicas, [(5.0, 1.0)])
    for step in range(1, 200):
        now = step * SYNC_S
        wanted = scaler.desired(now, replicas, [(1.0, 1.0)])
        if wanted < replicas:
            removed.append(now)
            assert wanted == replicas - 1
        replicas = wanted
    assert replicas == 1
    assert removed[0] >= DOWN["stabilizationWindowSeconds"]
    assert all(after - before >= ONE["periodSeconds"] for before, after in pairwise(removed))


def test_the_least_and_greatest_numbers_hold() -> None:
    assert autoscaler(minimum=3).desired(0, 3, [(0.0, 1.0)]) == 3
    assert autoscaler(maximum=4).desired(0, 3, [(9.0, 1.0)]) == 4


def test_a_load_that_swings_within_the_window_removes_no_replica() -> None:
    scaler, numbers = autoscaler(), [4]
    for step in range(100):
        load = 4.0 if step % 20 < 10 else 2.0  # five minutes each
        numbers.append(scaler.desired(step * SYNC_S, numbers[-1], [(load, 1.0)]))
    assert set(numbers) == {4}


def test_compressed_time_leads_to_the_same_numbers() -> None:
    slow, fast = autoscaler(), Autoscaler(SCALING.behavior, 1, 20, faster=30)
    numbers = [[2], [2]]
    for step in range(200):
        load = [(8 * shares(DAY, 0.5)[step], 1.0)]
        numbers[0].append(slow.desired(step * SYNC_S, numbers[0][-1], load))
        numbers[1].append(fast.desired(step * SYNC_S / 30, numbers[1][-1], load))
    assert numbers[0] == numbers[1]
    assert max(numbers[0]) == 8


def test_windows_of_queries_are_shortened() -> None:
    assert shortened("rate(a[2m]) / rate(b[1m])", 30) == "rate(a[4000ms]) / rate(b[2000ms])"


def test_changes_of_direction_are_counted() -> None:
    assert [turns(numbers) for numbers in ([1, 1], [1, 2, 2, 3], [1, 2, 1], [1, 2, 1, 2, 2])] == [0, 0, 1, 2]


def test_the_recorded_replay_follows_the_load_without_flapping_within_the_objective() -> None:
    """Of the result that the documents show: real replicas, Prometheus and load (`distillery-bench autoscaling`)."""
    path = latest("autoscaling", folder=ROOT / RESULTS)
    assert path
    data = read_result(path)["data"]
    assert data["triggers"] == {trigger.name: trigger.threshold for trigger in SCALING.triggers}
    samples = data["samples"]
    numbers = [one["replicas"] for one in samples]
    assert numbers[0] == 1
    assert max(numbers) == data["largest"] > 2
    assert numbers[-1] < data["largest"]
    assert data["turns"] == turns(numbers) <= 4
    scaler = Autoscaler(SCALING.behavior, 1, data["maximum"])
    units = [data["cores"] if trigger.name == "cpu" else 1 for trigger in SCALING.triggers]
    for one in samples:  # the recorded metrics lead to the recorded numbers again
        values = [
            (
                None if one[trigger.name] is None else one[trigger.name] * one["replicas"],
                trigger.threshold * unit,
            )
            for trigger, unit in zip(SCALING.triggers, units, strict=True)
        ]
        wanted = scaler.desired(one["time"] * 60, one["replicas"], values)
        assert abs(wanted - one["wanted"]) <= 1
    assert data["over_objective_share"] < 0.05
