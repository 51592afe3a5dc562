"""GAN Slimming: let a penalty decide which of the teacher's channels can go.

Every channel that enters a layer gets a scale, 1 at first. Weights and scales then learn to go on drawing the teacher's
images while an L1 penalty pulls all scales towards zero: those that the image can do without get there first.

Source: Wang et al., *GAN Slimming: All-in-One GAN Compression by a Unified Optimization Framework* (ECCV 2020); its
quantisation is left out, and the adversarial loss comes afterwards, with the distillation.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from gapkd.losses import rgb_loss
from gapkd.pruning import AnyGenerator, draw_ws, readers
from gapkd.stylegan3 import AliasFreeGenerator


def style_affines(G: AnyGenerator) -> list[list[nn.Module]]:
    """For every entry of `gapkd.pruning.readers` the style affines that scale its input channels: that of the layer
    itself, and in StyleGAN2 that of the toRGB which looks at the same features."""
    if isinstance(G, AliasFreeGenerator):
        return [[layer.affine] for layer in G.synthesis.layers]
    found: list[list[nn.Module]] = [[]]
    for block in G.synthesis.blocks:
        for conv in block.convs:
            found[-1].append(conv.affine)
            found.append([])
        found[-1].append(block.torgb.affine)
    return found


def slim(teacher: AnyGenerator, images: int = 20_000, penalty: float = 0.1, lr: float = 1e-3, scale_lr: float = 0.1,
         batch: int = 32, seed: int = 0) -> tuple[AnyGenerator, list[Tensor]]:
    """The teacher with sparse channel scales, folded into its style affines, and the scales as scores.

    Args:
        images: length of the training.
        penalty: weight of the L1 norm of all scales, beside the mean absolute difference of the images.
        lr: Adam's learning rate for the synthesis weights; the mapping network stays.
        scale_lr: learning rate of the scales: gradient steps, each followed by a soft threshold (proximal gradient).
    Returns: a generator that draws nearly the teacher's images, and one tensor (C,) for each of its `readers`.
    """
    device = next(teacher.parameters()).device
    G = copy.deepcopy(teacher).eval().requires_grad_(False)
    G.synthesis.requires_grad_(True)
    dice = torch.Generator(device).manual_seed(seed)
    scales = [1 + 0.05 * torch.randn(weight.shape[1], generator=dice, device=device) for weight in readers(G)]
    scales = [scale.requires_grad_(True) for scale in scales]
    affines = style_affines(G)
    hooks = [affine.register_forward_hook(lambda module, inputs, style, scale=scale: style * scale)
             for scale, group in zip(scales, affines, strict=True) for affine in group]
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
        with torch.no_grad():
            for scale, gradient in zip(scales, gradients, strict=True):
                moved = scale - scale_lr * gradient
                sparser = moved.sign() * (moved.abs() - scale_lr * penalty).clamp(min=0)
                scale.copy_(sparser / sparser.square().mean().sqrt())
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for scale, group in zip(scales, affines, strict=True):
            for affine in group:
                affine.weight.mul_(scale[:, None])
                affine.bias.mul_(scale)
    return G.requires_grad_(False), [scale.detach().abs() for scale in scales]
