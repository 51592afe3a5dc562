"""Where a training runs: its device, and several processes as one.

`torchrun --nproc_per_node N -m gapkd distill ...` starts N processes. Each draws the random numbers
of the whole batch and keeps its own rows; losses are means, so the mean of the processes' gradients
is the gradient of the whole batch. N processes therefore compute what one computes, up to the order
of float sums. Without torchrun the functions for several processes do nothing or return their
argument; those for the device, its precision, memory and random numbers are for any process.
"""

from __future__ import annotations

import atexit
import ctypes
import os
import platform
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from operator import index
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.backends import cudnn
from torch.backends.cuda import matmul

from gapkd.settings import in_brief

T = TypeVar("T")
TIMEOUT = timedelta(minutes=10)
"""How long a process may keep the others waiting in an exchange; does not bound `from_first`."""
_patient: dist.ProcessGroup | None = None
"""All processes, in an exchange in which one may keep the others waiting for long."""


class ProcessLostError(OSError):
    """Another process of the same training is gone, so that this one cannot go on."""


# ---------------------------------------------------------------------------------- the processor


def choose_device(name: str) -> torch.device:
    """The device of that name; "auto" takes a GPU when there is one.

    Of several processes on a machine each takes a GPU of its own. Raises ValueError when the
    device cannot be used here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and count() > 1:
        name = f"cuda:{local_rank()}"
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()  # which "meta" cannot give
    except (RuntimeError, AssertionError) as error:
        raise ValueError(f"device {in_brief(name)} is not usable here: use auto, cpu, or, where "
                         "there is a GPU, cuda or cuda:1") from error
    return device


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """What to autocast to; None: nothing. "auto" takes bfloat16 where the processor has it, float16
    on GPUs with tensor cores that have it not (T4, V100)."""
    if precision != "auto":
        return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
    if device.type == "cuda":
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16
        return torch.float16 if torch.cuda.get_device_capability(device) >= (7, 0) else None
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch < 2.13 cannot tell
    native = capabilities.get("avx512_bf16") or capabilities.get("amx_bf16")
    return torch.bfloat16 if native else None


@contextmanager
def tensor_cores(products: bool = False, convolutions: bool = False) -> Iterator[None]:
    """What a GPU may compute of float32 with 10 bits of mantissa (TF32) within the block; by
    default nothing. torch's own default is to round convolutions."""
    before = matmul.allow_tf32, cudnn.allow_tf32
    matmul.allow_tf32, cudnn.allow_tf32 = products, convolutions
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32 = before


@contextmanager
def exactly() -> Iterator[None]:
    """Within the block float32 is computed as float32, for figures: without TF32, and without the
    autocast around it."""
    with tensor_cores(), torch.autocast("cpu", enabled=False), torch.autocast("cuda",
                                                                              enabled=False):
        yield


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Within the block, the CPU's random numbers are those of a seed; then the caller's go on. No
    GPU is touched: `torch.manual_seed` begins with all of them."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(index(seed))
        yield


# ---------------------------------------------------------------------------------- the processes


def count() -> int:
    """Processes that train together; 1 without torchrun."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0; process 0 alone writes files."""
    return dist.get_rank() if dist.is_initialized() else 0


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def local_rank() -> int:
    """Number of this process on its machine: the GPU that it takes."""
    return int(os.environ.get("LOCAL_RANK", 0))


def restarted() -> bool:
    """Whether torchrun's agent has restarted this training after a process died."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0


def may_restart() -> bool:
    """Whether torchrun's agent would restart it (--max-restarts)."""
    return int(os.environ.get("TORCHELASTIC_MAX_RESTARTS", 0)) > 0


def join() -> None:
    """Find the other processes that torchrun started; the second time nothing happens.

    Sums over GPU tensors go over NCCL, everything else over gloo. CPU threads become this process's
    share of the cores, since two processes with all cores each stall one another.

    Raises ProcessLostError when the others do not answer.
    """
    global _patient
    started = int(os.environ.get("WORLD_SIZE", 1))
    if dist.is_initialized() or started == 1:
        return
    if local_rank() < torch.cuda.device_count():
        torch.cuda.set_device(local_rank())
    with _peers("find the other processes"):
        store, number, size = _meeting_point()
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, store=store, rank=number, world_size=size,
                                timeout=TIMEOUT)
        atexit.register(leave)
        _patient = dist.new_group(backend="gloo", timeout=timedelta(weeks=50))
        heads = torch.ones(())
        dist.all_reduce(heads)
    if (found := int(heads)) != started:
        raise ProcessLostError(f"torchrun started {started} processes, but {found} found each "
                               "other: start it again")
    known = hasattr(os, "sched_getaffinity")  # not on macOS
    cores = len(os.sched_getaffinity(0)) if known else os.cpu_count() or 1
    torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", 1))))


def _meeting_point() -> tuple[dist.Store, int, int]:
    """(store, rank, count): where the processes leave word of their addresses for one another.

    torchrun's agent offers a store, but keeps it when it restarts a training: the addresses of the
    dead would still stand in it. So process 0 opens a store of its own, and the others look up in
    the agent's where it is, until they find one that is alive.
    """
    agent, number, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return agent, number, size
    host, deadline = os.environ["MASTER_ADDR"], time.monotonic() + TIMEOUT.total_seconds()
    if number == 0:
        store = dist.TCPStore(host, 0, size, True, timeout=TIMEOUT, wait_for_workers=False)
        agent.set("gapkd/port", str(store.port))
        return store, number, size
    while True:
        port = int(agent.get("gapkd/port"))
        try:
            socket.create_connection((host, port), timeout=5).close()
            return dist.TCPStore(host, port, size, False, timeout=TIMEOUT), number, size
        except OSError as error:
            if time.monotonic() > deadline:
                raise RuntimeError(f"process 0 does not answer at {host}") from error
            time.sleep(0.1)


def leave() -> None:
    """Undo `join`."""
    global _patient
    if dist.is_initialized():
        dist.destroy_process_group()
    _patient = None


@contextmanager
def _peers(deed: str = "exchange numbers with the other processes"):
    """Turn what torch.distributed raises when a peer is gone into one sentence."""
    try:
        yield
    except RuntimeError as error:  # DistBackendError and DistNetworkError are such
        raise ProcessLostError(
            f"process {os.environ.get('RANK', 0)} on {socket.gethostname()} cannot {deed} "
            f"({str(error).splitlines()[0][:120]}): one of them has stopped, see its own message; "
            "the run goes on from its last checkpoint with --resume"
        ) from error


# -------------------------------------------------------------------- dealing out, putting together


def rows(batch: int, group: int = 1) -> Tensor | slice:
    """The rows of a batch that this process takes.

    Args:
        batch: images of all processes together.
        group: images of which the discriminator's minibatch statistic takes the spread. Image n
            belongs to group n mod (batch / group): whole groups are dealt out, which leaves the
            statistic what it was.

    Raises ValueError when the batch cannot be dealt out evenly.
    """
    if count() == 1:
        return slice(None)
    if batch % (count() * group):
        raise ValueError(f"batch={batch} cannot be shared by {count()} processes in whole groups "
                         f"of {group}: choose a multiple of {count() * group}")
    return torch.arange(batch).reshape(group, count(), -1)[:, rank()].flatten()


def average_(tensors: Sequence[Tensor]) -> None:
    """Replace tensors, in place, by their means over all processes: one message for all of them."""
    if count() == 1 or not tensors:
        return
    flat = torch.cat([t.detach().reshape(-1) for t in tensors])
    with _peers():
        dist.all_reduce(flat)
    flat /= count()
    for tensor, values in zip(tensors, flat.split([t.numel() for t in tensors]), strict=True):
        tensor.copy_(values.view(tensor.shape))


def mean(x: Tensor) -> Tensor:
    """Mean over all processes, without gradient."""
    x = x.detach().clone()
    average_([x])
    return x


class _Gather(torch.autograd.Function):
    """All rows of all processes. torch's own has other names from version to version."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        parts = [torch.empty_like(x) for _ in range(count())]
        with _peers():
            dist.all_gather(parts, x)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> Tensor:
        gradient = gradient.contiguous().clone()
        with _peers():
            dist.all_reduce(gradient)
        return gradient.chunk(count())[rank()]


def gather(x: Tensor) -> Tensor:
    """The rows (n, ...) of all processes one after the other, (count n, ...).

    Differentiable: rows that other processes put to use get the sum of their gradients.
    """
    if count() == 1:
        return x
    return _Gather.apply(x.to(torch.promote_types(x.dtype, torch.float32)).contiguous())


def gather_objects(value: T) -> list[T]:
    """One value of every process, in their order."""
    if count() == 1:
        return [value]
    values: list[Any] = [None] * count()
    with _peers():
        dist.all_gather_object(values, value)
    return values


def from_first(find: Callable[[], T]) -> T:
    """What `find` returns in process 0, told to all.

    The others wait for as long as it takes: scoring the channels of a big teacher may take longer
    than TIMEOUT.
    """
    if count() == 1:
        return find()
    box: list[Any] = [find() if is_first() else None]
    with _peers():
        dist.broadcast_object_list(box, src=0, group=_patient)
    return box[0]


def anyone(flag: bool) -> bool:
    """Whether the flag is up in any process. Travels between processors: no GPU is waited for."""
    return mean(torch.tensor(float(flag))).item() > 0


def check_equal(what: str, value: str) -> None:
    """Raise ValueError unless all processes hold the same value."""
    for number, other in enumerate(gather_objects(value)):
        if other != value:
            raise ValueError(f"process {number} has other {what} than process {rank()}: start all "
                             "of them with one command from one version")


def keep_memory() -> None:
    """Let the C library keep what is freed for the next step: for a process that trains.

    By default it hands every large tensor back to the system, which clears the pages: a tenth to a
    third of a training step on a CPU.
    """
    if platform.libc_ver()[0] == "glibc":
        trim_threshold, mmap_max = -1, -4  # names of malloc.h
        library = ctypes.CDLL(None)
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)
