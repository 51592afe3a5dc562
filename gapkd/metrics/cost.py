"""What a generator costs: multiply-accumulates, parameters, images per second.

A multiply-accumulate (MAC) is one multiplication and one addition, that is 2 FLOPs.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from gapkd.metrics.sampling import device_of, draw_latents
from gapkd.networks.base import StyleGenerator


def parameters(G: StyleGenerator) -> int:
    """Number of parameters, frozen ones too (noise maps and w_avg are buffers)."""
    return sum(p.numel() for p in G.parameters())


def macs(G: StyleGenerator, convention: str = "true") -> int:
    """Multiply-accumulates for one image.

    "true": what this implementation executes, counted while it runs: FIR filters and demodulation
        included, and for an upsampling convolution the work on the grid of its input.
    "paper": the convention of the published tables, computed from the architecture: convolutions
        (an upsampling one on the grid of its input), toRGB, mapping and style affines; no filters,
        no demodulation. Config-f at 256 px has 45,124,673,536.
    """
    if convention == "true":
        from torch.utils.flop_counter import FlopCounterMode

        with FlopCounterMode(display=False) as counter:
            _forward(G, 1)()
        return counter.get_total_flops() // 2
    if convention != "paper":
        raise ValueError(f'convention must be "true" or "paper", not {convention!r}')
    if G.kind != "stylegan2-generator":
        raise ValueError("the convention of the published tables is known for StyleGAN2 only: take "
                         'convention="true"')
    total = sum(weight.numel() for weight in G.mapping.parameters() if weight.ndim == 2)
    for b, block in enumerate(G.synthesis.blocks):
        pixels = (4 * 2**b) ** 2
        for layer in [*block.convs, block.torgb]:
            grid = pixels // 4 if layer.conv.up else pixels  # an upsampling one: of its input
            total += grid * layer.weight.numel() + layer.affine.weight.numel()
    return total


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """How long a call takes, the device's work included."""
    start = time.perf_counter()
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _forward(G: StyleGenerator, batch: int) -> Callable[[], Tensor]:
    """Drawing images from fixed latents, without gradients."""
    latents = draw_latents(G, batch, seed=0)
    return torch.no_grad()(lambda: G(*latents))


def images_per_second(G: StyleGenerator, batch: int = 16, repeats: int = 10) -> float:
    """Median throughput of z -> image, on the device where G lives, after two runs that do not
    count."""
    run, device = _forward(G, batch), device_of(G)
    times = [seconds(run, device) for _ in range(2 + repeats)]
    return batch / statistics.median(times[2:])


def speed_ratio(fast: StyleGenerator, slow: StyleGenerator, batch: int = 16, repeats: int = 10
                ) -> float:
    """Images per second of `fast`, divided by those of `slow`.

    Both run in turn, so that another program on the machine slows both: the median ratio of
    neighbours is far steadier than that of two throughputs.
    """
    runs = [(_forward(G, batch), device_of(G)) for G in (slow, fast)]
    ratios = []
    for _ in range(2 + repeats):
        slower, faster = (seconds(*run) for run in runs)
        ratios.append(slower / faster)
    return statistics.median(ratios[2:])
