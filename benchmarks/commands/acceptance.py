"""`distillery-bench acceptance`: what the acceptance rule of each model accepts and rejects."""

import string
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field, PositiveInt

from benchmarks.commands.bench import Bench, RepositorySettings
from benchmarks.errors import BenchmarkError
from benchmarks.pictures.outliers import (
    draw_characters,
    draw_letters,
    draw_others,
    font_families,
    read_fashion,
)
from benchmarks.results.models import model_facts
from serving.model.session import Session
from serving.model.tensors import Images
from training.data.mnist import find_mnist, load_test

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where Debian's package dataset-fashion-mnist installs it."""


class Acceptance(Bench, RepositorySettings):
    """Measure which digits and which images without a digit each model accepts.

    The images without a digit are of other fonts, data sets and generators than those that the rules were fitted on.
    """

    examples = ("distillery-bench acceptance --fonts-dir fonts",)
    limitations = ("letters are typed, not handwritten; scribbles and noise are drawn by a generator",)

    fonts_dir: Path | None = Field(
        None,
        description="fonts for letters and typed digits, a folder per family, such as the files of the npm packages "
        "@fontsource/…; without them, letters are left out",
    )
    fashion_dir: Path = Field(
        FASHION, description="folder with the test images of Fashion-MNIST, left out if missing"
    )
    images: PositiveInt = Field(1500, description="images of each kind without a digit")
    seed: int = Field(0, ge=0, description="seed of the generator")
    data_dir: Path | None = Field(None, description="folder with the MNIST files; downloaded by default")

    def measure(self) -> dict[str, Any]:
        entries = self.entries()
        for name, entry in entries.items():
            if entry.manifest.acceptance is None:
                raise BenchmarkError(f"{name} has no acceptance rule: export it again")
        sessions = {name: Session(entry.path) for name, entry in entries.items()}
        digits = load_test(find_mnist(self.data_dir))
        test = digits.images.numpy()
        rng = np.random.default_rng(self.seed)
        rows = [_row(sessions, "test digits", test, digits.labels.numpy())]
        outliers: dict[str, Images] = {}
        if self.fonts_dir:
            families = font_families(self.fonts_dir)
            typed, characters = draw_characters(families, string.digits, rng)
            rows.append(_row(sessions, "typed digits", typed, np.array(characters, int)))
            outliers |= draw_letters(families, rng)
        outliers |= draw_others(test, self.images, rng)
        if self.fashion_dir.is_dir():
            outliers["Fashion-MNIST"] = read_fashion(self.fashion_dir, self.images)
        rows += [_row(sessions, kind, images) for kind, images in outliers.items()]
        return {
            "models": model_facts(entries),
            "rules": {
                name: entry.manifest.acceptance.model_dump()
                for name, entry in entries.items()
                if entry.manifest.acceptance
            },
            "seed": self.seed,
            "rows": rows,
        }


def _row(
    sessions: dict[str, Session], kind: str, images: Images, labels: np.ndarray[Any, Any] | None = None
) -> dict[str, Any]:
    """Return the share of accepted images of a kind by model and, if they have labels, the errors among them."""
    row: dict[str, Any] = {"kind": kind, "images": len(images), "accepted": {}, "errors": {}}
    for name, session in sessions.items():
        digits, accepted = [], []
        for start in range(0, len(images), 256):
            found = session.run(np.ascontiguousarray(images[start : start + 256]))
            assert found.accepted is not None  # noqa: S101 - the manifest has a rule
            digits.append(found.digits)
            accepted.append(found.accepted)
        mask = np.concatenate(accepted)
        row["accepted"][name] = round(float(mask.mean()), 5)
        if labels is not None:
            row["errors"][name] = int((mask & (np.concatenate(digits) != labels)).sum())
    return row
