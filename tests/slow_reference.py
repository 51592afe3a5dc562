"""An independent, slow StyleGAN2 forward pass: one weight per sample, grouped convolutions, zero insertion and
explicit FIR loops, written from the paper's formulas. It shares no layer with the package, only parameter names."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F


def _lrelu(x):
    return torch.where(x >= 0, x, 0.2 * x) * math.sqrt(2)


def _linear(state, name, x, lr=1.0):
    weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
    return x @ (weight * lr / math.sqrt(weight.shape[1])).T + bias * lr


def _fir(x, up, gain, pad):
    """Zero-insert by `up`, pad, and correlate with [1,3,3,1] x [1,3,3,1] / 64 * gain."""
    n, c, h, w = x.shape
    big = x.new_zeros(n, c, h * up, w * up)
    big[:, :, ::up, ::up] = x
    big = F.pad(big, (pad[0], pad[1], pad[0], pad[1]))
    taps = [1 / 8, 3 / 8, 3 / 8, 1 / 8]
    oh, ow = big.shape[2] - 3, big.shape[3] - 3
    out = sum(taps[i] * taps[j] * big[:, :, i:i + oh, j:j + ow] for i in range(4) for j in range(4))
    return out * gain


def _modulated(x, weight, style, demodulate, up):
    n, c, h, w = x.shape
    o, _, k, _ = weight.shape
    per_sample = weight[None] / math.sqrt(c * k * k) * style[:, None, :, None, None]
    if demodulate:
        per_sample = per_sample / (per_sample.square().sum((2, 3, 4), keepdim=True) + 1e-8).sqrt()
    if not up:
        out = F.conv2d(x.reshape(1, n * c, h, w), per_sample.reshape(n * o, c, k, k), padding=k // 2, groups=n)
        return out.reshape(n, o, h, w)
    zeros = x.new_zeros(n, c, 2 * h + 1 + 2 * (k // 2), 2 * w + 1 + 2 * (k // 2))  # transposed convolution by hand
    inserted = F.pad(x[:, :, :, None, :, None], (0, 1, 0, 0, 0, 1)).reshape(n, c, 2 * h, 2 * w)
    zeros[:, :, k - 1:k - 1 + 2 * h, k - 1:k - 1 + 2 * w] = inserted
    flipped = per_sample.flip(3, 4).reshape(n * o, c, k, k)
    out = F.conv2d(zeros.reshape(1, n * c, *zeros.shape[2:]), flipped, groups=n).reshape(n, o, 2 * h + 1, -1)
    return _fir(out, 1, 4.0, (1, 1))


def mapping(state, z, layers):
    x = z / (z.square().mean(1, keepdim=True) + 1e-8).sqrt()
    for i in range(layers):
        x = _lrelu(_linear(state, f"mapping.layers.{i}", x, lr=0.01))
    return x


def synthesis(state, ws, blocks, noise=None):
    """ws (N, num_ws, w_dim); noise: None for the stored maps, or a list. Returns the image."""
    n = ws.shape[0]
    x = state["synthesis.const"].expand(n, -1, -1, -1)
    image, layer = None, 0
    for b in range(blocks):
        block = f"synthesis.blocks.{b}"
        for conv in ("conv0", "conv1") if b else ("conv1",):
            name = f"{block}.{conv}"
            style = _linear(state, f"{name}.affine", ws[:, layer])
            x = _modulated(x, state[f"{name}.conv.weight"], style, True, conv == "conv0")
            grain = state[f"{name}.noise_const"] if noise is None else noise[layer]
            x = _lrelu(x + grain * state[f"{name}.noise_strength"] + state[f"{name}.bias"][None, :, None, None])
            layer += 1
        name = f"{block}.torgb"
        style = _linear(state, f"{name}.affine", ws[:, layer])
        rgb = _modulated(x, state[f"{name}.conv.weight"], style, False, False)
        rgb = rgb + state[f"{name}.bias"][None, :, None, None]
        image = rgb if image is None else _fir(image, 2, 4.0, (2, 1)) + rgb
    return image
