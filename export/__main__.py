"""Export trained checkpoints to the ONNX model repository: `distillery-export` or `python -m export`."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from pydantic import Field
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

import distillery
from export.errors import ExportError
from export.pipeline import Digits, Source, current, export_checkpoint, published_names
from serving.model.repository import ModelEntry

MOST_DIGITS_LOST = 2
"""int8 may err on this many test digits more than fp32 before the export says why."""


class Export(distillery.Command):
    """Export trained networks to ONNX, verify that they answer alike, and publish them for serving.

    Without further settings every network of the run is exported, and the distilled student once more in int8.
    A model whose file in the repository already comes from the same checkpoint and report is left as it is. What
    `distillery-train report` wrote beside a checkpoint is published with it.

        distillery-export                                              the run `runs/quick`
        distillery-export --run-dir runs/notebook --models-dir models-notebook
        distillery-export --run-dir runs/best --int8 student,fast,tiny
        distillery-export --checkpoint my.safetensors --name mine --int8 mine
    """

    run_dir: Path = Field(Path("runs/quick"), description="training run to export")
    checkpoint: Path | None = Field(None, description="export this one checkpoint instead of a run")
    name: str = Field("model", description="with --checkpoint: name of the model in the repository")
    int8: list[str] = Field(
        ["student"], description="models to publish as NAME-int8 too, such as student,fast"
    )
    models_dir: Path = Field(Path("models"), description="model repository to write")
    model_version: int = Field(1, ge=1, description="version folder to write")
    data_dir: Path | None = Field(
        None, description="folder with the MNIST files, if not to be found or fetched"
    )
    force: bool = Field(False, description="export again what has not changed")

    def run(self) -> None:
        sources = [Source(self.name, self.checkpoint)] if self.checkpoint else Source.of_run(self.run_dir)
        self._require_known(sources)
        console = Console()
        digits: Digits | None = None  # read when the first model needs them
        entries: list[ModelEntry] = []
        for source in sources:
            names = published_names(source, self.int8)
            kept = [current(self.models_dir, name, self.model_version, source.path) for name in names]
            unchanged = [entry for entry in kept if entry]
            if len(unchanged) == len(names) and not self.force:
                console.print(f"unchanged  {', '.join(names)}")
                entries += unchanged
                continue
            with console.status(f"exporting {', '.join(names)}"):
                digits = digits or Digits.read(self.data_dir)
                entries += export_checkpoint(
                    source,
                    digits,
                    models_dir=self.models_dir,
                    version=self.model_version,
                    int8=source.name in self.int8,
                )
            console.print(f"exported   {', '.join(names)}")
        console.print(_table(entries))
        for warning in _digits_lost(entries):
            console.print(warning)

    def _require_known(self, sources: list[Source]) -> None:
        """Raise `ExportError` for a name that was asked for in int8 and is not there."""
        names = [source.name for source in sources]
        unknown = [name for name in self.int8 if name not in names]
        if unknown and "int8" in self.model_fields_set:  # the default says only what is usual
            raise ExportError(
                f"--int8 {unknown[0]}: there is no such model; those to export: {', '.join(names)}"
            )


def _table(entries: list[ModelEntry]) -> Table:
    table = Table(title="model repository", box=SIMPLE_HEAD)
    for heading in ("model", "layers", "file", "test errors", "flipped", "Δ logit"):
        justify: Literal["left", "right"] = "left" if heading in {"model", "layers"} else "right"
        table.add_column(heading, justify=justify, no_wrap=heading != "layers")
    for entry in entries:
        m = entry.manifest
        table.add_row(
            m.name,
            m.architecture,
            f"{m.size_bytes / 1e3:,.1f} kB",
            str(m.test_errors),
            str(m.parity.disagreements),
            f"{m.parity.largest_difference:.1e}",
        )
    digits = entries[0].manifest.parity.images
    table.caption = f"{digits:,} test digits; flipped and Δ logit: against the network as trained"
    return table


def _digits_lost(entries: list[ModelEntry]) -> Iterator[str]:
    """Say why, where int8 costs more test digits than it should."""
    by_name = {entry.name: entry.manifest for entry in entries}
    for name, int8 in by_name.items():
        fp32 = by_name.get(name.removesuffix("-int8"))
        if int8.precision == "int8" and fp32 and int8.test_errors - fp32.test_errors > MOST_DIGITS_LOST:
            yield (
                f"{name} errs on {int8.test_errors - fp32.test_errors} test digits more than {fp32.name} "
                f"(at most {MOST_DIGITS_LOST} were expected); best quantisation on the validation digits: "
                f"{int8.quantisation}"
            )


def run() -> None:
    """Entry point of `distillery-export`."""
    sys.exit(distillery.main("distillery-export", {"export": Export}, default="export"))


if __name__ == "__main__":
    run()
