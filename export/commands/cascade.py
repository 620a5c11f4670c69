"""`distillery-export cascade`."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from distillery import Metavar, unknown
from distillery.files import require_writable
from export import ExportError
from export.cascade import EPSILON, PROBABILITY, Exported, export_cascade, trade_off
from export.commands.settings import RepositorySettings
from export.signing import SigningKey
from export.splits import Splits
from serving.model.repository import NAME, ModelEntry, RepositoryError, load_model
from training.commands.settings import DataSettings

_ROWS = 12
"""Of the table of thresholds."""


class Cascade(DataSettings, RepositorySettings):
    """Publish a cascade: a teacher predicts where a student is not sure.

    Below a threshold on the probability of the student's digit, the teacher predicts. The threshold is the lowest one
    with a guarantee: with 95 % probability, the cascade has at most --epsilon more errors per image than the teacher
    alone. It is chosen on the validation digits (Learn
    then Test), and holds for the two files given: export the cascade again after either of them. The test digits are
    read afterwards, for the figures of the model card.
    """

    examples = (
        "distillery-export cascade",
        "distillery-export cascade --student fast-int8 --teacher cnn --epsilon 0.001",
        "distillery-export cascade --student student/2 --name safe --epsilon 0.0006",
    )

    student: Annotated[str, Metavar("MODEL[/VERSION]")] = Field(
        "fast-int8", description="model that predicts first; of its versions, the newest"
    )
    teacher: Annotated[str, Metavar("MODEL[/VERSION]")] = Field(
        "teacher", description="model that predicts what the student is not sure of"
    )
    epsilon: float = Field(
        EPSILON, gt=0, lt=1, description="errors per image that the cascade may have above the teacher's"
    )
    name: str = Field("cascade", description="name of the cascade")
    model_version: int = Field(1, ge=1, description="version folder to write")

    def run(self) -> None:
        self._check_name()
        student, teacher = self._member("student"), self._member("teacher")
        key = SigningKey.read(self.signing_key) if self.signing_key else None
        require_writable(self.models_dir)
        console = Console()
        with console.status(f"choosing a threshold for {self.student} and {self.teacher}"):
            found = export_cascade(
                student,
                teacher,
                Splits.read(self.data_dir),
                models_dir=self.models_dir,
                name=self.name,
                version=self.model_version,
                epsilon=self.epsilon,
                key=key,
            )
        console.print(f"exported   {self.name}")
        console.print(_table(found))
        errors = (student.manifest, teacher.manifest, found.entry.manifest)
        console.print(
            f"chosen: threshold {found.choice.threshold:.8g}; test errors: "
            + ", ".join(f"{each.name} {each.test_errors}" for each in errors)
        )

    def _check_name(self) -> None:
        """Raise `ExportError` for an invalid name, or that of a model with a graph."""
        if not NAME.fullmatch(self.name):
            raise ExportError(f"--name {self.name!r}: use lower-case letters and digits, such as 'cascade-2'")
        folder = self.models_dir / self.name
        for found in (folder / version for version in _versions(folder)):
            try:
                graph = load_model(found).manifest.cascade is None
            except RepositoryError:
                continue  # replaced, if it is this version
            if graph:
                raise ExportError(f"--name {self.name}: {found} is a model with a graph; choose another name")

    def _member(self, role: Literal["student", "teacher"]) -> ModelEntry:
        """Return a member. Raises `ExportError` for an unknown one or a cascade, `RepositoryError`."""
        given: str = getattr(self, role)
        name, _, version = given.partition("/")
        if not (versions := _versions(self.models_dir / name)):
            folders = self.models_dir.iterdir() if self.models_dir.is_dir() else ()
            names = sorted(path.name for path in folders if _versions(path))
            raise ExportError(f"--{role}: {unknown('model', name, names)}")
        if (version or versions[-1]) not in versions:
            raise ExportError(f"--{role} {given}: {name} has {', '.join(versions)}, no version {version}")
        entry = load_model(self.models_dir / name / (version or versions[-1]))
        if entry.manifest.cascade:
            raise ExportError(
                f"--{role} {given} is a cascade, and cascades are not nested: name one of its models"
            )
        return entry


def _versions(folder: Path) -> list[str]:
    """Return the versions of a model, the oldest first; none if the folder is no model."""
    names = [path.name for path in folder.iterdir() if path.name.isdecimal()] if folder.is_dir() else []
    return sorted(names, key=int)


def _table(found: Exported) -> Table:
    digits = found.validation.digits
    table = Table(title="thresholds and their guarantees", box=SIMPLE_HEAD)
    for heading in ("epsilon", "threshold", "escalated", "worse", "better", ""):
        table.add_column(heading, justify="right", no_wrap=True)
    for epsilon, choice in trade_off(found.validation)[:_ROWS]:
        table.add_row(
            f"{epsilon:.6f}",
            f"{choice.threshold:.6f}",
            f"{choice.escalated / digits:.2%}",
            str(choice.worse),
            str(choice.better),
            "chosen" if choice == found.choice else "",
        )
    table.caption = (
        f"{digits:,} validation digits; epsilon: bound on the increase of the error rate, with {PROBABILITY:.0%} "
        "probability; worse, better: than the teacher, without escalation"
    )
    return table
