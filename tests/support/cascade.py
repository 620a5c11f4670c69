"""A cascade of the small networks of the tests."""

from pathlib import Path

from export.cascade import Exported, export_cascade
from export.splits import Splits
from serving.model.repository import load_model

EPSILON = 0.05
"""With 100 validation digits, one may be worse."""


def export_small_cascade(models_dir: Path, splits: Splits, name: str = "cascade") -> Exported:
    """Export a cascade of student and teacher."""
    student, teacher = (load_model(models_dir / name / "1") for name in ("student", "teacher"))
    return export_cascade(student, teacher, splits, models_dir=models_dir, name=name, epsilon=EPSILON)
