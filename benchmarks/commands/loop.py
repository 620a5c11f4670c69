"""`distillery-bench loop`: from traffic that the student is weak at to a better student in its place."""

import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, PositiveInt
from rich.console import Console

from benchmarks.commands.bench import Bench
from benchmarks.errors import BenchmarkError
from benchmarks.feedback.kinds import KINDS
from benchmarks.feedback.loop import copy_run, evaluate, mixed, run_command, wait_for_log
from benchmarks.feedback.release import KEY, admin_keys, pin, promote_by_rule
from benchmarks.feedback.traffic import Traffic
from benchmarks.results.models import INT8
from benchmarks.systems.servers import running_service
from distillery import Metavar, unknown
from serving.model.tensors import Images
from training.data.mnist import Digits, find_mnist, load_test, load_training

SEEDS = {"traffic": 1, "test": 2}
"""Of the images drawn from training and test digits."""
INTERVAL_S = 0.05
"""Between two requests of a client during training and release: the cores are needed for these."""
PLAIN = 0.2
"""Plain digits in the traffic, in proportion to the images of the kind."""


class Loop(Bench):
    """Close the loop: traffic, log, training, candidate, promotion by rule.

    A service of the student gets images of a kind that it is weak at, and feedback on some of them. The student is
    trained again with the service's request log, exported as the next version, started as the candidate, and promoted
    by the release rule, while traffic continues. The repository and the run are copied, not changed. The evaluation
    uses test digits; the images are drawn from training digits.
    """

    limitations = (
        "the kind of images is drawn from MNIST digits by a generator; feedback on it is always right",
        "all steps share the cores of one machine",
    )
    examples = ("distillery-bench loop", "distillery-bench loop --traffic felt --images 1000")

    models_dir: Path = Field(Path("models"), description="model repository with the student")
    run_dir: Path = Field(Path("runs/quick"), description="training run of the student and its teacher")
    recipe: Annotated[str, Metavar("RECIPE")] = Field("quick", description="recipe of that run")
    model: str = Field("fast", description="the student, in fp32")
    traffic: str = Field("ruled", description=f"kind of images that are sent: {', '.join(KINDS)}")
    images: PositiveInt = Field(4000, description="images of that kind that are sent")
    feedback: float = Field(
        0.5, gt=0, le=1, description="share of the requests that are followed by feedback"
    )
    margin: float = Field(
        0.003,
        gt=0,
        lt=1,
        description="accuracy on MNIST that the new student may lose, at most, with 95 % confidence",
    )
    data_dir: Path | None = Field(None, description="folder with the MNIST files; downloaded by default")

    def measure(self) -> dict[str, Any]:
        if self.traffic not in KINDS:
            raise BenchmarkError(f"--traffic: {unknown('kind of images', self.traffic, KINDS)}")
        mnist = find_mnist(self.data_dir)
        training, validation = load_training(mnist)
        steps: dict[str, float] = {}
        with tempfile.TemporaryDirectory(prefix="distillery-loop-") as scratch:
            folder = Path(scratch)
            models, log = folder / "models", folder / "log"
            before = self._copy(models, folder / "runs")
            stable, candidate = f"{self.model}/{before}", f"{self.model}/{before + 1}"
            keys = admin_keys(folder)
            flags = ["--request-log", str(log), "--request-log-sample", "1", "--request-log-seconds", "1"]
            flags += ["--request-log-rate", "10000"]
            flags += ["--api-servers", "1", "--api-keys", str(keys)]
            with running_service(models, *flags) as server:
                with self._step("traffic", steps):
                    recorded = self._traffic(server.url, training, validation)
                    wait_for_log(log, recorded.sent - recorded.failed)
                images = self._of_kind(training, slice(self.images, 2 * self.images))
                # During all that follows: none of these requests may be lost.
                during = Traffic(
                    server.url,
                    *images,
                    key=KEY,
                    feedback=1,
                    prefix="during",
                    repeat=True,
                    interval=INTERVAL_S,
                )
                with during:
                    with self._step("training", steps):
                        self._train(folder, mnist, log)
                    with self._step("export", steps):
                        self._export(folder, mnist, before + 1)
                    with self._step("release", steps):
                        decision = promote_by_rule(server.url, stable, candidate)
            with self._step("evaluation", steps):
                test = load_test(mnist)
                sets = {
                    self.traffic: self._of_kind(test, slice(None), seed=SEEDS["test"]),
                    "MNIST": (test.images.numpy(), test.labels.numpy()),
                }
                rows = evaluate(models, stable, candidate, sets)
        return {
            "model": self.model,
            "kind": self.traffic,
            "description": KINDS[self.traffic].description,
            "feedback": self.feedback,
            "margin": self.margin,
            "seconds": {name: round(seconds, 1) for name, seconds in steps.items()},
            "log": {"requests": recorded.sent, "labels": recorded.counts["feedback", 200]},
            "decision": decision,
            "requests": recorded.sent + during.sent,
            "failed": recorded.failed + during.failed,
            "rows": rows,
            "problems": problems(rows, recorded.failed + during.failed, self.margin),
        }

    def summary(self, data: dict[str, Any]) -> dict[str, Any]:
        if data["problems"]:
            raise BenchmarkError("; ".join(data["problems"]))
        return super().summary(data) | {name: data[name] for name in ("requests", "failed", "seconds")}

    def _copy(self, models: Path, runs: Path) -> int:
        """Copy the student's models and the run; return the version to start from, which becomes the stable one."""
        source = self.models_dir / self.model
        versions = sorted(int(path.name) for path in source.glob("[1-9]*") if path.name.isdecimal())
        if not versions or self.model.endswith(INT8):
            known = [
                path.name for path in sorted(self.models_dir.glob("[!.]*")) if not path.name.endswith(INT8)
            ]
            raise BenchmarkError(f"--model: {self.models_dir}: {unknown('model in fp32', self.model, known)}")
        copytree(source, models / self.model)
        copy_run(self.run_dir, runs / self.run_dir.name)
        pin(models, f"{self.model}/{versions[-1]}")
        return versions[-1]

    def _of_kind(
        self, digits: Digits, part: slice, *, seed: int = SEEDS["traffic"]
    ) -> tuple[Images, NDArray[np.int64]]:
        return KINDS[self.traffic].draw(digits.images[part].numpy(), seed), digits.labels[part].numpy()

    def _traffic(self, url: str, training: Digits, validation: Digits) -> Traffic:
        """Send images of the kind, mixed with plain digits, and feedback."""
        plain = slice(round(PLAIN * self.images))
        parts = [
            self._of_kind(training, slice(self.images)),
            (validation.images[plain].numpy(), validation.labels[plain].numpy()),
        ]
        images, labels = mixed(parts, SEEDS["traffic"])
        with Traffic(url, images, labels, key=KEY, feedback=self.feedback, prefix="before") as traffic:
            traffic.wait()
        return traffic

    def _train(self, folder: Path, mnist: Path, log: Path) -> None:
        run_command(
            "training",
            *("--recipe", self.recipe, "--models", self.model, "--request-log", log),
            *("--out", folder / "runs", "--data-dir", mnist),
        )

    def _export(self, folder: Path, mnist: Path, version: int) -> None:
        checkpoint = folder / "runs" / self.run_dir.name / self.model / "model.safetensors"
        run_command(
            "export",
            *(
                "--checkpoint",
                checkpoint,
                "--name",
                self.model,
                "--model-version",
                str(version),
                "--int8",
                "",
            ),
            *("--models-dir", folder / "models", "--data-dir", mnist),
        )

    @contextmanager
    def _step(self, name: str, seconds: dict[str, float]) -> Iterator[None]:
        """Show a step while it runs, and how long it took."""
        start, console = time.perf_counter(), Console(stderr=True)
        with console.status(f"{name} …"):
            yield
        seconds[name] = round(time.perf_counter() - start, 1)
        console.print(f"{name:<12}{seconds[name]:>7.1f} s")


def problems(rows: list[dict[str, Any]], failed: int, margin: float) -> list[str]:
    """Return what was not achieved: better accuracy on the kind, none lost on MNIST, all requests answered."""
    kind, mnist = rows
    found = []
    if kind["gain_interval_95"][0] <= 0:
        found.append(f"accuracy on {kind['images_of']} did not improve: {kind['gain_interval_95']}")
    if mnist["gain_interval_95"][0] <= -margin:
        found.append(
            f"accuracy on MNIST may have fallen by more than {margin:.2%}: {mnist['gain_interval_95']}"
        )
    if failed:
        found.append(f"{failed} requests failed")
    return found
