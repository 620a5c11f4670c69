"""A small reproduction of the paper, rendered next to the paper's figures."""

from pathlib import Path

import torch
from PIL import Image

from tests.support.documents.generated import document, keep, render
from tests.support.training.samples import sample_test, sample_training
from training.commands.progress import TrainingProgress
from training.loop.device import Device
from training.paper.reproduce import reproduce
from training.recipe.schema import Distillation, Model, Recipe
from training.runs.pipeline import DataSet

RECIPE = Recipe(
    name="small",
    models={
        "teacher": Model(hidden=[16], epochs=1),
        "student": Model(hidden=[8], epochs=1, distillation=Distillation()),
    },
)


def test_the_document_has_our_figures_next_to_the_papers(tmp_path: Path) -> None:
    torch.set_num_threads(1)
    with TrainingProgress() as progress:
        found = reproduce(
            RECIPE,
            DataSet(*sample_training(), {"sample": "1"}),
            sample_test,
            seeds=[0, 1],
            units=[4, 6],
            temperatures=[1, 2.5],
            device=Device("cpu", bfloat16=False),
            root=tmp_path / "runs",
            observer=progress,
        )
    page = document(tmp_path, "paper")
    keep(page, "reproduction", found)
    assert render(page) == 0
    text = page.read_text(encoding="utf-8")
    row = found["models"]["student-alone"]
    cells = f"{row['values'][0]}, {row['values'][1]} | {row['mean']:.1f} ± {row['interval_95']:,.1f} | 146 |"
    assert f"| student, labels alone, 784-8-10 | {cells}" in text
    assert "| units a layer | alone | T = 1 | T = 2.5 |" in text
    assert text.count("\n| no 3 | ") == text.count("\n| only 7s and 8s | ") == 5
    assert "of 20 | 206, 133 of 1,010 threes |" in text
    assert "of 40 | 1,320 (−7.6) |" in text
    assert text.endswith("<!-- paper:end -->\n\nAfter\n")
    with Image.open(tmp_path / "docs/paper.png") as figure:
        assert figure.width > 1_000
    assert render(page, "--check") == 0
