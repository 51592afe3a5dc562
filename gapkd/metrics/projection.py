"""Which w's draw a given image? Projection into W+: one w for every layer, by gradient descent.

A student whose images can be found again in its latent space can be used where its teacher is:
project, then edit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gapkd.data.images import with_channels
from gapkd.metrics.features import Distance
from gapkd.metrics.sampling import device_of, draw_w
from gapkd.networks.base import StyleGenerator


@dataclass(frozen=True)
class Projection:
    """What was found: ws (N, num_ws, w_dim), noise maps, images (N, 3, R, R) clamped to [-1, 1],
    and for every image the psnr in dB and the perceptual distance to its target, (N,)."""

    ws: Tensor
    noise: list[Tensor]
    images: Tensor
    psnr: Tensor
    perceptual: Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images (N, 3, R, R) in [-1, 1], whose peak is 2: (N,) in dB."""
    return 10 * torch.log10(4 / (a - b).square().mean(dim=(1, 2, 3)).clamp(min=1e-12))


def project(G: StyleGenerator, targets: Tensor, distance: Distance, steps: int = 200,
            optimiser: Literal["adam", "lbfgs"] = "adam", lr: float = 0.2, noise: bool = False,
            perceptual_weight: float = 1.0, seed: int = 0) -> Projection:
    """Minimise squared error + perceptual_weight x distance over ws and noise maps, from the
    average w.

    Args:
        targets: (N, 3, R, R) in [-1, 1], at G's resolution.
        distance: LPIPS or `gapkd.metrics.features.perceptual_distance`.
        steps: iterations. The paper: 800 of L-BFGS, with LPIPS.
        optimiser: "adam", its learning rate falling to 0 along a cosine; or "lbfgs", whose line
            search weighs all images of the call together.
        lr: Adam's, in units of W's standard deviation.
        noise: optimise the noise maps too, from the constant ones, as the paper does (a StyleGAN3
            has none). What they paint says nothing about the latent space, and a network that leans
            on its noise gains most by it.
        seed: of the latents by which W is measured.
    Raises ValueError for targets of another shape.
    """
    r = G.resolution
    if targets.ndim != 4 or targets.shape[1:] not in ((3, r, r), (G.img_channels, r, r)):
        raise ValueError(f"targets must have shape (N, 3, {r}, {r}), not {tuple(targets.shape)}: "
                         "crop and resize them to the generator's resolution")
    if optimiser not in ("adam", "lbfgs"):
        raise ValueError(f'optimiser must be "adam" or "lbfgs", not {optimiser!r}')
    targets = with_channels(targets.to(device_of(G)), G.img_channels)
    n = len(targets)
    w = draw_w(G, 2000, seed)
    centre, spread = w.mean(dim=0), w.std(dim=0).mean()
    place = w.new_zeros(n, G.num_ws, G.w_dim, requires_grad=True)  # ws in units of W's spread
    buffers = G.synthesis.named_buffers()
    stored = [buffer for name, buffer in buffers if name.endswith("noise_const")]
    maps = [buffer.repeat(n, 1, 1, 1).requires_grad_(noise) for buffer in stored]

    def draw() -> Tensor:
        return G.synthesis(centre + spread * place, noise=maps).image

    def loss() -> Tensor:
        images = draw()
        error = (images - targets).square().mean(dim=(1, 2, 3))
        # a sum: no image slows another
        return (error + perceptual_weight * distance(images, targets)).sum()

    before = [p.requires_grad for p in G.parameters()]
    G.requires_grad_(False)
    try:
        _minimise(loss, [place, *(maps if noise else [])], steps, optimiser, lr)
        with torch.no_grad():
            images = draw().clamp(-1, 1)
            ws, maps = (centre + spread * place).detach(), [m.detach() for m in maps]
            return Projection(ws, maps, images, psnr(images, targets), distance(images, targets))
    finally:
        for p, trained in zip(G.parameters(), before, strict=True):
            p.requires_grad_(trained)


def _minimise(loss: Callable[[], Tensor], free: list[Tensor], steps: int, optimiser: str,
              lr: float) -> None:
    """Change the free tensors so that the loss falls."""
    if optimiser == "lbfgs":
        search = torch.optim.LBFGS(free, max_iter=steps, max_eval=25 * steps,
                                   line_search_fn="strong_wolfe")
    else:
        search = torch.optim.Adam(free, lr=lr)

    def closure() -> Tensor:
        search.zero_grad()
        value = loss()
        value.backward()
        return value

    if optimiser == "lbfgs":
        search.step(closure)
        return
    for step in range(steps):
        search.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
        search.step(closure)
