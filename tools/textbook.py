"""StyleGAN2 and StyleGAN3 as their papers describe them, one operation after the other: what ours
is measured against, in the benchmark and in tests.

Same parameters, same numbers, other arithmetic: one convolution weight a sample in a grouped
convolution, and zero insertion, padding and low-pass filter as separate steps.
"""

from __future__ import annotations

import copy
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapkd.networks import filtered_lrelu, layers, stylegan2
from gapkd.networks.layers import SQRT2

Network = TypeVar("Network", bound=nn.Module)


def textbook(network: Network) -> Network:
    """A copy of a generator or discriminator that computes the same numbers the textbook's way."""
    network = copy.deepcopy(network)
    for module in network.modules():
        if type(module) in FORMS:
            module.__class__ = FORMS[type(module)]
    return network


def upfirdn(x: Tensor, kernel: Tensor, up: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
    """Insert zeros, pad, low-pass with a symmetric kernel (1, 1, 4, 4).

    (N, C, H, W) -> (N, C, up H + pad - 3, up W + pad - 3), pad being the sum of both sides.
    """
    n, c, h, w = x.shape
    x = x.reshape(n * c, 1, h, 1, w, 1)
    x = F.pad(x, (0, up - 1, 0, 0, 0, up - 1)).reshape(n * c, 1, h * up, w * up)
    x = F.pad(x, (*pad, *pad))
    x = F.conv2d(x, kernel.to(x.dtype))
    return x.reshape(n, c, *x.shape[2:])


def activate(x: Tensor) -> Tensor:
    return F.leaky_relu(x, 0.2) * SQRT2


class ModulatedConv2d(layers.ModulatedConv2d):
    """One weight a sample: (N, O, I, k, k), and all samples as groups of one convolution."""

    def forward(self, x: Tensor, style: Tensor) -> tuple[Tensor, None]:
        n, i, h, w = x.shape
        weight = self.weight[None] * self.scale * style[:, None, :, None, None]
        if self.demodulate:
            weight = weight * (weight.square().sum(dim=(2, 3, 4), keepdim=True) + 1e-8).rsqrt()
        o, k = weight.shape[1], self.kernel
        x, weight = x.reshape(1, n * i, h, w), weight.to(x.dtype)
        if not self.up:
            x = F.conv2d(x, weight.reshape(n * o, i, k, k), padding=k // 2, groups=n)
            return x.reshape(n, o, h, w), None
        weight = weight.transpose(1, 2).reshape(n * i, o, k, k)
        x = F.conv_transpose2d(x, weight, stride=2, groups=n)
        x = x.reshape(n, o, *x.shape[2:])
        return upfirdn(x, self.fir, pad=(1, 1)), None


class StyledConv(stylegan2.StyledConv):
    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        x, _ = self.conv(x, self.affine(w))
        if noise is not None:
            x = x + noise * self.noise_strength
        return activate(x + self.bias[None, :, None, None])


class EqualConv2d(layers.EqualConv2d):
    def forward(self, x: Tensor) -> Tensor:
        stride, padding = 1, self.kernel // 2
        if self.down:
            pad = self.kernel // 2 + 1
            x, stride, padding = upfirdn(x, self.fir, pad=(pad, pad)), 2, 0
        x = F.conv2d(x, self.weight * self.scale, stride=stride, padding=padding)
        if self.bias is not None:
            x = x + self.bias[None, :, None, None]
        return (activate(x) if self.activate else x) * self.gain


class SynthesisNetwork(stylegan2.SynthesisNetwork):
    def forward(self, ws: Tensor, noise: stylegan2.Noise = "const",
                generator: torch.Generator | None = None) -> stylegan2.SynthesisOutput:
        ws = self.expand_ws(ws)
        maps = self._noise_maps(noise, len(ws), generator)
        x = self.const.expand(len(ws), -1, -1, -1)
        image, features, rgbs, layer = None, [], [], 0
        for block in self.blocks:
            for conv in block.convs:
                x = conv(x, ws[:, layer], maps[layer])
                layer += 1
            rgb = block.torgb(x, ws[:, layer])
            image = rgb if image is None else upfirdn(image, self.fir, up=2, pad=(2, 1)) + rgb
            features.append(x)
            rgbs.append(image)
        return stylegan2.SynthesisOutput(image=image, features=features, rgbs=rgbs)


class FilteredLeakyReLU(filtered_lrelu.FilteredLeakyReLU):
    """Bias, zeros, padding, filter, non-linearity, filter, dropping; separable filters once along
    each axis."""

    def forward(self, x: Tensor, bias: Tensor, scale: Tensor | None = None) -> Tensor:
        (n, c, h, w), up = x.shape, self.up_factor
        if scale is not None:
            x = x * scale.to(x.dtype)[:, :, None, None]
        x = x + bias.to(x.dtype)[:, None, None]
        x = F.pad(x.reshape(n, c, h, 1, w, 1), (0, up - 1, 0, 0, 0, up - 1))
        x = x.reshape(n, c, h * up, w * up)
        x = F.pad(x, 2 * self.padding)
        up_filter, down_filter = self.filters
        x = self.filtered(x, up_filter * up)
        if self.slope != 1:
            x = F.leaky_relu(x, self.slope)
        x = x * self.gain
        if self.clamp:
            x = x.clamp(-self.clamp, self.clamp)
        return self.filtered(x, down_filter)[:, :, ::self.down_factor, ::self.down_factor]

    @staticmethod
    def filtered(x: Tensor, f: Tensor) -> Tensor:
        c = x.shape[1]
        for kernel in (f[None, :], f[:, None]) if f.ndim == 1 else (f,):
            x = F.conv2d(x, kernel.flip(0, 1).to(x).expand(c, 1, -1, -1), groups=c)
        return x


FORMS: dict[type, type] = {
    layers.ModulatedConv2d: ModulatedConv2d,
    layers.EqualConv2d: EqualConv2d,
    stylegan2.StyledConv: StyledConv,
    stylegan2.SynthesisNetwork: SynthesisNetwork,
    filtered_lrelu.FilteredLeakyReLU: FilteredLeakyReLU,
}
