"""Data-parallel training: every process runs the same program on its share of each batch (SPMD).

    torchrun --nproc-per-node 2 -m training --recipe paper
    torchrun --nnodes 2 --node-rank 0 --master-addr 10.0.0.1 -m training --recipe paper    # on each host, with its rank

Gradients are averaged by torch's DistributedDataParallel, over gloo on CPUs and NCCL on GPUs. The batches are those of
one process; the loss and BatchNorm's statistics are those of the whole batch. So the weights are those of one process,
up to the order in which numbers are added and up to dropout, which each process draws for itself. Views and soft
targets, which often cost more than the training itself, are computed in shares too. Rank 0 alone reads and writes files
and prints, so the processes need no common file system.
"""

import fcntl
import gc
import json
import os
import socket
import struct
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar

import torch

# Before there is a process group: its functions take the group of that moment as the default of an argument, which
# would keep the group and its threads until the interpreter ends, and a thread that then frees a tensor aborts it.
import torch.distributed.nn
from torch import Tensor, distributed, nn
from torch.autograd.function import FunctionCtx
from torch.distributed import Store  # type: ignore[attr-defined] # untyped
from torch.distributed.rendezvous import rendezvous
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel

from distillery import DistilleryError

_SIOCGIFADDR = 0x8915
"""Request of ioctl: the address of an interface (netdevice(7))."""
START_TIMEOUT = timedelta(minutes=15)
"""Hosts may be started one after the other; torchrun itself waits for as long."""
T = TypeVar("T")


@contextmanager
def process_group(
    device_type: str,
    settings: Mapping[str, object] | None = None,
    *,
    timeout: timedelta = timedelta(minutes=10),
) -> Iterator[None]:
    """Join the processes that `torchrun` started, if it started several.

    Raises `DistilleryError` where `settings` differ between them, where one has ended, and where one does not respond
    within `timeout` during the training.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    _choose_interface()
    backend = "cpu:gloo,cuda:nccl" if device_type == "cuda" else "gloo"
    try:
        store, own, ranks = next(rendezvous("env://", timeout=START_TIMEOUT))
        store.set_timeout(START_TIMEOUT)
        _require_equal(settings or {}, store, own, ranks)
        distributed.init_process_group(backend, store=store, rank=own, world_size=ranks, timeout=timeout)
        yield
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        own = os.environ["RANK"]
        reason = str(error).partition("\n")[0].rpartition("] ")[2].rstrip(".")
        raise DistilleryError(
            f"rank {own}: another process has ended or does not respond ({reason}); "
            "run the same command on every host to continue after the last epoch"
        ) from None
    finally:
        if distributed.is_initialized():
            distributed.destroy_process_group()
            gc.collect()  # a network in a reference cycle would keep the group's threads to the end of the interpreter


def _require_equal(settings: Mapping[str, object], store: Store, own: int, ranks: int) -> None:
    """Raise `DistilleryError` on rank 0, and on the ranks whose settings differ from its."""
    store.set(f"settings/{own}", json.dumps(settings))
    given = [_flat(json.loads(store.get(f"settings/{each}"))) for each in range(ranks)]
    store.set(f"compared/{own}", "")
    if own == 0:  # the others read from a process that ends with this one
        store.wait([f"compared/{each}" for each in range(ranks)])
    for each in [own] if own else range(1, ranks):
        for name in sorted(given[0].keys() | given[each].keys()):
            first, other = given[0].get(name), given[each].get(name)
            if first != other:
                raise DistilleryError(
                    f"{name} is {other} on rank {each}, and {first} on rank 0; "
                    "run the same command, with the same versions, on every host"
                )


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested settings by names such as `student.epochs`."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _choose_interface() -> None:
    """Let gloo use the network interface that leads to rank 0, rather than the one that the host's name leads to.

    Debian's /etc/hosts maps the name of the host to a loopback address, to which no other host can connect. Linux only.
    """
    if sys.platform != "linux":
        return
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"] or "GLOO_SOCKET_IFNAME" in os.environ:
        return
    with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((os.environ["MASTER_ADDR"], 1))  # of a datagram socket: nothing is sent
        address = socket.inet_aton(probe.getsockname()[0])
        for _, name in socket.if_nameindex():
            with suppress(OSError):  # an interface without an address
                request = struct.pack("256s", name.encode()[:15])
                if fcntl.ioctl(probe, _SIOCGIFADDR, request)[20:24] == address and name != "lo":
                    os.environ["GLOO_SOCKET_IFNAME"] = name


def _is_lost_connection(error: RuntimeError) -> bool:
    return isinstance(error, distributed.DistError) or "gloo" in str(error)


def rank() -> int:
    """Return the number of this process in the process group, from 0."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def size() -> int:
    """Return the number of processes in the process group; 1 without a group."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def on_rank_0(work: Callable[[], T]) -> T:
    """Call `work` on rank 0 and return its result on every rank.

    A `DistilleryError` is raised on rank 0 and ends the other ranks silently.
    """
    if size() == 1:
        return work()
    outcome: list[Any] = [None, None]
    error: DistilleryError | None = None
    if rank() == 0:
        try:
            outcome = [work(), False]
        except DistilleryError as raised:
            error, outcome = raised, [None, True]
    distributed.broadcast_object_list(outcome, 0, device=torch.device("cpu"))
    if error:
        raise error
    result, failed = outcome
    if failed:
        raise SystemExit(1)  # rank 0 prints the error
    returned: T = result
    return returned


def share(count: int, *, step: int = 1, of_rank: int | None = None, ranks: int | None = None) -> slice:
    """Return the part of `count` items that this rank (or another) computes, in whole steps but for the last."""
    steps = -(-count // step)
    ranks, own = ranks or size(), rank() if of_rank is None else of_rank
    start, stop = (steps * edge // ranks * step for edge in (own, own + 1))
    return slice(start, min(stop, count))


def compute_in_shares(whole: Tensor, work: Callable[[slice], Tensor], *, step: int) -> Tensor:
    """Fill `whole` with the result of `work` on every rank's share of it, and return it."""
    if size() == 1:
        return work(slice(0, len(whole)))
    own = share(len(whole), step=step)
    if own.start < own.stop:
        whole[own] = work(own)
    for each in range(size()):
        distributed.broadcast(whole[share(len(whole), step=step, of_rank=each)], each)
    return whole


def data_parallel(network: nn.Module) -> nn.Module:
    """Return `network` as it is trained: alone, or with BatchNorm and gradients over the batches of all ranks."""
    if size() == 1:
        return network
    for module in list(network.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, _BatchNorm):
                setattr(module, name, SyncBatchNorm.of(child))
    return DistributedDataParallel(network, forward_sync_buffers=False)


def gather_logits(own: Tensor, part: slice, count: int) -> Tensor:
    """Return the logits of the whole batch, `[members, count, classes]`, of which this rank computed `part`.

    Every rank computes the same loss from them. The sum of these equal gradients is the gradient times the number of
    ranks, by which DistributedDataParallel divides.
    """
    if size() == 1:
        return own
    whole = own.new_zeros(own.shape[0], count, own.shape[2])
    whole[:, part] = own
    return _sum_over_ranks(whole)


class SyncBatchNorm(_BatchNorm):
    """BatchNorm over the batches of all ranks, on any device; torch's class of this name refuses CPU tensors."""

    @classmethod
    def of(cls, norm: _BatchNorm) -> "SyncBatchNorm":
        """Return one that shares weights and statistics with `norm`."""
        synchronised = cls.__new__(cls)
        synchronised.__dict__ = norm.__dict__
        return synchronised

    def forward(self, x: Tensor) -> Tensor:
        mean, variance = self.get_buffer("running_mean"), self.get_buffer("running_var")
        if not self.training:
            return functional.batch_norm(x, mean, variance, self.weight, self.bias, eps=self.eps)
        reduced = [axis for axis in range(x.dim()) if axis != 1]
        per_channel = [1, -1, *[1] * (x.dim() - 2)]
        values = x.float()
        count = values.new_tensor([values.numel() / self.num_features])
        sums = _sum_over_ranks(torch.cat([values.sum(reduced), count]))
        count, batch_mean = sums[-1], sums[:-1] / sums[-1]
        centred = values - batch_mean.view(per_channel)
        # Squares of centred values: the difference of two large numbers would lose a small variance.
        batch_variance = _sum_over_ranks(centred.square().sum(reduced)) / count
        with torch.no_grad():
            mean.lerp_(batch_mean, self.momentum or 0)
            variance.lerp_(batch_variance * count / (count - 1), self.momentum or 0)
            self.get_buffer("num_batches_tracked").add_(1)
        normalised = centred * torch.rsqrt(batch_variance + self.eps).view(per_channel)
        return (normalised * self.weight.view(per_channel) + self.bias.view(per_channel)).to(x.dtype)


class _AllReduce(torch.autograd.Function):
    """The sum over all ranks. Its gradient is the sum of their gradients."""

    @staticmethod
    def forward(_: FunctionCtx, own: Tensor) -> Tensor:
        return _all_reduced(own)

    @staticmethod
    def backward(_: FunctionCtx, gradient: Tensor) -> Tensor:
        return _all_reduced(gradient)


def _all_reduced(own: Tensor) -> Tensor:
    total = own.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total


def _sum_over_ranks(own: Tensor) -> Tensor:
    total: Tensor = _AllReduce.apply(own)  # type: ignore[no-untyped-call]
    return total
