"""Does the picture move as the input is moved? EQ-T and EQ-R of an alias-free generator, in dB.

Source: Karras et al., *Alias-Free Generative Adversarial Networks* (NeurIPS 2021), section 2 and
appendix E. A StyleGAN3's input can be turned and moved. If it is equivariant, the image is moved by
just that; what differs is drawn elsewhere than it should be.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from gapkd.metrics.sampling import draw_latents, in_parts
from gapkd.networks.base import StyleGenerator
from gapkd.parallel import exactly

REACH = 6  # px: radius of the kernel by which images are resampled
CUTOFF = 0.33  # of that kernel, in cycles a pixel: below half, so that turned grids do not matter


def motion(angle: float = 0.0, x: float = 0.0, y: float = 0.0) -> Tensor:
    """Turn by `angle` radians (clockwise on the screen), then move by x to the right and y down, in
    widths of the image: (3, 3), float64."""
    c, s = math.cos(angle), math.sin(angle)
    return torch.tensor([[c, -s, x], [s, c, y], [0.0, 0.0, 1.0]], dtype=torch.float64)


@contextmanager
def moved(G: StyleGenerator, by: Tensor) -> Iterator[None]:
    """Within the block, G draws its images moved by `by` (see `motion`). Raises ValueError for a
    generator that cannot, as a StyleGAN2."""
    if not G.movable:
        raise ValueError("only a StyleGAN3 has an input that can be moved: name one")
    transform = G.synthesis.input.transform
    before = transform.clone()
    # the network looks up where each point came from
    transform.copy_(before @ by.inverse().to(transform))
    try:
        yield
    finally:
        transform.copy_(before)


def _pixels(size: int) -> Tensor:
    """Homogeneous places of all pixels, in widths of the image from its centre: (R, R, 3)."""
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5
    y, x = torch.meshgrid(place, place, indexing="ij")
    return torch.stack([x, y, torch.ones_like(x)], dim=-1)


def resample(images: Tensor, by: Tensor | None = None) -> Tensor:
    """Images (N, C, R, R), moved by `by` (None: not at all) and low-pass filtered alike in all
    directions, both by one radial kernel. Pixels near a border are not right (see `inner`)."""
    size = images.shape[-1]
    points = _pixels(size).flatten(0, 1)                                     # (P, 3)
    if by is not None:
        points = points @ by.inverse().T
    source = (points[:, None, None, :2] + 0.5) * size - 0.5                  # (P, 1, 1, 2), pixels
    along = torch.arange(1 - REACH, REACH + 1, dtype=torch.float64)
    around = torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1)
    near = source.floor() + around                                           # (P, 2 a, 2 a, 2)
    weights = _kernel((near - source).norm(dim=-1)).flatten(1)               # (P, 4 a^2)
    weights = weights / weights.sum(dim=1, keepdim=True)
    column, row = near.long().clamp(0, size - 1).unbind(-1)
    taken = images.flatten(2)[:, :, (row * size + column).flatten().to(images.device)]
    taken = taken.unflatten(2, weights.shape)                                # (N, C, P, 4 a^2)
    return (taken * weights.to(images)).sum(-1).view_as(images)


def _kernel(distance: Tensor) -> Tensor:
    """A Kaiser-windowed radial low-pass of radius REACH, not normalised."""
    from scipy.signal import kaiser_beta  # takes half a second to import

    beta = torch.tensor(kaiser_beta(70.0), dtype=torch.float64)
    fall = (1 - (distance / REACH).square()).clamp(min=0).sqrt()
    window = torch.i0(beta * fall) * (distance < REACH)
    phase = 2 * math.pi * CUTOFF * distance.clamp(min=1e-9)
    return 2 * torch.special.bessel_j1(phase) / phase * window


def inner(size: int, by: Tensor) -> Tensor:
    """Pixels (R, R) that lie far enough from the border before and after a motion, bool."""
    here = _pixels(size)
    before = here @ by.inverse().T
    furthest = torch.stack([here, before])[..., :2].abs().amax(dim=(0, -1))
    return furthest <= 0.5 - REACH / size


@exactly()
@torch.no_grad()
def equivariance(G: StyleGenerator, kind: str, samples: int = 256, seed: int = 0, batch: int = 16
                 ) -> float:
    """EQ-T or EQ-R in dB: 10 log10(2^2 / mean squared error) between images drawn moved, and images
    moved afterwards. The principle is the paper's, the filter (`resample`) ours: numbers can be
    compared within this project.

    Args:
        kind: "translation", by up to 1/8 of the image's width along both axes; "rotation", by any
            angle.
        samples: latents. One motion is drawn for each batch of them.
    Raises ValueError for another kind or a StyleGAN2.
    """
    if kind not in ("translation", "rotation"):
        raise ValueError(f"kind must be 'translation' or 'rotation', not {kind!r}")
    dice = torch.Generator().manual_seed(seed)
    error = count = 0.0
    for latents in in_parts(*draw_latents(G, samples, seed), batch):
        first, second = (torch.rand(2, generator=dice, dtype=torch.float64) * 2 - 1).tolist()
        turn, shift = motion(angle=first * math.pi), motion(x=first / 8, y=second / 8)
        by = turn if kind == "rotation" else shift
        with moved(G, by):
            drawn = G(*latents)
        seen = inner(G.resolution, by).to(drawn.device)
        difference = (resample(drawn) - resample(G(*latents), by))[:, :, seen].double()
        error += difference.square().sum().item()
        count += difference.numel()
    return 10 * math.log10(4 / max(error / count, 1e-20))
