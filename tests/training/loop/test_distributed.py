"""Two processes train what one trains: real ones, started by torchrun, on the sample digits.

Adam divides every gradient by its own size, so that noise where a gradient is zero (a bias before BatchNorm, a pixel
that is always black) becomes steps like any other. So gradients are compared after one step, and the weights in the
end where no BatchNorm makes such gradients; a network with it is compared by what it learns.
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
from torch import Tensor

from tests.support.training.samples import sample_training, write_as_mnist
from training.data.mnist import Digits
from training.distributed import on_rank_0, process_group, rank, share
from training.loop.device import Device
from training.loop.soft_targets import SoftTargets
from training.loop.trainer import Job, Observer, Training
from training.model.checkpoint import load_tensors, save_tensors
from training.recipe.schema import Augmentation, Distillation, Model
from training.runs.folder import read_history

torch.set_num_threads(1)  # of the reference, and of each process under test
CPU = Device("cpu", bfloat16=False)
MOVED = Augmentation(shift=2, elastic=1)
SOFT = Distillation(temperature=4, loss="dist")  # a loss that is more than the sum over the digits of a batch
ONE_STEP = {
    "mlp": Model(hidden=[32, 24], epochs=1, batch_size=499, augmentation=MOVED),
    # Fifty digits: torch's own BatchNorm2d adds up what is channels last one by one, and loses digits over more.
    "convolutional": Model(
        stages=[[3, 4], [4]], hidden=[12], members=2, epochs=1, batch_size=499, leave_out=list(range(9))
    ),
    "distilled": Model(hidden=[24], epochs=1, batch_size=499, augmentation=MOVED, distillation=SOFT),
}
MANY_STEPS = Model(
    hidden=[32, 24], norm=False, epochs=4, batch_size=49, schedule="plateau", patience=0, learning_rate=0.02,
    max_norm=2, views=2, augmentation=MOVED, distillation=SOFT,
)  # fmt: skip
TOLERANCE = {"mlp": 1e-4, "convolutional": 0.02, "distilled": 1e-3}
"""Of the norm; with BatchNorm statistics that are not synchronised they differ by 0.1 to 1."""
LOSSES = [0.5, 0.6, 0.4, 0.3]
MODELS = ONE_STEP | {"many": MANY_STEPS}
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(300),
]  # each process imports torch, which takes long on a busy machine
SCRIPT = Path(__file__).parents[2] / "support" / "training" / "train_on_samples.py"


def odd_digits() -> tuple[Digits, Digits]:
    """An odd number of training digits, and validation digits."""
    digits, validation = sample_training()
    return Digits(digits.images[1:], digits.labels[1:]), validation


def trained(name: str, folder: Path) -> Training:
    """Train one of the models, in one process or two; a distilled one from a teacher with random weights."""
    model, (digits, validation) = MODELS[name], odd_digits()
    teacher = Training(Job("teacher", Model(hidden=[20]), 0), digits, validation, device=CPU).network
    targets = SoftTargets(teacher, CPU, folder) if model.distillation else None
    training = Training(Job(name, model, 0), digits, validation, device=CPU, teacher=targets)
    if name == "many":  # the second epoch is a plateau, on every CPU
        training.validate = lambda: on_rank_0(  # type: ignore[method-assign]
            lambda: {"validation_loss": LOSSES[len(training.history)], "validation_errors": 1}
        )
    while not training.done:
        training.train_epoch(Observer())
    return training


def main(folder: Path) -> None:
    """Train every model: the program of both processes. Rank 0 writes the states."""
    with process_group("cpu"):
        for name in MODELS:
            training = trained(name, folder / "targets")
            if rank() == 0:
                save_tensors(folder / name, *training.state())
            del training
    # A thread of the group that outlives it may abort the interpreter at its end.
    threads = [thread.read_text().strip() for thread in Path("/proc/self/task").glob("*/comm")]
    assert not [name for name in threads if "gloo" in name], threads


def torchrun(*arguments: str | Path) -> list[str]:
    command = [
        sys.executable,
        "-W",
        "error",
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    return [*command, *map(str, arguments)]


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The states that two processes have trained."""
    folder = tmp_path_factory.mktemp("two")
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        torchrun(__file__, folder), capture_output=True, text=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("name", ONE_STEP)
def test_gradients_and_statistics_are_those_of_the_whole_batch(name: str, two: Path, tmp_path: Path) -> None:
    ours, facts = load_tensors(two / name)
    training = trained(name, tmp_path)
    theirs, _ = training.state()
    assert ours.keys() == theirs.keys()
    for part in (".exp_avg", "running_mean", "running_var", "num_batches_tracked"):
        for key in filter(lambda key: key.endswith(part), ours):
            difference = (ours[key] - theirs[key]).double().norm().item()
            assert difference <= TOLERANCE[name] * theirs[key].double().norm().item() + 2e-6, key
    assert facts["history"][0]["loss"] == pytest.approx(training.history[0]["loss"], rel=1e-6)


def test_weights_are_those_of_one_process(two: Path, tmp_path: Path) -> None:
    ours, facts = load_tensors(two / "many")
    training = trained("many", tmp_path)
    theirs, _ = training.state()
    for key in theirs:
        torch.testing.assert_close(ours[key], theirs[key], rtol=1e-3, atol=1e-4)
    for kept in ("loss", "accuracy", "validation_loss", "learning_rate"):
        assert [record[kept] for record in facts["history"]] == pytest.approx(
            [record[kept] for record in training.history], rel=1e-4
        )
    rates = [record["learning_rate"] for record in training.history]
    assert rates == pytest.approx(
        [0.02, 0.02, 0.002, 0.002]
    )  # after the best weights were restored, on both ranks


def test_soft_targets_computed_in_shares_are_those_of_one_process(two: Path, tmp_path: Path) -> None:
    trained("distilled", tmp_path)
    (view,) = tmp_path.iterdir()
    of_one, of_two = (load_tensors(folder / view.name)[0]["logits"] for folder in (tmp_path, two / "targets"))
    assert torch.equal(of_one, of_two)


@pytest.mark.parametrize(
    ("count", "step", "processes"), [(500, 1, 2), (7, 1, 3), (55_000, 500, 4), (600, 500, 4)]
)
def test_every_digit_is_in_one_part(count: int, step: int, processes: int) -> None:
    parts = [share(count, step=step, of_rank=each, ranks=processes) for each in range(processes)]
    assert [place for part in parts for place in range(count)[part]] == list(range(count))
    assert all(part.start % step == 0 for part in parts)


RECIPE = """
[teacher]
hidden = [32]
epochs = 6
batch_size = 50
dropout = 0.2
augmentation = { shift = 2 }

[student]
hidden = [16]
epochs = 3
batch_size = 100

[student.distillation]
temperature = 4
"""


def weights(root: Path) -> dict[str, dict[str, Tensor]]:
    names = ("teacher", "student-alone", "student")
    return {name: load_tensors(root / name / "model.safetensors")[0] for name in names}


def test_a_killed_command_resumes_to_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mnist = tmp_path / "mnist"
    mnist.mkdir()
    write_as_mnist(mnist)
    (tmp_path / "small.toml").write_text(RECIPE)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = [SCRIPT, mnist, "--recipe", tmp_path / "small.toml", "--precision=float32", "--threads=1"]
    whole = subprocess.run(
        torchrun(*flags, f"--out={tmp_path / 'whole'}"), capture_output=True, text=True, check=True
    )
    for last in ("teacher       epoch 6/6", "student-alone epoch 3/3", "student       epoch 3/3"):
        assert whole.stdout.count(last) == 1  # rank 0 alone prints

    command = torchrun(*flags, f"--out={tmp_path / 'killed'}")
    root = tmp_path / "killed" / "small"
    silent = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    with subprocess.Popen(command, **silent) as process:
        while (
            not (histories := list(root.glob("teacher-*/history.jsonl")))
            or len(read_history(histories[0].parent)) < 2
        ):
            assert process.poll() is None
            time.sleep(0.005)
        _, second = psutil.Process(process.pid).children()
        second.kill()
    assert process.returncode == 1
    again = subprocess.run(command, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    assert "teacher: resumed after epoch" in again.stdout
    expected = weights(tmp_path / "whole" / "small")
    for name, tensors in weights(root).items():
        assert all(torch.equal(tensors[key], expected[name][key]) for key in tensors)
    assert load_tensors(root / "student" / "model.safetensors")[1]["processes"] == 2


if __name__ == "__main__":
    main(Path(sys.argv[1]))
