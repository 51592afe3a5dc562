"""MobileStyleGAN's generator: a student of another family than its teacher's.

What it does otherwise than StyleGAN2:

- It draws in the wavelet domain: the network predicts the Haar coefficients of the image, 12
  channels for RGB, at half the resolution. StyleGAN2's finest and dearest block is not there.
- The inverse Haar transform enlarges features too, C channels at r become C / 4 at 2r.
- Convolutions are depthwise-separable: a 3x3 filter a channel, then a 1x1 convolution across
  channels. Only the first one, at 4x4, is dense.
- Demodulation does not depend on the style, so that it can be fused (see `SeparableConv2d`); only
  that of the dense convolution does, here but not in the released code, which also scales the
  coefficients by a style before it enlarges features, and bounds no style by a tanh.

The paper trains a head at every resolution and draws with the last one, here the only one: the
latent-direction loss guides the layers on the way. Nor is there a loss on coefficients, which the
released code adds: squared, it would be that of the images (the transform is orthonormal);
absolute, as ours is, it would not.

Source: Belousov, *MobileStyleGAN: A Lightweight Convolutional Neural Network for High-Fidelity
Image Synthesis* (2021, arXiv 2104.04767), and its released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapkd.networks.base import (
    Noise,
    NoisyNetwork,
    StyleGenerator,
    SynthesisOutput,
    check_images,
    kept_channels,
)
from gapkd.networks.layers import ModulatedConv2d, full_precision
from gapkd.networks.mapping import MappingNetwork
from gapkd.networks.stylegan2 import StyledConv, ToRGB

BANDS = 4
"""Of the Haar transform: mean, and differences down, across and along the diagonal."""
STYLE_GAIN = 1.348
"""1 / sqrt(E tanh(s)^2) for styles s as they are at first, normal around 1: keeps unit variance."""


def inverse_haar(bands: Tensor) -> Tensor:
    """One level of the inverse Haar transform, orthonormal: every four coefficients make a square
    of 2x2 pixels.

    Shape: (N, 4 C, H, W), the C means first, then the C differences down, across and along the
        diagonal -> (N, C, 2H, 2W).
    """
    mean, down, across, diagonal = (bands / 2).chunk(BANDS, dim=1)  # (N, C, H, W) each
    upper, lower = mean + down, mean - down
    upper_step, lower_step = across + diagonal, across - diagonal
    pixels = [upper + upper_step, upper - upper_step, lower + lower_step, lower - lower_step]
    squares = torch.stack(pixels, dim=2).flatten(1, 2)  # (N, 4 C, H, W), a square's pixels together
    return F.pixel_shuffle(squares, 2)


class SeparableConv2d(nn.Module):
    """Modulated depthwise 3x3 convolution, then a 1x1 convolution across channels.

    StyleGAN2 divides by the norm of the modulated weights, which every style changes. Here it is
    that of the weights w (depthwise) and p (across channels) alone,

        d_o = 1 / sqrt( sum_i p_oi^2 sum_k w_ik^2 + 1e-8 ),

    which a runtime can fold into p ("demodulation fusion"). That no style makes the signal grow is
    left to a tanh of the style.

    Shape: x (N, I, H, W), style (N, I) -> (N, O, H, W), and the output scale d (1, O, 1, 1) still
        to be applied, as in `ModulatedConv2d`.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.depthwise = nn.Parameter(torch.randn(in_channels, 1, 3, 3))
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, 1, 1))  # p
        self.scale = 1.0 / math.sqrt(in_channels * 9)

    def forward(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor]:
        style = torch.tanh(style) * (STYLE_GAIN * self.scale)  # (N, I)
        with full_precision(x):
            energy = self.depthwise.square().sum(dim=(2, 3)) * self.scale**2  # (I, 1)
            energy = self.weight.square().mul(energy[:, :, None]).sum(dim=1)  # (O, 1, 1)
            scale = (energy + 1e-8).rsqrt()[None]  # (1, O, 1, 1)
        x = x * style[:, :, None, None].to(x.dtype)  # commutes with the depthwise convolution
        x = F.conv2d(x, self.depthwise, padding=1, groups=x.shape[1])
        return F.conv2d(x, self.weight), scale


class MobileBlock(nn.Module):
    """The convolutions of one resolution: two separable ones behind the inverse Haar transform of
    in_channels; one dense one in the 4x4 block, where those are 0."""

    def __init__(self, in_channels: int, width: int, w_dim: int, resolution: int):
        super().__init__()
        shapes = [(width, partial(ModulatedConv2d, kernel=3))]
        if in_channels:
            shapes = [(in_channels // BANDS, SeparableConv2d), (width, SeparableConv2d)]
        self.convs = nn.ModuleList(
            StyledConv(i, width, w_dim, resolution, conv) for i, conv in shapes)


class MobileSynthesis(NoisyNetwork):
    """g: W -> image. A learned 4x4 constant, blocks up to half the resolution, one head.

    Convolution l takes ws[:, l] and noise map l, as in a StyleGAN2 of that resolution, the head the
    last w, as its last toRGB. What its finest block takes, which is missing here, is left aside.

    Args:
        channels: width of all blocks, or one a block (4x4 first, to half the resolution), multiples
            of 4: the transform makes one channel of four.
    Shape: ws (N, w_dim) or (N, num_ws, w_dim) -> SynthesisOutput, features at 4, 8, ... R / 2.
    """

    def __init__(self, resolution: int, w_dim: int, channels: int | Sequence[int],
                 img_channels: int):
        super().__init__()
        check_images(resolution, img_channels)
        blocks = int(math.log2(resolution)) - 2
        widths = [channels] * blocks if isinstance(channels, int) else list(channels)
        if len(widths) != blocks:
            raise ValueError(f"channels names {len(widths)} blocks, but a {resolution} px mobile "
                             f"network has {blocks} (4 to {resolution // 2} px)")
        if any(c < BANDS or c % BANDS for c in widths):
            raise ValueError(f"channels must be multiples of {BANDS}, of which the Haar transform "
                             f"makes one, not {widths}")
        self.resolution, self.w_dim, self.channels = resolution, w_dim, widths
        self.img_channels = img_channels
        self.num_ws = 2 * (blocks + 1)  # a StyleGAN2's of that resolution
        self.const = nn.Parameter(torch.randn(1, widths[0], 4, 4))
        self.blocks = nn.ModuleList(
            MobileBlock(widths[b - 1] if b else 0, widths[b], w_dim, 4 * 2**b)
            for b in range(blocks))
        self.head = ToRGB(widths[-1], w_dim, out_channels=img_channels * BANDS)

    def forward(self, ws: Tensor, noise: Noise = "const",
                generator: torch.Generator | None = None) -> SynthesisOutput:
        ws = self.expand_ws(ws)
        n, styles = ws.shape[0], ws.unbind(dim=1)  # num_ws of (N, w_dim)
        maps = self._noise_maps(noise, n, generator)
        x = self.const.repeat(n, 1, 1, 1)  # (N, C_0, 4, 4)
        features, layer = [], 0
        for block in self.blocks:
            if features:
                x = inverse_haar(x)  # (N, C_{b-1}, r / 2, r / 2) -> (N, C_{b-1} / 4, r, r)
            for conv in block.convs:
                x = conv(x, styles[layer], maps[layer])  # (N, C_b, r, r)
                layer += 1
            features.append(x)
        coefficients = self.head(x, styles[-1])  # (N, 12, R / 2, R / 2), float32
        image = inverse_haar(coefficients)  # (N, 3, R, R)
        return SynthesisOutput(image=image, features=features, rgbs=[image])


class MobileGenerator(StyleGenerator):
    """MobileStyleGAN's generator. Args: `StyleGenerator`'s; channels as in `MobileSynthesis`."""

    kind = "mobile-generator"

    def __init__(self, resolution: int, z_dim: int = 512, w_dim: int = 512,
                 channels: int | Sequence[int] = 64, mapping_layers: int = 8, c_dim: int = 0,
                 img_channels: int = 3):
        mapping = MappingNetwork(z_dim, w_dim, mapping_layers, c_dim)
        super().__init__(mapping, MobileSynthesis(resolution, w_dim, channels, img_channels))
        self.channels = self.synthesis.channels

    @classmethod
    def student_of(cls, teacher: StyleGenerator, keep: float, kernel: int = 3) -> dict:
        """Of any family: `keep` of the width of its features, rounded up to a multiple of 4."""
        if kernel != 3:
            raise ValueError("a mobile student's depthwise convolutions are 3x3: leave kernel at "
                             "its default")
        widths, blocks = teacher.feature_widths(), int(math.log2(teacher.resolution)) - 2
        if len(widths) != blocks:  # StyleGAN2 has one block more, StyleGAN3 layers of its own count
            last = len(widths) - 1
            widths = [widths[round(b * last / blocks)] for b in range(blocks)]
        channels = [math.ceil(kept_channels(c, keep) / BANDS) * BANDS for c in widths]
        alike = ("resolution", "z_dim", "w_dim", "mapping_layers", "c_dim", "img_channels")
        return {name: getattr(teacher, name) for name in alike} | {"channels": channels}

    def readers(self) -> list[list[StyledConv | ToRGB]]:
        """A layer behind the inverse transform reads one channel for four that were written: such
        four stay or go together."""
        return [[conv] for conv in self.synthesis.convs] + [[self.synthesis.head]]

    @torch.no_grad()
    def copy_channels(self, teacher: MobileGenerator, kept: list[Tensor]) -> None:
        ours, theirs = self.synthesis, teacher.synthesis
        ours.const.copy_(theirs.const[:, kept[0]])
        for layer, (s, t) in enumerate(zip(ours.convs, theirs.convs, strict=True)):
            columns, rows = kept[layer], kept[layer + 1]
            if layer % 2 == 0 and layer + 1 < len(ours.convs):  # the transform comes next
                quarter = len(t.weight) // BANDS
                rows = torch.cat([rows + band * quarter for band in range(BANDS)])
            s.take(t, rows, columns)
            if layer:
                s.conv.depthwise.copy_(t.conv.depthwise[columns])
        ours.head.take(theirs.head, kept[-1])
