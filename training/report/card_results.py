"""The part of a model's card that holds its results: tables, and what they say.

All numbers come from the model's report (`training.report.report`). The rest of the card: `training.report.model_card`.
"""

from collections.abc import Iterable, Sequence
from statistics import mean
from typing import Any

from training.recipe.schema import ALONE

Report = dict[str, Any]
CHANCE = 0.05


def results(report: Report) -> str:
    """Return the sections from the results on the test digits to robustness: Markdown."""
    parts = (_errors, _gain, _classes, _calibration, _fidelity, _robustness)
    return "\n\n".join(text for part in parts if (text := part(report)))


def interval(values: dict[str, Any]) -> str:
    """Return mean and 95 % interval, the mean alone where one seed gives no interval."""
    half = values["interval_95"]
    return f"{values['mean']:g}" if half is None else f"{values['mean']:.1f} ± {half:.1f}"


def listed(values: Iterable[object]) -> str:
    """Return the values with commas between them."""
    return ", ".join(map(str, values))


def _errors(report: Report) -> str:
    rows = [
        [
            f"**{name}**" if name == report["name"] else name,
            row["architecture"],
            f"{row['parameters']:,}",
            f"{row['errors']:,}",
            f"{row['accuracy']:.2%}",
            interval(row["errors_over_seeds"]),
            listed(row["errors_over_seeds"]["seeds"]),
            f"{row['corrupted_accuracy']:.1%}",
        ]
        for name, row in report["models"].items()
    ]
    headings = [
        "model",
        "architecture",
        "parameters",
        "errors",
        "accuracy",
        "errors, mean of seeds ± 95 %",
        "seeds",
    ]
    table = _table([*headings, "accuracy, corrupted"], rows)
    return f"## Results on the test digits\n\n{table}"


def _gain(report: Report) -> str:
    if (saved := report["saved_by_distillation"]) is None:
        return ""
    half, p = saved["interval_95"], saved["digits"]["p"]
    if half is None:
        verdict = "One seed cannot say what another would bring."
    elif abs(saved["mean"]) > half and p < CHANCE:
        verdict = "That is more than chance, over seeds as over digits."
    else:
        verdict = "That may be chance."
    return (
        f"Errors of {report['name']}{ALONE} less its own, seed by seed: {listed(saved['saved'])} (seeds "
        f"{listed(saved['of_seeds'])}), mean {interval(saved)}. On digits like these, chance alone would make them "
        f"differ as much with p {f'= {p:.3f}' if p >= 0.001 else '< 0.001'} (sign-flip test over the digits). "
        f"{verdict}"
    )


def _classes(report: Report) -> str:
    confusion, rows = report["evidence"]["confusion"], []
    for label, counts in enumerate(confusion):
        cells = [
            f"**{count}**" if answer == label else str(count or "·") for answer, count in enumerate(counts)
        ]
        wrong, total = sum(counts) - counts[label], sum(counts)
        rows.append([str(label), *cells, str(wrong), f"{wrong / total:.1%}" if total else ""])
    headings = ["digit", *map(str, range(len(confusion))), "errors", "share"]
    return f"### Digit by digit, and what each was taken for\n\n{_table(headings, rows)}"


def _calibration(report: Report) -> str:
    scores = report["evidence"]["calibration"]
    rows = [
        [name, *(f"{scores[state][key]:.4f}" for state in ("before", "after"))]
        for name, key in (("expected calibration error", "ece"), ("NLL, nats", "nll"), ("Brier", "brier"))
    ]
    table = _table(["test digits", "as it is", "with the temperature"], rows)
    return (
        "## Calibration\n\n"
        f"Does it know how sure it may be? Temperature {scores['temperature']:.3f} suits the validation digits best "
        "(Guo et al. 2017): above 1 it was too sure of its answers, below 1 not sure enough. To divide the logits by "
        f"it changes no answer.\n\n{table}"
    )


def _fidelity(report: Report) -> str:
    if (fidelity := report["evidence"]["fidelity"]) is None:
        return ""
    teacher = report["settings"]["distillation"]["teacher"]
    return (
        "## Fidelity to its teacher\n\n"
        f"It gives {teacher}'s answer, right or wrong, to {fidelity['agreement']:.2%} of the test digits; "
        f"KL({teacher} ‖ {report['name']}) is {fidelity['kl']:.4f} nats (Stanton et al. 2021)."
    )


def _robustness(report: Report) -> str:
    evidence = report["evidence"]
    digits, rows = evidence["robustness_digits"], []
    others = [row for name, row in report["models"].items() if name != report["name"]]
    for name, counts in evidence["robustness"].items():
        means = [mean(other["robustness"][name]) for other in others]
        corruption = report["corruptions"][name]
        amounts = ", ".join(f"{amount:g}" for amount in corruption["amounts"])
        shares = [f"{count / digits:.1%}" for count in (*counts, mean(counts), *means)]
        rows.append([f"{name} ({amounts}: {corruption['unit']})", *shares])
    names = [name for name in report["models"] if name != report["name"]]
    table = _table(["corruption", *"12345", "mean", *(f"mean of {name}" for name in names)], rows)
    whole = "all of them" if digits == evidence["digits"]["test"] else "evenly spread over the set"
    return (
        "## Robustness\n\n"
        f"Share of {digits:,} test digits ({whole}) that goes wrong when they are corrupted, at strengths 1 to 5, "
        f"after the manner of MNIST-C (Mu and Gilmer 2019).\n\n{table}"
    )


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
