"""What a generator costs: multiply-accumulates, parameters, images per second.

A multiply-accumulate (MAC) is one multiplication and one addition, that is 2 FLOPs.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
import weakref
from collections.abc import Callable, Iterable

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gapkd.distillation.pruning import AnyGenerator
from gapkd.networks.stylegan2 import Generator


def parameters(G: Generator) -> int:
    """Number of parameters of mapping and synthesis together, frozen ones too (noise maps and w_avg are buffers)."""
    return sum(p.numel() for p in G.parameters())


def macs(G: Generator, convention: str = "true") -> int:
    """Multiply-accumulates for one image.

    "true": what this implementation executes, counted while it runs: FIR filters and demodulation included,
        and for an upsampling convolution the work on the grid of its input.
    "paper": the convention of the published tables, computed from the architecture: convolutions (an
        upsampling one on the grid of its input), toRGB, mapping and style affines; no filters, no
        demodulation. It does not depend on the implementation: config-f at 256 px has 45,124,673,536.
    """
    if convention == "true":
        return _executed_macs(G)
    if convention == "paper" and not isinstance(G, Generator):
        raise ValueError('the convention of the published tables is known for StyleGAN2 only: take convention="true"')
    if convention == "paper":
        return _paper_macs(G)
    raise ValueError(f'convention must be "true" or "paper", not {convention!r}')


@torch.no_grad()
def _executed_macs(G: Generator) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    device = next(G.parameters()).device
    z = torch.zeros(1, G.z_dim, device=device)
    c = torch.eye(G.c_dim, device=device)[:1] if G.c_dim else None
    with FlopCounterMode(display=False) as counter:
        G(z, c)
    return counter.get_total_flops() // 2


def _paper_macs(G: Generator) -> int:
    widths = [G.z_dim + (G.w_dim if G.c_dim else 0)] + [G.w_dim] * len(G.mapping.layers)
    total = sum(i * o for i, o in zip(widths, widths[1:], strict=False)) + G.c_dim * G.w_dim
    incoming = 0  # channels that enter a block; none enter the 4x4 one, which starts from a constant
    for block, (first, second) in enumerate(G.channels):
        pixels = (4 * 2**block) ** 2
        kernel = G.kernel if incoming else 3
        convolutions = [(first, second, kernel, pixels), (second, 3, 1, pixels)]   # the last one is toRGB
        if incoming:
            convolutions.insert(0, (incoming, first, 3, pixels // 4))              # runs on the small grid
        for i, o, size, grid in convolutions:
            total += grid * i * o * size**2 + G.w_dim * i  # the convolution, and the affine that styles it
        incoming = second
    return total


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operations bring forth, as long as anybody holds them."""

    def __init__(self, others: Iterable[torch.Tensor] = ()):
        """Args: others: tensors that are there anyway; views of them have no memory of their own."""
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in others}

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in (leaf for leaf in tree_leaves(result) if isinstance(leaf, torch.Tensor)):
            storage = tensor.untyped_storage()
            if storage._cdata not in self.known:
                self.known.add(storage._cdata)
                self.now += storage.nbytes()
                weakref.finalize(storage, self._gone, storage._cdata, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def _gone(self, storage: int, size: int) -> None:
        self.known.discard(storage)
        self.now -= size


@torch.no_grad()
def working_memory(G: AnyGenerator, batch: int = 1) -> int:
    """Bytes of the tensors that are alive at once, at most, while images are drawn; the network's own weights and what
    an operation needs within itself come on top."""
    run, _ = _forward(G, batch)
    with _LiveTensors([*G.parameters(), *G.buffers()]) as live:
        run()
    return live.peak


def process_memory(code: str) -> int:
    """Largest resident memory in bytes of a fresh Python process that runs `code`: libraries, weights and all.

    Raises RuntimeError with the process's own last line if it fails, or where the system is not a Linux.
    """
    # Not getrusage's: what that calls the peak of a process begins with that of the one which started it.
    closing = "\nfor line in open('/proc/self/status'):\n    if line.startswith('VmHWM'): print(line.split()[1])"
    done = subprocess.run([sys.executable, "-c", code + closing], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"the process that was to be measured failed: {done.stderr.strip().splitlines()[-1]}")
    return 1024 * int(done.stdout.split()[-1])


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, the device's work included."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _forward(G: Generator, batch: int) -> tuple[Callable[[], object], torch.device]:
    device = next(G.parameters()).device
    z = torch.randn(batch, G.z_dim, generator=torch.Generator().manual_seed(0)).to(device)
    c = torch.eye(G.c_dim, device=device)[:1].expand(batch, -1) if G.c_dim else None
    return lambda: G(z, c), device


@torch.no_grad()
def images_per_second(G: Generator, batch: int = 16, repeats: int = 10, warmup: int = 2) -> float:
    """Median throughput of z -> image over `repeats` runs, on the device where G lives, without gradients."""
    run, device = _forward(G, batch)
    for _ in range(warmup):
        seconds(run, device)
    return batch / statistics.median(seconds(run, device) for _ in range(repeats))


@torch.no_grad()
def speed_ratio(
    fast: Generator, slow: Generator, batch: int = 16, repeats: int = 10, warmup: int = 2
) -> float:
    """How many times the images per second of `slow` `fast` makes.

    Both run in turn, so that another program on the machine slows both; the median of the ratios of
    neighbours is far steadier than the ratio of two throughputs measured one after the other.
    """
    (run_fast, device_fast), (run_slow, device_slow) = _forward(fast, batch), _forward(slow, batch)
    for _ in range(warmup):
        seconds(run_fast, device_fast)
        seconds(run_slow, device_slow)
    return statistics.median(seconds(run_slow, device_slow) / seconds(run_fast, device_fast)
                             for _ in range(repeats))
