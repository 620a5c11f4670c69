"""/metrics as OpenMetrics: the same numbers, and the traces of requests that have a span as exemplars."""

import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from shutil import which

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_plain

from serving.codecs.predict import PredictCodec
from serving.engine.metrics.exemplars import ExemplarRecorder
from serving.engine.metrics.exposition import OPENMETRICS, PLAIN, Exposition, content_type
from serving.engine.metrics.recorder import RequestMetrics
from serving.engine.metrics.series import REQUEST_SECONDS, SECONDS, Metrics, metrics_table
from tests.support.otlp_receiver import receiving
from tests.support.prometheus import running_prometheus
from tests.support.service import Service, eventually, running_service
from tests.support.training.samples import sample_test

MODELS = ("student", "teacher")
SLOTS = {(name, "1"): str(slot) for slot, name in enumerate(MODELS)}
PROMETHEUS = (
    "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,"
    "text/plain;version=0.0.4;q=0.5,*/*;q=0.1"
)
Exemplars = dict[tuple[str, float], tuple[str, float, float]]


def exemplars_of(text: str) -> Exemplars:
    """Trace id, value and time of each exemplar, by the model and the upper bound of its bucket."""
    return {
        (sample.labels["model"], float(sample.labels["le"])): (
            sample.exemplar.labels["trace_id"],
            sample.exemplar.value,
            float(sample.exemplar.timestamp),
        )
        for family in parse_openmetrics(text)
        for sample in family.samples
        if sample.exemplar
    }


def metrics() -> Metrics:
    """Metrics of two processes."""
    return Metrics(metrics_table(len(MODELS), ["rest"], ["/predict"], 64), 2)


def test_an_exemplar_is_in_the_bucket_of_its_request() -> None:
    shared = metrics()
    cases = {0.00042: "0" * 31 + "1", 1e-6: "f" * 32, 99.0: "0123456789abcdef" * 2, SECONDS[3]: "a" * 32}
    for model in MODELS:
        requests = RequestMetrics(shared.row(0), SLOTS[model, "1"])
        for seconds, trace_id in cases.items():
            requests.answered(PredictCodec(), 200, seconds=seconds)
            ExemplarRecorder(shared.row(0)).add(SLOTS[model, "1"], seconds, trace_id)
        requests.publish()
    text = Exposition(shared, lambda: SLOTS).text(OPENMETRICS)
    found = exemplars_of(text)
    assert len(found) == len(MODELS) * len(cases)
    for (_, bound), (trace_id, seconds, moment) in found.items():
        assert cases[seconds] == trace_id
        assert seconds <= bound
        assert bound == min((one for one in SECONDS if one >= seconds), default=float("inf"))
        assert time.time() - 60 < moment < time.time() + 1
    lines = [line for line in text.splitlines() if " # {" in line]
    assert all(line.startswith(f"{REQUEST_SECONDS}_bucket") for line in lines)
    assert " # {" not in Exposition(shared, lambda: SLOTS).text(PLAIN)


def test_the_newest_exemplar_of_all_processes_is_exposed(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = metrics()
    for moment, (process, trace_id) in enumerate(((1, "1" * 32), (0, "2" * 32), (1, "3" * 32))):
        monkeypatch.setattr("serving.engine.metrics.exemplars.time", lambda moment=moment: 1e9 + moment)
        ExemplarRecorder(shared.row(process)).add(SLOTS["student", "1"], 0.001, trace_id)
        shared.process_died("api", process)  # which loses none
        found = exemplars_of(Exposition(shared, lambda: SLOTS).text(OPENMETRICS))
        assert list(found.values()) == [(trace_id, 0.001, 1e9 + moment)]


def test_both_formats_have_the_same_numbers(service: Service) -> None:
    with httpx.Client(base_url=service.url, timeout=10) as client:
        plain = client.get("/metrics", headers={"Accept": "text/plain"})
        other = client.get("/metrics", headers={"Accept": PROMETHEUS})
    assert plain.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    assert other.headers["content-type"] == "application/openmetrics-text; version=1.0.0; charset=utf-8"
    assert other.text.endswith("\n# EOF\n")
    assert other.text.count("# EOF") == 1
    names = [
        {
            (sample.name, *sorted(sample.labels.items()))
            for family in parse(answer.text)
            for sample in family.samples
        }
        for parse, answer in ((parse_plain, plain), (parse_openmetrics, other))
    ]
    assert names[0] == names[1]
    assert len(names[0]) > 500


@pytest.mark.parametrize(
    "accept", ["", "*/*", "text/plain", "text/html,*/*;q=0.8", "application/openmetrics"]
)
def test_other_clients_receive_the_text_format(accept: str) -> None:
    assert content_type(accept) == PLAIN


@pytest.fixture(scope="module")
def traced(one_model: Path) -> Iterator[Service]:
    """A service that samples the traces that its callers do."""
    with receiving() as collector:
        environment = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.endpoint,
            "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        }
        flags = ("--tracing", "--api-servers", "2")
        with running_service(one_model, *flags, environment=environment) as service:
            yield service


def test_a_request_with_a_span_is_an_exemplar_and_others_are_none(traced: Service) -> None:
    digit = sample_test().images[0].tolist()
    with httpx.Client(base_url=traced.url, timeout=10) as client:

        def predict(trace_id: str, flags: str) -> None:
            headers = {"traceparent": f"00-{trace_id}-{1:016x}-{flags}"}
            answer = client.post("/predict", json={"image": digit}, headers=headers)
            assert answer.status_code == 200

        def scrape() -> Exemplars:
            return exemplars_of(client.get("/metrics", headers={"Accept": PROMETHEUS}).text)

        for number in range(1, 5):
            predict(f"{number:032x}", "00")
        client.post("/predict", json={"image": digit})
        assert scrape() == {}
        sampled = {f"{number:032x}" for number in range(5, 9)}
        for trace_id in sorted(sampled):
            predict(trace_id, "01")
        found = scrape()
        assert {trace_id for trace_id, _, _ in found.values()} <= sampled
        assert max(sampled) in {trace_id for trace_id, _, _ in found.values()}
        assert {model for model, _ in found} == {"student"}


@pytest.mark.prometheus
@pytest.mark.skipif(not which("prometheus"), reason="no prometheus: make system installs it")
def test_prometheus_stores_the_exemplar(traced: Service, tmp_path: Path) -> None:
    digit, trace_id, now = sample_test().images[0].tolist(), "9" * 32, time.time()
    with running_prometheus([traced.url], tmp_path) as prometheus:
        headers = {"traceparent": f"00-{trace_id}-{1:016x}-01"}
        httpx.post(f"{traced.url}/predict", json={"image": digit}, headers=headers)

        def stored() -> list[dict[str, str]]:
            with suppress(httpx.HTTPError):  # not ready yet
                series = prometheus.get(
                    "query_exemplars",
                    query=f"{REQUEST_SECONDS}_bucket",
                    start=str(now - 60),
                    end=str(now + 60),
                )
                return [exemplar["labels"] for one in series for exemplar in one["exemplars"]]
            return []

        eventually(lambda: {"trace_id": trace_id} in stored())
