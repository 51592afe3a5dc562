"""Which of the teacher's channels a student keeps: a score for every channel that enters a layer.

    magnitude_scores   how large the weights are that read it
    content_scores     how much the weights that read it care for the content of the image (CAGAN)
    diversity_scores   how differently they care for moves along different latent directions (DCP-GAN)

All three give one tensor (C,) a layer: for every convolution of the synthesis network, and last for the toRGB that ends
it; the higher, the sooner kept. They serve StyleGAN2 and StyleGAN3 alike.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from gapkd.networks.stylegan2 import Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator

AnyGenerator = Generator | AliasFreeGenerator


def readers(G: AnyGenerator) -> list[Tensor]:
    """The weights (out, in, k, k) that read each layer's input channels, input side first; last those of the last
    toRGB."""
    if isinstance(G, AliasFreeGenerator):
        return [layer.weight for layer in G.synthesis.layers]
    return [conv.conv.weight for conv in G.synthesis.convs] + [G.synthesis.blocks[-1].torgb.conv.weight]


def magnitude_scores(G: AnyGenerator) -> list[Tensor]:
    """Mean absolute weight that reads a channel."""
    return [weight.detach().abs().mean(dim=(0, 2, 3)) for weight in readers(G)]


def gradient_scores(G: AnyGenerator, images: Tensor, target: Tensor) -> list[Tensor]:
    """Mean absolute gradient of sum |images - target| with respect to the weights that read a channel.

    Args:
        images: (N, 3, R, R), drawn by G with gradients. target: the same shape, a constant.
    """
    gradients = torch.autograd.grad((images - target.detach()).abs().sum(), readers(G))
    return [gradient.abs().mean(dim=(0, 2, 3)) for gradient in gradients]


def salt_and_pepper(images: Tensor, probability: float, generator: torch.Generator, mask: Tensor | None = None
                    ) -> Tensor:
    """Images (N, 3, R, R) in which every pixel became black or white with a probability, but only inside the mask
    (N, 1, R, R), if there is one."""
    shape = (len(images), 1, *images.shape[2:])
    chosen, white = (torch.rand(shape, generator=generator, device=images.device) for _ in range(2))
    hit = (chosen < probability) & (True if mask is None else mask > 0.5)
    return torch.where(hit, torch.where(white < 0.5, -1.0, 1.0).to(images), images)


def content_scores(G: AnyGenerator, samples: int = 400, probability: float = 0.05, seed: int = 0, batch: int = 16,
                   content: Callable[[Tensor], Tensor] | None = None) -> list[Tensor]:
    """CAGAN's score: the mean over batches of `gradient_scores` between images and the same images with salt-and-pepper
    noise on their content.

    Args:
        content: maps images to masks (N, 1, R, R) in [0, 1] of what matters (a face, not its background); None: all.
    Source: Liu et al., *Content-Aware GAN Compression* (CVPR 2021), section 3.1.
    """
    G, dice = _with_gradients(G, seed)
    total = [torch.zeros(weight.shape[1], device=weight.device) for weight in readers(G)]
    for w in draw_ws(G, samples, batch, dice):
        images = G.synthesis(w).image
        mask = content(images.detach()) if content else None
        for sum_, score in zip(total, gradient_scores(G, images, salt_and_pepper(images.detach(), probability, dice,
                                                                                mask)), strict=True):
            sum_ += score * (len(w) / samples)
    return total


def diversity_scores(G: AnyGenerator, samples: int = 400, directions: int = 10, strength: float = 5.0, seed: int = 0,
                     batch: int = 16) -> list[Tensor]:
    """DCP-GAN's score: how much `gradient_scores` between G(w) and G(w + strength d) varies over directions d.

    For every batch, `directions` principal axes of W are drawn, each with the probability of the variance it explains;
    the score is the sum, over batches and directions, of the squared deviation from the mean over that batch's
    directions. The moved image is a constant, as in the paper.

    Source: Chung et al., *Diversity-aware Channel Pruning for StyleGAN Compression* (CVPR 2024), section 3.
    """
    if directions < 2:
        raise ValueError(f"directions must be at least 2, not {directions}: the score is how much they differ")
    G, dice = _with_gradients(G, seed)
    with torch.no_grad():
        many = torch.cat(list(draw_ws(G, 10_000, 1_000, dice)))
    _, spread, axes = torch.linalg.svd(many - many.mean(dim=0), full_matrices=False)
    total = [torch.zeros(weight.shape[1], device=weight.device) for weight in readers(G)]
    for w in draw_ws(G, samples, batch, dice):
        drawn = torch.multinomial(spread.square(), directions, replacement=True, generator=dice)
        found = []
        for axis in axes[drawn]:
            with torch.no_grad():
                moved = G.synthesis(w + strength * axis).image
            found.append(gradient_scores(G, G.synthesis(w).image, moved))
        for sum_, scores in zip(total, zip(*found, strict=True), strict=True):
            sum_ += (torch.stack(scores) - torch.stack(scores).mean(dim=0)).square().sum(dim=0)
    return total


SCORES: dict[str, Callable[[AnyGenerator], list[Tensor]]] = {
    "pruned": magnitude_scores, "pruned-content": content_scores, "pruned-diversity": diversity_scores}
"""Ways to start a student from its teacher's weights, and what decides on the channels."""


def _with_gradients(G: AnyGenerator, seed: int) -> tuple[AnyGenerator, torch.Generator]:
    """A copy whose weights have gradients, and dice on its device."""
    G = copy.deepcopy(G).eval().requires_grad_(True)
    return G, torch.Generator(next(G.parameters()).device).manual_seed(seed)


def draw_ws(G: AnyGenerator, samples: int, batch: int, dice: torch.Generator) -> Iterator[Tensor]:
    """w (N, w_dim) in batches; of a conditional network, of classes in turn."""
    for start in range(0, samples, batch):
        n = min(batch, samples - start)
        c = torch.eye(G.c_dim, device=dice.device)[torch.arange(start, start + n) % G.c_dim] if G.c_dim else None
        with torch.no_grad():
            w = G.mapping(torch.randn(n, G.z_dim, generator=dice, device=dice.device), c)
        yield w
