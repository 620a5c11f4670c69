"""Figures of a run: `runs/<recipe>/figures/*.png`.

After training: digits, soft_targets, curves. After `evaluate` and `report`: errors, confusion. After `report`:
reliability, robustness.
"""

import io
from collections.abc import Collection, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from matplotlib.figure import Figure
from torch import Tensor

from distillery.files import write_atomically
from training.data.mnist import Digits
from training.data.views import PLAIN, Views
from training.loop.trainer import Record, predict
from training.model.network import CLASSES, SIDE, Network
from training.recipe.schema import ALONE

COLOURS = ("#4c566a", "#2a7de1", "#d08770", "#5b9a3c", "#9a5bb5", "#c0392b", "#00838f")
TEMPERATURES = (1, 4, 8, 20)
CONFIDENT = 0.99
DIGITS = range(CLASSES)
COLUMNS = 4
"""Panels per row."""
STATES = {"before": "without temperature", "after": "with temperature"}


def draw_digits(path: Path, digits: Digits, views: Mapping[str, Views]) -> None:
    """Draw ten digits of each class, and their first views for models (by name) that train on augmented ones."""
    chosen = torch.cat([torch.nonzero(digits.labels == digit)[:10, 0] for digit in DIGITS])
    images = digits.images[chosen]
    sheets = {"the training digits": images}
    for name, seen in views.items():
        if (number := seen.number(epoch=1)) != PLAIN:
            sheets[f"augmented for the {name} in its first epoch"] = seen.of(images).show(number)
    figure = Figure(figsize=(5.2 * len(sheets), 5.6), layout="constrained")
    for axes, (title, sheet) in zip(
        figure.subplots(1, len(sheets), squeeze=False)[0], sheets.items(), strict=True
    ):
        axes.imshow(_tile(sheet, columns=10).numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(title)
        axes.set_axis_off()
    save(figure, path)


def draw_soft_targets(path: Path, teacher: Network, digits: Digits) -> None:
    """Draw the teacher's probabilities for one digit at several temperatures: more than its label says."""
    logits = predict(teacher, digits.images)
    confident = (torch.softmax(logits, dim=1).amax(dim=1) > CONFIDENT) & (logits.argmax(1) == digits.labels)
    _, second, third = torch.softmax(logits / TEMPERATURES[1], dim=1).topk(3, dim=1).values.unbind(dim=1)
    chosen = int(torch.where(confident, second - third, -1).argmax())  # resembles one other class most
    figure = Figure(figsize=(13, 2.9), layout="constrained")
    image, *panels = figure.subplots(1, 1 + len(TEMPERATURES))
    image.imshow(digits.images[chosen].numpy(), cmap="gray")
    image.set_title(f"a {int(digits.labels[chosen])} held out for validation", fontsize=10)
    image.set_axis_off()
    for axes, temperature in zip(panels, TEMPERATURES, strict=True):
        axes.bar(DIGITS, torch.softmax(logits[chosen] / temperature, dim=0).numpy(), color=COLOURS[0])
        axes.set(xticks=DIGITS, ylim=(0, 1))
        axes.set_title(f"soft targets at T = {temperature}", fontsize=10)
    panels[0].set_ylabel("probability")
    save(figure, path)


def draw_curves(path: Path, histories: Mapping[str, Sequence[Record]], *, distilled: Collection[str]) -> None:
    """Draw loss and accuracy of every model: training dotted, validation solid, controls paler."""
    roles = dict.fromkeys(name.removesuffix(ALONE) for name in histories)
    colours = dict(zip(roles, cycle(COLOURS), strict=False))
    figure = Figure(figsize=(12, 4.6), layout="constrained")
    losses, accuracies = figure.subplots(1, 2)
    for name, history in histories.items():
        epochs = [record["epoch"] for record in history]
        for axes, key in ((losses, "loss"), (accuracies, "accuracy")):
            style = {"color": colours[name.removesuffix(ALONE)], "linewidth": 1.6}
            style["alpha"] = 0.45 if name.endswith(ALONE) else 1
            axes.plot(epochs, [record[f"validation_{key}"] for record in history], label=name, **style)
            if key == "accuracy" or name not in distilled:  # a distillation loss has another scale
                axes.plot(epochs, [record[key] for record in history], linestyle=":", **style)
    losses.set(xlabel="epoch", ylabel="cross entropy (nats)", yscale="log", title="loss")
    accuracies.set(xlabel="epoch", ylim=(0.95, 1.0005), title="accuracy")
    accuracies.yaxis.set_major_formatter(lambda share, _: f"{share:.1%}")
    for axes in (losses, accuracies):
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(visible=True, alpha=0.3)
    accuracies.legend(loc="lower right", title="solid: validation, dotted: training")
    save(figure, path)


def draw_errors(
    path: Path, evaluation: Mapping[str, Mapping[str, Any]], test: Digits, *, count: int = 12
) -> None:
    """Draw the test digits that each model misclassified with the highest confidence."""
    figure = Figure(figsize=(1.1 * count, 1.75 * len(evaluation)), layout="constrained")
    rows = figure.subplots(len(evaluation), 1, squeeze=False)[:, 0]
    for axes, (name, model) in zip(rows, evaluation.items(), strict=True):
        sheet = torch.zeros(count, SIDE, SIDE, dtype=torch.uint8)
        for index, digit in enumerate(model["misclassified"][:count]):
            sheet[index] = test.images[digit["index"]]
            text = f"{digit['label']}, not {digit['prediction']}\n({digit['probability']:.1%})"
            axes.text((index + 0.5) * SIDE, -2, text, ha="center", va="bottom", fontsize=8)
        axes.imshow(_tile(sheet, columns=count).numpy(), cmap="gray", vmin=0, vmax=255)
        axes.set_title(name, fontsize=9, loc="left", pad=30)
        axes.set_axis_off()
    save(figure, path)


def draw_confusion(path: Path, evaluation: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw the confusion matrix of every model; colours show errors only."""
    figure = Figure(figsize=(4.6 * len(evaluation), 4.8), layout="constrained")
    confusions = {name: torch.tensor(model["confusion"]) for name, model in evaluation.items()}
    darkest = max(int(confusion.clone().fill_diagonal_(0).max()) for confusion in confusions.values())
    for axes, (name, model) in zip(
        figure.subplots(1, len(evaluation), squeeze=False)[0], evaluation.items(), strict=True
    ):
        confusion = confusions[name]
        wrong = confusion.clone().fill_diagonal_(0)
        axes.imshow(wrong.numpy(), cmap="Oranges", vmin=0, vmax=max(darkest, 1))
        for label in DIGITS:
            for predicted in DIGITS:
                if confusion[label, predicted]:
                    text = str(int(confusion[label, predicted]))
                    inside = axes.text(predicted, label, text, ha="center", va="center", fontsize=7)
                    inside.set_in_layout(False)  # hundreds of texts make the layout slow
        axes.set(xticks=DIGITS, yticks=DIGITS, xlabel="prediction", ylabel="label")
        axes.set_title(f"{name}: {model['errors']} errors")
    save(figure, path)


def _tile(images: Tensor, *, columns: int) -> Tensor:
    rows = images.view(-1, columns, SIDE, SIDE)
    return rows.permute(0, 2, 1, 3).reshape(-1, columns * SIDE)


def save(figure: Figure, path: Path) -> None:
    """Write the figure as a PNG, whole or not at all."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    write_atomically(path, content.getvalue())


def draw_reliability(path: Path, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Draw each model's accuracy against its confidence, with and without temperature; dots grow with digits."""
    rows = -(-len(metrics) // COLUMNS)
    columns = min(len(metrics), COLUMNS)
    figure = Figure(figsize=(3.4 * columns, 3.5 * rows), layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).flat
    for axes, (name, model) in zip(panels, metrics.items(), strict=False):
        axes.plot((0, 1), (0, 1), color="grey", linestyle=":")
        title = name
        for colour, (state, title_of_state) in zip(COLOURS, STATES.items(), strict=False):
            calibration = model["calibration"][state]
            bars = [bar for bar in calibration["reliability"] if bar["digits"]]
            digits = sum(bar["digits"] for bar in bars)
            x, y = ([bar[key] for bar in bars] for key in ("confidence", "accuracy"))
            axes.plot(x, y, color=colour, linewidth=1, alpha=0.6)
            sizes = [8 + 150 * (bar["digits"] / digits) ** 0.5 for bar in bars]
            axes.scatter(x, y, sizes, color=colour, alpha=0.6, label=title_of_state)
            title += f"\nECE {calibration['ece']:.2%} {title_of_state}"
        axes.set_title(title, fontsize=9)
        axes.grid(visible=True, alpha=0.3)
    for axes in panels:
        axes.set_axis_off()
    figure.axes[0].legend(loc="upper left", fontsize=8, markerscale=0.5)
    figure.supxlabel("confidence")
    figure.supylabel("accuracy")
    save(figure, path)


def draw_robustness(path: Path, metrics: Mapping[str, Mapping[str, Any]]) -> None:
    """Write `robustness_figure` to `path`."""
    save(robustness_figure(metrics), path)


def robustness_figure(metrics: Mapping[str, Mapping[str, Any]]) -> Figure:
    """Return error rates against the strength of each corruption, and their mean; controls are dashed."""
    roles = dict.fromkeys(name.removesuffix(ALONE) for name in metrics)
    colours = dict(zip(roles, cycle(COLOURS), strict=False))
    corruptions = list(next(iter(metrics.values()))["robustness"])
    panels = [*corruptions, "mean of all"]
    figure = Figure(figsize=(3.4 * COLUMNS, 3.1 * (-(-len(panels) // COLUMNS))), layout="constrained")
    grid = figure.subplots(-(-len(panels) // COLUMNS), COLUMNS, squeeze=False, sharex=True, sharey=True).flat
    for axes, corruption in zip(grid, panels, strict=False):
        for name, model in metrics.items():
            table = model["robustness"]
            counts = table.get(corruption) or [mean(at) for at in zip(*table.values(), strict=True)]
            undistorted = model["errors"] / model["digits"]["test"]
            shares = [undistorted, *(count / model["robustness_digits"] for count in counts)]
            style = "--" if name.endswith(ALONE) else "-"
            colour = colours[name.removesuffix(ALONE)]
            axes.plot(range(len(shares)), shares, style, color=colour, label=name, linewidth=1.4)
        axes.set_title(corruption, fontsize=10)
        axes.grid(visible=True, alpha=0.3)
        axes.yaxis.set_major_formatter(lambda share, _: f"{share:.0%}")
    figure.legend(*figure.axes[0].get_legend_handles_labels(), loc="outside right upper")
    figure.supxlabel("strength; 0: undistorted")
    figure.supylabel("error rate")
    return figure
