"""A cascade of the small networks of the tests."""

from pathlib import Path

import numpy as np

from export.cascade import Exported, export_cascade
from export.splits import Splits
from serving.model.repository import load_model
from serving.model.session import Outputs

EPSILON = 0.05
"""With 100 validation digits, one may be worse."""


def export_small_cascade(models_dir: Path, splits: Splits, name: str = "cascade") -> Exported:
    """Export a cascade of student and teacher."""
    student, teacher = (load_model(models_dir / name / "1") for name in ("student", "teacher"))
    return export_cascade(student, teacher, splits, models_dir=models_dir, name=name, epsilon=EPSILON)


def middle_threshold(student: Outputs) -> float:
    """Return a threshold with about as many digits below as above, and none close to it."""
    probabilities = np.sort(student.probabilities.max(axis=1).astype(np.float64))
    middle = probabilities[len(probabilities) // 3 : 2 * len(probabilities) // 3]
    at = int(np.diff(middle).argmax())
    return float(middle[at : at + 2].mean())
