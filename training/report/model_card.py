"""Model card after Mitchell et al. 2019 (arXiv:1810.03993), with the metadata block that Hugging Face reads.

`model_card.md.jinja` is the text; every number in it comes from `report.json`, written next to it.
"""

from pathlib import Path
from statistics import mean
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from training.recipe.schema import ALONE

Report = dict[str, Any]
SIGNIFICANCE = 0.05
_TEMPLATE = Environment(
    loader=FileSystemLoader(Path(__file__).parent),
    autoescape=False,  # noqa: S701 - Markdown, not HTML
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
).get_template("model_card.md.jinja")


def model_card(report: Report) -> str:
    """Return the model card of a report by `training.report.report`: Markdown."""
    name, models, metrics = report["name"], report["models"], report["metrics"]
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": "MNIST", "type": "ylecun/mnist", "split": "test"},
        "metrics": [{"type": "accuracy", "value": report["headline"]["test_accuracy"]}],
    }
    return _TEMPLATE.render(
        **report,
        row=models[name],
        others={other: row for other, row in models.items() if other != name},
        model_index=[{"name": name, "results": [result]}],
        distillation=report["settings"]["distillation"],
        control_of=name.removesuffix(ALONE) if name.endswith(ALONE) else None,
        control_suffix=ALONE,
        augmentation=_changes(report["settings"]["augmentation"]),
        verdict=_verdict(report["saved_by_distillation"]),
        tools={"torch": report["metadata"]["recipe"]["torch"]} | report["metadata"]["tools"],
        **_weaknesses(metrics),
        amounts=lambda of: f"{', '.join(f'{amount:g}' for amount in of['amounts'])}: {of['unit']}",
        interval=interval,
        mean=mean,
        percent=lambda share, decimals=1: f"{share:.{decimals}%}",
        thousands=lambda number: f"{number:,}",
    )


def interval(values: dict[str, Any]) -> str:
    """Return mean and 95 % interval, the mean alone where one seed gives no interval."""
    half = values["interval_95"]
    return f"{values['mean']:g}" if half is None else f"{values['mean']:.1f} ± {half:.1f}"


def _changes(augmentation: dict[str, Any]) -> list[str]:
    """Return the random changes of the training digits, each with its amount."""
    photometric = augmentation["photometric"]
    share = photometric["probability"]
    geometric = [
        f"{name} {amount:g}" for name, amount in augmentation.items() if name != "photometric" and amount
    ]
    return geometric + [
        f"{name} {amount:g} for {share:.0%} of the digits"
        for name, amount in photometric.items()
        if share and amount and name != "probability"
    ]


def _verdict(saved: dict[str, Any] | None) -> str:
    """State whether the errors saved by distillation are significant over seeds and over digits."""
    if saved is None:
        return ""
    if saved["interval_95"] is None:
        return "One seed does not tell what other seeds would give."
    if abs(saved["mean"]) > saved["interval_95"] and saved["digits"]["p"] < SIGNIFICANCE:
        return "The difference is significant over seeds and over digits."
    return "The difference may be chance."


def _weaknesses(metrics: dict[str, Any]) -> dict[str, Any]:
    """The class with most errors, the most frequent confusion and the corruption with most errors."""
    confusion, wrong = metrics["confusion"], metrics["errors_by_class"]
    shares = [count / max(1, sum(row)) for count, row in zip(wrong, confusion, strict=True)]
    count, label, prediction = max(
        (count, label, prediction)
        for label, row in enumerate(confusion)
        for prediction, count in enumerate(row)
        if prediction != label
    )
    robustness = metrics["robustness"]
    return {
        "worst": {"label": shares.index(max(shares)), "share": max(shares)},
        "frequent": {"count": count, "label": label, "prediction": prediction},
        "hardest": max(robustness, key=lambda name: mean(robustness[name])),
    }
