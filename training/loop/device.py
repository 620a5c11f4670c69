"""Device, precision and threads."""

import os
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from distillery import DistilleryError
from distillery.machine import usable_cores
from training.data.mnist import Digits

DeviceName = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class Device:
    """A device and the precision of its matrix products; weights and losses are always float32."""

    type: Literal["cpu", "cuda"]
    bfloat16: bool

    def autocast(self) -> AbstractContextManager[None]:
        """Return a context with matrix products in bfloat16, if this device uses it."""
        return torch.autocast(self.type, torch.bfloat16, enabled=self.bfloat16)

    def move(self, digits: Digits) -> Digits:
        """Return the digits in the memory of this device."""
        return Digits(digits.images.to(self.type), digits.labels.to(self.type))


def choose_device(name: DeviceName, precision: Precision, *, threads: int | None) -> Device:
    """Resolve `auto`, and set torch's threads (all usable cores if None). Raises `DistilleryError`.

    Processes started by `torchrun` divide the cores, and use a GPU each.
    """
    local = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    torch.set_num_threads(threads or max(1, usable_cores() // local))
    if name == "cuda" and not torch.cuda.is_available():
        raise DistilleryError("--device cuda: torch finds no CUDA device; use --device cpu")
    kind: Literal["cpu", "cuda"] = "cuda" if name != "cpu" and torch.cuda.is_available() else "cpu"
    if kind == "cuda" and local > 1:
        if local > (found := torch.cuda.device_count()):
            raise DistilleryError(
                f"--nproc-per-node {local}: each process requires a GPU, and torch finds {found}; "
                f"use --nproc-per-node {found}"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return Device(kind, _has_fast_bfloat16(kind) if precision == "auto" else precision == "bfloat16")


def _has_fast_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without the instructions, bfloat16 on a CPU is emulated and slower than float32.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
