"""Cases of `distillery-bench speed`: epochs of real trainings, and the matrix products that they consist of."""

import os
import shutil
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from benchmarks.load.digits import load_digits
from distillery.machine import usable_cores
from training.data.mnist import Digits
from training.loop.device import Device
from training.loop.trainer import Job, Observer, Record, Training
from training.model.network import CLASSES, PIXELS, SIDE
from training.recipe.schema import Model

Network = Literal["cnn", "teacher", "student", "fast", "faster", "tiny"]
NETWORKS: dict[Network, Model] = {
    "cnn": Model(stages=[[16], [32, 32], [64, 64]]),
    "teacher": Model(hidden=[1200, 1200]),
    "student": Model(hidden=[800, 800]),
    "fast": Model(hidden=[256, 128]),
    "faster": Model(hidden=[128, 64]),
    "tiny": Model(hidden=[48, 32]),
}
ENDLESS = 1_000_000
"""Epochs, so that none of these trainings ends."""


@dataclass(frozen=True)
class Case:
    """One variant of training one network."""

    network: Network
    variant: str
    threads: int
    images: int
    """Images per call of `run`."""
    run: Callable[[], float]
    """Train one epoch and return the seconds it took."""


def cases_of(
    network: Network, *, device: Device, batch_size: int, steps: int, compile_it: bool
) -> tuple[list[Case], dict[str, str]]:
    """Return the cases of `network`, each run once, and the reasons why others are missing."""
    model = NETWORKS[network].model_copy(update={"batch_size": batch_size})
    other, cores = Device(device.type, not device.bfloat16), usable_cores()

    def new(where: Device = device) -> Training:
        return training_of(model, where, steps=steps)

    def case(variant: str, run: Callable[[], float], *, threads: int = 1) -> Case:
        return Case(network, variant, threads, steps * batch_size, run)

    cases = [
        case("default", epoch_of(new())),
        case("floor", products_of(model, device, steps=steps)),
        case("bfloat16" if other.bfloat16 else "float32", epoch_of(new(other))),
    ]
    skipped = {}
    if cores > 1 and device.type == "cpu":
        cases.append(case("all cores", epoch_of(new()), threads=cores))
    else:
        skipped["all cores"] = "there is one core" if device.type == "cpu" else "the GPU computes"
    for each in cases:
        each.run()
    if compile_it:
        training = new()
        if reason := compile_network(training):
            skipped["compiled"] = reason
        else:
            cases.append(case("compiled", epoch_of(training)))
    return cases, skipped


class Timed(Training):
    """A training without validation, which is not timed."""

    def validate(self) -> Record:
        return {"validation_loss": 0.0, "validation_errors": 0, "validation_accuracy": 1.0}


def epoch_of(training: Training) -> Callable[[], float]:
    """Return a function that trains one epoch and returns its seconds."""

    def run() -> float:
        training.train_epoch(Observer())
        return training.history[-1]["seconds"]

    return run


def products_of(model: Model, device: Device, *, steps: int) -> Callable[[], float]:
    """Return a function that times the matrix products of `steps` steps alone, on operands in memory.

    There are three per layer: forward, the gradient of the weights, and that of the inputs, which the first layer does
    not need. A convolution is the product of its unfolded patches and its kernels.
    """
    kind = torch.bfloat16 if device.bfloat16 else torch.float32
    shapes = products(model)
    operands = [
        [
            torch.randn(shape, device=device.type).to(kind)
            for shape in ((n, inputs), (inputs, units), (n, units))
        ]
        for n, inputs, units in shapes
    ]

    def run() -> float:
        start = time.perf_counter()
        for _ in range(steps):
            for place, (x, weight, gradient) in enumerate(operands):
                torch.mm(x, weight)
                torch.mm(x.t(), gradient)
                if place:
                    torch.mm(gradient, weight.t())
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    return run


def products(model: Model) -> list[tuple[int, int, int]]:
    """Return rows, inputs and units of each layer's product for a batch."""
    found, channels, side = [], 1, SIDE
    for stage in model.stages:
        for units in stage:
            found.append((model.batch_size * side * side, 9 * channels, units))
            channels = units
        side //= 2
    widths = [side * side * channels if model.stages else PIXELS, *model.hidden, CLASSES]
    return found + [(model.batch_size, inputs, units) for inputs, units in pairwise(widths)]


def compile_network(training: Training) -> str:
    """Compile the network with torch.compile; return the reason for a failure, or an empty string."""
    from torch._dynamo.exc import TorchDynamoException  # noqa: PLC0415 - its import takes as long as torch's own

    compiler = os.environ.get("CXX", "g++")
    if training.device.type == "cpu" and shutil.which(compiler) is None:
        return f"there is no compiler {compiler}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own deprecations
            training.network.compile(dynamic=False)
            training.train_epoch(Observer())
    except TorchDynamoException as error:  # those of the compiler's backends too
        return str(error).strip().splitlines()[0]
    return ""


def training_of(model: Model, device: Device, *, steps: int) -> Training:
    """Return a training with `steps` steps per epoch, on repeated real digits."""
    count = steps * model.batch_size
    images = torch.from_numpy(np.resize(load_digits(), (count, SIDE, SIDE)))
    labels: Tensor = torch.arange(count) % CLASSES  # the order of load_digits
    digits, few = Digits(images, labels), Digits(images[:1], labels[:1])
    endless = model.model_copy(update={"epochs": ENDLESS})
    return Timed(Job("speed", endless, 0), digits, few, device=device)
