"""Section `evidence`: calibration, fidelity and robustness, from the recorded reports of a recipe's models."""

from pathlib import Path
from statistics import mean

from benchmarks.report.comparison import Row
from benchmarks.report.figures import save, style
from benchmarks.report.markdown import measured, table
from benchmarks.report.sections import Section, Sources
from training.report.figures import robustness_figure


def evidence_section(sources: Sources, figure: str) -> str:
    """Return the Markdown: calibration and fidelity, errors by digit, corrupted digits with their figure."""
    source = sources["evidence"]
    models: dict[str, Row] = source.data["models"]
    seeds = sorted({model["seed"] for model in models.values()})
    parts = [
        _calibration_table(models),
        "NLL in nats, ECE over 15 bins of equal width; after the arrow, with the logits divided by the temperature T "
        "that was fitted on validation digits and is exported with the model. Agreement and KL: with the answers of "
        f"the model's teacher. On the 10,000 test digits, seed {', '.join(map(str, seeds))}.",
        "**Errors by digit:**",
        _digits_table(models),
        "**Accuracy on corrupted digits**, mean of five strengths each:",
        _robustness_table(models),
        f"![Errors against the strength of each corruption]({figure})",
        measured("evidence", source),
    ]
    return "\n\n".join(parts)


def draw_evidence(sources: Sources, path: Path, names: str) -> None:
    """Write the figure of the corrupted digits to `path`."""
    with style():
        save(robustness_figure(sources["evidence"].data["models"]), path, names)


def _calibration_table(models: dict[str, Row]) -> str:
    lines = [["model", "errors", "NLL", "Brier", "ECE", "T", "agreement", "KL to the teacher"]]
    for name, model in sorted(models.items(), key=lambda item: item[1]["errors"]):
        calibration, fidelity = model["calibration"], model["fidelity"]
        before, after = calibration["before"], calibration["after"]
        lines.append(
            [
                f"`{name}`",
                str(model["errors"]),
                f"{before['nll']:.4f} → {after['nll']:.4f}",
                f"{before['brier']:.4f} → {after['brier']:.4f}",
                f"{before['ece']:.2%} → {after['ece']:.2%}",
                f"{calibration['temperature']:.2f}",
                *([f"{fidelity['agreement']:.2%}", f"{fidelity['kl']:.4f}"] if fidelity else ["", ""]),
            ]
        )
    return table(lines)


def _digits_table(models: dict[str, Row]) -> str:
    lines = [["model", *map(str, range(10))]]
    lines += [[f"`{name}`", *map(str, model["errors_by_class"])] for name, model in models.items()]
    return table(lines)


def _robustness_table(models: dict[str, Row]) -> str:
    corruptions = list(next(iter(models.values()))["robustness"])
    lines = [["model", *corruptions, "all"]]
    for name, model in models.items():
        digits = model["robustness_digits"]
        rates = [1 - mean(model["robustness"][corruption]) / digits for corruption in corruptions]
        lines.append([f"`{name}`", *(f"{rate:.1%}" for rate in (*rates, model["corrupted_accuracy"]))])
    return table(lines)


SECTION = Section(
    name="evidence",
    kinds=("evidence",),
    to_markdown=evidence_section,
    figure="robustness.png",
    draw=draw_evidence,
)
