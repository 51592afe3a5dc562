"""Which w's draw a given image? Projection into W+: one w for every layer, by gradient descent.

A student whose images can be found again in its latent space can be used where its teacher is:
project, then edit.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from gapkd.data.images import check_range, with_channels
from gapkd.metrics.features import Distance, distance_for
from gapkd.metrics.sampling import draw_w
from gapkd.networks.base import StyleGenerator
from gapkd.parallel import exactly


class Projection(NamedTuple):
    """What was found: ws (N, num_ws, w_dim), images (N, 3, R, R) clamped to [-1, 1], and for every
    image the psnr in dB and the perceptual distance to its target, (N,)."""

    ws: Tensor
    images: Tensor
    psnr: Tensor
    perceptual: Tensor


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of images (N, 3, R, R) in [-1, 1], whose peak is 2: (N,) in dB."""
    return 10 * torch.log10(4 / (a - b).square().mean(dim=(1, 2, 3)).clamp(min=1e-12))


@torch.inference_mode(False)  # else there would be no gradients
@torch.no_grad()
@exactly()
def project(G: StyleGenerator, targets: Tensor, distance: Distance | str, steps: int = 200
            ) -> Projection:
    """Minimise squared error + distance over ws, from the average w, noise maps as stored: Adam,
    whose learning rate falls along a cosine. The paper: 800 steps of L-BFGS, with LPIPS, over the
    noise maps, too; and its code takes PSNR of 8-bit differences that wrap around, which flatters
    poor ones: its decibels cannot be compared.

    Args:
        targets: (N, 3, R, R) in [-1, 1], at G's resolution.
        distance: of two batches of images, or its name, as of `DistillConfig.perceptual`.
    Raises ValueError for targets of another shape or range.
    """
    check_range(targets, values=True)
    r = G.resolution
    if targets.ndim != 4 or targets.shape[1:] not in ((3, r, r), (G.img_channels, r, r)):
        raise ValueError(f"targets must have shape (N, 3, {r}, {r}), not {tuple(targets.shape)}: "
                         "crop and resize them to the generator's resolution")
    w = draw_w(G, 2000, seed=0)
    # A clone, since inference mode may have made them.
    targets = with_channels(targets.to(w).clone(), G.img_channels)
    centre, spread = w.mean(dim=0), w.std(dim=0).mean()
    if isinstance(distance, str):
        distance = distance_for(distance, w.device)
    # (N, num_ws, w_dim) in units of W's spread
    place = torch.zeros(len(targets), G.num_ws, G.w_dim, device=w.device, requires_grad=True)
    optimiser = torch.optim.Adam([place])
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = 0.1 * (1 + math.cos(math.pi * step / steps))
        with torch.enable_grad():
            images = G.synthesis(centre + spread * place).image
            error = (images - targets).square().mean(dim=(1, 2, 3))
            loss = (error + distance(images, targets)).sum()
        (place.grad,) = torch.autograd.grad(loss, place)  # the network's own weights get none
        optimiser.step()
    ws = centre + spread * place
    images = G.synthesis(ws).image.clamp(-1, 1)
    return Projection(ws, images, psnr(images, targets), distance(images, targets))
