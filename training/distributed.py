"""What processes compute together: BatchNorm, logits and whole tensors of which each has made a part."""

import os
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from training.model.network import CLASSES, Network


def rank() -> int:
    """Return which of the processes that `torchrun` started this is; 0, the first, without it."""
    return int(os.environ.get("RANK", "0"))


def size() -> int:
    """Return how many processes `torchrun` started; 1 without it."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def part_of(count: int, step: int = 1, process: int | None = None) -> slice:
    """Return which of `count` are this process's (or another's): whole steps, but for the last."""
    steps, place = -(-count // step), rank() if process is None else process
    start, stop = (steps * edge // size() * step for edge in (place, place + 1))
    return slice(start, min(stop, count))


def together(whole: Tensor, step: int, work: Callable[[slice], Tensor]) -> Tensor:
    """Fill `whole` with what each process's `work` on its part returns."""
    mine = part_of(len(whole), step)
    if mine.start < mine.stop:
        whole[mine] = work(mine)
    for process in range(size()):
        distributed.broadcast(whole[part_of(len(whole), step, process)], process)
    return whole


def share_norms(network: Network) -> None:
    """Let every BatchNorm of `network` have the statistics of all processes' digits."""
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(module, name, SharedNorm.of(child))


class SharedNorm(_BatchNorm):
    """BatchNorm over all processes' parts of a batch, with gradients; torch's SyncBatchNorm is for GPUs alone."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> "SharedNorm":
        """Return one with the very weights and statistics of `norm`."""
        shared = cls.__new__(cls)
        shared.__dict__ = norm.__dict__
        return shared

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if not self.training:
            return functional.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)
        over = [axis for axis in range(x.dim()) if axis != 1]
        across = [1, -1, *[1] * (x.dim() - 2)]
        values = x.float()
        count = values.new_tensor([values.numel() / self.num_features])
        sums = _total(torch.cat([values.sum(over), count]))
        count, batch_mean = sums[-1], sums[:-1] / sums[-1]
        centred = values - batch_mean.view(across)
        # The squares of what is centred: the difference of two large numbers would lose a small variance.
        batch_variance = _total(centred.square().sum(over)) / count
        with torch.no_grad():
            mean.lerp_(batch_mean, self.momentum or 0)
            variance.lerp_(batch_variance * count / (count - 1), self.momentum or 0)
            self.get_buffer("num_batches_tracked").add_(1)
        normal = centred * torch.rsqrt(batch_variance + self.eps).view(across)
        return (normal * self.weight.view(across) + self.bias.view(across)).to(x.dtype)


class _Sum(torch.autograd.Function):
    """The sum over all processes; so is its gradient."""

    @staticmethod
    def forward(_: FunctionCtx, own: Tensor) -> Tensor:
        total = own.clone()
        distributed.all_reduce(total)
        return total

    @staticmethod
    def backward(_: FunctionCtx, gradient: Tensor) -> Tensor:
        total = gradient.clone()
        distributed.all_reduce(total)
        return total


def _total(own: Tensor) -> Tensor:
    total: Tensor = _Sum.apply(own)  # type: ignore[no-untyped-call]
    return total


def gather(own: Tensor, part: slice, count: int) -> Tensor:
    """Return all processes' logits, `[members, count, 10]`; this one has computed `part` of them."""
    whole: Tensor = _Gather.apply(own, part, count)  # type: ignore[no-untyped-call]
    return whole


class _Gather(torch.autograd.Function):
    """All parts put together.

    All go on with the same numbers, so the gradient of each is complete; it is multiplied by the number of processes,
    as DistributedDataParallel divides by it.
    """

    @staticmethod
    def forward(ctx: Any, own: Tensor, part: slice, count: int) -> Tensor:
        ctx.part = part
        whole = own.new_zeros(len(own), count, CLASSES)
        whole[:, part] = own
        distributed.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient[:, ctx.part] * size(), None, None
