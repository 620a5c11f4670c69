"""Fixtures shared by the tests: small networks trained on real digits, exported for real.

What imports torch is imported by the fixtures: the first process of pytest-xdist, which runs no tests, does without it.
"""

import gc
import os
import signal
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from shutil import copytree
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from distillery.machine import usable_cores
from tests.support.service import API_KEY, ROOT, Service, running_service

if TYPE_CHECKING:
    from export.splits import Splits

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)  # commands that tests start would ignore it too
os.environ["PYTHONPATH"] = str(ROOT)  # scripts that tests start import tests.support too
# Each client of httpx reads all authorities that it trusts: 35 ms for those of certifi.
os.environ["SSL_CERT_FILE"] = str(Path(__file__).parent / "data/authority.pem")

THREADS = int(os.environ.get("DISTILLERY_TEST_THREADS", "1"))
"""CPU threads of torch: networks this small gain nothing from a second one. `make test-portable` sets it."""

LONGEST = (
    "tests/training/sweep/test_sweep.py",
    "tests/training/paper/test_reproduce.py",
    "tests/training/report/test_report.py",
    "tests/serving/processes/test_supervision.py",
    "tests/benchmarks/commands/test_pictures.py",
    "tests/serving/http/overload/test_fairness.py",
    "tests/serving/processes/test_platforms.py",
    "tests/serving/processes/test_processes.py",
)
"""Files that run first; pytest-xdist begins with those of most tests."""


class Scheduling(LoadFileScheduling):
    """Tests of one file run in one process, and so do all that share what is slow to start, and `LONGEST` run first."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        if file.startswith("tests/faults/"):  # they share the process that starts commands
            return "faults"
        return "workers" if "workers_service" in Path(ROOT, file).read_text() else file

    def _assign_work_unit(self, node: WorkerController) -> None:
        if first := next((scope for scope in LONGEST if scope in self.workqueue), None):
            self.workqueue.move_to_end(first, last=False)
        super()._assign_work_unit(node)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Run one process more than there are cores: one of them usually waits for a service."""
    return min(usable_cores() + 1, config.getoption("maxprocesses") or 4)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling | None:
    """Schedule by `Scheduling` where files are scheduled, as by `make test`."""
    return Scheduling(config, log) if config.getvalue("dist") == "loadfile" else None


gc.disable()  # while the tests are imported, a quarter of the time is spent on collections that find nothing


def pytest_collection_finish() -> None:
    """Exclude what has been imported from every later garbage collection."""
    gc.enable()
    gc.freeze()


@pytest.fixture(autouse=True)
def fixed_threads() -> Iterator[None]:
    """Fix torch's threads, which a command under test may set: their number decides the last bits of a sum."""
    import torch  # noqa: PLC0415

    torch.set_num_threads(THREADS)
    yield
    torch.set_num_threads(THREADS)  # for the fixtures of the next module, which come before this one


def made_once(folders: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder that `make` fills, once for all processes of pytest-xdist."""
    root = folders.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    folder, unfinished = root / name, root / f"{name}.unfinished"
    with FileLock(root / f"{name}.lock"):
        if not folder.exists():
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(folder)
    return folder


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of small networks trained on the 500 sample digits, by name."""
    import torch  # noqa: PLC0415

    from tests.support.training.models import NETWORKS, checkpoint, train_networks  # noqa: PLC0415

    torch.set_num_threads(THREADS)  # fixtures of the session come before `fixed_threads`
    folder = made_once(tmp_path_factory, "trained", train_networks)
    return {name: checkpoint(folder, name) for name in NETWORKS}


@pytest.fixture(scope="session")
def splits() -> "Splits":
    """The sample digits as an export reads them."""
    from export.splits import Splits  # noqa: PLC0415
    from tests.support.training.samples import sample_test, sample_training  # noqa: PLC0415

    return Splits(*sample_training(), sample_test(), drawn=60)


@pytest.fixture(scope="session")
def model_repository(
    trained: dict[str, Path], splits: "Splits", tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model repository with teacher, student, student-int8 and student-alone; read-only for tests."""
    from tests.support.training.models import export_networks  # noqa: PLC0415

    return made_once(tmp_path_factory, "models", partial(export_networks, trained, splits))


@pytest.fixture(scope="session")
def demo_repository(
    trained: dict[str, Path],
    splits: "Splits",
    model_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A model repository with the models of the demo: also fast and fast-int8, which is then the default."""
    from export.pipeline import Source, export_checkpoint  # noqa: PLC0415

    def export(folder: Path) -> None:
        copytree(model_repository, folder, dirs_exist_ok=True)
        export_checkpoint(Source("fast", trained["fast"]), splits, models_dir=folder, int8=True)

    return made_once(tmp_path_factory, "demo-models", export)


@pytest.fixture(scope="session")
def two_versions(
    trained: dict[str, Path],
    splits: "Splits",
    model_repository: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """A repository of the teacher and of two versions of the student, different networks; 2 is served by default."""
    from export.pipeline import Source, export_checkpoint  # noqa: PLC0415

    def export(folder: Path) -> None:
        for name in ("student", "teacher"):
            copytree(model_repository / name, folder / name)
        source = Source("student", trained["student-alone"])
        export_checkpoint(source, splits, models_dir=folder, version=2)

    return made_once(tmp_path_factory, "two-versions", export)


@pytest.fixture(scope="session")
def one_model(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the student alone: one model is enough to see processes come and go."""
    return _some_of(model_repository, tmp_path_factory, "student")


@pytest.fixture(scope="session")
def two_models(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of student and teacher: every model of a service with workers costs a process."""
    return _some_of(model_repository, tmp_path_factory, "student", "teacher")


@pytest.fixture(scope="session")
def cascade_repository(
    model_repository: Path, splits: "Splits", tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A repository of student, teacher and a cascade of the two."""
    from tests.support.cascade import export_small_cascade  # noqa: PLC0415

    folder = _some_of(model_repository, tmp_path_factory, "student", "teacher")
    export_small_cascade(folder, splits)
    return folder


@pytest.fixture(scope="session")
def service(model_repository: Path) -> Iterator[Service]:
    """A service of all four models, over HTTP and gRPC, for every test that leaves no trace but in the counts."""
    flags = ("--api-servers", "2", "--max-images", "200", "--grpc-port", "0")
    with running_service(model_repository, *flags) as service:
        yield service


@pytest.fixture(scope="session")
def strict_service(model_repository: Path) -> Iterator[Service]:
    """A service with an API key, and with limits so low that a test can reach them."""
    access = ("--api-servers", "1", "--api-key", API_KEY, "--grpc-port", "0")
    limits = ("--request-timeout", "0.6", "--client-timeout", "0.6", "--max-in-flight", "2")
    with running_service(model_repository, *access, *limits, "--max-body-bytes", "20000") as service:
        yield service


@pytest.fixture(scope="session")
def workers_service(two_models: Path) -> Iterator[Service]:
    """A service whose two models run in LitServe's workers."""
    flags = ("--api-servers", "2", "--max-images", "200", "--executor", "workers", "--grpc-port", "0")
    with running_service(two_models, *flags) as service:
        yield service


def _some_of(repository: Path, folders: pytest.TempPathFactory, *names: str) -> Path:
    folder = folders.mktemp("models")
    for name in names:
        copytree(repository / name, folder / name)
    return folder


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With DISTILLERY_NO_SKIPS=1, as CI sets it, a skipped test fails the run: nothing is left out unseen.

    Except what the kernel or the user's rights forbid, for which no installation helps: "this machine …".
    """
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("DISTILLERY_NO_SKIPS") == "1" and reporter:
        reasons = [report.longrepr[2] for report in reporter.stats.get("skipped", ())]
        if any(not reason.startswith("Skipped: this machine ") for reason in reasons):
            session.exitstatus = pytest.ExitCode.TESTS_FAILED
