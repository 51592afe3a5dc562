"""Which of the teacher's channels a student keeps: a score for every channel that enters a layer.

    magnitude_scores   how large the weights are that read it
    content_scores     how much the weights that read it care for the content of the image (CAGAN)
    diversity_scores   how differently they care for moves along latent directions (DCP-GAN)
    slim               what is left of it when a penalty pulls at all channels (GAN Slimming)

All give one tensor (C,) for each of the generator's `readers`; the higher, the sooner kept.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor, nn

from gapkd.distillation.losses import rgb_loss
from gapkd.networks.base import StyleGenerator


def weights(G: StyleGenerator) -> list[Tensor]:
    """The weights (O, C, k, k) that decide on each group of channels C, input side first."""
    return [readers[0].weight for readers in G.readers()]


def magnitude_scores(G: StyleGenerator) -> list[Tensor]:
    """Mean absolute weight that reads a channel."""
    return [weight.detach().abs().mean(dim=(0, 2, 3)) for weight in weights(G)]


def gradient_scores(G: StyleGenerator, images: Tensor, target: Tensor) -> list[Tensor]:
    """Mean absolute gradient of sum |images - target| with respect to the weights that read a
    channel.

    Args:
        images: (N, 3, R, R), drawn by G with gradients.
        target: the same shape, a constant.
    """
    gradients = torch.autograd.grad((images - target.detach()).abs().sum(), weights(G))
    return [gradient.abs().mean(dim=(0, 2, 3)) for gradient in gradients]


def salt_and_pepper(images: Tensor, probability: float, generator: torch.Generator,
                    mask: Tensor | None = None) -> Tensor:
    """Images (N, 3, R, R) in which every pixel became black or white with a probability, but only
    inside the mask (N, 1, R, R), if there is one."""
    shape = (len(images), 1, *images.shape[2:])
    chosen = torch.rand(shape, generator=generator, device=images.device)
    white = torch.rand(shape, generator=generator, device=images.device)
    hit = chosen < probability
    if mask is not None:
        hit = hit & (mask > 0.5)
    return torch.where(hit, torch.where(white < 0.5, -1.0, 1.0).to(images), images)


def content_scores(G: StyleGenerator, samples: int = 400, probability: float = 0.05, seed: int = 0,
                   batch: int = 16, content: Callable[[Tensor], Tensor] | None = None
                   ) -> list[Tensor]:
    """CAGAN's score: the mean over batches of `gradient_scores` between images and the same images
    with salt-and-pepper noise on their content.

    Args:
        content: maps images to masks (N, 1, R, R) in [0, 1] of what matters (a face, not its
            background); None: all.
    Source: Liu et al., *Content-Aware GAN Compression* (CVPR 2021), section 3.1.
    """
    G, dice = _with_gradients(G, seed)
    total = [torch.zeros(weight.shape[1], device=weight.device) for weight in weights(G)]
    for w in draw_ws(G, samples, batch, dice):
        images = G.synthesis(w).image
        mask = content(images.detach()) if content else None
        noisy = salt_and_pepper(images.detach(), probability, dice, mask)
        for sum_, score in zip(total, gradient_scores(G, images, noisy), strict=True):
            sum_ += score * (len(w) / samples)
    return total


def diversity_scores(G: StyleGenerator, samples: int = 400, directions: int = 10,
                     strength: float = 5.0, seed: int = 0, batch: int = 16) -> list[Tensor]:
    """DCP-GAN's score: how much `gradient_scores` between G(w) and G(w + strength d) varies over
    directions d.

    For every batch, `directions` principal axes of W are drawn, each with the probability of the
    variance it explains; the score is the sum, over batches and directions, of the squared
    deviation from the mean over that batch's directions. The moved image is a constant, as in the
    paper.

    Source: Chung et al., *Diversity-aware Channel Pruning for StyleGAN Compression* (CVPR 2024),
    section 3.
    """
    if directions < 2:
        raise ValueError(f"directions must be at least 2, not {directions}: the score is how much "
                         "they differ")
    G, dice = _with_gradients(G, seed)
    with torch.no_grad():
        many = torch.cat(list(draw_ws(G, 10_000, 1_000, dice)))
    _, spread, axes = torch.linalg.svd(many - many.mean(dim=0), full_matrices=False)
    total = [torch.zeros(weight.shape[1], device=weight.device) for weight in weights(G)]
    for w in draw_ws(G, samples, batch, dice):
        drawn = torch.multinomial(spread.square(), directions, replacement=True, generator=dice)
        found = []
        for axis in axes[drawn]:
            with torch.no_grad():
                moved = G.synthesis(w + strength * axis).image
            found.append(gradient_scores(G, G.synthesis(w).image, moved))
        for sum_, scores in zip(total, zip(*found, strict=True), strict=True):
            scores = torch.stack(scores)  # (directions, C)
            sum_ += (scores - scores.mean(dim=0)).square().sum(dim=0)
    return total


SCORES: dict[str, Callable[..., list[Tensor]]] = {
    "pruned": magnitude_scores,
    "pruned-content": content_scores,
    "pruned-diversity": diversity_scores,
}
"""Ways to start a student from its teacher's weights, and what decides on the channels."""


def slim(teacher: StyleGenerator, images: int = 20_000, penalty: float = 0.006, lr: float = 1e-3,
         scale_lr: float = 0.5, batch: int = 32, seed: int = 0
         ) -> tuple[StyleGenerator, list[Tensor]]:
    """GAN Slimming: let a penalty decide which channels can go.

    Every channel that enters a layer gets a scale, 1 at first. Weights and scales then learn to go
    on drawing the teacher's images while an L1 penalty pulls all scales towards zero: those that
    the image can do without get there first. The scale multiplies the features, not the style:
    demodulation would undo a factor that all channels of a layer share.

    Args:
        images: length of the training.
        penalty: weight of the L1 norm of all scales, beside the mean absolute difference of every
            toRGB output.
        lr: Adam's learning rate for the synthesis weights; the mapping network stays.
        scale_lr: learning rate of the scales: gradient steps, each followed by a soft threshold
            (proximal gradient).
    Returns: a generator whose style affines hold the scales, and one tensor (C,) for each of its
        `readers`. (In a demodulated layer a scale within the style weighs the channels against each
        other as before, but the layer's output has its usual size again.)
    Source: Wang et al., *GAN Slimming* (ECCV 2020); its quantisation is left out, and the
        adversarial loss comes afterwards, with the distillation.
    """
    device = next(teacher.parameters()).device
    G = copy.deepcopy(teacher).eval().requires_grad_(False)
    G.synthesis.requires_grad_(True)
    dice = torch.Generator(device).manual_seed(seed)
    scales, hooks = [], []
    for readers in G.readers():
        scale = torch.ones(readers[0].weight.shape[1], device=device, requires_grad=True)
        hooks += [layer.register_forward_pre_hook(partial(_scaled, scale)) for layer in readers]
        scales.append(scale)
    optimiser = torch.optim.Adam(G.synthesis.parameters(), lr=lr, betas=(0.0, 0.99))
    for w in draw_ws(teacher, images, batch, dice):
        noise = teacher.synthesis.draw_noise(len(w), dice)
        with torch.no_grad():
            theirs = teacher.synthesis(w, noise=noise)
        loss = rgb_loss(G.synthesis(w, noise=noise).rgbs, theirs.rgbs)
        optimiser.zero_grad(set_to_none=True)
        gradients = torch.autograd.grad(loss, scales, retain_graph=True)
        loss.backward(inputs=list(G.synthesis.parameters()))
        optimiser.step()
        for scale, gradient in zip(scales, gradients, strict=True):
            _proximal_step(scale, gradient, scale_lr, penalty)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for scale, readers in zip(scales, G.readers(), strict=True):
            for layer in readers:
                layer.affine.weight.mul_(scale[:, None])
                layer.affine.bias.mul_(scale)
    return G.requires_grad_(False), [scale.detach().abs() for scale in scales]


def _scaled(scale: Tensor, layer: nn.Module, inputs: tuple) -> tuple:
    x, *others = inputs
    return (x * scale[:, None, None], *others)


@torch.no_grad()
def _proximal_step(scale: Tensor, gradient: Tensor, lr: float, penalty: float) -> None:
    """A gradient step, then what the L1 norm asks for: nearer to 0 by lr penalty, not past it."""
    moved = scale - lr * gradient
    scale.copy_(moved.sign() * (moved.abs() - lr * penalty).clamp(min=0))
    if not scale.any():
        raise ValueError(f"penalty={penalty} switches a whole layer off: choose a smaller one")


def _with_gradients(G: StyleGenerator, seed: int) -> tuple[StyleGenerator, torch.Generator]:
    """A copy whose weights have gradients, and dice on its device."""
    G = copy.deepcopy(G).eval().requires_grad_(True)
    return G, torch.Generator(next(G.parameters()).device).manual_seed(seed)


def draw_ws(G: StyleGenerator, samples: int, batch: int, dice: torch.Generator) -> Iterator[Tensor]:
    """w (N, w_dim) in batches; of a conditional network, of classes in turn."""
    for start in range(0, samples, batch):
        n = min(batch, samples - start)
        c = None
        if G.c_dim:
            classes = torch.arange(start, start + n) % G.c_dim
            c = torch.eye(G.c_dim, device=dice.device)[classes]
        with torch.no_grad():
            w = G.mapping(torch.randn(n, G.z_dim, generator=dice, device=dice.device), c)
        yield w

AnyGenerator = StyleGenerator  # the old name, until every room uses the new one
