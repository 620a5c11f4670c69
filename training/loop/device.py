"""Device, precision and threads."""

import logging
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Literal

import torch

from distillery import DistilleryError
from distillery.machine import usable_cores
from training.data.mnist import Digits

_logger = logging.getLogger("distillery")

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
    kind = _choose_kind(name, gpus=local)
    if kind == "cuda" and local > 1:
        if local > (found := torch.cuda.device_count()):
            raise DistilleryError(
                f"--nproc-per-node {local}: each process requires a GPU, and torch finds {found}; "
                f"use --nproc-per-node {found}"
            )
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return Device(kind, _has_fast_bfloat16(kind) if precision == "auto" else precision == "bfloat16")


def _choose_kind(name: DeviceName, *, gpus: int) -> Literal["cpu", "cuda"]:
    """Resolve `auto`: CUDA where torch can use the first `gpus` GPUs. Raises `DistilleryError` where `cuda` cannot."""
    if name == "cpu":
        return "cpu"
    if not torch.cuda.is_available():
        if name == "cuda":
            raise DistilleryError("--device cuda: torch finds no CUDA device; use --device cpu")
        return "cpu"
    for number in range(min(gpus, torch.cuda.device_count())):
        built, capability = torch.cuda.get_arch_list(), torch.cuda.get_device_capability(number)
        if runs_on(capability, built):
            continue
        reason = (
            f"{torch.cuda.get_device_name(number)} has compute capability {'.'.join(map(str, capability))}, and this "
            f"torch is built for {', '.join(built)}"
        )
        if name == "cuda":
            raise DistilleryError(
                f"--device cuda: {reason}; install a torch for this GPU, hide it with CUDA_VISIBLE_DEVICES, "
                "or use --device cpu"
            )
        _logger.warning("--device auto: %s; training on the CPU", reason)
        return "cpu"
    return "cuda"


def runs_on(capability: tuple[int, int], built: Sequence[str]) -> bool:
    """Return whether a GPU runs code built for the architectures `built`, such as sm_75, sm_90a and compute_90.

    Machine code (sm) runs on later minor versions of the same major one, PTX (compute) on all later versions, and the
    variants a and f only on their own. ROCm's architectures (gfx90a) are not judged.
    https://docs.nvidia.com/cuda/cuda-c-programming-guide/#binary-compatibility
    """
    for architecture in built:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", architecture)
        if not found:
            return True
        target = int(found[2]), int(found[3])
        if target == capability:
            return True
        if not found[4] and target < capability and (found[1] == "compute" or target[0] == capability[0]):
            return True
    return not built


def _has_fast_bfloat16(kind: str) -> bool:
    if kind == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    # Without the instructions, bfloat16 on a CPU is emulated and slower than float32.
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
