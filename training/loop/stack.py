"""Several seeds of one small network at once: a layer of all of them is one batched product.

    distillery-train --recipe best --seeds 1,2,3

A step of a small network is mostly the calls it is made of, and a stack of networks makes each once. Every seed keeps
its own weights, views, order of digits, validation and files: what comes out is what comes out one after the other,
but for the order in which numbers are added. `distillery-bench speed` measures what it brings.
"""

import time
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from training.loop.trainer import REPORT_EVERY_S, Observer, Training
from training.model.network import CLASSES, PIXELS, normalise
from training.recipe.schema import Model

LARGEST = 250_000
"""Weights of a network: one with more is busy multiplying, and gains nothing."""


def stackable(model: Model) -> bool:
    """Return whether several seeds of `model` make a stack: small, fully connected, nothing drawn, one rate for all."""
    weights = sum(inputs * units for inputs, units in pairwise([PIXELS, *model.hidden, CLASSES]))
    special = model.stages or model.members > 1 or model.dropout or model.max_norm or model.quantised_from
    return weights <= LARGEST and model.norm and model.schedule == "one-cycle" and not special


class Stack:
    """Trainings of one model with different seeds that have come to the same epoch.

    Their weights, statistics and moments become parts of the stack's, `[seeds, ...]`, and change with them.
    """

    def __init__(self, trainings: Sequence[Training]) -> None:
        self.trainings, model = trainings, trainings[0].job.model
        networks = [training.network for training in trainings]
        self._layers = range(len(model.hidden))
        self._statistics = _merge([dict(network.named_buffers()) for network in networks])
        every: list[dict[str, Tensor]] = [dict(network.named_parameters()) for network in networks]
        self._weights = {name: nn.Parameter(weight) for name, weight in _merge(every).items()}
        self._optimizer = torch.optim.AdamW(
            self._weights.values(), weight_decay=model.weight_decay, fused=True
        )
        for name, weight in self._weights.items():
            states = [
                training.optimizer.state[own[name]] for training, own in zip(trainings, every, strict=True)
            ]
            for state, own in zip(states, every, strict=True):
                for moment in ("exp_avg", "exp_avg_sq"):
                    state.setdefault(moment, torch.zeros_like(own[name]))
                state.setdefault("step", torch.zeros((), device=weight.device))
            moments = _merge([{name: state[name] for name in ("exp_avg", "exp_avg_sq")} for state in states])
            for state in states:
                state["step"] = states[0]["step"]
            self._optimizer.state[weight] = moments | {"step": states[0]["step"]}

    def train_epoch(self, observer: Observer) -> None:
        """Train one epoch of every seed, validate, keep what is to be kept; `observer` is shown the first seed."""
        first, start = self.trainings[0], time.perf_counter()
        epoch, count = len(first.history) + 1, len(self.trainings)
        view = first.views.number(epoch)
        drawn: dict[int, Tensor] = {}  # seeds may have their views in common
        for training in self.trainings:
            if training.views.seed not in drawn:
                drawn[training.views.seed] = training.views.show(view)
            training.network.train()
        images = [drawn[training.views.seed] for training in self.trainings]
        targets = [
            training.teacher.logits(view, seen) if training.teacher else None
            for training, seen in zip(self.trainings, images, strict=True)
        ]
        batches = list(zip(*(training.batches(epoch) for training in self.trainings), strict=True))
        loss_sums = torch.zeros(count, device=first.device.type)
        hits = torch.zeros(count, dtype=torch.int64, device=first.device.type)
        done, told = 0, 0.0
        for step, places in enumerate(batches, start=1):
            rate = first.set_rate(epoch - 1 + step / len(batches))
            for group in self._optimizer.param_groups:
                group["lr"] = rate
            labels = torch.stack([first.digits.labels[own] for own in places])
            pixels = normalise(torch.cat([seen[own] for seen, own in zip(images, places, strict=True)]))
            logits = self._logits(pixels.view(count, -1, PIXELS))
            losses = torch.stack([
                training.loss(z, y, of_teacher[own] if of_teacher is not None else None)
                for training, z, y, of_teacher, own in zip(self.trainings, logits, labels, targets, places, strict=True)
            ])  # fmt: skip
            self._optimizer.zero_grad()
            losses.sum().backward()  # type: ignore[no-untyped-call]
            self._optimizer.step()
            size = labels.shape[1]
            loss_sums += losses.detach() * size
            hits += (logits.argmax(2) == labels).sum(1)
            done += size
            now = time.perf_counter()
            if now - told > REPORT_EVERY_S or step == len(batches):
                told = now
                figures = {
                    "loss": loss_sums[0].item() / done,
                    "accuracy": hits[0].item() / done,
                    "learning_rate": rate,
                    "images_per_second": count * done / (time.perf_counter() - start),
                }
                observer.advanced(first.job, progress=epoch - 1 + step / len(batches), figures=figures)
        seconds = (time.perf_counter() - start) / count
        for training, loss, hit in zip(self.trainings, loss_sums.tolist(), hits.tolist(), strict=True):
            learnt = {"loss": loss / done, "accuracy": hit / done}
            training.keep({"epoch": epoch, **figures, **learnt, **training.validate(), "seconds": seconds})
        observer.finished_epoch(first.job, first.history[-1])

    def _logits(self, x: Tensor) -> Tensor:
        """Turn normalised pixels `[seeds, N, 784]` into logits `float32 [seeds, N, 10]`."""
        with self.trainings[0].device.autocast():
            for layer in self._layers:
                x = self._linear(x, f"hidden.{layer}.linear")
                x = torch.relu(self._norm(x, f"hidden.{layer}.norm"))
            return self._linear(x, "output").float()

    def _linear(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        """BatchNorm of each seed's own digits: to torch, the units of all seeds are those of one layer."""
        wide = x.transpose(0, 1).flatten(1)
        mean, variance = (self._statistics[f"{name}.running_{which}"].view(-1) for which in ("mean", "var"))
        weight, bias = (self._weights[f"{name}.{which}"].view(-1) for which in ("weight", "bias"))
        normal = functional.batch_norm(wide, mean, variance, weight, bias, training=True)
        self._statistics[f"{name}.num_batches_tracked"] += 1
        return normal.view(len(wide), len(x), -1).transpose(0, 1)


def _merge(every: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Stack the tensors of equal names, and let the given ones be parts of the stacks."""
    merged = {name: torch.stack([own[name].detach() for own in every]) for name in every[0]}
    for place, own in enumerate(every):
        for name, tensor in own.items():
            tensor.data = merged[name][place]
    return merged
