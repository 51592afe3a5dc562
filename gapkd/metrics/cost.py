"""What a generator costs: multiply-accumulates, parameters, memory, images per second.

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

from gapkd.metrics.sampling import device_of, draw_latents
from gapkd.networks.base import StyleGenerator


def parameters(G: StyleGenerator) -> int:
    """Number of parameters of mapping and synthesis together, frozen ones too (noise maps and w_avg
    are buffers)."""
    return sum(p.numel() for p in G.parameters())


def macs(G: StyleGenerator, convention: str = "true") -> int:
    """Multiply-accumulates for one image.

    "true": what this implementation executes, counted while it runs: FIR filters and demodulation
        included, and for an upsampling convolution the work on the grid of its input.
    "paper": the convention of the published tables, computed from the architecture: convolutions
        (an upsampling one on the grid of its input), toRGB, mapping and style affines; no filters,
        no demodulation. It does not depend on the implementation: config-f at 256 px has
        45,124,673,536.
    """
    if convention == "true":
        return _executed_macs(G)
    if convention != "paper":
        raise ValueError(f'convention must be "true" or "paper", not {convention!r}')
    if G.kind != "stylegan2-generator":
        raise ValueError("the convention of the published tables is known for StyleGAN2 only: take "
                         'convention="true"')
    return _paper_macs(G)


def _executed_macs(G: StyleGenerator) -> int:
    from torch.utils.flop_counter import FlopCounterMode

    run, _ = _forward(G, 1)
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2


def _paper_macs(G: StyleGenerator) -> int:
    width = G.z_dim + (G.w_dim if G.c_dim else 0)
    total = G.c_dim * G.w_dim
    for _ in G.mapping.layers:
        total += width * G.w_dim
        width = G.w_dim
    incoming = 0  # channels that enter a block; the 4x4 one starts from a constant
    for block, (first, second) in enumerate(G.channels):
        pixels = (4 * 2**block) ** 2
        convolutions = [(second, G.img_channels, 1, pixels)]                   # toRGB
        if incoming:
            convolutions.append((incoming, first, 3, pixels // 4))             # on the small grid
        convolutions.append((first, second, G.kernel if incoming else 3, pixels))
        for i, o, size, grid in convolutions:
            total += grid * i * o * size**2 + G.w_dim * i  # and the affine that styles it
        incoming = second
    return total


class _LiveTensors(TorchDispatchMode):
    """Counts the bytes of tensors that operations bring forth, as long as anybody holds them.

    Args:
        others: tensors that are there anyway; views of them have no memory of their own.
    """

    def __init__(self, others: Iterable[torch.Tensor] = ()):
        super().__init__()
        self.now = self.peak = 0
        self.known = {tensor.untyped_storage()._cdata for tensor in others}

    def __torch_dispatch__(self, func: Callable, types: object, args: tuple = (),
                           kwargs: dict | None = None) -> object:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if not isinstance(tensor, torch.Tensor):
                continue
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


def working_memory(G: StyleGenerator, batch: int = 1) -> int:
    """Bytes of the tensors that are alive at once, at most, while images are drawn; the network's
    own weights and what an operation needs within itself come on top."""
    run, _ = _forward(G, batch)
    with _LiveTensors([*G.parameters(), *G.buffers()]) as live:
        run()
    return live.peak


def process_memory(code: str) -> int:
    """Largest resident memory in bytes of a fresh Python process that runs `code`: libraries,
    weights and all.

    Raises RuntimeError with the process's own last line if it fails, or where the system is not a
    Linux.
    """
    # Not getrusage's: what that calls the peak begins with that of the process which started it.
    closing = ("\nfor line in open('/proc/self/status'):\n"
               "    if line.startswith('VmHWM'): print(line.split()[1])")
    done = subprocess.run([sys.executable, "-c", code + closing], capture_output=True, text=True)
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1]
        raise RuntimeError(f"the process that was to be measured failed: {last}")
    return 1024 * int(done.stdout.split()[-1])


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, the device's work included."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _forward(G: StyleGenerator, batch: int) -> tuple[Callable[[], object], torch.device]:
    """Drawing images from fixed latents, without gradients, and where that happens."""
    device = device_of(G)
    z, c = draw_latents(G, batch, seed=0)
    z, c = z.to(device), None if c is None else c.to(device)
    return torch.no_grad()(lambda: G(z, c)), device


def images_per_second(G: StyleGenerator, batch: int = 16, repeats: int = 10, warmup: int = 2
                      ) -> float:
    """Median throughput of z -> image over `repeats` runs, on the device where G lives."""
    run, device = _forward(G, batch)
    times = [seconds(run, device) for _ in range(warmup + repeats)]
    return batch / statistics.median(times[warmup:])


def speed_ratio(fast: StyleGenerator, slow: StyleGenerator, batch: int = 16, repeats: int = 10,
                warmup: int = 2) -> float:
    """How many times the images per second of `slow` `fast` makes.

    Both run in turn, so that another program on the machine slows both; the median of the ratios of
    neighbours is far steadier than the ratio of two throughputs measured one after the other.
    """
    runs = _forward(slow, batch), _forward(fast, batch)
    ratios = []
    for _ in range(warmup + repeats):
        slower, faster = (seconds(*run) for run in runs)
        ratios.append(slower / faster)
    return statistics.median(ratios[warmup:])
