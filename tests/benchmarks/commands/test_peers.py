"""The peers: their declarations, virtual environments and processes, and the command that compares them."""

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
from benchmarks.systems.peer import PEERS, Peer, load_peer, peer_names
from benchmarks.systems.peer_environments import MARKER, peer_environment
from benchmarks.systems.servers import ServerProcess, running_peer
from distillery import main

HERE = Path(sys.executable)
"""The project's own environment, which has what some of the peers need."""

FILES = ("README.md", "peer.toml", "requirements.txt", "server.py")
"""The files of every folder."""


def started(name: str, model: Path, processes: int = 1) -> AbstractContextManager[ServerProcess]:
    return running_peer(load_peer(name), model, HERE, processes=processes)


def alive(processes: list[psutil.Process]) -> list[psutil.Process]:
    """Return the processes that have not ended after 5 s; a zombie has ended."""
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
    """Write a copy of the smallest peer, with other files."""
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
def test_every_peer_is_sent_the_digits(name: str) -> None:
    digits = load_digits()[:3]
    workload = load_peer(name).workload("http://127.0.0.1:81", "student", digits)
    for number, request in enumerate(workload.requests):
        head, _, content = request.partition(b"\r\n\r\n")
        assert head.startswith(b"POST /")
        numbers = np.array([int(text) for text in re.findall(rb"\d+", content)])
        image = digits[number].ravel()
        assert any(np.array_equal(numbers[at : at + 784], image) for at in range(len(numbers) - 783))
        json.loads(content)


def test_an_unknown_peer_lists_the_known_ones_and_suggests_the_nearest() -> None:
    with pytest.raises(
        BenchmarkError, match=r"there is no peer 'mosek'; known: bare-asgi, .*; did you mean mosec\?"
    ):
        load_peer("mosek")


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("title = 3", "title\n.*valid string"),
        ("titel = 'x'", "titel\n.*not permitted"),
        ("body = '{\"image\": {picture}}'", r"body\n.*\{image\} or \{pixels\} exactly once, found"),
        ("body = '{\"image\": {image}'", "body\n.*delimiter"),
        ("command = ['python', '{modell}']", r"command\n.*unknown placeholders \['modell'\]"),
        ("ready = 'health'", "ready\n.*match pattern"),
        ("title = ", "Invalid value"),
    ],
)
def test_an_invalid_declaration_names_the_key_and_the_value(tmp_path: Path, line: str, message: str) -> None:
    original = (PEERS / "bare_asgi/peer.toml").read_text(encoding="utf-8")
    key = line.partition(" ")[0]
    others = [other for other in original.splitlines() if not other.startswith(f"{key} ")]
    with pytest.raises(BenchmarkError, match=rf"(?s)mine/peer\.toml: .*{message}"):
        write_peer(tmp_path, peer="\n".join([line, *others]))


def test_tick_batching_answers_like_a_session_under_concurrent_load(student: Path) -> None:
    with started("tick-batching", student) as server:
        workload = load_peer("tick-batching").workload(server.url, "student")
        assert check_answers(workload, student) <= TOLERANCE
        assert run_load(workload, 8, 0.2, tool="python").latencies.total > 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["bare-asgi", "fastapi-onnxruntime", "litserve-first-example"])
def test_peers_that_run_in_our_environment_answer_like_a_session(name: str, student: Path) -> None:
    with started(name, student, processes=2) as server:
        assert check_answers(load_peer(name).workload(server.url, "student"), student) <= TOLERANCE


def test_the_check_fails_for_a_peer_with_another_model(model_repository: Path, student: Path) -> None:
    teacher = select_models(model_repository)["teacher"].path
    with (
        started("bare-asgi", teacher) as server,
        pytest.raises(BenchmarkError, match=r"bare-asgi at .*: the predictions are not those of model\.onnx"),
    ):
        check_answers(load_peer("bare-asgi").workload(server.url, "student"), student)


def test_a_response_of_another_form_is_shown_in_the_error(tmp_path: Path, student: Path) -> None:
    declaration = (PEERS / "bare_asgi/peer.toml").read_text(encoding="utf-8")
    peer = write_peer(tmp_path, peer=declaration.replace('answer = "probabilities"', 'answer = "outputs.0"'))
    with (
        running_peer(peer, student, HERE, processes=1) as server,
        pytest.raises(
            BenchmarkError, match=r"mine: no 'outputs' of 'outputs\.0' in the response .*probabilities"
        ),
    ):
        check_answers(peer.workload(server.url, "student"), student)


def test_placeholders_in_the_environment_are_filled(tmp_path: Path, student: Path) -> None:
    declaration = (PEERS / "bare_asgi/peer.toml").read_text(encoding="utf-8")
    peer = write_peer(
        tmp_path,
        peer=f'{declaration}\n[environment]\nMODEL = "{{model}}"\nMETRICS_PORT = "{{metrics_port}}"\n',
    )
    with running_peer(peer, student, HERE, processes=1) as server:
        environment = server.all()[0].environ()
    assert environment["MODEL"] == str(student.resolve())
    assert int(environment["METRICS_PORT"]) > 1024


def test_the_output_of_a_peer_that_does_not_start_is_in_the_error(tmp_path: Path) -> None:
    server = started("bare-asgi", tmp_path / "no.onnx")
    with pytest.raises(BenchmarkError, match=r"(?s)no server became ready .*no\.onnx"), server:
        pass


def test_a_missing_program_is_named(student: Path) -> None:
    server = started("mlserver", student)
    with pytest.raises(BenchmarkError, match="there is no program mlserver"), server:
        pass


def test_all_processes_are_paused_resumed_and_stopped(student: Path) -> None:
    with started("bare-asgi", student, processes=2) as server:
        before = server.all()
        assert len(before) == 3
        server.pause()
        assert {process.status() for process in before} == {psutil.STATUS_STOPPED}
        server.resume()
        assert psutil.STATUS_STOPPED not in {process.status() for process in before}
        server.pause()
        assert server.memory_mib() > 30
    assert alive(before) == []


def test_processes_in_a_session_of_their_own_are_stopped_too(tmp_path: Path, student: Path) -> None:
    loud = "import os, sys\n" + (PEERS / "bare_asgi/server.py").read_text(encoding="utf-8")
    peer = write_peer(tmp_path, server=loud.replace("    listener =", "    os.setsid()\n    listener ="))
    with running_peer(peer, student, HERE, processes=1) as server:
        before = server.all()
        assert len({os.getsid(process.pid) for process in before}) == 2
    assert alive(before) == []


@pytest.mark.slow
def test_an_environment_is_created_once_and_again_for_other_requirements(tmp_path: Path) -> None:
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
    (tmp_path / "mine" / MARKER).unlink()  # as after an interruption
    peer_environment(peer, tmp_path)
    assert not marker.exists()


@pytest.mark.slow
def test_concurrent_requests_for_an_environment_create_it_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "peers").mkdir()
    peer = write_peer(tmp_path / "peers", requirements="# nothing\n")
    with ThreadPoolExecutor() as threads:
        pythons = list(threads.map(lambda _: peer_environment(peer, tmp_path), range(2)))
    assert pythons[0] == pythons[1]
    assert capsys.readouterr().err.count("installing mine") == 1


@pytest.mark.slow
def test_a_failed_installation_is_reported_and_not_kept(tmp_path: Path) -> None:
    (tmp_path / "peers").mkdir()
    peer = write_peer(tmp_path / "peers", requirements="./no-such-package\n")
    with pytest.raises(BenchmarkError, match=r"(?s)mine could not be installed: .*no-such-package"):
        peer_environment(peer, tmp_path)
    assert (tmp_path / "mine").exists()
    assert not (tmp_path / "mine" / MARKER).exists()


def test_our_ratio_is_taken_within_a_round_at_the_same_connections() -> None:
    def row(server: str, rates: list[float], connections: int = 16) -> dict[str, Any]:
        return {"server": server, "connections": connections, "rounds": {"requests_per_s": rates}}

    rows = [row("inprocess", [1, 1, 1], 1), row("inprocess", [4, 40, 9]), row("other", [2, 4, 3])]
    assert ours_by(rows[1], rows).median == 1
    ratio = ours_by(rows[2], rows)
    assert (ratio.low, ratio.median, ratio.high) == (2, 3, 10)


@pytest.mark.slow
def test_the_command_compares_a_peer_in_its_own_environment_with_our_service(
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
    assert all(row["cpu_us"] > 0 for row in summary["rows"])
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
