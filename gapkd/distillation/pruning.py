"""Which of the teacher's channels a student keeps: a score for every channel that enters a layer,
one tensor (C,) for each of the generator's `readers`. Those with higher scores are kept."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import softshrink

from gapkd.distillation.losses import rgb_loss
from gapkd.networks.base import StyleGenerator
from gapkd.progress import bar


def scored_weights(G: StyleGenerator) -> list[Tensor]:
    """The weights (O, C, k, k) that decide on each group of channels C, input side first."""
    return [readers[0].weight for readers in G.readers()]


def magnitude_scores(G: StyleGenerator) -> list[Tensor]:
    """Mean absolute weight that reads a channel."""
    return [weight.detach().abs().mean(dim=(0, 2, 3)) for weight in scored_weights(G)]


def gradient_scores(G: StyleGenerator, images: Tensor, target: Tensor, again: bool = False
                    ) -> list[Tensor]:
    """Mean absolute gradient of sum |images - target| with respect to the weights that read a
    channel: images (N, 3, R, R), drawn by G with gradients, and constants of the same shape.
    `again`: another gradient of these images follows, so their graph is kept."""
    difference = (images - target.detach()).abs().sum()
    gradients = torch.autograd.grad(difference, scored_weights(G), retain_graph=again)
    return [gradient.abs().mean(dim=(0, 2, 3)) for gradient in gradients]


def salt_and_pepper(images: Tensor, probability: float, generator: torch.Generator,
                    mask: Tensor | None = None) -> Tensor:
    """Images (N, 3, R, R) in which every pixel, or every one inside the mask (N, 1, R, R), became
    black or white with a probability."""
    shape = (len(images), 1, *images.shape[2:])
    chosen = torch.rand(shape, generator=generator, device=images.device)
    white = torch.rand(shape, generator=generator, device=images.device)
    hit = chosen < probability
    if mask is not None:
        hit = hit & (mask > 0.5)
    return torch.where(hit, torch.where(white < 0.5, -1.0, 1.0).to(images), images)


@torch.inference_mode(False)  # gradients are on, whatever the caller's mode
def content_scores(G: StyleGenerator, samples: int = 400, probability: float = 0.05, seed: int = 0,
                   batch: int = 16, content: Callable[[Tensor], Tensor] | None = None,
                   progress: bool = False) -> list[Tensor]:
    """CAGAN's score: `gradient_scores` between images and the same images with salt-and-pepper
    noise on their content, mean over batches. (A batch has one gradient, of its sum.)

    Args:
        content: maps images to masks (N, 1, R, R) in [0, 1] of what matters (a face, not its
            background); None: all.
    Source: Liu et al., *Content-Aware GAN Compression* (CVPR 2021), section 3.1.
    """
    G, dice = _with_gradients(G, seed)
    total = [0.0] * len(scored_weights(G))
    for w in draw_ws(G, samples, batch, dice, progress):
        images = G.synthesis(w).image
        mask = content(images.detach()) if content else None
        noisy = salt_and_pepper(images.detach(), probability, dice, mask)
        for group, score in enumerate(gradient_scores(G, images, noisy)):
            total[group] = total[group] + score * (len(w) / samples)
    return total


@torch.inference_mode(False)  # gradients are on, whatever the caller's mode
def diversity_scores(G: StyleGenerator, samples: int = 400, directions: int = 10,
                     strength: float = 5.0, seed: int = 0, batch: int = 16,
                     progress: bool = False) -> list[Tensor]:
    """DCP-GAN's score: how much `gradient_scores` between G(w) and G(w + strength d) varies over
    directions d.

    For every batch, `directions` principal axes of W are drawn, each with the probability of the
    variance it explains; squared deviations from the batch's mean are summed over directions and
    batches. A batch has one gradient, of its sum, so its size changes the score. (Published: 5,000
    samples in batches of 5.) The moved image is a constant; in the released code the gradient flows
    through it, too.

    Source: Chung et al., *Diversity-aware Channel Pruning for StyleGAN Compression* (CVPR 2024),
    section 3.
    """
    if directions < 2:
        raise ValueError(f"directions must be at least 2, not {directions}: they are compared")
    G, dice = _with_gradients(G, seed)
    with torch.no_grad():
        many = torch.cat(list(draw_ws(G, 10_000, 1_000, dice)))
    _, spread, axes = torch.linalg.svd(many - many.mean(dim=0), full_matrices=False)
    total = [0.0] * len(scored_weights(G))
    for w in draw_ws(G, samples, batch, dice, progress):
        drawn = torch.multinomial(spread.square(), directions, replacement=True, generator=dice)
        images, found = G.synthesis(w).image, []
        for axis in axes[drawn]:
            with torch.no_grad():
                moved = G.synthesis(w + strength * axis).image
            found.append(gradient_scores(G, images, moved, again=True))
        for group, scores in enumerate(zip(*found, strict=True)):
            scores = torch.stack(scores)  # (directions, C)
            total[group] = total[group] + (scores - scores.mean(dim=0)).square().sum(dim=0)
    return total


SCORES: dict[str, Callable[..., list[Tensor]]] = {
    "pruned": magnitude_scores,
    "pruned-content": content_scores,
    "pruned-diversity": diversity_scores,
}
"""Ways to start from the teacher's weights, and what decides on the channels."""


@torch.inference_mode(False)  # gradients are on, whatever the caller's mode
def slim(teacher: StyleGenerator, images: int = 20_000, penalty: float = 0.006, lr: float = 1e-3,
         scale_lr: float = 0.5, batch: int = 32, seed: int = 0, progress: bool = False
         ) -> tuple[StyleGenerator, list[Tensor]]:
    """GAN Slimming: let a penalty decide which channels can go.

    Every channel that enters a layer gets a scale, 1 at first. Weights and scales are then trained
    to keep drawing the teacher's images while an L1 penalty pulls all scales towards zero: those
    that the image can do without get there first. Features are scaled, not styles: demodulation
    would undo a factor that a layer's channels share.

    Args:
        images: length of the training.
        penalty: weight of the L1 norm, beside the mean absolute difference of all toRGB outputs.
        lr: Adam's learning rate for the synthesis weights; the mapping network stays.
        scale_lr: length of the scales' gradient steps, each followed by a soft threshold.
    Returns: a generator whose style affines hold the scales (demodulated layers then weigh their
        channels as before, at their usual size), and the scales' magnitudes.
    Source: Wang et al., *GAN Slimming* (ECCV 2020), without its quantisation; the adversarial loss
        comes afterwards, with the distillation.
    """
    G, dice = _with_gradients(teacher, seed)
    scales = [weight.new_ones(weight.shape[1]).requires_grad_() for weight in scored_weights(G)]
    hooks = []
    for scale, readers in zip(scales, G.readers(), strict=True):
        scaled = partial(_scaled, scale)
        hooks += [layer.register_forward_pre_hook(scaled) for layer in readers]
    optimiser = torch.optim.Adam(G.synthesis.parameters(), lr=lr, betas=(0.0, 0.99))
    for w in draw_ws(teacher, images, batch, dice, progress):
        noise = teacher.synthesis.draw_noise(len(w), dice)
        with torch.no_grad():
            theirs = teacher.synthesis(w, noise=noise)
        loss = rgb_loss(G.synthesis(w, noise=noise).rgbs, theirs.rgbs)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        for scale in scales:  # down the gradient, then nearer to 0, but not past it: the L1 norm
            scale.data = softshrink(scale.data - scale_lr * scale.grad, scale_lr * penalty)
            scale.grad = None
            if not (scale.any() and scale.isfinite().all()):
                raise ValueError(f"slimming with penalty={penalty:g} ruins a whole layer of this "
                                 "network: choose another synthesis, such as pruned-diversity")
    for hook in hooks:
        hook.remove()
    scales = [scale.detach() for scale in scales]
    G.requires_grad_(False)
    for scale, readers in zip(scales, G.readers(), strict=True):
        for layer in readers:
            layer.affine.weight.mul_(scale[:, None])
            layer.affine.bias.mul_(scale)
    return G, [scale.abs() for scale in scales]


def _scaled(scale: Tensor, layer: nn.Module, inputs: tuple) -> tuple:
    return inputs[0] * scale[:, None, None], *inputs[1:]


def _with_gradients(G: StyleGenerator, seed: int) -> tuple[StyleGenerator, torch.Generator]:
    """A copy whose weights have gradients, and dice on its device."""
    silent, G = G.silent, copy.deepcopy(G).eval().requires_grad_(True)
    if silent:
        G.silence()
    return G, torch.Generator(next(G.parameters()).device).manual_seed(seed)


def draw_ws(G: StyleGenerator, samples: int, batch: int, dice: torch.Generator,
            progress: bool = False) -> Iterator[Tensor]:
    """w (N, w_dim) in batches, with a bar if it is wanted; of a conditional network, of classes in
    turn."""
    for start in bar(range(0, samples, batch), unit="batches", desc="choosing channels",
                     disable=not progress):
        n = min(batch, samples - start)
        c = None
        if G.c_dim:
            classes = torch.arange(start, start + n) % G.c_dim
            c = torch.eye(G.c_dim, device=dice.device)[classes]
        with torch.no_grad():
            w = G.mapping(torch.randn(n, G.z_dim, generator=dice, device=dice.device), c)
        yield w
