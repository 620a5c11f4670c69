"""Fixtures shared by the tests: small networks trained on real digits, exported for real."""

import os
from pathlib import Path
from shutil import copytree

import pytest
import torch

from export.pipeline import Digits, Source, export_checkpoint
from tests.support.networks import card
from tests.support.samples import sample_test, sample_training
from training.model.checkpoint import save_checkpoint
from training.model.network import build, normalise
from training.recipe.schema import Architecture

os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])  # scripts that tests start import tests.support too

NETWORKS = {"teacher": [96, 96], "student": [48, 48], "student-alone": [48, 48]}
EPOCHS = 25


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Networks so small only lose time to a second thread, and how many there are decides the last bits of a sum."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of small networks that have learnt the 500 sample digits, by name."""
    folder = tmp_path_factory.mktemp("trained")
    torch.set_num_threads(1)  # networks so small only lose time to a second one
    digits, _ = sample_training()
    inputs = normalise(digits.images)
    paths = {}
    for seed, (name, hidden) in enumerate(NETWORKS.items()):
        torch.manual_seed(seed)
        architecture = Architecture(hidden=hidden)
        network = build(architecture).train()
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3)
        for _ in range(EPOCHS):
            for batch in torch.randperm(len(digits)).split(50):
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(network(inputs[batch]), digits.labels[batch]).backward()
                optimizer.step()
        paths[name] = folder / f"{name}.safetensors"
        save_checkpoint(paths[name], network.state_dict(), card(name, architecture))
    return paths


@pytest.fixture(scope="session")
def export_digits() -> Digits:
    """The sample digits as an export wants them."""
    training, validation = sample_training()
    test = sample_test()
    return Digits(
        calibration=training.images.numpy(),
        validation=validation.images.numpy(),
        validation_labels=validation.labels.numpy(),
        test=test.images.numpy(),
        test_labels=test.labels.numpy(),
    )


@pytest.fixture(scope="session")
def model_repository(
    trained: dict[str, Path], export_digits: Digits, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A model repository with teacher, student, student-int8 and student-alone; not to be written to."""
    root = tmp_path_factory.mktemp("models")
    for name, path in trained.items():
        export_checkpoint(Source(name, path), export_digits, models_dir=root, int8=name == "student")
    return root


@pytest.fixture(scope="session")
def one_model(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of the student alone: one model is enough to see processes come and go."""
    return _some_of(model_repository, tmp_path_factory, "student")


@pytest.fixture(scope="session")
def two_models(model_repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository of student and teacher: every model of a service with workers costs a process."""
    return _some_of(model_repository, tmp_path_factory, "student", "teacher")


def _some_of(repository: Path, folders: pytest.TempPathFactory, *names: str) -> Path:
    folder = folders.mktemp("models")
    for name in names:
        copytree(repository / name, folder / name)
    return folder


def pytest_sessionfinish(session: pytest.Session) -> None:
    """With DISTILLERY_NO_SKIPS=1, as CI sets it, a skipped test fails the run: nothing is left out unseen."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("DISTILLERY_NO_SKIPS") == "1" and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
