"""What is drawn to be measured: latents, their w, images. The same for every batch size."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import index
from typing import TypeVar

import torch
from torch import Tensor

from gapkd.networks.base import StyleGenerator

T = TypeVar("T")
Part = tuple[int, int]  # (i, n): the i-th of n shares, what process i of n has to do
SHEET = 77_777
"""Seed of the latents on the sheets that come with networks: one that hardly any network has. What
the seed of an older training drew first (the embedded networks are such) were the rows of the
mapping network's first layer. Latents of the same seed equal these rows, and their w lie twice as
far out as those of others."""


def device_of(G: StyleGenerator) -> torch.device:
    return next(G.parameters()).device


def share(items: Sequence[T], part: Part) -> Sequence[T]:
    """Neighbouring items, as many as in every other share."""
    number, of = part
    return items[len(items) * number // of:len(items) * (number + 1) // of]


def draw_latents(G: StyleGenerator, samples: int, seed: int | torch.Generator,
                 shares: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
    """z (samples, z_dim), and one-hot labels (samples, c_dim) or None, on the generator's device;
    from a seed, or the next of a CPU's random numbers.

    Args:
        shares: how frequent every class is, (c_dim,), as in the images to compare with; None: all
            alike.
    """
    given = isinstance(seed, torch.Generator)
    dice = seed if given else torch.Generator().manual_seed(index(seed))
    device, z = device_of(G), torch.randn(samples, G.z_dim, generator=dice)
    if not G.c_dim:
        return z.to(device), None
    if shares is None:
        labels = torch.randint(G.c_dim, (samples,), generator=dice)
    else:
        labels = torch.multinomial(shares, samples, replacement=True, generator=dice)
    return z.to(device), torch.eye(G.c_dim)[labels].to(device)


def in_parts(z: Tensor, c: Tensor | None, batch: int) -> list[tuple[Tensor, Tensor | None]]:
    """Latents and their labels, a batch at a time."""
    parts = z.split(batch)
    labels = [None] * len(parts) if c is None else c.split(batch)
    return list(zip(parts, labels, strict=True))


@torch.no_grad()
def draw_w(G: StyleGenerator, samples: int, seed: int) -> Tensor:
    """w (samples, w_dim) of random z, on the generator's device."""
    return G.mapping(*draw_latents(G, samples, seed))


@torch.no_grad()
def sample_images(G: StyleGenerator, samples: int, seed: int, batch: int = 100,
                  part: Part = (0, 1), shares: Tensor | None = None) -> Iterator[Tensor]:
    """Batches of images (n, 3, R, R) in [-1, 1], clamped, on the generator's device, noise maps as
    stored: with fresh noise an image would not even agree with itself. `samples` of them in all;
    `shares` as in `draw_latents`."""
    for z, c in share(in_parts(*draw_latents(G, samples, seed, shares), batch), part):
        yield G(z, c).clamp(-1, 1)


@torch.no_grad()
def draw_sheet(G: StyleGenerator, count: int, seed: int, truncation: float = 1.0,
               label: int = -1) -> Tensor:
    """Images (count, 3, R, R) for the eye, about [-1, 1], on the CPU; noise maps as stored.

    Args:
        label: class of a conditional network's images; -1: all classes in turn.
    """
    z, c = draw_latents(G, count, seed)
    if G.c_dim:
        labels = torch.arange(count) % G.c_dim if label < 0 else torch.full((count,), label)
        c = torch.eye(G.c_dim)[labels].to(z)
    batch = max(1, min(64, 2**19 // G.resolution**2))  # large images come a few at a time
    return torch.cat([G(*part, truncation=truncation).cpu() for part in in_parts(z, c, batch)])
