"""A model's card for people, after Mitchell et al. 2019 (arXiv:1810.03993), in the form that Hugging Face reads.

Every number in it is taken from the report it is made from, `report.json` beside it.
"""

import json
from statistics import mean

from training.recipe.schema import ALONE
from training.report.card_results import Report, interval, listed, results


def model_card(report: Report) -> str:
    """Return the card of the model that `report`, from `training.report.report`, is about: Markdown."""
    parts = (_metadata, _title, _use, _training, results, _limitations, _making)
    return "\n\n".join(part(report) for part in parts) + "\n"


def _metadata(report: Report) -> str:
    """The head that Hugging Face reads: YAML, of which JSON is a part."""
    result = {
        "task": {"type": "image-classification"},
        "dataset": {"name": "MNIST", "type": "ylecun/mnist", "split": "test"},
        "metrics": [{"type": "accuracy", "value": report["headline"]["test_accuracy"]}],
    }
    head = {
        "pipeline_tag": "image-classification",
        "tags": ["mnist", *(["knowledge-distillation"] if report["settings"]["distillation"] else [])],
        "datasets": ["ylecun/mnist"],
        "metrics": ["accuracy"],
        "model-index": [{"name": report["name"], "results": [result]}],
    }
    lines = [f"{name}: {json.dumps(value)}" for name, value in head.items()]
    return "\n".join(["---", *lines, "---"])


def _title(report: Report) -> str:
    row, digits = report["models"][report["name"]], report["evidence"]["digits"]
    seeds = row["errors_over_seeds"]
    more = (
        f" Over the seeds {listed(seeds['seeds'])}: {interval(seeds)}."
        if seeds["interval_95"] is not None
        else ""
    )
    return (
        f"# {report['name']}\n\n"
        f"Classifies handwritten digits. {row['architecture']}, {row['parameters']:,} parameters. {_lesson(report)} "
        f"Of {digits['test']:,} test digits it gets **{row['errors']:,}** wrong ({row['accuracy']:.2%} right).{more}"
    )


def _lesson(report: Report) -> str:
    name = report["name"]
    if settings := report["settings"]["distillation"]:
        labels = " and from the labels" if settings["alpha"] < 1 else ", and from no labels"
        return (
            f"It learned from the soft targets of {settings['teacher']} (loss {settings['loss']}, temperature "
            f"{settings['temperature']:g}, weight {settings['alpha']:g}){labels}."
        )
    if name.endswith(ALONE):
        student = name.removesuffix(ALONE)
        return (
            f"It learned from the labels alone, to show what {student}, else the same, owes to its teacher."
        )
    return "It learned from the labels."


def _use(report: Report) -> str:
    return (
        "## Use\n\n"
        "- **Takes** `uint8 [N, 28, 28]`, one digit each, light ink (255) on black (0), centred and scaled as MNIST "
        f"has it; **gives** {len(report['evidence']['confusion'])} logits, one a digit.\n"
        "- **Meant for** comparing small networks with large ones: what distillation gains and loses.\n"
        "- **Not meant for** whole numbers, forms, cheques or addresses, nor for any decision about people."
    )


def _training(report: Report) -> str:
    facts, settings, digits = report["facts"], report["settings"], report["evidence"]["digits"]
    moved = [f"{name} {value:g}" for name, value in settings["augmentation"].items() if value]
    views = f"moved at random ({', '.join(moved)})" if moved else "as they are"
    unseen = f" It was never shown these: {listed(settings['leave_out'])}." if settings["leave_out"] else ""
    return (
        "## Training and data\n\n"
        f"MNIST's training set, split without chance and each class in proportion: {digits['training']:,} digits to "
        f"learn from, {views}; {digits['validation']:,} to choose the epoch (number {facts['epoch']} of "
        f"{settings['epochs']}, with {facts['validation_errors']} errors there) and the temperature below. The "
        f"{digits['test']:,} test digits chose nothing.{unseen} It was trained for {facts['seconds']:,.0f} s "
        f"({facts['recipe']['device']})."
    )


def _limitations(report: Report) -> str:
    evidence = report["evidence"]
    confusion, wrong = evidence["confusion"], evidence["errors_by_class"]
    shares = [count / max(1, sum(row)) for count, row in zip(wrong, confusion, strict=True)]
    worst = shares.index(max(shares))
    count, label, answer = max(
        (count, label, answer)
        for label, row in enumerate(confusion)
        for answer, count in enumerate(row)
        if answer != label
    )
    hardest = max(evidence["robustness"], key=lambda name: mean(evidence["robustness"][name]))
    lines = [
        f"The {worst} is its weakest digit ({shares[worst]:.1%} go wrong), {label} for {answer} its commonest "
        f"mistake ({count} times).",
        f"Of the corruptions, {hardest} harms it most.",
        "MNIST's digits were written around 1990 in the United States, by employees of the Census Bureau and by "
        "high-school students, then centred and scaled; other hands, pens and cameras are another task.",
        "Who wrote a digit is not in the data, so nothing is known of how it does for one group or another.",
        "What is no digit is answered with a digit all the same, and perhaps surely.",
    ]
    return "## Limitations\n\n" + "\n".join(f"- {line}" for line in lines)


def _making(report: Report) -> str:
    facts = report["facts"]
    recipe, tools = facts["recipe"], {"torch": facts["recipe"]["torch"]} | facts["tools"]
    flags = f"--seed {recipe['seed']} --device {recipe['device']}"
    flags += f" --precision {'bfloat16' if recipe['bfloat16'] else 'float32'}"
    flags += f" --threads {facts['threads']}" if "threads" in facts else ""
    versions = ", ".join(f"{tool} {version}" for tool, version in tools.items())
    return (
        "## How it was made\n\n"
        f"```toml\n# recipe.toml\n{report['recipe_toml']}```\n\n"
        "```\n"
        f"distillery-train --recipe recipe.toml {flags}\n"
        "distillery-train report --recipe recipe.toml\n"
        "```\n\n"
        f"With {versions}. SHA-256 of the weights: `{report['evidence']['of']['sha256']}`. All numbers, and the "
        "hashes of the data, are in `report.json`."
    )
