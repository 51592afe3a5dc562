"""StyleGAN2: mapping network, synthesis network, generator and discriminator.

Source: Karras et al., *Analyzing and Improving the Image Quality of StyleGAN* (CVPR 2020), configuration f:
skip generator, residual discriminator. Channel counts are free in every convolution, which is what a pruned or
shrunk student needs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

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

Noise = str | list[Tensor]
Channels = int | Sequence[int] | Sequence[tuple[int, int]]


def check_resolution(resolution: int, least: int = 8) -> None:
    """Raise ValueError unless `resolution` is a power of two of at least `least`."""
    if resolution < least or resolution & (resolution - 1):
        raise ValueError(f"resolution must be a power of two of at least {least}, not {resolution}")


def channel_pairs(channels: Channels, resolution: int) -> list[tuple[int, int]]:
    """One (first, second) pair of widths per block, 4x4 block first, from an int, one int a block, or pairs.

    In the 4x4 block the first number is the width of the learned constant.
    """
    blocks = int(math.log2(resolution)) - 1
    per_block = [channels] * blocks if isinstance(channels, int) else list(channels)
    if len(per_block) != blocks:
        raise ValueError(f"channels names {len(per_block)} blocks, but a {resolution} px network has {blocks} "
                         "(4 px up)")
    pairs = [(c, c) if isinstance(c, int) else (int(c[0]), int(c[1])) for c in per_block]
    if min(min(p) for p in pairs) < 1:
        raise ValueError(f"channels must all be at least 1, not {pairs}")
    return pairs


def normalise(x: Tensor) -> Tensor:
    """Scale each row to unit mean square. (N, C) -> (N, C)."""
    return x * (x.square().mean(dim=1, keepdim=True) + 1e-8).rsqrt()


class MappingNetwork(nn.Module):
    """f: Z -> W, an MLP with learning-rate multiplier 0.01.

    It decides the semantics of the image: the paper's student inherits it whole (section 3).

    Args:
        z_dim: width of z; 0 for a network fed by the label alone (in a conditional discriminator).
        c_dim: number of classes, 0 for none; labels are one-hot rows (N, c_dim).
    Shape: z (N, z_dim), c (N, c_dim) -> w (N, w_dim).
    """

    def __init__(self, z_dim: int, w_dim: int, layers: int = 8, c_dim: int = 0, lr_multiplier: float = 0.01):
        super().__init__()
        self.z_dim, self.w_dim, self.c_dim = z_dim, w_dim, c_dim
        self.embed = EqualLinear(c_dim, w_dim) if c_dim else None
        widths = [z_dim + (w_dim if c_dim else 0)] + [w_dim] * layers
        self.layers = nn.ModuleList(EqualLinear(i, o, lr_multiplier=lr_multiplier, activate=True)
                                    for i, o in zip(widths, widths[1:], strict=False))
        self.register_buffer("w_avg", torch.zeros(w_dim))

    def forward(self, z: Tensor | None, c: Tensor | None = None) -> Tensor:
        parts = []
        if self.z_dim:
            if z is None or z.ndim != 2 or z.shape[1] != self.z_dim:
                raise ValueError(f"z must have shape (N, {self.z_dim}), not {None if z is None else tuple(z.shape)}")
            parts.append(normalise(z))
        if self.embed is not None:
            if c is None or c.ndim != 2 or c.shape[1] != self.c_dim:
                raise ValueError(f"this network is conditional: give one-hot labels c of shape (N, {self.c_dim})")
            parts.append(normalise(self.embed(c)))
        with full_precision(parts[0]):  # small and sensitive: always full precision
            x = torch.cat(parts, dim=1)
            for layer in self.layers:
                x = layer(x)
        return x

    @torch.no_grad()
    def track(self, w: Tensor, decay: float = 0.995) -> None:
        """Move the running average w_avg towards the mean of w (N, w_dim); called once a training step."""
        self.w_avg.lerp_(w.detach().float().mean(dim=0), 1 - decay)


@dataclass
class SynthesisOutput:
    """What the synthesis network makes of ws.

    image: (N, 3, R, R), float32, about [-1, 1], not clamped.
    features: output of every block, (N, C_i, r_i, r_i) with r_i = 4, 8, ... R; block 0 is the 4x4 one.
    rgbs: the skip image after every block, (N, 3, r_i, r_i); the last one is `image`.
    """

    image: Tensor
    features: list[Tensor]
    rgbs: list[Tensor]


class StyledConv(nn.Module):
    """Affine style, modulated convolution, noise, bias, leaky ReLU. x (N, I, H, W), w (N, w_dim)."""

    def __init__(self, in_channels: int, out_channels: int, w_dim: int, resolution: int, kernel: int, up: bool):
        super().__init__()
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1.0)
        self.conv = ModulatedConv2d(in_channels, out_channels, kernel, up=up)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.noise_strength = nn.Parameter(torch.zeros(()))
        self.clamp: float | None = None
        self.register_buffer("noise_const", torch.randn(1, 1, resolution, resolution))

    def forward(self, x: Tensor, w: Tensor, noise: Tensor | None) -> Tensor:
        with full_precision(x):
            style = self.affine(w)
        x, scale = self.conv(x, style)
        scale, bias = (scale * SQRT2).to(x.dtype), (self.bias * SQRT2).to(x.dtype)[None, :, None, None]
        if noise is None:
            return leaky_relu(torch.addcmul(bias, x, scale), self.clamp)
        noise = (noise * (self.noise_strength * SQRT2)).to(x.dtype)
        if noise.shape[0] == 1:  # one map for the whole batch: bias and noise make one small tensor
            shift = (bias + noise).contiguous(memory_format=torch.channels_last)  # the sum takes on its layout
            return leaky_relu(torch.addcmul(shift, x, scale), self.clamp)
        return leaky_relu(torch.addcmul(noise, x, scale).add_(bias), self.clamp)


class ToRGB(nn.Module):
    """Features to an image: a modulated 1x1 convolution without demodulation. (N, C, H, W) -> (N, 3, H, W)."""

    def __init__(self, in_channels: int, w_dim: int):
        super().__init__()
        self.affine = EqualLinear(w_dim, in_channels, bias_init=1.0)
        self.conv = ModulatedConv2d(in_channels, 3, kernel=1, demodulate=False)
        self.bias = nn.Parameter(torch.zeros(3))
        self.clamp: float | None = None

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        with full_precision(x):
            style = self.affine(w)
        x, _ = self.conv(x, style)
        x = x.to(self.bias.dtype) + self.bias[None, :, None, None]  # under autocast too, images are float32
        return x.clamp(-self.clamp, self.clamp) if self.clamp else x


class SynthesisBlock(nn.Module):
    """One resolution: [upsampling convolution,] convolution, toRGB. The 4x4 block has the second convolution only."""

    def __init__(self, in_channels: int, pair: tuple[int, int], w_dim: int, resolution: int, kernel: int):
        super().__init__()
        first, second = pair
        self.conv0 = StyledConv(in_channels, first, w_dim, resolution, 3, up=True) if in_channels else None
        # The kernel-1 ("heter") student keeps a 3x3 convolution at 4x4, where no upsampling convolution precedes it.
        self.conv1 = StyledConv(first, second, w_dim, resolution, kernel if in_channels else 3, up=False)
        self.torgb = ToRGB(second, w_dim)

    @property
    def convs(self) -> list[StyledConv]:
        """The styled convolutions in the order in which they consume ws and noise maps."""
        return [self.conv1] if self.conv0 is None else [self.conv0, self.conv1]


class StyledNetwork(nn.Module):
    """What the synthesis networks of StyleGAN2 and 3 share: one w for each of num_ws layers."""

    num_ws: int
    w_dim: int

    def expand_ws(self, ws: Tensor) -> Tensor:
        """(N, w_dim) or (N, num_ws, w_dim) -> (N, num_ws, w_dim), checked."""
        if ws.ndim == 2:
            ws = ws[:, None].expand(-1, self.num_ws, -1)
        if ws.ndim != 3 or ws.shape[1:] != (self.num_ws, self.w_dim):
            raise ValueError(f"ws must have shape (N, {self.w_dim}) or (N, {self.num_ws}, {self.w_dim}), "
                             f"not {tuple(ws.shape)}")
        return ws


class SynthesisNetwork(StyledNetwork):
    """g: W -> image. A learned 4x4 constant, then one block a resolution; every block adds to a skip image.

    Shape: ws (N, w_dim), the same w for every layer, or (N, num_ws, w_dim) -> SynthesisOutput.
    """

    def __init__(self, resolution: int, w_dim: int, channels: Channels, kernel: int = 3):
        super().__init__()
        check_resolution(resolution)
        if kernel not in (1, 3):
            raise ValueError(f"kernel (of every block's second convolution) must be 1 or 3, not {kernel}")
        self.resolution, self.w_dim, self.kernel = resolution, w_dim, kernel
        self.channels = channel_pairs(channels, resolution)
        self.const = nn.Parameter(torch.randn(1, self.channels[0][0], 4, 4))
        inputs = [0] + [pair[1] for pair in self.channels[:-1]]
        self.blocks = nn.ModuleList(SynthesisBlock(i, pair, w_dim, 4 * 2**b, kernel)
                                    for b, (i, pair) in enumerate(zip(inputs, self.channels, strict=True)))
        self.num_ws = 2 * len(self.blocks)  # 1 + 2 (blocks - 1) convolutions, and the last toRGB
        self.register_buffer("fir", fir_kernel(gain=4.0), persistent=False)

    @property
    def convs(self) -> list[StyledConv]:
        """All styled convolutions, input side first; number l consumes ws[:, l] and noise map l."""
        return [conv for block in self.blocks for conv in block.convs]

    def draw_noise(self, n: int, generator: torch.Generator) -> list[Tensor]:
        """Fresh noise maps, one (n, 1, r, r) per styled convolution. They fit any network of the same resolution,
        so teacher and student can be given the same ones."""
        maps = [torch.randn(n, 1, *conv.noise_const.shape[2:], generator=generator, device=generator.device)
                for conv in self.convs]
        return [m.to(self.const.device) for m in maps]

    def _noise_maps(self, noise: Noise, n: int, generator: torch.Generator | None) -> list[Tensor | None]:
        if isinstance(noise, str):
            if noise == "const":
                return [conv.noise_const for conv in self.convs]
            if noise == "none":
                return [None] * len(self.convs)
            if noise == "random":
                if generator is None:
                    raise ValueError('noise="random" draws from a generator: pass generator=torch.Generator()')
                return self.draw_noise(n, generator)
            raise ValueError(f'noise must be "const", "none", "random" or a list of maps, not {noise!r}')
        if len(noise) != len(self.convs):
            raise ValueError(f"noise holds {len(noise)} maps, this network needs {len(self.convs)}")
        return list(noise)

    def forward(self, ws: Tensor, noise: Noise = "const", generator: torch.Generator | None = None) -> SynthesisOutput:
        ws = self.expand_ws(ws)
        n = ws.shape[0]
        maps = self._noise_maps(noise, n, generator)
        styles = ws.unbind(dim=1)
        # Channels-last is what the convolutions of CPUs and of tensor cores want; it follows x through the network.
        x = self.const.expand(n, -1, -1, -1).contiguous(memory_format=torch.channels_last)
        image, features, rgbs, layer = None, [], [], 0
        for block in self.blocks:
            for conv in block.convs:
                x = conv(x, styles[layer], maps[layer])
                layer += 1
            rgb = block.torgb(x, styles[layer])  # toRGB shares its w with the next block's first convolution
            image = rgb if image is None else _upsample_image(image, self.fir) + rgb
            features.append(x)
            rgbs.append(image)
        return SynthesisOutput(image=image, features=features, rgbs=rgbs)


def _upsample_image(image: Tensor, fir: Tensor) -> Tensor:
    with full_precision(image):  # the image is accumulated in full precision
        return upsample2(image, fir)


class Generator(nn.Module):
    """Mapping and synthesis together.

    Args:
        resolution: a power of two, at least 8.
        z_dim, w_dim: widths of z and w.
        channels: width of all convolutions, or one a block (4x4 first), or one (first, second) pair a block.
        kernel: kernel of every block's second convolution, 3, or 1 for the paper's heterogeneous student.
        mapping_layers: depth of the mapping network.
        c_dim: number of classes, 0 for none.
        clamp: largest magnitude of a convolution's output, as in networks that were trained in float16; None: any.
    Shape: z (N, z_dim) -> image (N, 3, R, R), about [-1, 1], not clamped.
    """

    mixes_styles = True  # in training, now and then, two latents rule one image

    def __init__(self, resolution: int, z_dim: int = 512, w_dim: int = 512, channels: Channels = 64,
                 kernel: int = 3, mapping_layers: int = 8, c_dim: int = 0, clamp: float | None = None):
        super().__init__()
        self.mapping = MappingNetwork(z_dim, w_dim, mapping_layers, c_dim)
        self.synthesis = SynthesisNetwork(resolution, w_dim, channels, kernel)
        self.resolution, self.z_dim, self.w_dim, self.c_dim = resolution, z_dim, w_dim, c_dim
        self.num_ws, self.channels, self.kernel = self.synthesis.num_ws, self.synthesis.channels, kernel
        self.clamp = clamp
        for block in self.synthesis.blocks:
            for layer in (*block.convs, block.torgb):
                layer.clamp = clamp

    def architecture(self) -> dict:
        """The constructor's arguments, as JSON can hold them: Generator(**G.architecture()) has G's shape."""
        return {"resolution": self.resolution, "z_dim": self.z_dim, "w_dim": self.w_dim,
                "channels": [list(pair) for pair in self.channels], "kernel": self.kernel,
                "mapping_layers": len(self.mapping.layers), "c_dim": self.c_dim} | _if_set(clamp=self.clamp)

    def truncate(self, w: Tensor, truncation: float) -> Tensor:
        """Pull w towards its average: w_avg + psi (w - w_avg). Any shape (..., w_dim)."""
        return w if truncation == 1.0 else self.mapping.w_avg.lerp(w, truncation)

    def forward(self, z: Tensor, c: Tensor | None = None, truncation: float = 1.0, noise: Noise = "const",
                generator: torch.Generator | None = None) -> Tensor:
        """Draw images.

        Args:
            z: (N, z_dim), standard normal. c: one-hot labels (N, c_dim), for a conditional network.
            truncation: 1 none, 0 the average image.
            noise: "const" (the stored maps), "random" (needs `generator`), "none", or a list of maps.
        Returns: (N, 3, R, R), float32, about [-1, 1], not clamped.
        """
        w = self.truncate(self.mapping(z, c), truncation)
        return self.synthesis(w, noise=noise, generator=generator).image


def mix_styles(w_a: Tensor, w_b: Tensor, crossover: int, num_ws: int) -> Tensor:
    """Coarse layers from w_a, layers `crossover` and finer from w_b. (N, w_dim) twice -> (N, num_ws, w_dim)."""
    if not 0 <= crossover <= num_ws:
        raise ValueError(f"crossover must lie between 0 and num_ws = {num_ws}, not {crossover}")
    return torch.cat([w_a[:, None].expand(-1, crossover, -1),
                      w_b[:, None].expand(-1, num_ws - crossover, -1)], dim=1)


def minibatch_std(x: Tensor, group: int = 4) -> Tensor:
    """Append one feature map that tells how much a group of images varies. (N, C, H, W) -> (N, C + 1, H, W).

    Image n belongs to group n mod (N / group). A batch that `group` does not divide uses its largest divisor below.
    """
    n, c, h, w = x.shape
    size = next(g for g in range(min(group, n), 0, -1) if n % g == 0)
    grouped = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(size, n // size, c, h, w)
    std = (grouped.var(dim=0, unbiased=False) + 1e-8).sqrt().mean(dim=(1, 2, 3))  # (N / size,)
    std = std.repeat(size)[:, None, None, None].expand(-1, 1, h, w)
    return torch.cat([x, std.to(x.dtype)], dim=1)


class DiscriminatorBlock(nn.Module):
    """Residual block that halves the resolution. (N, I, H, W) -> (N, O, H/2, W/2)."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        half = math.sqrt(0.5)  # keeps the variance of the sum of both branches
        self.conv0 = EqualConv2d(in_channels, in_channels, 3, activate=True)
        self.conv1 = EqualConv2d(in_channels, out_channels, 3, down=True, activate=True, gain=half)
        self.skip = EqualConv2d(in_channels, out_channels, 1, bias=False, down=True, gain=half)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv1(self.conv0(x)) + self.skip(x)


class Discriminator(nn.Module):
    """Residual discriminator with minibatch standard deviation.

    Args:
        channels: width at every resolution, or one a resolution, 4x4 first.
        c_dim: number of classes; the logit is then the projection onto the embedded label.
        mbstd_group: images over which the minibatch standard deviation is taken.
        clamp: as in `Generator`.
    Shape: images (N, 3, R, R) in [-1, 1], c (N, c_dim) -> logits (N, 1).
    """

    def __init__(self, resolution: int, channels: int | Sequence[int] = 64, c_dim: int = 0, mbstd_group: int = 4,
                 clamp: float | None = None):
        super().__init__()
        check_resolution(resolution)
        widths = [pair[0] for pair in channel_pairs(channels, resolution)]
        self.resolution, self.channels, self.c_dim, self.mbstd_group = resolution, widths, c_dim, mbstd_group
        self.from_rgb = EqualConv2d(3, widths[-1], 1, activate=True)
        self.blocks = nn.ModuleList(DiscriminatorBlock(i, o)
                                    for i, o in zip(widths[:0:-1], widths[-2::-1], strict=True))
        self.conv = EqualConv2d(widths[0] + 1, widths[0], 3, activate=True)
        self.fc = EqualLinear(widths[0] * 16, widths[0], activate=True)
        self.out = EqualLinear(widths[0], widths[0] if c_dim else 1)
        self.label = MappingNetwork(0, widths[0], 8, c_dim) if c_dim else None
        self.clamp = clamp
        for layer in self.modules():
            if isinstance(layer, EqualConv2d):
                layer.clamp = clamp

    def architecture(self) -> dict:
        """The constructor's arguments, as JSON can hold them."""
        return {"resolution": self.resolution, "channels": self.channels, "c_dim": self.c_dim,
                "mbstd_group": self.mbstd_group} | _if_set(clamp=self.clamp)

    def features(self, images: Tensor) -> list[Tensor]:
        """Output of every block, (N, C_i, r_i, r_i) with r_i = R/2, R/4, ... 4, of images (N, 3, R, R)."""
        if images.shape[1:] != (3, self.resolution, self.resolution):
            raise ValueError(f"images must have shape (N, 3, {self.resolution}, {self.resolution}), "
                             f"not {tuple(images.shape)}")
        maps = [self.from_rgb(images.contiguous(memory_format=torch.channels_last))]
        for block in self.blocks:
            maps.append(block(maps[-1]))
        return maps[1:]

    def forward(self, images: Tensor, c: Tensor | None = None) -> Tensor:
        """images (N, 3, R, R) in [-1, 1], c (N, c_dim) for a conditional network -> logits (N, 1); high means real."""
        x = self.conv(minibatch_std(self.features(images)[-1], self.mbstd_group))
        x = self.out(self.fc(x.flatten(1))).to(self.out.weight.dtype)
        if self.label is None:
            return x
        target = self.label(None, c)
        return (x * target).sum(dim=1, keepdim=True) / math.sqrt(target.shape[1])


def _if_set(**arguments: object) -> dict:
    return {name: value for name, value in arguments.items() if value is not None}


def config_f_channels(resolution: int, multiplier: int = 2) -> list[int]:
    """StyleGAN2's widths, 4x4 first: 512 up to 32 px, then 256, 128, 64, 32, 16 times the multiplier, at most 512."""
    return [min(512, 16384 * multiplier // (4 * 2**b)) for b in range(int(math.log2(resolution)) - 1)]


def config_f(resolution: int, multiplier: int = 2) -> Generator:
    """StyleGAN2 configuration f as in the paper's tables, with random weights: z (N, 512) -> (N, 3, R, R)."""
    check_resolution(resolution)
    return Generator(resolution, 512, 512, config_f_channels(resolution, multiplier)).eval()
