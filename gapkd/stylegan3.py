"""StyleGAN3: the alias-free generator, configurations T (translation) and R (translation and rotation).

Source: Karras et al., *Alias-Free Generative Adversarial Networks* (NeurIPS 2021). Every layer is thought of as acting
on a continuous image: it knows its sampling rate, the highest frequency it may hold (cutoff) and how wide its filters'
transition is (half-width). The non-linearity, which makes new frequencies, is applied at a higher rate between an
upsampling and a downsampling low-pass filter. Plain PyTorch, no compiled extension.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapkd import parallel
from gapkd.layers import SQRT2, EqualLinear, full_precision
from gapkd.stylegan2 import MappingNetwork, Noise, StyledNetwork, SynthesisOutput, check_resolution

BLOCK = 16  # outputs that one small matrix makes of the inputs they look at


# ------------------------------------------------------------------------------------------- filters


def low_pass(taps: int, cutoff: float, width: float, rate: float, radial: bool = False) -> Tensor:
    """A Kaiser-windowed low-pass filter of unit sum (appendix C). (taps,), or (taps, taps) if radial; float64.

    Args:
        cutoff: frequency at which it has fallen to a half. width: of the transition, both in the units of rate.
        rate: sampling rate. radial: the same in all directions, for the rotation-equivariant configuration.
    """
    if taps == 1:
        return torch.ones(1, dtype=torch.float64)
    x = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / rate
    attenuation = 2.285 * (taps - 1) * math.pi * width / (rate / 2) + 7.95  # Kaiser's formula, in dB
    window = torch.kaiser_window(taps, periodic=False, beta=kaiser_beta(attenuation), dtype=torch.float64)
    if radial:
        r = torch.hypot(x[:, None], x[None, :])
        f = torch.special.bessel_j1(2 * cutoff * math.pi * r) / (math.pi * r) * torch.outer(window, window)
    else:
        f = torch.sinc(2 * cutoff * x) * window
    return f / f.sum()


def kaiser_beta(attenuation: float) -> float:
    """Shape of the Kaiser window that reaches an attenuation in dB."""
    if attenuation > 50:
        return 0.1102 * (attenuation - 8.7)
    if attenuation > 21:
        return 0.5842 * (attenuation - 21) ** 0.4 + 0.07886 * (attenuation - 21)
    return 0.0


@dataclass(frozen=True)
class Resampler:
    """A filter between two grids along one axis: y[o] = sum_j x[j] f[offset + stride_in j - stride_out o].

    stride_in = up, stride_out = 1: insert up - 1 zeros behind every value, pad with `offset` zeros, filter.
    stride_in = 1, stride_out = down: filter, keep every down-th value. The map shifts with its input, so that one small
    matrix makes BLOCK outputs of the inputs that they look at, wherever they lie; no zero is ever multiplied but within
    that matrix, and large matrix products are what every processor is best at.
    """

    taps: int
    stride_in: int
    stride_out: int
    offset: int
    length: int
    out: int

    def transposed(self) -> Resampler:
        """The map of the gradients: it reads f backwards."""
        return Resampler(self.taps, self.stride_out, self.stride_in, self.taps - 1 - self.offset, self.out, self.length)

    def _block(self) -> tuple[int, int, int]:
        """Outputs a block, inputs from one block to the next, first input that block 0 looks at."""
        block = self.out if self.out <= 2 * BLOCK else BLOCK
        return block, block * self.stride_out // self.stride_in, math.ceil(-self.offset / self.stride_in)

    def matrix(self, f: Tensor) -> Tensor:
        """What one block is made with: (inputs it looks at, outputs)."""
        block, _, first = self._block()
        last = (self.stride_out * (block - 1) - self.offset + self.taps - 1) // self.stride_in
        j, o = torch.arange(first, last + 1)[:, None], torch.arange(block)[None, :]
        place = self.offset + self.stride_in * j - self.stride_out * o
        inside = (place >= 0) & (place < self.taps)
        return torch.where(inside, f[place.clamp(0, self.taps - 1)], torch.zeros((), dtype=f.dtype))

    def apply(self, x: Tensor, matrix: Tensor) -> Tensor:
        """Filter the middle axis: (B, length, K) -> (B, out, K)."""
        block, step, first = self._block()
        y = x.new_empty(x.shape[0], self.out, x.shape[2])
        for start in range(0, self.out, block):
            left = first + start // block * step
            low, high = max(left, 0), max(min(left + len(matrix), self.length), 0)  # beyond the border lie zeros
            m = matrix[low - left:max(high - left, low - left), :self.out - start]
            y[:, start:start + block] = torch.bmm(m.t().expand(x.shape[0], -1, -1), x[:, low:max(high, low)])
        return y


class Resample(torch.autograd.Function):
    """`Resampler.apply`, with the transposed filter as its gradient (and so on, to any order)."""

    @staticmethod
    def forward(ctx, x: Tensor, forth: Resampler, back: Resampler, forth_matrix: Tensor, back_matrix: Tensor):
        ctx.save_for_backward(forth_matrix, back_matrix)
        ctx.maps = forth, back
        return forth.apply(x, forth_matrix)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        forth_matrix, back_matrix = ctx.saved_tensors
        forth, back = ctx.maps
        return Resample.apply(gradient, back, forth, back_matrix, forth_matrix), None, None, None, None


class SeparableFilter(nn.Module):
    """One filter along rows and columns: (N, S, S, C) -> (N, out, out, C). See `Resampler`."""

    def __init__(self, f: Tensor, stride_in: int, stride_out: int, offset: int, length: int, out: int):
        super().__init__()
        self.map = Resampler(len(f), stride_in, stride_out, offset, length, out)
        self.back = self.map.transposed()
        dtype = torch.get_default_dtype()
        self.register_buffer("matrix", self.map.matrix(f).to(dtype), persistent=False)
        self.register_buffer("back_matrix", self.back.matrix(f.flip(0)).to(dtype), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        n, c = x.shape[0], x.shape[-1]
        if self.map.out > self.map.length:  # the smaller image goes through the longer product
            x = self.along(x.flatten(0, 1)).unflatten(0, (n, -1))
            return self.along(x.flatten(2)).unflatten(2, (-1, c))
        x = self.along(x.flatten(2)).unflatten(2, (-1, c))
        return self.along(x.flatten(0, 1)).unflatten(0, (n, -1))

    def along(self, x: Tensor) -> Tensor:
        matrix, back = self.matrix.to(x.dtype), self.back_matrix.to(x.dtype)
        if x.requires_grad and torch.is_grad_enabled():
            return Resample.apply(x, self.map, self.back, matrix, back)
        return self.map.apply(x, matrix)


class FilteredActivation(nn.Module):
    """Bias, upsampling, leaky ReLU, downsampling: (N, C, S, S) -> (N, C, out, out), channels last in memory.

    Args:
        up_filter: (taps,), separable. down_filter: (taps,), or (taps, taps) where it is radial.
        padding: zeros before and after, on the upsampled grid.
        slope, gain: of the leaky ReLU; 1 and 1: there is none (toRGB).
    """

    def __init__(self, size: int, up_filter: Tensor, down_filter: Tensor, up: int, down: int,
                 padding: tuple[int, int], slope: float, gain: float):
        super().__init__()
        up_taps, down_taps = len(up_filter), len(down_filter)
        middle = size * up + sum(padding) - up_taps + 1
        self.size, self.out = size, (middle - down_taps) // down + 1
        self.slope, self.gain, self.clamp = slope, gain, None
        self.up = SeparableFilter(up * up_filter, up, 1, padding[0], size, middle)
        self.radial, self.down_factor = down_filter.ndim == 2, down
        # The gain is part of the filter that follows: a pass over the largest tensor is saved.
        if self.radial:
            kernel = gain * down_filter[None, None]
            self.register_buffer("down_kernel", kernel.to(torch.get_default_dtype()), persistent=False)
        else:
            self.down = SeparableFilter(math.sqrt(gain) * down_filter, 1, down, 0, middle, self.out)
        # The designed filters themselves, in full precision, for those who want to look or to convert.
        self.filters = up_filter, down_filter

    def forward(self, x: Tensor, bias: Tensor, scale: Tensor | None = None) -> Tensor:
        """Of scale x + bias; bias (C,), scale (N, C) or None for 1."""
        with full_precision(x):
            x, bias = x.permute(0, 2, 3, 1), bias.to(x.dtype)
            x = self.up(x + bias if scale is None else torch.addcmul(bias, x, scale.to(x.dtype)[:, None, None]))
            if self.slope != 1:
                x = F.leaky_relu(x, self.slope, inplace=True)
            if self.clamp:
                limit = self.clamp / self.gain
                x = x.clamp(-limit, limit)
            if self.radial:
                kernel = self.down_kernel.to(x.dtype).expand(x.shape[-1], 1, -1, -1)
                return F.conv2d(x.permute(0, 3, 1, 2), kernel, stride=self.down_factor, groups=x.shape[-1])
            return self.down(x).permute(0, 3, 1, 2)


# ------------------------------------------------------------------------------------------- layers


@dataclass(frozen=True)
class LayerPlan:
    """What a layer is built from: rates, cutoffs and half-widths before and after it, in cycles over the image."""

    in_channels: int
    out_channels: int
    in_size: int
    out_size: int
    in_rate: float
    out_rate: float
    in_cutoff: float
    out_cutoff: float
    in_half_width: float
    out_half_width: float
    critical: bool
    torgb: bool


def plan_layers(resolution: int, channels: Sequence[int], critical: int = 2, margin: int = 10,
                first_cutoff: float = 2.0, first_stopband: float = 2**2.1, last_stopband_rel: float = 2**0.3
                ) -> list[LayerPlan]:
    """Cutoffs and stopbands grow geometrically to the image's; the last `critical` layers are sampled critically.

    Args:
        channels: output channels of every layer; toRGB (3) is added as the last one.
        margin: pixels that are computed beyond the border on every side, so that it cannot be told from within.
    Source: appendix F.
    """
    layers = len(channels)
    last_cutoff = resolution / 2
    plans, cutoffs, stops, widths = [], [], [], [*channels, 3]
    for n in range(layers + 1):
        exponent = min(n / (layers - critical), 1.0)
        cutoffs.append(first_cutoff * (last_cutoff / first_cutoff) ** exponent)
        stops.append(first_stopband * (last_cutoff * last_stopband_rel / first_stopband) ** exponent)
    rates = [2.0 ** math.ceil(math.log2(min(2 * stop, resolution))) for stop in stops]
    halves = [max(stop, rate / 2) - cutoff for stop, rate, cutoff in zip(stops, rates, cutoffs, strict=True)]
    sizes = [int(rate) + 2 * margin for rate in rates[:-2]] + [resolution] * 2
    for n in range(layers + 1):
        before = max(n - 1, 0)
        plans.append(LayerPlan(widths[before], widths[n], sizes[before], sizes[n], rates[before], rates[n],
                               cutoffs[before], cutoffs[n], halves[before], halves[n], n >= layers - critical,
                               n == layers))
    return plans


class FourierInput(nn.Module):
    """The first feature maps: sines of random frequencies below the first cutoff, shifted and turned by an affine of w.

    Args:
        size: pixels, the margin included. rate, cutoff: of the first layer.
    Shape: w (N, w_dim) -> (N, channels, size, size).
    """

    def __init__(self, w_dim: int, channels: int, size: int, rate: float, cutoff: float):
        super().__init__()
        self.size, self.rate, self.cutoff = size, rate, cutoff
        frequencies = torch.randn(channels, 2)
        radii = frequencies.square().sum(dim=1, keepdim=True).sqrt()
        self.weight = nn.Parameter(torch.randn(channels, channels))
        self.affine = EqualLinear(w_dim, 4)
        with torch.no_grad():
            self.affine.weight.zero_()
            self.affine.bias.copy_(torch.tensor([1.0, 0.0, 0.0, 0.0]))
        self.register_buffer("transform", torch.eye(3))  # the user's own: rotation and translation of the image
        self.register_buffer("freqs", frequencies / (radii * radii.square().exp() ** 0.25) * cutoff)
        self.register_buffer("phases", torch.rand(channels) - 0.5)

    def forward(self, w: Tensor) -> Tensor:
        t = self.affine(w)                                           # cosine, sine, x, y
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        cosine, sine, x, y = t.unbind(dim=1)
        zero, one = torch.zeros_like(x), torch.ones_like(x)
        turn = torch.stack([cosine, -sine, zero, sine, cosine, zero, zero, zero, one], dim=1).view(-1, 3, 3)
        shift = torch.stack([one, zero, -x, zero, one, -y, zero, zero, one], dim=1).view(-1, 3, 3)
        move = turn @ shift @ self.transform
        phases = self.phases + (self.freqs @ move[:, :2, 2:]).squeeze(2)           # (N, C)
        freqs = self.freqs @ move[:, :2, :2]                                       # (N, C, 2)
        # What the transform lifts above the band limit is faded out.
        fade = (1 - (freqs.norm(dim=2) - self.cutoff) / (self.rate / 2 - self.cutoff)).clamp(0, 1)
        along = (torch.arange(self.size, device=w.device, dtype=w.dtype) + 0.5 - self.size / 2) / self.rate
        grid = torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1).flatten(0, 1)   # (S S, 2)
        waves = torch.sin(2 * math.pi * (grid @ freqs.mT + phases[:, None])) * fade[:, None]    # (N, S S, C)
        waves = waves @ (self.weight.t() / math.sqrt(len(self.weight)))
        return waves.unflatten(1, (self.size, self.size)).permute(0, 3, 1, 2)


class AliasFreeLayer(nn.Module):
    """Affine style, modulated convolution on the padded grid, filtered non-linearity."""

    def __init__(self, plan: LayerPlan, w_dim: int, kernel: int, radial: bool, filter_size: int = 6):
        super().__init__()
        self.plan, self.kernel = plan, 1 if plan.torgb else kernel
        self.affine = EqualLinear(w_dim, plan.in_channels, bias_init=1.0)
        self.weight = nn.Parameter(torch.randn(plan.out_channels, plan.in_channels, self.kernel, self.kernel))
        self.bias = nn.Parameter(torch.zeros(plan.out_channels))
        self.register_buffer("magnitude_ema", torch.ones(()))
        rate = max(plan.in_rate, plan.out_rate) * (1 if plan.torgb else 2)
        up, down = round(rate / plan.in_rate), round(rate / plan.out_rate)
        up_taps = filter_size * up if up > 1 and not plan.torgb else 1
        down_taps = filter_size * down if down > 1 and not plan.torgb else 1
        total = (plan.out_size - 1) * down + 1 - (plan.in_size + self.kernel - 1) * up + up_taps + down_taps - 2
        before = (total + up) // 2
        self.up_design = up_taps, plan.in_cutoff, 2 * plan.in_half_width, rate
        self.activation = FilteredActivation(
            plan.in_size + self.kernel - 1, low_pass(*self.up_design),
            low_pass(down_taps, plan.out_cutoff, 2 * plan.out_half_width, rate,
                     radial and not plan.critical and down_taps > 1),
            up, down, (before, total - before), 1.0 if plan.torgb else 0.2, 1.0 if plan.torgb else SQRT2)

    @property
    def convs(self) -> list[AliasFreeLayer]:
        """Itself: a block of StyleGAN2 has two convolutions, a layer here is one."""
        return [self]

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        if self.training:
            with torch.no_grad():
                self.magnitude_ema.lerp_(parallel.mean(x.float().square().mean()), 0.001)
        with full_precision(x):
            style, weight = self.affine(w), self.weight
            scale = None
            if self.plan.torgb:
                style = style / math.sqrt(weight[0].numel())
            else:  # demodulation, on normalised weights and styles
                weight = weight * weight.square().mean(dim=(1, 2, 3), keepdim=True).rsqrt()
                style = style * style.square().mean(dim=1, keepdim=True).rsqrt()
                energy = weight.square().sum(dim=(2, 3))
                scale = (style.square() @ energy.t() + 1e-8).rsqrt()
            style = style * self.magnitude_ema.rsqrt()               # keeps the signal's magnitude near one
        x = F.conv2d(x * style[:, :, None, None].to(x.dtype), weight, padding=self.kernel - 1)
        return self.activation(x, self.bias, scale)


class AliasFreeSynthesis(StyledNetwork):
    """g: W -> image. Shape: ws (N, w_dim) or (N, num_ws, w_dim) -> SynthesisOutput.

    `features` holds the output of every layer but toRGB, `rgbs` the image alone. There are no noise maps.
    """

    def __init__(self, resolution: int, w_dim: int, channels: Sequence[int], kernel: int, radial: bool, critical: int,
                 margin: int, output_scale: float):
        super().__init__()
        check_resolution(resolution, least=16)
        if kernel not in (1, 3):
            raise ValueError(f"kernel must be 3 (configuration T) or 1 (R), not {kernel}")
        if len(channels) <= critical:
            raise ValueError(f"channels names {len(channels)} layers: more than the {critical} critically sampled ones "
                             "are needed")
        plans = plan_layers(resolution, channels, critical, margin)
        self.resolution, self.w_dim, self.output_scale, self.num_ws = resolution, w_dim, output_scale, len(plans) + 1
        self.input = FourierInput(w_dim, plans[0].in_channels, plans[0].in_size, plans[0].in_rate, plans[0].in_cutoff)
        self.layers = nn.ModuleList(AliasFreeLayer(plan, w_dim, kernel, radial) for plan in plans)

    def draw_noise(self, n: int, generator: torch.Generator) -> list[Tensor]:
        """Nothing: an alias-free generator has no noise maps."""
        return []

    @property
    def blocks(self) -> list[AliasFreeLayer]:
        """What stands where StyleGAN2 has its blocks: every layer but toRGB, input side first; `features[b]` is the
        output of block b, which takes ws[:, b + 1]."""
        return list(self.layers)[:-1]

    @property
    def convs(self) -> list[AliasFreeLayer]:
        return self.blocks

    def forward(self, ws: Tensor, noise: Noise = "const", generator: torch.Generator | None = None) -> SynthesisOutput:
        styles = self.expand_ws(ws).unbind(dim=1)
        with full_precision(ws):
            x = self.input(styles[0])
        features = []
        for layer, w in zip(self.layers, styles[1:], strict=True):
            x = layer(x, w)
            features.append(x)
        image = features.pop().float() * self.output_scale
        return SynthesisOutput(image=image, features=features, rgbs=[image])


class AliasFreeGenerator(nn.Module):
    """StyleGAN3's generator.

    Args:
        resolution: a power of two, at least 16.
        z_dim, w_dim: widths of z and w.
        channels: output channels of every layer but toRGB, input side first; the first is the Fourier input's too.
        kernel: 3 for configuration T, 1 for R. radial: radial downsampling filters (R).
        mapping_layers: depth of the mapping network. c_dim: number of classes, 0 for none.
        critical, margin, output_scale: see `plan_layers`; factor on the image.
    Shape: z (N, z_dim) -> image (N, 3, R, R), about [-1, 1], not clamped.
    """

    mixes_styles = False  # StyleGAN3 is trained without style mixing

    def __init__(self, resolution: int, z_dim: int = 512, w_dim: int = 512, channels: Sequence[int] = (),
                 kernel: int = 3, radial: bool = False, mapping_layers: int = 2, c_dim: int = 0, critical: int = 2,
                 margin: int = 10, output_scale: float = 0.25, clamp: float | None = None):
        super().__init__()
        self.mapping = MappingNetwork(z_dim, w_dim, mapping_layers, c_dim)
        self.synthesis = AliasFreeSynthesis(resolution, w_dim, channels, kernel, radial, critical, margin, output_scale)
        self.resolution, self.z_dim, self.w_dim, self.c_dim = resolution, z_dim, w_dim, c_dim
        self.num_ws, self.channels, self.kernel, self.radial = self.synthesis.num_ws, list(channels), kernel, radial
        self.critical, self.margin, self.clamp = critical, margin, clamp
        for layer in self.synthesis.layers:
            layer.activation.clamp = clamp

    def architecture(self) -> dict:
        """The constructor's arguments, as JSON can hold them."""
        plain = {"resolution": self.resolution, "z_dim": self.z_dim, "w_dim": self.w_dim, "channels": self.channels,
                 "kernel": self.kernel, "radial": self.radial, "mapping_layers": len(self.mapping.layers),
                 "c_dim": self.c_dim, "critical": self.critical, "margin": self.margin,
                 "output_scale": self.synthesis.output_scale}
        return plain if self.clamp is None else plain | {"clamp": self.clamp}

    def truncate(self, w: Tensor, truncation: float) -> Tensor:
        """Pull w towards its average: w_avg + psi (w - w_avg). Any shape (..., w_dim)."""
        return w if truncation == 1.0 else self.mapping.w_avg.lerp(w, truncation)

    def forward(self, z: Tensor, c: Tensor | None = None, truncation: float = 1.0, noise: Noise = "const",
                generator: torch.Generator | None = None) -> Tensor:
        return self.synthesis(self.truncate(self.mapping(z, c), truncation)).image


def stylegan3_channels(resolution: int, layers: int = 14, channel_base: int = 32768, channel_max: int = 512,
                       critical: int = 2) -> list[int]:
    """The published widths: channel_base / 2 over the layer's cutoff, at most channel_max."""
    return [round(min(channel_base / 2 / (2.0 * (resolution / 4) ** min(n / (layers - critical), 1.0)), channel_max))
            for n in range(layers)]
