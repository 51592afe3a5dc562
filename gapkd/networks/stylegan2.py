"""StyleGAN2: synthesis network, generator and discriminator.

Configuration f: skip generator, residual discriminator. Channel counts are free in every
convolution, which is what a pruned or shrunk student needs.

Source: Karras et al., *Analyzing and Improving the Image Quality of StyleGAN* (CVPR 2020).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from gapkd.networks.base import (
    Network,
    Noise,
    NoisyNetwork,
    StyleGenerator,
    SynthesisOutput,
    check_clamp,
    check_images,
    check_resolution,
    copy_affine,
    kept_channels,
)
from gapkd.networks.layers import (
    SQRT2,
    EqualConv2d,
    EqualLinear,
    ModulatedConv2d,
    fir_kernel,
    full_precision,
    leaky_relu,
    upsample2,
)
from gapkd.networks.mapping import MappingNetwork

Channels = int | Sequence[int] | Sequence[tuple[int, int]]


def channel_pairs(channels: Channels, resolution: int) -> list[tuple[int, int]]:
    """One (first, second) pair of widths per block, 4x4 block first; there the first is the width
    of the learned constant. `channels`: one int for all, one int a block, or pairs."""
    blocks = int(math.log2(resolution)) - 1
    per_block = [channels] * blocks if isinstance(channels, int) else list(channels)
    if len(per_block) != blocks:
        raise ValueError(f"channels names {len(per_block)} blocks, but a {resolution} px network "
                         f"has {blocks} (4 px up)")
    pairs = [(c, c) if isinstance(c, int) else (int(c[0]), int(c[1])) for c in per_block]
    if min(min(p) for p in pairs) < 1:
        raise ValueError(f"channels must all be at least 1, not {pairs}")
    return pairs


class StyledConv(nn.Module):
    """Affine style, modulated convolution, noise, bias, leaky ReLU.

    Args:
        resolution: of the output, and so of the stored noise map.
        conv: makes the convolution from the numbers of channels: `ModulatedConv2d` or its like.
    Shape: x (N, I, H, W), w (N, w_dim), noise (1 or N, 1, r, r) or None -> (N, O, r, r).
    """

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int,
                 conv: Callable[[int, int], nn.Module], clamp: float | None = None):
        super().__init__()
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1.0)
        self.conv = conv(in_channels, out_channels)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.clamp = clamp
        self.register_buffer("noise_const", torch.randn(1, 1, resolution, resolution))

    @property
    def weight(self) -> nn.Parameter:
        """(O, I, k, k)."""
        return self.conv.weight

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        with full_precision(x):
            style = self.affine(w)  # (N, I)
        x, scale = self.conv(x, style)  # (N, O, r, r), and (N, O, 1, 1) still to be applied
        # The gain sqrt(2) of the leaky ReLU is folded into everything that enters it.
        scale = (scale * SQRT2).to(x.dtype)
        bias = (self.bias * SQRT2).to(x.dtype)[None, :, None, None]
        if noise is None:
            return leaky_relu(torch.addcmul(bias, x, scale), self.clamp)
        noise = (noise * (self.noise_strength * SQRT2)).to(x.dtype)
        if noise.shape[0] == 1:  # one map for the whole batch: bias and noise make one small tensor
            shift = bias + noise  # (1, O, r, r); made channels-last, a layout that the sum takes on
            shift = shift.contiguous(memory_format=torch.channels_last)
            return leaky_relu(torch.addcmul(shift, x, scale), self.clamp)
        return leaky_relu(torch.addcmul(noise, x, scale).add_(bias), self.clamp)

    def take(self, wider: StyledConv, rows: Tensor, columns: Tensor) -> None:
        """Copy a wider layer's parameters: of its output channels these rows, of its input channels
        these columns."""
        self.weight.copy_(wider.weight[rows][:, columns])
        self.bias.copy_(wider.bias[rows])
        self.noise_strength.copy_(wider.noise_strength)
        copy_affine(self.affine, wider.affine, columns)


class ToRGB(nn.Module):
    """Features to an image: a modulated 1x1 convolution without demodulation.

    Shape: x (N, C, H, W), w (N, w_dim) -> (N, out_channels, H, W).
    """

    def __init__(self, in_channels: int, w_dim: int, clamp: float | None = None,
                 out_channels: int = 3):
        super().__init__()
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1.0)
        self.conv = ModulatedConv2d(in_channels, out_channels, kernel=1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.clamp = clamp

    @property
    def weight(self) -> nn.Parameter:
        """(out_channels, C, 1, 1)."""
        return self.conv.weight

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        with full_precision(x):
            style = self.affine(w)  # (N, C)
        x, _ = self.conv(x, style)
        x = x.to(self.bias.dtype) + self.bias[None, :, None, None]  # images are always float32
        return x.clamp(-self.clamp, self.clamp) if self.clamp else x

    def take(self, wider: ToRGB, columns: Tensor) -> None:
        """Copy a wider layer's parameters: of its input channels these. It is not demodulated, so
        its equalised gain 1 / sqrt(fan-in) counts: the weight is copied as used."""
        self.weight.copy_(wider.weight[:, columns] * (wider.conv.scale / self.conv.scale))
        self.bias.copy_(wider.bias)
        copy_affine(self.affine, wider.affine, columns)


class SynthesisBlock(nn.Module):
    """One resolution: [upsampling convolution,] convolution, toRGB.

    Args:
        in_channels: 0 for the 4x4 block, which has the second convolution only.
        pair: widths of the two convolutions' outputs.
        kernel: of the second convolution, but always 3 at 4x4, where no upsampling one precedes it.
    """

    def __init__(self, in_channels: int, pair: tuple[int, int], w_dim: int, resolution: int,
                 kernel: int, clamp: float | None = None, img_channels: int = 3):
        super().__init__()
        first, second = pair
        self.conv0 = None
        if in_channels:
            up = partial(ModulatedConv2d, kernel=3, up=True)
            self.conv0 = StyledConv(in_channels, first, w_dim, resolution, up, clamp)
        plain = partial(ModulatedConv2d, kernel=kernel if in_channels else 3)
        self.conv1 = StyledConv(first, second, w_dim, resolution, plain, clamp)
        self.torgb = ToRGB(second, w_dim, clamp, img_channels)

    @property
    def convs(self) -> list[StyledConv]:
        """The styled convolutions in the order in which they consume ws and noise maps."""
        return [self.conv1] if self.conv0 is None else [self.conv0, self.conv1]


class SynthesisNetwork(NoisyNetwork):
    """g: W -> image. A learned 4x4 constant, then one block a resolution; each adds to a skip
    image.

    Shape: ws (N, w_dim), the same w for every layer, or (N, num_ws, w_dim) -> SynthesisOutput.
    """

    def __init__(self, resolution: int, w_dim: int, channels: Channels, kernel: int = 3,
                 clamp: float | None = None, img_channels: int = 3):
        super().__init__()
        check_images(resolution, img_channels)
        check_clamp(clamp)
        if kernel not in (1, 3):
            raise ValueError("kernel (of every block's second convolution) must be 1 or 3, not "
                             f"{kernel}")
        self.resolution, self.w_dim, self.img_channels = resolution, w_dim, img_channels
        self.channels = channel_pairs(channels, resolution)
        self.const = nn.Parameter(torch.randn(1, self.channels[0][0], 4, 4))
        self.blocks, width = nn.ModuleList(), 0
        for b, pair in enumerate(self.channels):
            self.blocks.append(SynthesisBlock(width, pair, w_dim, 4 * 2**b, kernel, clamp,
                                              img_channels))
            width = pair[1]
        self.num_ws = 2 * len(self.blocks)  # 1 + 2 (blocks - 1) convolutions, and the last toRGB
        self.register_buffer("fir", fir_kernel(gain=4.0), persistent=False)

    def forward(self, ws: Tensor, noise: Noise = "const",
                generator: torch.Generator | None = None) -> SynthesisOutput:
        ws = self.expand_ws(ws)  # (N, num_ws, w_dim)
        n = ws.shape[0]
        maps = self._noise_maps(noise, n, generator)
        styles = ws.unbind(dim=1)
        # Channels-last is what the convolutions of CPUs and of tensor cores want; it follows x.
        x = self.const.expand(n, -1, -1, -1)  # (N, C_0, 4, 4)
        x = x.contiguous(memory_format=torch.channels_last)
        image, features, rgbs, layer = None, [], [], 0
        for block in self.blocks:
            for conv in block.convs:
                x = conv(x, styles[layer], maps[layer])  # (N, C_b, r, r)
                layer += 1
            # Shares its w with the next block's first convolution
            rgb = block.torgb(x, styles[layer])
            image = rgb if image is None else upsample2(image, self.fir) + rgb
            features.append(x)
            rgbs.append(image)  # (N, 3, r, r)
        return SynthesisOutput(image=image, features=features, rgbs=rgbs)


class Generator(StyleGenerator):
    """StyleGAN2's generator.

    Args (the others: `StyleGenerator`):
        channels: see `channel_pairs`.
        kernel: of every block's second convolution, 3, or 1 for the paper's heterogeneous student.
        clamp: largest magnitude of a convolution's output, as in networks that were trained in
            float16; None: any.
    """

    kind = "stylegan2-generator"

    def __init__(self, resolution: int, z_dim: int = 512, w_dim: int = 512, channels: Channels = 64,
                 kernel: int = 3, mapping_layers: int = 8, c_dim: int = 0,
                 clamp: float | None = None, img_channels: int = 3):
        mapping = MappingNetwork(z_dim, w_dim, mapping_layers, c_dim)
        super().__init__(mapping, SynthesisNetwork(resolution, w_dim, channels, kernel, clamp,
                                                   img_channels))
        self.channels, self.kernel, self.clamp = self.synthesis.channels, kernel, clamp

    @classmethod
    def student_of(cls, teacher: Generator, keep: float, kernel: int = 3) -> dict:
        channels = [[kept_channels(c, keep) for c in pair] for pair in teacher.channels]
        return teacher.architecture() | {"channels": channels, "kernel": kernel}

    def feature_widths(self) -> list[int]:
        return [second for _, second in self.channels]

    def readers(self) -> list[list[StyledConv | ToRGB]]:
        groups = [[conv] for conv in self.synthesis.convs] + [[]]
        for b, block in enumerate(self.synthesis.blocks):
            groups[2 * b + 1].append(block.torgb)  # it reads what the block has written last
        return groups

    @torch.no_grad()
    def copy_channels(self, teacher: Generator, kept: list[Tensor]) -> None:
        ours, theirs = self.synthesis, teacher.synthesis
        ours.const.copy_(theirs.const[:, kept[0]])
        for layer, (s, t) in enumerate(zip(ours.convs, theirs.convs, strict=True)):
            s.take(t, rows=kept[layer + 1], columns=kept[layer])  # what leaves it enters the next
        for b, (s, t) in enumerate(zip(ours.blocks, theirs.blocks, strict=True)):
            s.torgb.take(t.torgb, kept[2 * b + 1])


def group_size(batch: int, group: int | None) -> int:
    """Images of which the minibatch standard deviation is taken: `group`, or the largest number
    below that divides the batch; None: all."""
    return next(g for g in range(min(group or batch, batch), 0, -1) if batch % g == 0)


def minibatch_std(x: Tensor, group: int | None = 4) -> Tensor:
    """Append one feature map that tells how much a group of images varies, groups being of
    `group_size`; image n is in group n mod (number of groups). A group of one varies by nothing.

    Shape: (N, C, H, W) -> (N, C + 1, H, W).
    """
    n, c, h, w = x.shape
    size = group_size(n, group)
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(size, n // size, c, h, w)
    std = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # (N / size,)
    std = std.repeat(size)[:, None, None, None].expand(-1, 1, h, w)  # (N, 1, H, W)
    return torch.cat([x, std.to(x.dtype)], dim=1)


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the resolution. (N, I, H, W) -> (N, O, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int, clamp: float | None,
                 clamp_skip: bool):
        super().__init__()
        half = math.sqrt(0.5)  # keeps the variance of the sum of both branches
        self.conv0 = EqualConv2d(in_channels, in_channels, 3, activate=True, clamp=clamp)
        self.conv1 = EqualConv2d(in_channels, out_channels, 3, down=True, activate=True, gain=half,
                                 clamp=clamp)
        self.skip = EqualConv2d(in_channels, out_channels, 1, bias=False, down=True, gain=half,
                                clamp=clamp if clamp_skip else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(self.conv0(x)) + self.skip(x)


class Discriminator(Network):
    """Residual discriminator with minibatch standard deviation.

    Args:
        resolution: of the images, a power of two.
        channels: width at every resolution, or one a resolution, 4x4 first.
        c_dim: number of classes; the logit is then the projection onto the embedded label.
        mbstd_group: images over which the minibatch standard deviation is taken; None: the batch.
        clamp: as in `Generator`; not of the skip convolutions, as in NVIDIA's.
        clamp_skips: of those too.
        img_channels: as in `Generator`.
    Shape: images (N, 3, R, R) in [-1, 1], c (N, c_dim) -> logits (N, 1).
    """

    kind = "stylegan2-discriminator"

    def __init__(self, resolution: int, channels: int | Sequence[int] = 64, c_dim: int = 0,
                 mbstd_group: int | None = 4, clamp: float | None = None,
                 clamp_skips: bool = False, img_channels: int = 3):
        super().__init__()
        check_images(resolution, img_channels)
        check_clamp(clamp)
        widths = [pair[0] for pair in channel_pairs(channels, resolution)]
        self.resolution, self.channels, self.c_dim = resolution, widths, c_dim
        self.mbstd_group, self.clamp, self.clamp_skips = mbstd_group, clamp, clamp_skips
        self.img_channels = img_channels
        self.from_rgb = EqualConv2d(img_channels, widths[-1], 1, activate=True, clamp=clamp)
        self.blocks = nn.ModuleList(  # finest first
            DiscriminatorBlock(i, o, clamp, clamp_skips)
            for i, o in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.conv = EqualConv2d(widths[0] + 1, widths[0], 3, activate=True, clamp=clamp)
        self.fc = EqualLinear(widths[0] * 16, widths[0], activate=True)
        self.out = EqualLinear(widths[0], widths[0] if c_dim else 1)
        self.label = MappingNetwork(0, widths[0], 8, c_dim) if c_dim else None

    def features(self, images: Tensor) -> list[Tensor]:
        """Output of every block, finest first: (N, C_i, r_i, r_i) with r_i = R/2, R/4, ... 4."""
        if images.shape[1:] != (self.img_channels, self.resolution, self.resolution):
            size = self.resolution
            raise ValueError(f"images must have shape (N, {self.img_channels}, {size}, {size}), "
                             f"not {tuple(images.shape)}")
        x, maps = self.from_rgb(images.contiguous(memory_format=torch.channels_last)), []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """Logits (N, 1), high means real, of images (N, 3, R, R) in [-1, 1]; c (N, c_dim) for a
        conditional network."""
        x = self.conv(minibatch_std(self.features(images)[-1], self.mbstd_group))  # (N, C, 4, 4)
        with full_precision(x):  # logits far from 0 would differ by too few steps
            x = self.out(self.fc(x.flatten(1).to(self.fc.weight.dtype)))
        if self.label is None:
            return x
        target = self.label(None, c)  # (N, C)
        return (x * target).sum(dim=1, keepdim=True) / math.sqrt(target.shape[1])


def config_f_channels(resolution: int) -> list[int]:
    """StyleGAN2's widths, 4x4 first: 512 up to 64 px, then 256, 128, 64, ..."""
    check_resolution(resolution)
    return [min(512, 2**15 // (4 * 2**b)) for b in range(resolution.bit_length() - 2)]


def config_f(resolution: int) -> Generator:
    """StyleGAN2 configuration f as in the paper's tables, with random weights.

    Shape: z (N, 512) -> (N, 3, R, R). Raises ValueError unless R is a power of two, 8 or more.
    """
    return Generator(resolution, channels=config_f_channels(resolution)).eval()
