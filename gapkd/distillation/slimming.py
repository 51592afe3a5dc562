"""GAN Slimming: let a penalty decide which of the teacher's channels can go.

Every channel that enters a layer gets a scale, 1 at first. Weights and scales then learn to go on drawing the teacher's
images while an L1 penalty pulls all scales towards zero: those that the image can do without get there first.

The scale multiplies the features, not the style: demodulation would undo a factor that all channels of a layer share,
and the penalty would meet no resistance.

Source: Wang et al., *GAN Slimming: All-in-One GAN Compression by a Unified Optimization Framework* (ECCV 2020); its
quantisation is left out, and the adversarial loss comes afterwards, with the distillation.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import Tensor, nn

from gapkd.distillation.losses import rgb_loss
from gapkd.distillation.pruning import AnyGenerator, draw_ws, readers
from gapkd.networks.stylegan3 import AliasFreeGenerator


def looking_at(G: AnyGenerator) -> list[list[nn.Module]]:
    """For every entry of `gapkd.distillation.pruning.readers` the layers that look at the same features: the one
    itself, and in StyleGAN2 the toRGB beside it."""
    if isinstance(G, AliasFreeGenerator):
        return [[layer] for layer in G.synthesis.layers]
    found: list[list[nn.Module]] = [[]]
    for block in G.synthesis.blocks:
        for conv in block.convs:
            found[-1].append(conv)
            found.append([])
        found[-1].append(block.torgb)
    return found


def slim(teacher: AnyGenerator, images: int = 20_000, penalty: float = 0.006, lr: float = 1e-3, scale_lr: float = 0.5,
         batch: int = 32, seed: int = 0) -> tuple[AnyGenerator, list[Tensor]]:
    """The teacher, trained to do with few channels, and the channels' scales as scores.

    Args:
        images: length of the training.
        penalty: weight of the L1 norm of all scales, beside the mean absolute difference of every toRGB output.
        lr: Adam's learning rate for the synthesis weights; the mapping network stays.
        scale_lr: learning rate of the scales: gradient steps, each followed by a soft threshold (proximal gradient).
    Returns: a generator whose style affines hold the scales, and one tensor (C,) for each of its `readers`. (In a
        demodulated layer a scale within the style weighs the channels against each other as before, but the layer's
        output has its usual size again.)
    """
    device = next(teacher.parameters()).device
    G = copy.deepcopy(teacher).eval().requires_grad_(False)
    G.synthesis.requires_grad_(True)
    dice = torch.Generator(device).manual_seed(seed)
    scales = [torch.ones(weight.shape[1], device=device, requires_grad=True) for weight in readers(G)]
    hooks = [layer.register_forward_pre_hook(partial(_scaled, scale))
             for scale, layers in zip(scales, looking_at(G), strict=True) for layer in layers]
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
                scale.copy_(moved.sign() * (moved.abs() - scale_lr * penalty).clamp(min=0))
                if not scale.any():
                    raise ValueError(f"penalty={penalty} switches a whole layer off: choose a smaller one")
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        for scale, layers in zip(scales, looking_at(G), strict=True):
            for layer in layers:
                layer.affine.weight.mul_(scale[:, None])
                layer.affine.bias.mul_(scale)
    return G.requires_grad_(False), [scale.detach().abs() for scale in scales]


def _scaled(scale: Tensor, layer: nn.Module, inputs: tuple) -> tuple:
    x, *others = inputs
    return (x * scale[:, None, None], *others)
