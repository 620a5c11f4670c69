"""Section `paper`: the recorded reproduction of the paper's MNIST section, next to the paper's figures."""

from pathlib import Path
from typing import Any

from benchmarks.report.figures import save, style
from benchmarks.report.markdown import table
from benchmarks.report.sections import Section, Source, Sources
from training.paper.figure import temperatures_figure

Row = dict[str, Any]

MODELS = {
    "teacher": ("teacher", "67"),
    "student-alone": ("student, labels alone", "146"),
    "student": ("student, distilled", "74"),
}
"""Title, and the errors in Hinton, Vinyals and Dean 2015, section 3."""
TRANSFER_SETS = {
    "threeless": ("no 3", {"none": "206, 133 of 1,010 threes", "test": "109, 14 of 1,010 threes (+3.5)"}),
    "seveneight": ("only 7s and 8s", {"none": "4,730", "test": "1,320 (−7.6)"}),
}
"""The paper's errors, and in brackets the offset it chose by them; for 7s and 8s it states 47.3 % and 13.2 %."""
CORRECTIONS = {
    "none": "as trained",
    "prior": "one offset, by the prior",
    "prior of all": "ten offsets, by the prior",
    "validation": "one offset, by validation errors",
    "test": "one offset, by **test** errors, as in the paper",
}


def paper_section(sources: Sources, figure: str) -> str:
    """Return the Markdown: models, temperatures with their figure, transfer sets, how it was measured."""
    source = sources["reproduction"]
    data = source.data
    return "\n\n".join(
        [
            _models_table(data),
            _temperatures_table(data),
            f"![Test errors of narrow students against the temperature]({figure})",
            _transfer_table(data),
            f"Errors on the {data['test_digits']:,} test digits: mean and 95 % interval (Student's t) over seeds "
            f"{', '.join(map(str, data['seeds']))}.",
            _measured(source),
        ]
    )


def draw_paper(sources: Sources, path: Path, names: str) -> None:
    """Write the figure of the temperatures to `path`."""
    with style():
        save(temperatures_figure(sources["reproduction"].data), path, names)


def _models_table(data: Row) -> str:
    lines = [["", "each seed", "errors", "paper"]]
    for name, (title, paper) in MODELS.items():
        row = data["models"][name]
        lines.append(
            [
                f"{title}, {_shape(data['settings'][name.removesuffix('-alone')])}",
                ", ".join(map(str, row["values"])),
                _errors(row),
                paper,
            ]
        )
    return table(lines)


def _temperatures_table(data: Row) -> str:
    rows = data["temperatures"]
    temperatures = list(dict.fromkeys(row["temperature"] for row in rows))
    lines = [["units a layer", *("alone" if t is None else f"T = {t:g}" for t in temperatures)]]
    widths = dict.fromkeys(row["units"] for row in rows)
    lines += [[str(width), *(_errors(row) for row in rows if row["units"] == width)] for width in widths]
    return table(lines)


def _transfer_table(data: Row) -> str:
    lines = [["transfer set", "biases", "offset", "errors", "on the moved classes", "paper's errors"]]
    for name, (title, paper) in TRANSFER_SETS.items():
        transfer = data["transfer_sets"][name]
        digits = sum(data["digits_of_class"][digit] for digit in transfer["moved"])
        for correction, row in transfer["corrections"].items():
            lines.append(
                [
                    title,
                    CORRECTIONS[correction],
                    "" if correction == "none" else _signed(row["offset"]),
                    _errors(row["errors"]),
                    f"{_errors(row['on_moved'])} of {digits:,}",
                    paper.get(correction, ""),
                ]
            )
    return table(lines)


def _shape(settings: Row) -> str:
    return "-".join(map(str, [784, *settings["hidden"], 10]))


def _errors(row: Row) -> str:
    spread = "" if row["interval_95"] is None else f" ± {row['interval_95']:,.1f}"
    return f"{row['mean']:,.1f}{spread}"


def _signed(row: Row) -> str:
    spread = "" if row["interval_95"] is None else f" ± {row['interval_95']:.1f}"
    return f"{row['mean']:+.1f}{spread}".replace("-", "−")


def _measured(source: Source) -> str:
    document = source.document
    machine, versions = document["machine"], document["versions"]
    commit = (document["commit"] or "unknown")[:10]
    commit += " with changes" if document["uncommitted_changes"] else ""
    return (
        f"- [reproduction]({source.link}): {machine['cpu']}, {machine['os']}; python {versions['python']}, "
        f"torch {versions['torch']}; commit {commit}; {document['date'][:10]}."
    )


SECTION = Section(
    name="paper",
    kinds=("reproduction",),
    to_markdown=paper_section,
    figure="paper.png",
    draw=draw_paper,
)
