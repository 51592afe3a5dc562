"""StyleGAN3: the alias-free generator, configurations T (translation) and R (translation and rotation).

Source: Karras et al., *Alias-Free Generative Adversarial Networks* (NeurIPS 2021). Every layer is thought of as acting
on a continuous image: it knows its sampling rate, the highest frequency it may hold (cutoff) and how wide its filters'
transition is (half-width). The non-linearity, which makes new frequencies, is applied at a higher rate between an
upsampling and a downsampling low-pass filter. Plain PyTorch, no compiled extension.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapkd import parallel
from gapkd.networks.layers import SQRT2, EqualLinear, full_precision
from gapkd.networks.stylegan2 import MappingNetwork, Noise, StyledNetwork, SynthesisOutput, check_resolution

PIECE = 2**20  # values of the upsampled image that a CPU works on at once


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


class LowPass(nn.Module):
    """A low-pass filter between a fine and a coarse grid, the same along both axes.

    down: pad with zeros, filter, keep every stride-th value. up, its transpose: insert stride - 1 zeros behind every
    value, filter, crop. Each is the other's gradient. Both are strided convolutions of every channel by itself: no
    inserted zero is ever multiplied, and nothing is computed that would be dropped.

    Args:
        f: (taps,), or (taps, taps) where it is radial; symmetric. stride: fine values from one coarse one to the next.
        before, after: zeros around the fine grid; negative: values of it that are not looked at.
    """

    def __init__(self, f: Tensor, stride: int, before: int, after: int):
        super().__init__()
        self.register_buffer("f", f.to(torch.get_default_dtype()), persistent=False)
        self.stride, self.padding = stride, max(min(before, after), 0)  # a convolution pads both sides alike
        self.rest = before - self.padding, after - self.padding

    def _convolutions(self, x: Tensor) -> list[tuple]:
        """(weight, bias, stride, padding) of each."""
        f, s, p = self.f.to(x.dtype), self.stride, self.padding
        kernels = [(f, (s, s), (p, p))] if f.ndim == 2 else [(f[:, None], (s, 1), (p, 0)), (f[None], (1, s), (0, p))]
        return [(kernel.expand(x.shape[1], 1, -1, -1), None, *rest) for kernel, *rest in kernels]

    def down(self, x: Tensor) -> Tensor:
        """(N, C, fine, fine) -> (N, C, coarse, coarse)."""
        x = F.pad(x, 2 * self.rest) if any(self.rest) else x
        for convolution in self._convolutions(x):
            x = F.conv2d(x, *convolution, groups=x.shape[1])
        return x

    def up(self, x: Tensor) -> Tensor:
        """(N, C, coarse, coarse) -> (N, C, fine, fine)."""
        for convolution in reversed(self._convolutions(x)):
            x = F.conv_transpose2d(x, *convolution, groups=x.shape[1])
        return F.pad(x, [-rest for rest in 2 * self.rest]) if any(self.rest) else x


class UpBendDown(torch.autograd.Function):
    """What a FilteredActivation does to x, piece by piece. The fine image in between, by far the largest, is not kept
    for the gradient but made again: little more work, most of the memory saved."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: FilteredActivation):
        ctx.save_for_backward(x)
        ctx.layer = layer
        return layer.in_pieces(lambda x: layer.down.down(layer.bend(layer.up.up(x))), x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return Linearised.apply(gradient, *ctx.saved_tensors, ctx.layer, True), None


class Linearised(torch.autograd.Function):
    """UpBendDown near x: what a small change of x does to the output, or transposed, what a gradient at the output is
    at x. Each is the other's gradient; x gets none, for the bend is made of straight pieces."""

    @staticmethod
    def forward(ctx, change: Tensor, x: Tensor, layer: FilteredActivation, transposed: bool):
        ctx.save_for_backward(x)
        ctx.layer, ctx.transposed = layer, transposed
        first, last = (layer.down.up, layer.up.down) if transposed else (layer.up.up, layer.down.down)
        return layer.in_pieces(lambda change, x: last(layer.times_slope(first(change), layer.up.up(x))), change, x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return Linearised.apply(gradient, *ctx.saved_tensors, ctx.layer, not ctx.transposed), None, None, None


class FilteredActivation(nn.Module):
    """Bias, upsampling, leaky ReLU, downsampling: (N, C, S, S) -> (N, C, out, out), on a CPU channels last in memory.

    Args:
        up_filter: (taps,), separable. down_filter: (taps,), or (taps, taps) where it is radial.
        padding: zeros before and after, on the upsampled grid.
        slope, gain: of the leaky ReLU; 1 and 1: there is none (toRGB).
    """

    def __init__(self, size: int, up_filter: Tensor, down_filter: Tensor, up: int, down: int,
                 padding: tuple[int, int], slope: float, gain: float):
        super().__init__()
        before, after = padding
        up_taps, down_taps = len(up_filter), len(down_filter)
        self.fine = size * up + before + after - up_taps + 1
        self.size, self.out = size, (self.fine - down_taps) // down + 1
        self.up_factor, self.down_factor, self.padding, self.radial = up, down, padding, down_filter.ndim == 2
        self.slope, self.gain, self.clamp = slope, gain, None
        # Negative padding: nothing looks at the outermost values.
        first, end = max(-(before // up), 0), size - max(-((after + up - 1) // up), 0)
        self.seen = slice(first, end)
        self.up = LowPass(up * up_filter, up, up_taps - 1 - before - up * first,
                          up_taps - up - after - up * (size - end))
        # The gain is part of the filter that follows: a pass over the largest tensor is saved.
        self.down = LowPass(gain ** (down_filter.ndim / 2) * down_filter, down,
                            0, (self.out - 1) * down + down_taps - self.fine)
        # The designed filters themselves, in full precision, for those who want to look or to convert.
        self.filters = up_filter, down_filter

    def forward(self, x: Tensor, bias: Tensor, scale: Tensor | None = None) -> Tensor:
        """Of scale x + bias; bias (C,), scale (N, C) or None for 1."""
        with full_precision(x):
            x, bias = x[:, :, self.seen, self.seen], bias.to(x.dtype)[:, None, None]
            x = x + bias if scale is None else torch.addcmul(bias, x, scale.to(x.dtype)[:, :, None, None])
            return UpBendDown.apply(x, self)

    def bend(self, x: Tensor) -> Tensor:
        """Leaky ReLU and clamp, in place."""
        x = x if self.slope == 1 else F.leaky_relu(x, self.slope, inplace=True)
        return x.clamp_(-self.clamp / self.gain, self.clamp / self.gain) if self.clamp else x

    def times_slope(self, change: Tensor, x: Tensor) -> Tensor:
        """`change` times the slope of `bend` at x, in place: by what autograd itself would call."""
        if self.slope != 1:
            torch.ops.aten.leaky_relu_backward(change, x, self.slope, False, grad_input=change)
        if self.clamp:
            limits = -self.clamp / self.gain / self.slope, self.clamp / self.gain
            torch.ops.aten.hardtanh_backward(change, x, *limits, grad_input=change)
        return change

    def in_pieces(self, function: Callable[..., Tensor], *images: Tensor) -> Tensor:
        """function(*images), (N, C, ...), by pieces of so many samples and channels that their fine image has PIECE
        values: it stays in a CPU's cache from the first filter to the last. A GPU takes 64 times as many."""
        if torch.compiler.is_compiling():  # an exported program has no number of samples yet
            return function(*images)
        x, area = images[0], self.fine**2
        on_cpu = x.device.type == "cpu"
        limit = PIECE if on_cpu else 64 * PIECE
        channels = min(x.shape[1], max(16, limit // area // 16 * 16))
        samples = max(1, limit // (area * channels))

        def piece(*images: Tensor) -> Tensor:
            if on_cpu:  # single channels are convolved fast in this order, and slowly in half precision
                dtype = torch.promote_types(x.dtype, torch.float32)
                return function(*[x.to(dtype, memory_format=torch.channels_last) for x in images]).to(x.dtype)
            n_c = images[0].shape[:2]  # GPUs are slow at many small groups: every channel as an image of its own
            return function(*[x.flatten(0, 1)[:, None] for x in images])[:, 0].unflatten(0, n_c)

        def split(images: Sequence[Tensor], size: int, dim: int) -> Iterator[tuple[Tensor, ...]]:
            return zip(*[x.split(size, dim) for x in images], strict=True)

        with full_precision(x):
            return torch.cat([torch.cat([piece(*part) for part in split(some, channels, 1)], 1)
                              for some in split(images, samples, 0)])


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
