"""What `distillery-bench speed` times: epochs of real trainings, and the bare products that they are made of."""

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
from torch._dynamo.exc import TorchDynamoException
from torch._inductor.exc import InductorError

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
"""Epochs; none of these trainings comes to its end."""


@dataclass(frozen=True)
class Case:
    """One way to train one network."""

    network: Network
    way: str
    threads: int
    images: int
    """Images that one call of `run` trains with."""
    run: Callable[[], float]
    """Do it once, and return the seconds it took."""


def cases_of(
    network: Network, *, device: Device, batch_size: int, steps: int, compile_it: bool
) -> tuple[list[Case], dict[str, str]]:
    """Return the ways to train `network`, each tried once, and why others are missing."""
    model = NETWORKS[network].model_copy(update={"batch_size": batch_size})
    other, cores = Device(device.type, not device.bfloat16), usable_cores()

    def new(where: Device = device) -> Training:
        return training_of(model, where, steps=steps)

    def case(way: str, run: Callable[[], float], *, threads: int = 1) -> Case:
        return Case(network, way, threads, steps * batch_size, run)

    cases = [
        case("as it is", epoch_of(new())),
        case("floor", products_of(model, device, steps=steps)),
        case("bfloat16" if other.bfloat16 else "float32", epoch_of(new(other))),
    ]
    skipped = {}
    if cores > 1 and device.type == "cpu":
        cases.append(case("all cores", epoch_of(new()), threads=cores))
    else:
        skipped["all cores"] = "there is one core" if device.type == "cpu" else "a GPU does the work"
    for each in cases:
        each.run()
    if compile_it:
        training = new()
        if reason := compiled(training):
            skipped["compiled"] = reason
        else:
            cases.append(case("compiled", epoch_of(training)))
    return cases, skipped


class Timed(Training):
    """A training whose network is not validated: only its epochs' time is wanted."""

    def validate(self) -> Record:
        return {"validation_loss": 0.0, "validation_errors": 0, "validation_accuracy": 1.0}


def epoch_of(training: Training) -> Callable[[], float]:
    """Time `training`, an epoch at a time."""

    def run() -> float:
        training.train_epoch(Observer())
        return training.history[-1]["seconds"]

    return run


def products_of(model: Model, device: Device, *, steps: int) -> Callable[[], float]:
    """Time nothing but the products of `steps` steps, their operands at hand.

    Three a layer: forward, the weights' gradient, and the inputs', which the first layer has no use for. Of a
    convolution, the product that it comes to when its patches are written out.
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
    """Return rows, inputs and units of the product that each layer makes of a batch."""
    found, channels, side = [], 1, SIDE
    for stage in model.stages:
        for units in stage:
            found.append((model.batch_size * side * side, 9 * channels, units))
            channels = units
        side //= 2
    widths = [side * side * channels if model.stages else PIXELS, *model.hidden, CLASSES]
    return found + [(model.batch_size, inputs, units) for inputs, units in pairwise(widths)]


def compiled(training: Training) -> str:
    """Let torch.compile translate the network, and return why it did not: empty if it did."""
    compiler = os.environ.get("CXX", "g++")
    if training.device.type == "cpu" and shutil.which(compiler) is None:
        return f"there is no compiler {compiler}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch about itself
            training.network.compile(dynamic=False)
            training.train_epoch(Observer())
    except (TorchDynamoException, InductorError) as error:
        return str(error).strip().splitlines()[0]
    return ""


def training_of(model: Model, device: Device, *, steps: int) -> Training:
    """Return a training with `steps` steps an epoch, on real digits over and over."""
    count = steps * model.batch_size
    images = torch.from_numpy(np.resize(load_digits(), (count, SIDE, SIDE)))
    labels: Tensor = torch.arange(count) % CLASSES  # the digits come in turns
    digits, few = Digits(images, labels), Digits(images[:1], labels[:1])
    endless = model.model_copy(update={"epochs": ENDLESS})
    return Timed(Job("speed", endless, 0), digits, few, device=device)
