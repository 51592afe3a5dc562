"""Which w's draw a given image? Projection into W+: one w for every layer, found by gradient descent.

A student whose images can be found again in its latent space can be used where its teacher is: project, then edit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from gapkd.distillation.pruning import AnyGenerator


@dataclass(frozen=True)
class Projection:
    """What was found: ws (N, num_ws, w_dim), noise maps, images (N, 3, R, R) clamped to [-1, 1], and for every image
    the psnr in dB and the perceptual distance to its target, (N,)."""

    ws: Tensor
    noise: list[Tensor]
    images: Tensor
    psnr: Tensor
    perceptual: Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images (N, 3, R, R) in [-1, 1], whose peak is 2: (N,) in dB."""
    return 10 * torch.log10(4 / (a - b).square().mean(dim=(1, 2, 3)).clamp(min=1e-12))


def project(G: AnyGenerator, targets: Tensor, distance: Callable[[Tensor, Tensor], Tensor], steps: int = 200,
            optimiser: Literal["adam", "lbfgs"] = "adam", lr: float = 0.2, noise: bool = False,
            perceptual_weight: float = 1.0, seed: int = 0) -> Projection:
    """Minimise squared error + perceptual_weight x distance over ws and noise maps, from the average w.

    Args:
        targets: (N, 3, R, R) in [-1, 1], at G's resolution.
        distance: images twice -> (N,), for example LPIPS or `gapkd.metrics.features.perceptual_distance`.
        steps: iterations. The paper: 800 of L-BFGS, with LPIPS.
        optimiser: "adam", its learning rate falling to 0 along a cosine; or "lbfgs", whose line search weighs all
            images of the call together.
        lr: Adam's, in units of W's standard deviation.
        noise: optimise the noise maps too, from the constant ones, as the paper does (a StyleGAN3 has none). What they
            paint says nothing about the latent space, and a network that leans on its noise gains most by it.
        seed: of the latents by which W is measured.
    Raises ValueError for targets of another shape.
    """
    r = G.resolution
    if targets.ndim != 4 or targets.shape[1:] != (3, r, r):
        raise ValueError(f"targets must have shape (N, 3, {r}, {r}), not {tuple(targets.shape)}: crop and resize them "
                         "to the generator's resolution")
    if optimiser not in ("adam", "lbfgs"):
        raise ValueError(f'optimiser must be "adam" or "lbfgs", not {optimiser!r}')
    device, n = next(G.parameters()).device, len(targets)
    targets = targets.to(device)
    with torch.no_grad():
        z = torch.randn(2000, G.z_dim, generator=torch.Generator().manual_seed(seed)).to(device)
        c = torch.eye(G.c_dim, device=device)[torch.arange(2000) % G.c_dim] if G.c_dim else None
        w = G.mapping(z, c)
        centre, spread = w.mean(dim=0), w.std(dim=0).mean()
    place = torch.zeros(n, G.num_ws, G.w_dim, device=device, requires_grad=True)  # ws in units of W's spread
    maps = [conv.noise_const.repeat(n, 1, 1, 1).requires_grad_(noise) for conv in G.synthesis.convs
            if hasattr(conv, "noise_const")]

    def draw() -> Tensor:
        return G.synthesis(centre + spread * place, noise=maps).image

    def loss() -> Tensor:
        images = draw()
        error = (images - targets).square().mean(dim=(1, 2, 3))
        return (error + perceptual_weight * distance(images, targets)).sum()  # a sum: no image slows another

    free = [place, *(maps if noise else [])]
    before = [p.requires_grad for p in G.parameters()]
    G.requires_grad_(False)
    try:
        if optimiser == "lbfgs":
            search = torch.optim.LBFGS(free, max_iter=steps, max_eval=25 * steps, line_search_fn="strong_wolfe")

            def closure() -> Tensor:
                search.zero_grad()
                value = loss()
                value.backward()
                return value

            search.step(closure)
        else:
            search = torch.optim.Adam(free, lr=lr)
            for step in range(steps):
                search.param_groups[0]["lr"] = lr * 0.5 * (1 + math.cos(math.pi * step / steps))
                search.zero_grad()
                loss().backward()
                search.step()
        with torch.no_grad():
            images = draw().clamp(-1, 1)
            return Projection((centre + spread * place).detach(), [m.detach() for m in maps], images,
                              psnr(images, targets), distance(images, targets))
    finally:
        for p, trained in zip(G.parameters(), before, strict=True):
            p.requires_grad_(trained)
