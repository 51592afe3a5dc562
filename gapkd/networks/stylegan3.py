"""StyleGAN3: the alias-free generator, configurations T (translation) and R (translation and
rotation).

Every layer is thought of as acting on a continuous image: it knows its sampling rate, the highest
frequency it may hold (cutoff) and how wide its filters' transition is (half-width).

Source: Karras et al., *Alias-Free Generative Adversarial Networks* (NeurIPS 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapkd import parallel
from gapkd.networks.base import (
    Noise,
    StyledNetwork,
    StyleGenerator,
    SynthesisOutput,
    check_clamp,
    check_images,
    copy_affine,
    kept_channels,
)
from gapkd.networks.filtered_lrelu import FilteredLeakyReLU, low_pass
from gapkd.networks.layers import SQRT2, EqualLinear, full_precision
from gapkd.networks.mapping import MappingNetwork


@dataclass(frozen=True)
class LayerPlan:
    """What a layer is built from: rates, cutoffs and half-widths before and after it, in cycles
    over the image."""

    in_channels: int
    in_size: int
    in_rate: float
    in_cutoff: float
    in_half_width: float
    out_channels: int
    out_size: int
    out_rate: float
    out_cutoff: float
    out_half_width: float
    critical: bool
    torgb: bool


def cutoff_of(n: int, layers: int, critical: int, resolution: int) -> float:
    """Of layer n, in cycles over the image: from 2 it grows geometrically to resolution / 2, where
    the last `critical` layers are."""
    return 2.0 * (resolution / 4) ** min(n / (layers - critical), 1.0)


def plan_layers(resolution: int, channels: Sequence[int], critical: int = 2, margin: int = 10,
                img_channels: int = 3) -> list[LayerPlan]:
    """The layers of appendix F. Cutoffs and stopbands grow geometrically to the image's.

    Args:
        channels: output channels of every layer; toRGB (img_channels) is added as the last one.
        critical: how many layers are sampled critically.
        margin: pixels that are computed beyond the border on every side, so that it cannot be told
            from within.
    """
    layers = len(channels)
    first_stopband, last_stopband = 2**2.1, resolution / 2 * 2**0.3
    grids = []  # on which layers write: channels, size, rate, cutoff, half-width
    for n, width in enumerate([*channels, img_channels]):
        cutoff = cutoff_of(n, layers, critical, resolution)
        growth = min(n / (layers - critical), 1.0)
        stopband = first_stopband * (last_stopband / first_stopband) ** growth
        rate = 2.0 ** math.ceil(math.log2(min(2 * stopband, resolution)))
        size = int(rate) + 2 * margin if n < layers - 1 else resolution
        grids.append((width, size, rate, cutoff, max(stopband, rate / 2) - cutoff))
    plans = []
    for n, after in enumerate(grids):
        before = grids[max(n - 1, 0)]
        plans.append(LayerPlan(*before, *after, critical=n >= layers - critical,
                               torgb=n == layers))
    return plans


class FourierInput(nn.Module):
    """The first feature maps: sines of random frequencies below the first cutoff, shifted and
    turned by an affine of w. Size: in pixels, the margin included.

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
        self.register_buffer("transform", torch.eye(3))  # the user's own, of the image
        self.register_buffer("freqs", frequencies / (radii * radii.square().exp() ** 0.25) * cutoff)
        self.register_buffer("phases", torch.rand(channels) - 0.5)

    def forward(self, w: Tensor) -> Tensor:
        t = self.affine(w)  # (N, 4): cosine, sine, x, y
        t = t / t[:, :2].norm(dim=1, keepdim=True)
        cosine, sine = t[:, 0], t[:, 1]
        turn = torch.stack([cosine, -sine, sine, cosine], dim=1).view(-1, 2, 2)
        shift = -turn @ t[:, 2:, None]  # (N, 2, 1)
        move = torch.cat([turn, shift], dim=2) @ self.transform  # (N, 2, 3)
        phases = self.phases + (self.freqs @ move[:, :, 2:]).squeeze(2)  # (N, C)
        freqs = self.freqs @ move[:, :, :2]  # (N, C, 2)
        # What the transform lifts above the band limit is faded out.
        above = (freqs.norm(dim=2) - self.cutoff) / (self.rate / 2 - self.cutoff)
        fade = (1 - above).clamp(0, 1)  # (N, C)
        pixels = torch.arange(self.size, device=w.device, dtype=w.dtype)
        along = (pixels + 0.5 - self.size / 2) / self.rate  # (S,)
        grid = torch.stack(torch.meshgrid(along, along, indexing="xy"), dim=-1)  # (S, S, 2)
        angles = grid.flatten(0, 1) @ freqs.mT + phases[:, None]  # (N, S S, C)
        waves = torch.sin(2 * math.pi * angles) * fade[:, None]
        waves = waves @ (self.weight.t() / math.sqrt(len(self.weight)))
        return waves.unflatten(1, (self.size, self.size)).permute(0, 3, 1, 2)


class AliasFreeLayer(nn.Module):
    """Affine style, modulated convolution on the padded grid, filtered non-linearity. Arguments as
    of `AliasFreeGenerator`; toRGB always has kernel 1.

    Shape: x (N, I, in_size, in_size), w (N, w_dim) -> (N, O, out_size, out_size).
    """

    def __init__(self, plan: LayerPlan, w_dim: int, kernel: int, radial: bool,
                 clamp: float | None = None):
        super().__init__()
        self.plan, self.kernel = plan, 1 if plan.torgb else kernel
        self.affine = EqualLinear(w_dim, plan.in_channels, bias_init=1.0)
        shape = plan.out_channels, plan.in_channels, self.kernel, self.kernel
        self.weight = nn.Parameter(torch.randn(shape))
        self.bias = nn.Parameter(torch.zeros(plan.out_channels))
        self.register_buffer("magnitude_ema", torch.ones(()))

        # The non-linearity works at twice the higher of the two rates, between filters of 6 taps a
        # unit of their factor; toRGB has none.
        rate = max(plan.in_rate, plan.out_rate) * (1 if plan.torgb else 2)
        up, down = round(rate / plan.in_rate), round(rate / plan.out_rate)
        up_taps = 6 * up if up > 1 and not plan.torgb else 1
        down_taps = 6 * down if down > 1 and not plan.torgb else 1
        size = plan.in_size + self.kernel - 1
        total = (plan.out_size - 1) * down + 1 - size * up + up_taps + down_taps - 2
        before = (total + up) // 2
        self.up_design = up_taps, plan.in_cutoff, 2 * plan.in_half_width, rate
        radial = radial and not plan.critical and down_taps > 1
        self.down_design = down_taps, plan.out_cutoff, 2 * plan.out_half_width, rate, radial
        self.activation = FilteredLeakyReLU(
            size,
            low_pass(*self.up_design),
            low_pass(*self.down_design),
            up, down, (before, total - before),
            slope=1.0 if plan.torgb else 0.2, gain=1.0 if plan.torgb else SQRT2, clamp=clamp)

    @property
    def convs(self) -> list[AliasFreeLayer]:
        """Itself: a block of StyleGAN2 has two convolutions, a layer here is one."""
        return [self]

    def forward(self, x: Tensor, w: Tensor) -> Tensor:
        # Once a step (images for the discriminator have no gradients), over all processes.
        if self.training and torch.is_grad_enabled():
            magnitude = parallel.mean(x.detach().float().square().mean())
            self.magnitude_ema.lerp_(magnitude, 0.001)
        with full_precision(x):
            style, weight = self.affine(w), self.weight  # (N, I), (O, I, k, k)
            scale = None
            if self.plan.torgb:
                style = style / math.sqrt(weight[0].numel())
            else:  # demodulation, on normalised weights and styles
                weight = weight * weight.square().mean(dim=(1, 2, 3), keepdim=True).rsqrt()
                style = style * style.square().mean(dim=1, keepdim=True).rsqrt()
                energy = weight.square().sum(dim=(2, 3))  # (O, I)
                scale = (style.square() @ energy.t() + 1e-8).rsqrt()  # (N, O)
            style = style * self.magnitude_ema.rsqrt()  # keeps the signal's magnitude near one
        x = x * style[:, :, None, None].to(x.dtype)
        x = F.conv2d(x, weight, padding=self.kernel - 1)
        return self.activation(x, self.bias, scale)


class AliasFreeSynthesis(StyledNetwork):
    """g: W -> image. There are no noise maps.

    Shape: ws (N, w_dim) or (N, num_ws, w_dim) -> SynthesisOutput, whose `features` are the outputs
        of every layer but toRGB, whose `rgbs` is the image alone.
    """

    def __init__(self, resolution: int, w_dim: int, channels: Sequence[int], kernel: int,
                 radial: bool, critical: int, margin: int, output_scale: float,
                 clamp: float | None, img_channels: int):
        super().__init__()
        check_images(resolution, img_channels, least=16)
        check_clamp(clamp)
        if not isinstance(radial, bool):
            raise ValueError(f"radial must be true or false, not {repr(radial)[:40]}")
        if kernel not in (1, 3):
            raise ValueError(f"kernel must be 3 (configuration T) or 1 (R), not {kernel}")
        if len(channels) <= critical:
            raise ValueError(f"channels names {len(channels)} layers: more than the {critical} "
                             "critically sampled ones are needed")
        if min(channels) < 1:
            raise ValueError(f"channels must all be at least 1, not {list(channels)[:12]}")
        plans = plan_layers(resolution, channels, critical, margin, img_channels=img_channels)
        self.resolution, self.w_dim, self.num_ws = resolution, w_dim, len(plans) + 1
        self.output_scale, self.img_channels = output_scale, img_channels
        first = plans[0]
        self.input = FourierInput(w_dim, first.in_channels, first.in_size, first.in_rate,
                                  first.in_cutoff)
        self.layers = nn.ModuleList(
            AliasFreeLayer(plan, w_dim, kernel, radial, clamp) for plan in plans)

    @property
    def blocks(self) -> list[AliasFreeLayer]:
        """What stands where StyleGAN2 has its blocks: every layer but toRGB; number b takes ws[:, b
        + 1]."""
        return list(self.layers)[:-1]

    def forward(self, ws: Tensor, noise: Noise = "const",
                generator: torch.Generator | None = None) -> SynthesisOutput:
        ws = self.expand_ws(ws)
        styles = ws.unbind(dim=1)  # num_ws of (N, w_dim)
        with full_precision(ws):
            x = self.input(styles[0])  # (N, C, size, size)
        features = []
        for layer, w in zip(self.layers, styles[1:], strict=True):
            x = layer(x, w)
            features.append(x)
        image = features.pop().float() * self.output_scale  # (N, 3, R, R)
        return SynthesisOutput(image=image, features=features, rgbs=[image])


class AliasFreeGenerator(StyleGenerator):
    """StyleGAN3's generator.

    Args (the others: `StyleGenerator`):
        channels: output channels of every layer but toRGB, input side first; the first is the
            Fourier input's too.
        kernel: 3 for configuration T, 1 for R.
        radial: radial downsampling filters (R).
        critical: see `plan_layers`.
        margin: see `plan_layers`.
        output_scale: factor on the image.
        clamp: largest magnitude behind a layer's leaky ReLU; None: any.
    """

    kind = "stylegan3-generator"
    mixes_styles = False  # StyleGAN3 is trained without style mixing
    movable = True

    def __init__(self, resolution: int, z_dim: int = 512, w_dim: int = 512,
                 channels: Sequence[int] = (), kernel: int = 3, radial: bool = False,
                 mapping_layers: int = 2, c_dim: int = 0, critical: int = 2, margin: int = 10,
                 output_scale: float = 0.25, clamp: float | None = None, img_channels: int = 3):
        mapping = MappingNetwork(z_dim, w_dim, mapping_layers, c_dim)
        super().__init__(mapping, AliasFreeSynthesis(resolution, w_dim, channels, kernel, radial,
                                                     critical, margin, output_scale, clamp,
                                                     img_channels))
        self.channels, self.kernel, self.radial = list(channels), kernel, radial
        self.critical, self.margin, self.output_scale = critical, margin, output_scale
        self.clamp = clamp

    @classmethod
    def student_of(cls, teacher: AliasFreeGenerator, keep: float, kernel: int = 3) -> dict:
        if kernel not in (3, teacher.kernel):
            raise ValueError("a StyleGAN3 student has its teacher's kernel "
                             f"{teacher.kernel}: leave kernel at its default")
        channels = [kept_channels(c, keep) for c in teacher.channels]
        return teacher.architecture() | {"channels": channels}

    def readers(self) -> list[list[AliasFreeLayer]]:
        return [[layer] for layer in self.synthesis.layers]

    @torch.no_grad()
    def copy_channels(self, teacher: AliasFreeGenerator, kept: list[Tensor]) -> None:
        # The input mixes its sines by a square matrix: with channel c the sine of the same number
        # is kept. Nor is it demodulated: copy the weight as used, with its gain 1 / sqrt(width).
        s, t, rows = self.synthesis.input, teacher.synthesis.input, kept[0]
        s.freqs.copy_(t.freqs[rows])
        s.phases.copy_(t.phases[rows])
        s.weight.copy_(t.weight[rows][:, rows] * math.sqrt(len(rows) / len(t.weight)))
        s.affine.load_state_dict(t.affine.state_dict())
        for layer, (s, t) in enumerate(zip(self.synthesis.layers, teacher.synthesis.layers,
                                           strict=True)):
            columns = kept[layer]
            rows = slice(None) if t.plan.torgb else kept[layer + 1]
            weight = t.weight[rows][:, columns]
            if t.plan.torgb:  # not demodulated either
                weight = weight * math.sqrt(weight[0].numel() / t.weight[0].numel())
            s.weight.copy_(weight)
            s.bias.copy_(t.bias[rows])
            s.magnitude_ema.copy_(t.magnitude_ema)
            copy_affine(s.affine, t.affine, columns)


def stylegan3_channels(resolution: int, layers: int = 14, channel_base: int = 32768,
                       channel_max: int = 512) -> list[int]:
    """The published widths: channel_base / 2 over the layer's cutoff, at most channel_max."""
    cutoffs = [cutoff_of(n, layers, 2, resolution) for n in range(layers)]
    return [round(min(channel_base / 2 / cutoff, channel_max)) for cutoff in cutoffs]
