"""A change that fails, in part or as a whole, leaves all processes with the same versions; the service goes on."""

import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import psutil
import pytest

from serving.engine.admission.api_keys import hash_of
from tests.support.certificates import Authority
from tests.support.service import Service, eventually, running_service, starting_service
from tests.support.versions import DIGITS, predictions_of, publish, served, set_policy

KEY = {"X-API-Key": "the admin"}
BODY = {"images": DIGITS[:4].tolist()}
TRIAL = """
import os, signal, time, serving.release.trial as trial
trial.TRIAL_SECONDS = {seconds}
check_sample = trial.check_sample
def check(manifest, session):
    if manifest.version == "2":
        {harm}
    check_sample(manifest, session)
trial.check_sample = check
"""
HANG, CRASH = "time.sleep(600)", "os.kill(os.getpid(), signal.SIGSEGV)"
DISK = """
import time, serving.release.changes as changes, serving.release.trial
from pathlib import Path
serving.release.trial.TRIAL_SECONDS = 3
load_snapshot = changes.load_snapshot
def slow(*arguments, **options):
    while Path("{path}").exists():
        time.sleep(0.05)
    return load_snapshot(*arguments, **options)
changes.load_snapshot = slow
"""
PREPARE = """
import os, time, serving.processes.supervisor
from pathlib import Path
from serving.engine.lit_api import DigitAPI
from serving.model.repository import RepositoryError
serving.processes.supervisor.HANG_SECONDS = 1.5
setup = DigitAPI.setup
def slow(self, device):
    while self.entry.manifest.version == "1" and Path("{folder}/wait").exists():
        time.sleep(0.05)
    if self.entry.manifest.version == "2":
        Path("{folder}", str(os.getpid())).touch()
        time.sleep({seconds})
        flag = Path("{folder}/fail")
        if flag.exists():
            flag.unlink()
            raise RepositoryError("no memory here")
    setup(self, device)
DigitAPI.setup = slow
"""


@pytest.fixture
def root(two_versions: Path, tmp_path: Path) -> Path:
    """A repository that tests may change: version 1 of the student, and the teacher; version 2 is `newer`."""
    root = Path(shutil.copytree(two_versions, tmp_path / "models"))
    shutil.move(root / "student" / "2", tmp_path / "newer")
    return root


@pytest.fixture
def newer(root: Path) -> Path:
    return root.parent / "newer"


@pytest.fixture
def preparing(tmp_path: Path) -> Path:
    """The folder with a file for every process that prepares version 2."""
    folder = tmp_path / "preparing"
    folder.mkdir()
    return folder


@contextmanager
def administered(root: Path, setup: str = "", *flags: str) -> Iterator[tuple[Service, httpx.Client]]:
    flags = ("--api-servers", "2", "--api-key", "the admin", *flags)
    with (
        running_service(root, *flags, setup=setup) as service,
        httpx.Client(base_url=service.url, headers=KEY, timeout=30) as client,
    ):
        yield service, client


def load(client: httpx.Client, model: str = "student") -> httpx.Response:
    return client.post(f"/v2/repository/models/{model}/load")


def versions(service: Service) -> set[str]:
    """Return the versions that answer, on connections of their own."""
    return {
        httpx.post(f"{service.url}/predict/student", json=BODY, headers=KEY, timeout=10).json()["version"]
        for _ in range(16)
    }


def test_a_disk_that_hangs_holds_up_the_change_alone(root: Path, newer: Path) -> None:
    hangs = root.parent / "hangs"
    with (
        administered(root, DISK.format(path=hangs)) as (service, client),
        ThreadPoolExecutor(1) as pool,
    ):
        processes = service.children()
        publish(root, newer, 2)
        hangs.touch()
        loading = pool.submit(load, client)
        answered = 0
        while not loading.done():
            # The first process of the service answers this one.
            assert httpx.get(f"{service.url}/release", headers=KEY, timeout=10).status_code == 200
            answered += not loading.done()
            time.sleep(0.1)
        assert answered >= 2
        assert "reading the model repository did not end within 3 s" in loading.result().json()["error"]
        assert versions(service) == {"1"}
        hangs.unlink()
        assert load(client).status_code == 200
        assert versions(service) == {"2"}
        assert service.children() == processes


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (HANG, "student/2/model.onnx: its trial did not end within 1 s"),
        (CRASH, "student/2/model.onnx: its trial ended its process with SIGSEGV"),
    ],
    ids=["hang", "crash"],
)
def test_a_version_that_harms_its_trial_harms_nothing_else(
    root: Path, newer: Path, harm: str, message: str
) -> None:
    """The others of the same reload are tried and served."""
    with administered(root, TRIAL.format(seconds=1, harm=harm)) as (service, client):
        processes = service.children()
        publish(root, newer, 2)
        publish(root, newer, 3)
        set_policy(root, "all { }")
        answer = load(client)
        assert answer.status_code == 400
        assert message in answer.json()["error"]
        found = served(service.url, headers=KEY)
        assert message in found.pop("student/2")
        assert found == {"student/1": "READY", "student/3": "READY", "teacher/1": "READY"}
        assert versions(service) == {"3"}
        assert service.children() == processes


def test_a_trial_that_hangs_does_not_delay_the_shutdown(root: Path, newer: Path) -> None:
    with starting_service(root, "--api-servers", "1", setup=TRIAL.format(seconds=60, harm=HANG)) as service:
        service.wait_until_ready()
        publish(root, newer, 2)
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(service.children()) == 2)
        children = service.children()
        begun = time.monotonic()
        service.end()
        assert service.process.returncode == 0
        assert time.monotonic() - begun < 5
        eventually(lambda: not any(map(psutil.pid_exists, children)))


def test_a_trial_ends_with_a_service_that_is_killed(root: Path, newer: Path) -> None:
    with starting_service(root, "--api-servers", "2", setup=TRIAL.format(seconds=60, harm=HANG)) as service:
        service.wait_until_ready()
        publish(root, newer, 2)
        service.process.send_signal(signal.SIGHUP)
        eventually(lambda: len(service.children()) == 3)
        children = service.children()
        service.process.send_signal(signal.SIGKILL)
        eventually(lambda: not any(map(psutil.pid_exists, children)))


def test_what_one_process_cannot_load_none_serves(root: Path, newer: Path, preparing: Path) -> None:
    with administered(root, PREPARE.format(folder=preparing, seconds=0.1)) as (service, client):
        publish(root, newer, 2)
        (preparing / "fail").touch()
        answer = load(client)
        assert answer.status_code == 400
        assert "a process cannot load it: no memory here" in answer.json()["error"]
        assert versions(service) == {"1"}
        assert load(client).status_code == 200
        assert versions(service) == {"2"}


@pytest.mark.parametrize("fails", [False, True])
def test_a_process_that_dies_while_it_prepares_ends_up_with_the_same_versions(
    root: Path, newer: Path, preparing: Path, fails: bool
) -> None:
    """Also if the one that replaces it cannot load them at first: it is replaced once more."""
    with (
        administered(root, PREPARE.format(folder=preparing, seconds=0.5)) as (service, client),
        ThreadPoolExecutor(1) as pool,
    ):
        publish(root, newer, 2)
        processes = service.children()
        changing = pool.submit(load, client)
        eventually(lambda: len(list(preparing.iterdir())) == 1)
        asked = _connected(client, processes)
        [victim] = set(processes) - {asked}
        (preparing / "wait").touch()  # the replacement starts with version 1, and is ready after the change
        os.kill(victim, signal.SIGKILL)
        assert changing.result().status_code == 200
        if fails:
            (preparing / "fail").touch()
        (preparing / "wait").unlink()
        if fails:  # the process that ends closes its connections, as at any shutdown
            eventually(lambda: not (preparing / "fail").exists(), 20)
            eventually(lambda: "restarting it" in service.read_line(), 20)
            eventually(lambda: "restarting it" in service.read_line(), 20)
        eventually(lambda: len(service.children()) == 2 and versions(service) == {"2"}, 20)
        assert not (preparing / "fail").exists()
        assert asked in service.children()


@pytest.mark.parametrize("version", [1, 2])
def test_a_process_that_dies_after_a_change_is_replaced_by_one_with_the_new_files(
    root: Path, newer: Path, version: int
) -> None:
    """Of another version, or of the same one."""
    second = predictions_of(newer)
    with administered(root) as (service, client):
        publish(root, newer, version)
        assert load(client).status_code == 200
        for process in service.children():
            os.kill(process, signal.SIGKILL)
            assert "restarting it" in service.read_line()
            eventually(lambda gone=process: len(service.children()) == 2 and gone not in service.children())
        for _ in range(12):
            answer = httpx.post(f"{service.url}/predict/student", json=BODY, headers=KEY, timeout=10)
            assert second(answer)


def _connected(client: httpx.Client, processes: list[int]) -> int:
    """Return the process that has the connection of a client."""
    mine = {one.laddr for one in psutil.Process().net_connections("tcp")}
    port = urlsplit(str(client.base_url)).port
    return next(
        process
        for process in processes
        for one in psutil.Process(process).net_connections("tcp")
        if one.laddr.port == port and one.raddr in mine
    )


def test_a_stopped_process_delays_a_change_until_it_is_replaced(
    root: Path, newer: Path, preparing: Path
) -> None:
    with administered(root, PREPARE.format(folder=preparing, seconds=0)) as (service, client):
        publish(root, newer, 2)
        client.get("/health/live")
        processes = service.children()
        [victim] = set(processes) - {_connected(client, processes)}
        os.kill(victim, signal.SIGSTOP)
        assert load(client).status_code == 200
        eventually(lambda: victim not in service.children() and len(service.children()) == 2)
        eventually(lambda: versions(service) == {"2"}, 20)


def test_metrics_of_versions_that_are_gone_make_room(root: Path, newer: Path) -> None:
    """Spare slots are reused after a while; until then a change that has none is rejected."""
    setup = (
        "import serving.release.slots as c, serving.service as s; c.RETIRED_SECONDS = 1; s.SPARE_SLOTS = 1"
    )
    with administered(root, setup) as (service, client):
        client.post("/predict/student", json=BODY)
        publish(root, newer, 2)
        assert load(client).status_code == 200
        publish(root, newer, 3)
        answer = load(client)
        assert answer.status_code == 400
        assert "3 versions are or were served in the last 1 s" in answer.json()["error"]
        time.sleep(1.1)
        assert load(client).status_code == 200
        assert versions(service) == {"3"}
        client.post("/predict/student", json=BODY)
        counted = 'distillery_requests_total{model="student",protocol="rest",status="200",version="3"} 17.0'
        eventually(lambda: counted in client.get("/metrics").text)
        metrics = client.get("/metrics").text
        assert 'version="2"' in metrics
        assert 'model="student",protocol="rest",status="200",version="1"' not in metrics


@pytest.mark.slow
def test_memory_and_descriptors_do_not_grow_over_reloads(root: Path, newer: Path) -> None:
    publish(root, newer, 2)
    with administered(root) as (service, client):

        def reload(times: int) -> tuple[list[int], list[int]]:
            for number in range(times):
                set_policy(root, f"specific {{ versions: {number % 2 + 1} }}")
                assert load(client).status_code == 200
                client.post("/predict/student", json=BODY)
            processes = [psutil.Process(pid) for pid in (service.process.pid, *service.children())]
            return [one.memory_full_info().uss for one in processes], [one.num_fds() for one in processes]

        memory, descriptors = reload(10)
        for _ in range(2):
            later = reload(20)
        assert later[1] == descriptors
        for before, after in zip(memory, later[0], strict=True):
            assert after - before < 4 * 2**20  # 40 reloads: less than 100 kB each


@pytest.mark.slow
def test_spawned_processes_change_together(root: Path, newer: Path, tmp_path: Path) -> None:
    """Where processes cannot be forked, with TLS and keys that change as well."""
    authority, keys = Authority(tmp_path), tmp_path / "keys.toml"
    authority.issue()
    entry = '[[keys]]\nname = "{}"\nhash = "{}"\nscopes = ["infer", "admin"]\n'
    keys.write_text(entry.format("first", hash_of("first")))
    lacking = (
        "import multiprocessing.context; multiprocessing.get_all_start_methods = lambda: ['spawn']; "
        "del multiprocessing.context._concrete_contexts['fork']; import os; del os.memfd_create"
    )
    flags = ("--api-servers", "2", *authority.flags, "--api-keys", str(keys))
    with (
        running_service(root, *flags, setup=lacking, forked=False) as service,
        httpx.Client(base_url=service.url, verify=authority.client(), timeout=60) as client,
    ):

        def change(key: str) -> int:
            return client.post("/v2/repository/models/student/load", headers={"X-API-Key": key}).status_code

        def found(key: str) -> set[str]:
            headers = {"X-API-Key": key, "Connection": "close"}
            return {
                client.post("/predict/student", json=BODY, headers=headers).json().get("version")
                for _ in range(12)
            }

        publish(root, newer, 2)
        assert change("first") == 200
        assert found("first") == {"2"}
        keys.write_text(entry.format("second", hash_of("second")))
        authority.issue()
        eventually(lambda: change("first") == 401)
        set_policy(root, "specific { versions: 1 }")
        assert change("second") == 200
        assert found("second") == {"1"}
        os.kill(service.children()[0], signal.SIGKILL)
        eventually(lambda: len(service.children()) == 2, 20)
        eventually(lambda: found("second") == {"1"}, 20)
