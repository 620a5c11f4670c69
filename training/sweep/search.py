"""Search of a student's settings: an Optuna study shared by any number of processes and machines.

A trial trains a model like any other (training/runs/pipeline.py): equal settings share a folder, so a trained model is
reused and an interrupted training resumes after its last epoch. Abandoned trials are finished before new ones start.
When enough trials have started, a process waits for those of others; a trial of a machine whose folders are not visible
here is run again, and the first result counts.
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
from training.recipe.schema import SWEEP, Distillation, Model, Recipe
from training.runs.folder import ModelRun, cache_key
from training.runs.lock import is_locked, locked
from training.runs.pipeline import REVISION, DataSet, model_run, train_model
from training.sweep.space import Space, multiply_adds, rounded, with_settings

if TYPE_CHECKING:  # an extra: at run time it is imported where it is used
    from optuna import Study
    from optuna.trial import FrozenTrial

LOCK_WAIT_S = 60
"""How long a process waits for the lock of an SQLite file, seconds."""
START_TIMEOUT = timedelta(minutes=1)
"""A trial that lacks some of its settings after this time was never started."""


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
            with locked(
                self.root / SWEEP, wait=True
            ):  # two processes must not both count before either starts
                trial = self._next(study, teacher, trials)
            if trial is None:
                return
            job, run = self._training(trial, teacher)
            card = train_model(job, run, self.data, device=self.device, teacher=teacher, observer=observer)
            done = self.results(study)
            if trial.number in {result.number for result in done}:
                continue  # another process has finished it meanwhile
            errors, cost = int(card["validation_errors"]), multiply_adds(job.model)
            result = Result(trial.number, rounded(trial.params), errors, cost)
            with suppress(UpdateFinishedTrialError):  # finished since `results`
                study.tell(trial.number, (errors, cost), skip_if_finished=True)
            yield result, 1 + len(done)

    def results(self, study: "Study") -> list[Result]:
        """Return the finished trials in the order they were started."""
        finished = [trial for trial in study.get_trials(deepcopy=False) if trial.state.name == "COMPLETE"]
        return [Result(trial.number, rounded(trial.params), *map(int, trial.values)) for trial in finished]

    def _next(self, study: "Study", teacher: ModelRun, wanted: int) -> "FrozenTrial | None":
        """Return the next trial: an abandoned one, a new one, or one of another process; None: all are done."""
        from optuna.samplers import TPESampler  # noqa: PLC0415
        from optuna.trial import TrialState  # noqa: PLC0415

        known, distributions = study.get_trials(deepcopy=False), self.space.distributions()
        running = []
        for trial in known:
            if trial.state == TrialState.RUNNING and trial.params.keys() == distributions.keys():
                running.append(trial)
            elif trial.state == TrialState.RUNNING and _age(trial) > START_TIMEOUT:
                study.tell(trial.number, state=TrialState.FAIL)
        for trial in running:
            folder = self._training(trial, teacher)[1].folder
            if folder.exists() and not is_locked(folder):
                return trial
        if len(running) + len(self.results(study)) < wanted:
            own = self.space.settings(self.model, self.distillation)
            waiting = any(trial.state == TrialState.WAITING for trial in known)
            if own and not waiting and own not in [trial.params for trial in known]:
                study.enqueue_trial(own)  # the recipe's settings come first, for comparison
            # Seeded by the trials so far rather than a state of its own, so that no process repeats another's.
            seed = draw_seed(study.study_name, len(known)) % 2**32
            study.sampler = TPESampler(seed=seed, constant_liar=True)
            number = study.ask(distributions).number
            return study.get_trials(deepcopy=False)[number]
        return running[0] if running else None

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


def open_study(url: str, name: str) -> "Study":
    """Return the study of that name in the database at `url`, created if missing. Call within `storage_errors`."""
    import optuna  # noqa: PLC0415

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    waiting = {"connect_args": {"timeout": LOCK_WAIT_S}} if url.startswith("sqlite") else {}
    try:
        storage = optuna.storages.RDBStorage(url, engine_kwargs=waiting)
    except ImportError as error:  # the driver is missing
        raise optuna.exceptions.StorageInternalError(str(error)) from None
    return optuna.create_study(
        storage=storage, study_name=name, directions=["minimize", "minimize"], load_if_exists=True
    )


@contextmanager
def storage_errors(url: str) -> Iterator[None]:
    """Turn database errors into a `DistilleryError` that names the URL without its password."""
    from optuna.exceptions import StorageInternalError  # noqa: PLC0415
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415

    try:
        yield
    except (StorageInternalError, SQLAlchemyError) as error:
        shown = re.sub(r"(://[^:/@]*):[^@]*@", r"\1:***@", url)
        reason = str(error.__cause__ or error).splitlines()[0].rstrip(".")
        if "disk is full" in reason or "disk I/O error" in reason:
            fix = "make space there, then run the same command to continue"
        elif "readonly" in reason:
            fix = "make it writable for this user, or choose another one"
        else:
            fix = (
                "give the URL of a reachable database whose driver is installed, such as sqlite:///runs/sweep.db or "
                "postgresql+psycopg://user:password@host/name"
            )
        raise DistilleryError(f"--storage {shown}: {reason}; {fix}") from None


def _age(trial: "FrozenTrial") -> timedelta:
    return datetime.now() - (trial.datetime_start or datetime.now())  # noqa: DTZ005 - Optuna's own dates are local
