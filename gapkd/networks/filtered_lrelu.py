"""The filtered non-linearity of StyleGAN3: upsample, leaky ReLU, downsample, in plain PyTorch.

The leaky ReLU makes new frequencies. Applied at a higher sampling rate, between two low-pass
filters, it makes none that the grid could not hold.

Source: Karras et al., *Alias-Free Generative Adversarial Networks* (NeurIPS 2021), sections 2, 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapkd.networks.layers import full_precision

PIECE = 2**20  # values of the upsampled image that a CPU works on at once


def low_pass(taps: int, cutoff: float, width: float, rate: float, radial: bool = False) -> Tensor:
    """A Kaiser-windowed low-pass filter of unit sum (appendix C).

    Args:
        cutoff: frequency at which it has fallen to a half, in the units of the sampling rate.
        width: of the transition, likewise.
        radial: the same in all directions, for the rotation-equivariant configuration.
    Returns: (taps,), or (taps, taps) if radial; float64.
    """
    if taps == 1:
        return torch.ones(1, dtype=torch.float64)
    from scipy.signal import firwin, kaiser_atten, kaiser_beta  # takes half a second to import

    if not radial:
        return torch.tensor(firwin(taps, cutoff, width=width, fs=rate))
    x = (torch.arange(taps, dtype=torch.float64) - (taps - 1) / 2) / rate
    r = torch.hypot(x[:, None], x[None, :])
    jinc = torch.special.bessel_j1(2 * cutoff * math.pi * r) / (math.pi * r)
    beta = kaiser_beta(kaiser_atten(taps, width / (rate / 2)))
    window = torch.kaiser_window(taps, periodic=False, beta=beta, dtype=torch.float64)
    f = jinc * torch.outer(window, window)
    return f / f.sum()


class LowPass(nn.Module):
    """A low-pass filter between a fine and a coarse grid, the same along both axes.

    `down` pads with zeros, filters and keeps every stride-th value. `up`, its transpose, inserts
    stride - 1 zeros behind every value, filters and crops. Each is the other's gradient. As strided
    convolutions they multiply no inserted zero and compute nothing that would be dropped.

    Args:
        f: (taps,), or (taps, taps) where it is radial; symmetric.
        stride: fine values from one coarse one to the next.
        before, after: zeros around the fine grid; negative: values of it that are not looked at.
    """

    def __init__(self, f: Tensor, stride: int, before: int, after: int):
        super().__init__()
        self.register_buffer("f", f.to(torch.get_default_dtype()), persistent=False)
        self.stride = stride
        self.padding = max(min(before, after), 0)  # a convolution pads both sides alike
        self.rest = before - self.padding, after - self.padding

    def _convolutions(self, x: Tensor) -> list[tuple]:
        """(weight, bias, stride, padding) of each."""
        f, s, p = self.f.to(x.dtype), self.stride, self.padding
        if f.ndim == 2:
            return [(f.expand(x.shape[1], 1, -1, -1), None, (s, s), (p, p))]
        rows, columns = f[:, None], f[None]  # one axis after the other
        return [(rows.expand(x.shape[1], 1, -1, -1), None, (s, 1), (p, 0)),
                (columns.expand(x.shape[1], 1, -1, -1), None, (1, s), (0, p))]

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
    """What a FilteredLeakyReLU does to x, piece by piece. The fine image in between, by far the
    largest, is not kept for the gradient but made again."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: FilteredLeakyReLU):
        ctx.save_for_backward(x)
        ctx.layer = layer

        def up_bend_down(x: Tensor) -> Tensor:
            return layer.down.down(layer.bend(layer.up.up(x)))

        return layer.in_pieces(up_bend_down, x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        return Linearised.apply(gradient, *ctx.saved_tensors, ctx.layer, True), None


class Linearised(torch.autograd.Function):
    """UpBendDown near x: what a small change of x does to the output, or transposed, what a
    gradient at the output is at x. Each is the other's gradient; x gets none: the bend is straight
    in pieces."""

    @staticmethod
    def forward(ctx, change: Tensor, x: Tensor, layer: FilteredLeakyReLU, transposed: bool):
        ctx.save_for_backward(x)
        ctx.layer, ctx.transposed = layer, transposed
        first, last = layer.up.up, layer.down.down
        if transposed:
            first, last = layer.down.up, layer.up.down

        def up_slope_down(change: Tensor, x: Tensor) -> Tensor:
            return last(layer.times_slope(first(change), layer.up.up(x)))

        return layer.in_pieces(up_slope_down, change, x)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (x,) = ctx.saved_tensors
        back = Linearised.apply(gradient, x, ctx.layer, not ctx.transposed)
        return back, None, None, None


class FilteredLeakyReLU(nn.Module):
    """Bias, upsampling, leaky ReLU, downsampling: (N, C, S, S) -> (N, C, out, out).

    Args:
        size: S, of the coarse input.
        up_filter: (taps,), separable.
        down_filter: (taps,), or (taps, taps) where it is radial.
        up, down: factors to and from the fine grid.
        padding: zeros before and after, on the upsampled grid.
        slope, gain: of the leaky ReLU; 1 and 1: there is none (toRGB).
        clamp: largest magnitude behind the leaky ReLU, on the fine grid; None for any.
    """

    def __init__(self, size: int, up_filter: Tensor, down_filter: Tensor, up: int, down: int,
                 padding: tuple[int, int], slope: float, gain: float,
                 clamp: float | None = None):
        super().__init__()
        before, after = padding
        up_taps, down_taps = len(up_filter), len(down_filter)
        self.fine = size * up + before + after - up_taps + 1
        self.size, self.out = size, (self.fine - down_taps) // down + 1
        self.up_factor, self.down_factor = up, down
        self.padding = padding
        self.slope, self.gain, self.clamp = slope, gain, clamp
        # Negative padding: nothing looks at the outermost values.
        first, end = max(-(before // up), 0), size - max(-((after + up - 1) // up), 0)
        self.seen = slice(first, end)
        self.up = LowPass(up * up_filter, up, up_taps - 1 - before - up * first,
                          up_taps - up - after - up * (size - end))
        # The gain is part of the filter that follows: a pass over the largest tensor is saved.
        self.down = LowPass(gain ** (down_filter.ndim / 2) * down_filter, down,
                            0, (self.out - 1) * down + down_taps - self.fine)
        # the designed filters in full precision, to look at
        self.filters = up_filter, down_filter

    def forward(self, x: Tensor, bias: Tensor, scale: Tensor | None = None) -> Tensor:
        """Of scale x + bias; bias (C,), scale (N, C) or None for 1."""
        with full_precision(x):
            x, bias = x[:, :, self.seen, self.seen], bias.to(x.dtype)[:, None, None]
            if scale is None:
                x = x + bias
            else:
                x = torch.addcmul(bias, x, scale.to(x.dtype)[:, :, None, None])
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
        """function(*images), (N, C, ...), by pieces of so many samples and channels that their fine
        image has PIECE values and stays in a CPU's cache. A GPU takes 64 times as many."""
        if torch.compiler.is_compiling():  # an exported program has no number of samples yet
            return function(*images)
        x, area = images[0], self.fine**2
        on_cpu = x.device.type == "cpu"
        limit = PIECE if on_cpu else 64 * PIECE
        channels = min(x.shape[1], max(16, limit // area // 16 * 16))
        samples = max(1, limit // (area * channels))

        def piece(*images: Tensor) -> Tensor:
            if on_cpu:  # single channels are convolved fast in this order, slowly in half precision
                dtype = torch.promote_types(x.dtype, torch.float32)
                images = [i.to(dtype, memory_format=torch.channels_last) for i in images]
                return function(*images).to(x.dtype)
            # GPUs are slow at many small groups: every channel is an image of its own.
            n_c = images[0].shape[:2]
            images = [i.flatten(0, 1)[:, None] for i in images]  # (N C, 1, ...)
            if x.dtype == torch.bfloat16:  # its 8 bits would spoil the filters
                images = [i.float() for i in images]
            return function(*images)[:, 0].unflatten(0, n_c).to(x.dtype)

        def split(images: Sequence[Tensor], size: int, dim: int) -> Iterator[tuple[Tensor, ...]]:
            return zip(*[x.split(size, dim) for x in images], strict=True)

        rows = []
        with full_precision(x):
            for some in split(images, samples, 0):
                rows.append(torch.cat([piece(*part) for part in split(some, channels, 1)], dim=1))
            return torch.cat(rows)
