"""Other systems with our models: their declarations, their environments, and some of them for real."""

import json
import os
import re
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks.__main__ import COMMANDS
from benchmarks.commands.peers import ours_by
from benchmarks.errors import BenchmarkError
from benchmarks.load.digits import load_digits
from benchmarks.load.run import run_load
from benchmarks.load.workloads import TOLERANCE, check_answers
from benchmarks.results.models import select_models
from benchmarks.systems.peer import FILES, PEERS, Peer, load_peer, peer_names
from benchmarks.systems.peer_environments import MADE_FROM, peer_environment
from benchmarks.systems.processes import ServerProcess
from benchmarks.systems.servers import running_peer
from distillery import main

HERE = Path(sys.executable)
"""The project's own environment: what some of the systems need, it has."""


def started(name: str, model: Path, processes: int = 1) -> AbstractContextManager[ServerProcess]:
    return running_peer(load_peer(name), model, HERE, processes=processes)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Those that do not end; whoever ended and was not yet asked after (a zombie) did."""
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        left = [one for one in processes if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]
        if not left:
            return []
        time.sleep(0.01)
    return left


def bench(*flags: str) -> int:
    return main("distillery-bench", COMMANDS, arguments=["peers", *flags])


@pytest.fixture(scope="module")
def student(model_repository: Path) -> Path:
    return select_models(model_repository)["student"].path


def write_peer(folder: Path, **changes: str) -> Peer:
    """A system of our own making, a copy of the smallest."""
    original = PEERS / "bare_asgi"
    (folder / "mine").mkdir()
    for name in FILES:
        content = changes.get(name.partition(".")[0], (original / name).read_text(encoding="utf-8"))
        (folder / "mine" / name).write_text(content, encoding="utf-8")
    return load_peer("mine", folder)


def test_every_folder_has_the_same_files() -> None:
    assert len(peer_names()) >= 7
    for name in peer_names():
        found = {path.name for path in load_peer(name).folder.iterdir()} - {"__pycache__"}
        assert found == set(FILES), name


@pytest.mark.parametrize("name", peer_names())
def test_every_package_is_pinned_and_onnxruntime_is_ours(name: str) -> None:
    lines = (load_peer(name).folder / "requirements.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [pin for pin in pins if not re.fullmatch(r"[\w.-]+(\[\w+\])?==[\w.]+", pin)] == []
    assert f"onnxruntime=={metadata.version('onnxruntime')}" in pins
    assert set(load_peer(name).packages) <= {re.split(r"\[|==", pin)[0] for pin in pins}


def test_the_first_example_uses_our_version_of_litserve() -> None:
    text = (load_peer("litserve-first-example").folder / "requirements.txt").read_text(encoding="utf-8")
    assert f"litserve=={metadata.version('litserve')}\n" in text


@pytest.mark.parametrize("name", peer_names())
def test_every_system_is_sent_the_digits(name: str) -> None:
    digits = load_digits()[:3]
    workload = load_peer(name).workload("http://127.0.0.1:81", "student", digits)
    for number, request in enumerate(workload.requests):
        head, _, content = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /")
        numbers = np.array([int(text) for text in re.findall(rb"\d+", content)])
        image = digits[number].ravel()
        assert any(np.array_equal(numbers[at : at + 784], image) for at in range(len(numbers) - 783))
        json.loads(content)


def test_an_unknown_peer_is_told_apart_from_those_there_are() -> None:
    with pytest.raises(BenchmarkError, match="there is no peer 'triton', there are bare-asgi, bentoml, "):
        load_peer("triton")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("title = 3", "title\n.*valid string"),
        ("titel = 'x'", "titel\n.*not permitted"),
        ("body = '{\"image\": {picture}}'", r"body\n.*\{image\} or \{pixels\}, once"),
        ("body = '{\"image\": {image}'", "body\n.*delimiter"),
        ("command = ['python', '{modell}']", r"command\n.*unknown placeholders \['modell'\]"),
        ("ready = 'health'", "ready\n.*match pattern"),
        ("title = ", "Invalid value"),
    ],
)
def test_a_declaration_that_does_not_fit_says_where(tmp_path: Path, line: str, message: str) -> None:
    original = (PEERS / "bare_asgi/peer.toml").read_text(encoding="utf-8")
    key = line.partition(" ")[0]
    others = [other for other in original.splitlines() if not other.startswith(f"{key} ")]
    with pytest.raises(BenchmarkError, match=rf"(?s)mine/peer\.toml: .*{message}"):
        write_peer(tmp_path, peer="\n".join([line, *others]))


def test_the_floor_answers_as_a_session_does_and_batches(student: Path) -> None:
    with started("tick-batching", student) as server:
        workload = load_peer("tick-batching").workload(server.url, "student")
        assert check_answers(workload, student) <= TOLERANCE
        assert run_load(workload, 8, 0.2, tool="python").latencies.total > 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bare-asgi", "fastapi-onnxruntime", "litserve-first-example"])
def test_what_runs_in_our_environment_answers_as_a_session_does(name: str, student: Path) -> None:
    with started(name, student, processes=2) as server:
        assert check_answers(load_peer(name).workload(server.url, "student"), student) <= TOLERANCE


def test_a_system_with_another_model_is_noticed(model_repository: Path, student: Path) -> None:
    teacher = select_models(model_repository)["teacher"].path
    with (
        started("bare-asgi", teacher) as server,
        pytest.raises(BenchmarkError, match=r"bare-asgi at .*: the answers are not those of "),
    ):
        check_answers(load_peer("bare-asgi").workload(server.url, "student"), student)


def test_an_answer_of_another_form_is_shown(tmp_path: Path, student: Path) -> None:
    declaration = (PEERS / "bare_asgi/peer.toml").read_text(encoding="utf-8")
    peer = write_peer(tmp_path, peer=declaration.replace('answer = "probabilities"', 'answer = "outputs.0"'))
    with (
        running_peer(peer, student, HERE, processes=1) as server,
        pytest.raises(BenchmarkError, match=r"mine answered .*probabilities.*no 'outputs' of 'outputs\.0'"),
    ):
        check_answers(peer.workload(server.url, "student"), student)


def test_a_system_that_does_not_start_says_why(tmp_path: Path) -> None:
    server = started("bare-asgi", tmp_path / "no.onnx")
    with pytest.raises(BenchmarkError, match=r"(?s)no server became ready .*no\.onnx"), server:
        pass


def test_a_program_that_is_not_there_is_named(student: Path) -> None:
    server = started("mlserver", student)
    with pytest.raises(BenchmarkError, match="there is no program mlserver"), server:
        pass


def test_all_processes_are_paused_continued_and_ended(student: Path) -> None:
    with started("bare-asgi", student, processes=2) as server:
        everything = server.all()
        assert len(everything) == 3
        server.pause()
        assert {process.status() for process in everything} == {psutil.STATUS_STOPPED}
        server.resume()
        assert psutil.STATUS_STOPPED not in {process.status() for process in everything}
        server.pause()
        assert server.memory_mib() > 30
    assert alive(everything) == []


def test_processes_with_a_session_of_their_own_are_found_too(tmp_path: Path, student: Path) -> None:
    loud = "import os, sys\n" + (PEERS / "bare_asgi/server.py").read_text(encoding="utf-8")
    peer = write_peer(tmp_path, server=loud.replace("    listener =", "    os.setsid()\n    listener ="))
    with running_peer(peer, student, HERE, processes=1) as server:
        everything = server.all()
        assert len({os.getsid(process.pid) for process in everything}) == 2
    assert alive(everything) == []


@pytest.mark.slow
def test_an_environment_is_made_once_and_again_when_it_is_another(tmp_path: Path) -> None:
    (tmp_path / "peers").mkdir()
    peer = write_peer(tmp_path / "peers", requirements="# nothing\n")
    python = peer_environment(peer, tmp_path)
    assert python.is_file()
    marker = python.parent / "marker"
    marker.touch()
    assert peer_environment(peer, tmp_path) == python
    assert marker.exists()
    (peer.folder / "requirements.txt").write_text("# still nothing\n", encoding="utf-8")
    peer_environment(peer, tmp_path)
    assert not marker.exists()
    marker.touch()
    (tmp_path / "mine" / MADE_FROM).unlink()  # as if it had been interrupted
    peer_environment(peer, tmp_path)
    assert not marker.exists()


@pytest.mark.slow
def test_who_comes_while_an_environment_is_made_waits_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "peers").mkdir()
    peer = write_peer(tmp_path / "peers", requirements="# nothing\n")
    with ThreadPoolExecutor() as threads:
        pythons = list(threads.map(lambda _: peer_environment(peer, tmp_path), range(2)))
    assert pythons[0] == pythons[1]
    assert capsys.readouterr().err.count("installing mine") == 1


@pytest.mark.slow
def test_an_installation_that_fails_says_why_and_is_not_taken_for_made(tmp_path: Path) -> None:
    (tmp_path / "peers").mkdir()
    peer = write_peer(tmp_path / "peers", requirements="./no-such-package\n")
    with pytest.raises(BenchmarkError, match=r"(?s)mine could not be installed: .*no-such-package"):
        peer_environment(peer, tmp_path)
    assert (tmp_path / "mine").exists()
    assert not (tmp_path / "mine" / MADE_FROM).exists()


def test_our_ratio_is_taken_within_a_round_at_the_same_connections() -> None:
    def row(server: str, rates: list[float], connections: int = 16) -> dict[str, Any]:
        return {"server": server, "connections": connections, "rounds": {"requests_per_s": rates}}

    rows = [row("inprocess", [1, 1, 1], 1), row("inprocess", [4, 40, 9]), row("other", [2, 4, 3])]
    assert ours_by(rows[1], rows).median == 1
    ratio = ours_by(rows[2], rows)
    assert (ratio.low, ratio.median, ratio.high) == (2, 3, 10)


@pytest.mark.slow
def test_the_command_measures_a_system_of_an_environment_of_its_own_beside_ours(
    model_repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--models-dir", str(model_repository), "--peers", "bare-asgi", "--executor", "inprocess"]
    flags += ["--connections", "1,2", "--seconds", "0.2", "--rounds", "1", "--tool", "python"]
    assert bench(*flags, "--results-dir", str(tmp_path)) == 0
    summary = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert [(row["server"], row["connections"]) for row in summary["rows"]] == [
        ("inprocess", 1),
        ("bare-asgi", 1),
        ("inprocess", 2),
        ("bare-asgi", 2),
    ]
    kept = json.loads(Path(summary["result"]).read_text())["data"]
    ours, other = kept["servers"]
    assert (ours["server"], other["server"]) == ("inprocess", "bare-asgi")
    assert other["versions"]["onnxruntime"] == metadata.version("onnxruntime")
    for fact in kept["servers"]:
        assert fact["memory_mib"] > 30
        assert fact["processes"] > kept["processes"] >= 1
        assert 0 <= fact["idle_cpu_of_a_core"] < 0.5
        assert fact["start_s"] > 0


def test_an_unknown_name_fails_the_command(
    model_repository: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--models-dir", str(model_repository), "--peers", "triton") == 1
    assert "there is no peer 'triton'" in capsys.readouterr().err
