"""The section on training as int8 computes: a result of `distillery-bench accuracy --recipe quantised`."""

from benchmarks.report.markdown import errors_cell, measured, table
from benchmarks.report.sections import Sources
from benchmarks.results.models import INT8

TRAINED = "q"
"""NAMEq goes on from NAME, as int8 computes it."""


def quantised_section(sources: Sources, _picture: str) -> str:
    """Return the Markdown: each network in fp32, in int8 by calibration alone, and in int8 that it was trained for."""
    source = sources["accuracy_quantised"]
    errors = source.data["test_errors"]
    lines = [["128-64", "fp32", "int8, calibrated", "int8, trained for it"]]
    for name, learns_from in (("faster", "distilled"), ("labels", "from the labels")):
        cells = (errors[each] for each in (name, name + INT8, name + TRAINED + INT8))
        lines.append([learns_from, *map(errors_cell, cells)])
    seeds = ", ".join(str(seed["seed"]) for seed in source.data["seeds"])
    return "\n\n".join(
        [
            table(lines),
            "Errors of the 10,000 test digits, mean ± 95 % interval (Student's t) and each of the seeds "
            f"{seeds}; recipe `{source.data['recipe']}`.",
            measured("accuracy", source),
        ]
    )
