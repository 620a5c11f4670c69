"""A search for one student's settings: an Optuna study that any number of processes and machines work on.

A trial trains a model like any other (training/runs/pipeline.py): equal settings have one folder, so that what is
trained is used again and what was interrupted goes on from its last epoch. What nobody works on any more is finished
before anything new begins. When enough trials have begun, those of others are waited for; or done once more, where they
are on a machine whose folders are not seen here: who comes first counts.
"""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from distillery import DistilleryError
from training.data.views import draw_seed
from training.loop.device import Device
from training.loop.trainer import Job, Observer
from training.recipe.schema import Distillation, Model, Recipe
from training.runs.folder import ModelRun, cache_key, is_locked, locked
from training.runs.pipeline import REVISION, DataSet, model_run, train_model
from training.sweep.space import Space, multiply_adds, rounded, tried

if TYPE_CHECKING:  # an extra: at run time it is imported where it is used
    from optuna import Study
    from optuna.trial import FrozenTrial

SWEEP = "sweep"
"""Folder of a run."""
LOCK_WAIT_S = 60
"""How long a process waits for others to be done with an SQLite file."""
BEGINNING = timedelta(minutes=1)
"""A trial is asked for in an instant; one that has only some of its settings after this never began."""


@dataclass(frozen=True)
class Result:
    """A finished trial: what it tried, by the names of `Space`, and what came of it."""

    number: int
    settings: dict[str, Any]
    errors: int
    multiply_adds: int


@dataclass(frozen=True)
class Search:
    """One student's search. Its trials are trained into `root`, beside the recipe's own models."""

    recipe: Recipe
    student: str
    space: Space
    data: DataSet
    device: Device
    root: Path

    @property
    def model(self) -> Model:
        """The student as the recipe has it; its control is not trained here."""
        return self.recipe.models[self.student].model_copy(update={"control": False})

    @property
    def soft(self) -> Distillation:
        """How it is taught. Raises `DistilleryError` for a model that is not."""
        if (soft := self.model.distillation) is None:
            raise DistilleryError(f"{self.student} learns from no other model")
        return soft

    @property
    def teachers(self) -> Recipe:
        """The recipe of those whom the student learns from, directly or not."""
        above: dict[str, Model] = {}
        soft: Distillation | None = self.soft
        while soft:
            above[soft.teacher] = self.recipe.models[soft.teacher].model_copy(update={"control": False})
            soft = above[soft.teacher].distillation
        seeds: dict[str, int | None] = {}
        if self.recipe.teacher_seed is not None and len(above) == 1:  # without pupils it would be no teacher
            seeds = {"seed": self.recipe.teacher_seed, "teacher_seed": None}
        return self.recipe.model_copy(update={"models": dict(reversed(above.items())), **seeds})

    @property
    def name(self) -> str:
        """The study's: trials are compared only where nothing but what is searched can differ."""
        searched = {"hidden", "learning_rate", "distillation"}
        inputs = {
            "teachers": self.teachers.model_dump(exclude_defaults=True),
            "model": self.model.model_dump(exclude_defaults=True, exclude=searched),
            "soft": {"teacher": self.soft.teacher, "beta": self.soft.beta},
            "space": self.space.model_dump(),
            "seeds": [self.recipe.seed, self.recipe.teacher_seed],
            "dataset": self.data.sha256,
            "validation_digits": len(self.data.validation),
            "revision": REVISION,
        }
        return f"{self.recipe.name}-{self.student}-{cache_key(inputs)[:8]}"

    def run(
        self,
        study: "Study",
        *,
        teacher: ModelRun,
        trials: int,
        seconds: float | None,
        observer: Observer,
    ) -> Iterator[tuple[Result, int]]:
        """Run trials until `study` has `trials` finished ones; after `seconds` none is begun.

        Yields every trial finished here, and the number of finished trials in the study.
        """
        from optuna.exceptions import UpdateFinishedTrialError  # noqa: PLC0415

        deadline = time.monotonic() + (seconds or float("inf"))
        while time.monotonic() < deadline:
            with locked(self.root / SWEEP, wait=True):  # so that no two count before either has begun
                trial = self._next(study, teacher, trials)
            if trial is None:
                return
            job, run = self._training(trial, teacher)
            card = train_model(job, run, self.data, device=self.device, teacher=teacher, observer=observer)
            done = self.results(study)
            if trial.number in {result.number for result in done}:
                continue  # it was another's, who has finished it meanwhile
            errors, cost = int(card["validation_errors"]), multiply_adds(job.model)
            result = Result(trial.number, rounded(trial.params), errors, cost)
            with suppress(UpdateFinishedTrialError):  # in this very instant
                study.tell(trial.number, (errors, cost), skip_if_finished=True)
            yield result, 1 + len(done)

    def results(self, study: "Study") -> list[Result]:
        """Return the finished trials in the order they began."""
        finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
        return [Result(trial.number, rounded(trial.params), *map(int, trial.values)) for trial in finished]

    def _next(self, study: "Study", teacher: ModelRun, wanted: int) -> "FrozenTrial | None":
        """Return the trial to work on: one left behind, or a new one, or one of somebody else."""
        from optuna.samplers import TPESampler  # noqa: PLC0415
        from optuna.trial import TrialState  # noqa: PLC0415

        known, distributions = study.get_trials(deepcopy=False), self.space.distributions()
        running = []
        for trial in known:
            if trial.state == TrialState.RUNNING and trial.params.keys() == distributions.keys():
                running.append(trial)
            elif trial.state == TrialState.RUNNING and _age(trial) > BEGINNING:
                study.tell(trial.number, state=TrialState.FAIL)
        for trial in running:
            folder = self._training(trial, teacher)[1].folder
            if folder.exists() and not is_locked(folder):
                return trial
        if len(running) + len(self.results(study)) < wanted:
            own = self.space.settings(self.model, self.soft)
            if not known and own:
                study.enqueue_trial(own)  # what the recipe has comes first, to be compared with
            # From the trials so far, not from a state of its own: no process repeats another, or itself.
            seed = draw_seed(study.study_name, len(known)) % 2**32
            study.sampler = TPESampler(seed=seed, constant_liar=True)
            asked = study.ask(distributions).number
            return study.get_trials(deepcopy=False)[asked]
        return running[0] if running else None

    def _training(self, trial: "FrozenTrial", teacher: ModelRun) -> tuple[Job, ModelRun]:
        model = tried(self.model, self.soft, rounded(trial.params))
        job = Job(self.student, model, self.recipe.seed, self.recipe.teacher_seed)
        return job, model_run(job, self.data, device=self.device, root=self.root, teacher=teacher)


def front(results: Sequence[Result]) -> list[Result]:
    """Return those that no other beats in errors without costing more, fewest errors first."""
    best: list[Result] = []
    for result in sorted(results, key=lambda result: (result.errors, result.multiply_adds, result.number)):
        if not best or result.multiply_adds < best[-1].multiply_adds:
            best.append(result)
    return best


def open_study(url: str, name: str) -> "Study":
    """Return the study of that name in the database at `url`, a new one if there is none; within `storage_errors`."""
    import optuna  # noqa: PLC0415

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    waiting = {"connect_args": {"timeout": LOCK_WAIT_S}} if url.startswith("sqlite") else {}
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs=waiting)
    except ImportError as error:  # of the driver
        raise optuna.exceptions.StorageInternalError(str(error)) from None
    return optuna.create_study(
        storage=storage, study_name=name, directions=["minimize", "minimize"], load_if_exists=True
    )


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn what a database refuses into a `DistilleryError` that names it, without its password."""
    from optuna.exceptions import StorageInternalError  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        shown, reason = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url), str(error).splitlines()[0]
        raise DistilleryError(
            f"--storage {shown}: {reason.rstrip('.')}; give the URL of a database that can be reached and whose driver "
            "is installed, as sqlite:///runs/sweep.db or postgresql+psycopg://user:password@host/name"
        ) from None


def _age(trial: "FrozenTrial") -> timedelta:
    return datetime.now() - (trial.datetime_start or datetime.now())  # noqa: DTZ005 - Optuna's own dates are local
