"""`distillery-bench overload`: the generator, and a short measurement of a real service."""

from pathlib import Path
from urllib.parse import urlsplit

import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.load.overload import Clients, run
from benchmarks.load.workloads import service_workload
from benchmarks.results.files import latest, read_result
from distillery import main
from tests.support.service import Service


@pytest.mark.parametrize("rate", [0, 50], ids=["closed", "open"])
def test_every_request_is_accounted_for(service: Service, rate: float) -> None:
    address = urlsplit(service.url)
    workload = service_workload(service.url, "student")
    requests = [*workload.requests[:4], b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\n\r\n{"]
    clients = Clients(str(address.hostname), address.port or 80, 4, requests, deadline=10)
    report = run(clients, rate, 0.6)
    clients.close()
    assert report["statuses"].keys() == {200, 415}
    assert report["good"] == report["statuses"][200] == sum(count for _, count in report["latency_us"])
    assert report["seconds"] >= 0.6
    assert 0 < report["cpu"] < report["seconds"]
    if rate:
        sent = sum(report["statuses"].values()) + report["unsent"]
        assert 5 < sent < 100  # 30 are expected


@pytest.mark.slow
def test_goodput_is_measured_against_the_capacity(model_repository: Path, tmp_path: Path) -> None:
    place = ["--models-dir", str(model_repository), "--model", "student", "--results-dir", str(tmp_path)]
    load = ["--body", "json-64", "--times", "3", "--connections", "64", "--rounds", "1", "--seconds", "1"]
    assert main("distillery-bench", COMMANDS, arguments=["overload", *place, *load]) == 0
    path = latest("overload", folder=tmp_path)
    assert path
    rows = read_result(path)["data"]["rows"]
    assert [row["case"] for row in rows] == ["3× open", "64 closed"]
    for row in rows:
        assert row["goodput_share"] == pytest.approx(row["goodput_per_s"] / row["capacity_per_s"], abs=0.002)
        assert 0 < row["goodput_share"] < 5
        assert 0 < row["goodput_per_cpu_second"] < 5
        assert 0 < row["generator_cores"] < 1.1
        assert row["others"] == 0
