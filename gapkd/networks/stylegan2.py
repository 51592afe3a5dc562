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
    Noise,
    NoisyNetwork,
    StyleGenerator,
    SynthesisOutput,
    check_clamp,
    check_img_channels,
    check_resolution,
    copy_affine,
    if_not_rgb,
    if_set,
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
    """One (first, second) pair of widths per block, 4x4 block first.

    Args:
        channels: one int for all, one int a block, or pairs. In the 4x4 block the first number is
            the width of the learned constant.
    """
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
        conv: makes the convolution from the numbers of channels: (x, style) -> (features, the scale
            still to be applied to them), as `ModulatedConv2d`.
        clamp: largest magnitude of the output, None for any.
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


class SynthesisBlock(nn.Module):
    """One resolution: [upsampling convolution,] convolution, toRGB.

    Args:
        in_channels: 0 for the 4x4 block, which has the second convolution only.
        pair: widths of the two convolutions' outputs.
        kernel: of the second convolution. The kernel-1 ("heter") student keeps a 3x3 one at 4x4,
            where no upsampling convolution precedes it.
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
        check_resolution(resolution)
        check_clamp(clamp)
        check_img_channels(img_channels)
        if kernel not in (1, 3):
            raise ValueError("kernel (of every block's second convolution) must be 1 or 3, not "
                             f"{kernel}")
        self.resolution, self.w_dim, self.kernel = resolution, w_dim, kernel
        self.img_channels = img_channels
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

    Args:
        resolution: a power of two, at least 8.
        z_dim: width of z.
        w_dim: width of w.
        channels: width of all convolutions, or one a block (4x4 first), or one (first, second) pair
            a block.
        kernel: kernel of every block's second convolution, 3, or 1 for the paper's heterogeneous
            student.
        mapping_layers: depth of the mapping network.
        c_dim: number of classes, 0 for none.
        clamp: largest magnitude of a convolution's output, as in networks that were trained in
            float16; None: any.
        img_channels: of the images: 3, 1 (grey) or 4 (RGBA).
    Shape: z (N, z_dim) -> image (N, 3, R, R), about [-1, 1], not clamped.
    """

    kind = "stylegan2-generator"
    grows = True

    def __init__(self, resolution: int, z_dim: int = 512, w_dim: int = 512, channels: Channels = 64,
                 kernel: int = 3, mapping_layers: int = 8, c_dim: int = 0,
                 clamp: float | None = None, img_channels: int = 3):
        mapping = MappingNetwork(z_dim, w_dim, mapping_layers, c_dim)
        super().__init__(mapping, SynthesisNetwork(resolution, w_dim, channels, kernel, clamp,
                                                   img_channels))
        self.channels, self.kernel, self.clamp = self.synthesis.channels, kernel, clamp

    def architecture(self) -> dict:
        return {"resolution": self.resolution, "z_dim": self.z_dim, "w_dim": self.w_dim,
                "channels": [list(pair) for pair in self.channels], "kernel": self.kernel,
                "mapping_layers": len(self.mapping.layers), "c_dim": self.c_dim,
                **if_set(clamp=self.clamp), **if_not_rgb(self.img_channels)}

    @classmethod
    def student_of(cls, teacher: Generator, keep: float, kernel: int = 3) -> dict:
        channels = [[kept_channels(c, keep) for c in pair] for pair in teacher.channels]
        return teacher.architecture() | {"channels": channels, "kernel": kernel}

    def feature_widths(self) -> list[int]:
        return [second for _, second in self.channels]

    def readers(self) -> list[list[StyledConv | ToRGB]]:
        convs, blocks = self.synthesis.convs, self.synthesis.blocks
        groups = [[conv] for conv in convs] + [[blocks[-1].torgb]]
        written = 0  # a block's toRGB reads what its last convolution wrote
        for block in blocks[:-1]:
            written += len(block.convs)
            groups[written].append(block.torgb)
        return groups

    @torch.no_grad()
    def copy_channels(self, teacher: Generator, kept: list[Tensor]) -> None:
        self.synthesis.const.copy_(teacher.synthesis.const[:, kept[0]])
        for layer, (s, t) in enumerate(zip(self.synthesis.convs, teacher.synthesis.convs,
                                           strict=True)):
            columns, rows = kept[layer], kept[layer + 1]  # what leaves a layer enters the next
            s.weight.copy_(t.weight[rows][:, columns])
            s.bias.copy_(t.bias[rows])
            s.noise_strength.copy_(t.noise_strength)
        for columns, ours, theirs in zip(kept, self.readers(), teacher.readers(), strict=True):
            for s, t in zip(ours, theirs, strict=True):
                copy_affine(s.affine, t.affine, columns)
                if isinstance(s, ToRGB):
                    # It is not demodulated, so its equalised gain 1 / sqrt(fan-in) counts: copy the
                    # weight as used.
                    s.weight.copy_(t.weight[:, columns] * (t.conv.scale / s.conv.scale))
                    s.bias.copy_(t.bias)


def minibatch_std(x: Tensor, group: int | None = 4) -> Tensor:
    """Append one feature map that tells how much a group of images varies.

    Image n belongs to group n mod (N / group). A batch that `group` does not divide uses its
    largest divisor below; None: the whole batch is one group.

    Shape: (N, C, H, W) -> (N, C + 1, H, W).
    """
    n, c, h, w = x.shape
    size = next(g for g in range(min(group or n, n), 0, -1) if n % g == 0)
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(size, n // size, c, h, w)
    std = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # (N / size,)
    std = std.repeat(size)[:, None, None, None].expand(-1, 1, h, w)  # (N, 1, H, W)
    return torch.cat([x, std.to(x.dtype)], dim=1)


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the resolution. (N, I, H, W) -> (N, O, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int, clamp: float | None = None,
                 clamp_skip: bool = False):
        super().__init__()
        half = math.sqrt(0.5)  # keeps the variance of the sum of both branches
        self.conv0 = EqualConv2d(in_channels, in_channels, 3, activate=True, clamp=clamp)
        self.conv1 = EqualConv2d(in_channels, out_channels, 3, down=True, activate=True, gain=half,
                                 clamp=clamp)
        self.skip = EqualConv2d(in_channels, out_channels, 1, bias=False, down=True, gain=half,
                                clamp=clamp if clamp_skip else None)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(self.conv0(x)) + self.skip(x)


class Discriminator(nn.Module):
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
        check_resolution(resolution)
        check_clamp(clamp)
        check_img_channels(img_channels)
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

    def architecture(self) -> dict:
        """The constructor's arguments, as JSON can hold them."""
        return {"resolution": self.resolution, "channels": self.channels, "c_dim": self.c_dim,
                "mbstd_group": self.mbstd_group,
                **if_set(clamp=self.clamp, clamp_skips=self.clamp_skips or None),
                **if_not_rgb(self.img_channels)}

    def features(self, images: Tensor) -> list[Tensor]:
        """Output of every block, finest first.

        Shape: images (N, 3, R, R) -> (N, C_i, r_i, r_i) with r_i = R/2, R/4, ... 4.
        """
        if images.shape[1:] != (self.img_channels, self.resolution, self.resolution):
            size = self.resolution
            raise ValueError(f"images must have shape (N, {self.img_channels}, {size}, {size}), "
                             f"not {tuple(images.shape)}")
        maps = [self.from_rgb(images.contiguous(memory_format=torch.channels_last))]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps[1:]

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """Logits (N, 1), high means real, of images (N, 3, R, R) in [-1, 1]; c (N, c_dim) for a
        conditional network."""
        x = self.conv(minibatch_std(self.features(images)[-1], self.mbstd_group))  # (N, C, 4, 4)
        x = self.out(self.fc(x.flatten(1))).to(self.out.weight.dtype)
        if self.label is None:
            return x
        target = self.label(None, c)  # (N, C)
        return (x * target).sum(dim=1, keepdim=True) / math.sqrt(target.shape[1])


def config_f_channels(resolution: int, multiplier: int = 2) -> list[int]:
    """StyleGAN2's widths, 4x4 first: 512 up to 32 px, then 256, 128, 64, 32, 16 times the
    multiplier, at most 512."""
    blocks = int(math.log2(resolution)) - 1
    return [min(512, 16384 * multiplier // (4 * 2**b)) for b in range(blocks)]


def config_f(resolution: int, multiplier: int = 2) -> Generator:
    """StyleGAN2 configuration f as in the paper's tables, with random weights.

    Shape: z (N, 512) -> (N, 3, R, R).
    """
    check_resolution(resolution)
    return Generator(resolution, 512, 512, config_f_channels(resolution, multiplier)).eval()
