"""Search of a student's settings: an Optuna study shared by any number of processes and machines.

A trial trains a model like any other (training/runs/pipeline.py): equal settings share a folder, so a trained model is
reused and an interrupted training resumes after its last epoch. Trials that were abandoned in the same folder are
finished before new ones start; those of another machine or folder are failed when their heartbeats end, and their
settings are tried again. When enough trials have started, a process waits for those of others.
"""

import os
import socket
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillery import DistilleryError
from distillery.files import make_folder
from training.data.views import draw_seed
from training.loop.device import Device
from training.loop.trainer import Job, Observer
from training.recipe.schema import SWEEP, Distillation, Model, Recipe
from training.runs.folder import ModelRun, cache_key
from training.runs.lock import is_locked, locked
from training.runs.pipeline import REVISION, DataSet, model_run, train_model
from training.sweep.space import Space, multiply_adds, rounded, with_settings
from training.sweep.storage import SharedStudy

if TYPE_CHECKING:  # an extra: at run time it is imported where it is used
    from optuna import Study
    from optuna.trial import FrozenTrial

START_TIMEOUT = timedelta(minutes=1)
"""A trial that no process claims after this time was never started."""
POLL_S = 1.0
"""Interval at which a process that waits for trials of others looks for their results."""
CLAIM = "claim"
"""Attribute of a trial that has been started: its number (Optuna copies attributes to the trial that repeats a failed
one), the folder of its training, and the process."""


@dataclass(frozen=True)
class Result:
    """A finished trial: its settings, by the names of `Space`, validation errors and multiply-adds."""

    number: int
    settings: dict[str, Any]
    errors: int
    multiply_adds: int


@dataclass(frozen=True)
class Search:
    """Search of one student. Its trials are trained in `root`, next to the recipe's own models."""

    recipe: Recipe
    student: str
    space: Space
    data: DataSet
    device: Device
    root: Path

    @property
    def model(self) -> Model:
        """The student with the recipe's settings, without a control."""
        return self.recipe.models[self.student].model_copy(update={"control": False})

    @property
    def distillation(self) -> Distillation:
        """The student's distillation. Raises `DistilleryError` for a model without one."""
        if (distillation := self.model.distillation) is None:
            raise DistilleryError(f"{self.student} has no distillation, as a student has")
        return distillation

    @property
    def teachers(self) -> Recipe:
        """The recipe of the student's teachers, direct and indirect."""
        above: dict[str, Model] = {}
        distillation: Distillation | None = self.distillation
        while distillation:
            above[distillation.teacher] = self.recipe.models[distillation.teacher].model_copy(
                update={"control": False}
            )
            distillation = above[distillation.teacher].distillation
        seeds: dict[str, int | None] = {}
        if (
            self.recipe.teacher_seed is not None and len(above) == 1
        ):  # alone in its recipe, it would not count as a teacher
            seeds = {"seed": self.recipe.teacher_seed, "teacher_seed": None}
        return self.recipe.model_copy(update={"models": dict(reversed(above.items())), **seeds})

    @property
    def name(self) -> str:
        """Name of the study; it covers everything but the searched settings, so that only these differ in a study."""
        searched = {"hidden", "learning_rate", "distillation"}
        fixed = {
            "teachers": self.teachers.model_dump(exclude_defaults=True),
            "model": self.model.model_dump(exclude_defaults=True, exclude=searched),
            "soft": {"teacher": self.distillation.teacher, "beta": self.distillation.beta},
            "space": self.space.model_dump(),
            "seeds": [self.recipe.seed, self.recipe.teacher_seed],
            "dataset": self.data.sha256,
            "validation_digits": len(self.data.validation),
            "revision": REVISION,
        }
        return f"{self.recipe.name}-{self.student}-{cache_key(fixed)[:8]}"

    def run(
        self,
        shared: SharedStudy,
        *,
        teacher: ModelRun,
        trials: int,
        seconds: float | None,
        observer: Observer,
    ) -> Iterator[tuple[Result, int]]:
        """Run trials until the study has `trials` finished ones; after `seconds` none is begun.

        Yields every trial finished here, and the number of finished trials in the study.
        """
        deadline, waiting = time.monotonic() + (seconds or float("inf")), False
        while time.monotonic() < deadline:
            trial, others = shared.retry(lambda: self._claim(shared, teacher, trials))
            if trial is None and not others:
                return
            if trial is None:
                if not waiting:
                    numbers = ", ".join(map(str, others))
                    print(f"waiting for other processes: trial {numbers}", file=sys.stderr, flush=True)
                waiting = True
                time.sleep(POLL_S)
                continue
            job, run = self._training(trial, teacher)
            with shared.heartbeats(trial.number):
                metadata = train_model(
                    job, run, self.data, device=self.device, teacher=teacher, observer=observer
                )
            errors, cost = int(metadata["validation_errors"]), multiply_adds(job.model)
            if shared.retry(partial(_finish, shared.study, trial.number, (errors, cost))):
                done = len(shared.retry(lambda: self.results(shared.study)))
                yield Result(trial.number, rounded(trial.params), errors, cost), done

    def results(self, study: "Study") -> list[Result]:
        """Return the finished trials in the order they were started."""
        finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
        return [Result(trial.number, rounded(trial.params), *map(int, trial.values)) for trial in finished]

    def _claim(
        self, shared: SharedStudy, teacher: ModelRun, wanted: int
    ) -> "tuple[FrozenTrial | None, list[int]]":
        """Return the next trial to run here, and the numbers of those that run elsewhere.

        The trial is one that was abandoned here, or a new one while fewer than `wanted` are running or finished.
        """
        # Two processes must not both count before either starts; the second lock excludes those of other machines.
        with locked(self.root / SWEEP, wait=True), shared.locked():
            if trial := self._abandoned(shared.study, teacher):
                shared.beat(trial.number)
                return trial, []
            shared.fail_stale_trials()
            running = [trial.number for trial in self._running(shared.study)]
            if len(running) + len(self.results(shared.study)) >= wanted:
                return None, running
            return self._start(shared, teacher), running

    def _abandoned(self, study: "Study", teacher: ModelRun) -> "FrozenTrial | None":
        """Return a trial that a process which has ended began in this folder, if any; fail those never started."""
        from optuna.trial import TrialState  # noqa: PLC0415

        for trial in study.get_trials(deepcopy=False, states=[TrialState.RUNNING]):
            if not _is_claimed(trial):
                if _age(trial) > START_TIMEOUT:
                    study.tell(trial.number, state=TrialState.FAIL)
                continue
            _, place, process = trial.user_attrs[CLAIM]
            folder = self._training(trial, teacher)[1].folder
            if place == _place(folder) and not _is_running(process) and not is_locked(folder):
                return trial
        return None

    def _running(self, study: "Study") -> "list[FrozenTrial]":
        from optuna.trial import TrialState  # noqa: PLC0415

        running = study.get_trials(deepcopy=False, states=[TrialState.RUNNING])
        return [trial for trial in running if _is_claimed(trial)]

    def _start(self, shared: SharedStudy, teacher: ModelRun) -> "FrozenTrial":
        """Start a trial: a queued one, the recipe's own settings, or those that Optuna suggests."""
        from optuna.samplers import TPESampler  # noqa: PLC0415
        from optuna.trial import TrialState  # noqa: PLC0415

        study, known = shared.study, shared.study.get_trials(deepcopy=False)
        own = self.space.settings(self.model, self.distillation)
        waiting = any(trial.state == TrialState.WAITING for trial in known)
        if own and not waiting and own not in [trial.params for trial in known]:
            study.enqueue_trial(own)  # the recipe's settings come first, for comparison
        # Seeded by the trials so far rather than a state of its own, so that no process repeats another's.
        study.sampler = TPESampler(seed=draw_seed(study.study_name, len(known)) % 2**32, constant_liar=True)
        trial = shared.ask(self.space.distributions())
        shared.beat(trial.number)
        started = study.get_trials(deepcopy=False)[trial.number]
        folder = self._training(started, teacher)[1].folder
        make_folder(folder)  # where its lock will be
        trial.set_user_attr(CLAIM, [trial.number, _place(folder), os.getpid()])
        return started

    def _training(self, trial: "FrozenTrial", teacher: ModelRun) -> tuple[Job, ModelRun]:
        model = with_settings(self.model, self.distillation, rounded(trial.params))
        job = Job(self.student, model, self.recipe.seed, self.recipe.teacher_seed)
        return job, model_run(job, self.data, device=self.device, root=self.root, teacher=teacher)


def pareto_front(results: Sequence[Result]) -> list[Result]:
    """Return the results on the Pareto front of errors and multiply-adds, fewest errors first."""
    front: list[Result] = []
    for result in sorted(results, key=lambda result: (result.errors, result.multiply_adds, result.number)):
        if not front or result.multiply_adds < front[-1].multiply_adds:
            front.append(result)
    return front


def _finish(study: "Study", number: int, values: tuple[int, int]) -> bool:
    """Record the result of a trial; return False if it was failed meanwhile, since its heartbeats did not arrive."""
    from optuna.exceptions import UpdateFinishedTrialError  # noqa: PLC0415
    from optuna.trial import TrialState  # noqa: PLC0415

    with suppress(UpdateFinishedTrialError):  # finished by another process between its two steps
        study.tell(number, values, skip_if_finished=True)
    finished = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return number in {trial.number for trial in finished}


def _place(folder: Path) -> str:
    return f"{socket.gethostname()}:{folder.resolve()}"


def _is_running(process: int) -> bool:
    """Return whether another process of this machine has that number; in containers it may be our own."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return process != os.getpid()


def _is_claimed(trial: "FrozenTrial") -> bool:
    return bool(trial.user_attrs.get(CLAIM, [None])[0] == trial.number)


def _age(trial: "FrozenTrial") -> timedelta:
    return datetime.now() - (trial.datetime_start or datetime.now())  # noqa: DTZ005 - Optuna's own dates are local
