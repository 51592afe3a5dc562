"""The adversarial losses and their two regularisers. Each is a function from tensors to a
scalar."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def discriminator_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """Logistic loss of the discriminator: softplus(-D(x)) + softplus(D(G(z))). Logits (N, 1)."""
    return F.softplus(-real_logits).mean() + F.softplus(fake_logits).mean()


def generator_loss(fake_logits: Tensor) -> Tensor:
    """Non-saturating loss of the generator: softplus(-D(G(z))). Logits (N, 1)."""
    return F.softplus(-fake_logits).mean()


def relativistic_loss(better: Tensor, worse: Tensor) -> Tensor:
    """How far each image of a pair still is from being taken for the better one: softplus(D(worse)
    - D(better)). The discriminator wants the real image to be better, the generator its own. Logits
    (N, 1).

    Source: R3GAN (Huang et al. 2024), equation 1, after Jolicoeur-Martineau 2018.
    """
    return F.softplus(worse - better).mean()


def gradient_penalty(logits: Tensor, images: Tensor) -> Tensor:
    """Mean squared gradient norm of D at some images, without its gamma / 2: R1 on real ones
    (Mescheder et al. 2018), R2 on drawn ones.

    Args:
        logits: D(images), (N, 1), computed with images.requires_grad.
        images: (N, 3, R, R).
    """
    (gradient,) = torch.autograd.grad(logits.sum(), images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean()


def path_lengths(images: Tensor, ws: Tensor, noise: Tensor) -> Tensor:
    """Length of J^T y for a random image direction y: how far the image moves for a step in W.

    Args:
        images: (N, 3, R, R), a function of ws.
        ws: (N, num_ws, w_dim) with requires_grad.
        noise: standard normal, the shape of images; scaled here by 1 / R.
    Returns: (N,).
    Source: StyleGAN2, section 3.2.
    """
    direction = noise / math.sqrt(images.shape[2] * images.shape[3])
    (gradient,) = torch.autograd.grad((images * direction).sum(), ws, create_graph=True)
    return gradient.square().sum(dim=2).mean(dim=1).sqrt()


def path_penalty(lengths: Tensor, target: Tensor | float) -> Tensor:
    """Mean squared deviation of path lengths (N,) from their running mean."""
    return (lengths - target).square().mean()
