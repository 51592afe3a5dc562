"""The building blocks of StyleGAN2: equalised layers, the modulated convolution, FIR resampling.

Everything is plain PyTorch: no compiled extension, CPU and GPU, double-differentiable (R1 and
path-length regularisation differentiate twice), and exportable with a dynamic batch.

Source: Karras et al., *Analyzing and Improving the Image Quality of StyleGAN* (CVPR 2020).
"""

from __future__ import annotations

import math
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

SQRT2 = math.sqrt(2.0)
HALF_CLAMP = 256.0  # largest activation in float16


def leaky_relu(x: Tensor, clamp: float | None = None) -> Tensor:
    """Leaky ReLU with slope 0.2, in place, clamped; to 256 at most in float16, which ends at 65,504
    (StyleGAN2-ADA's precaution). The gain sqrt(2) that keeps unit variance is folded into what
    comes before: lrelu(sqrt(2) x) = sqrt(2) lrelu(x), and one pass is saved."""
    x = F.leaky_relu(x, 0.2, inplace=True)
    if x.dtype == torch.float16:
        clamp = min(clamp or HALF_CLAMP, HALF_CLAMP)
    return x.clamp(-clamp, clamp) if clamp else x


def full_precision(x: Tensor):
    """Autocast off within the block (the meta device, where only shapes are computed, knows no
    autocast)."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def in_float16(x: Tensor) -> bool:
    """Whether a convolution of x would run in float16, autocast considered."""
    if x.is_meta or not torch.is_autocast_enabled(x.device.type):
        return x.dtype == torch.float16
    return torch.get_autocast_dtype(x.device.type) == torch.float16


class EqualLinear(nn.Module):
    """Linear layer with an equalised learning rate: weights are stored with unit variance and
    scaled when used.

    Args:
        bias_init: initial value of the bias as used (1 for style affines, else 0).
        lr_multiplier: relative learning rate (0.01 in the mapping network).
        activate: apply leaky ReLU with gain sqrt(2).
    Shape: (N, in_features) -> (N, out_features).
    """

    def __init__(self, in_features: int, out_features: int, bias_init: float = 0.0,
                 lr_multiplier: float = 1.0, activate: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_features, in_features) / lr_multiplier)
        self.bias = nn.Parameter(torch.full((out_features,), float(bias_init) / lr_multiplier))
        self.gain = lr_multiplier / math.sqrt(in_features)
        self.lr_multiplier = lr_multiplier
        self.activate = activate

    def forward(self, x: Tensor) -> Tensor:
        act = SQRT2 if self.activate else 1.0
        x = F.linear(x, self.weight * (self.gain * act), self.bias * (self.lr_multiplier * act))
        return leaky_relu(x) if self.activate else x


def fir_kernel(gain: float = 1.0) -> Tensor:
    """The separable low-pass [1, 3, 3, 1] as a 2-D kernel of sum `gain`. Shape (1, 1, 4, 4)."""
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return torch.outer(taps, taps)[None, None] * (gain / 64)


class _FixedFilter(torch.autograd.Function):
    """Depthwise convolution with a fixed symmetric kernel, or its transpose: the gradient of each
    is the other. An ordinary convolution's double backward would compute a gradient of the kernel,
    too, which takes a quarter of an R1 step."""

    @staticmethod
    def forward(ctx, x: Tensor, kernel: Tensor, stride: int, padding: int,
                transposed: bool) -> Tensor:
        ctx.save_for_backward(kernel)
        ctx.stride, ctx.padding, ctx.transposed = stride, padding, transposed
        return _filter(x, kernel, stride, padding, transposed)

    @staticmethod
    def backward(ctx, gradient: Tensor):
        (kernel,) = ctx.saved_tensors
        back = _FixedFilter.apply(gradient, kernel, ctx.stride, ctx.padding, not ctx.transposed)
        return back, None, None, None, None


def _filter(x: Tensor, kernel: Tensor, stride: int, padding: int, transposed: bool) -> Tensor:
    if transposed and stride == 1:  # an ordinary convolution gives the same numbers, faster
        transposed, padding = False, kernel.shape[-1] - 1 - padding
    # On CPUs a strided transposed depthwise convolution in bfloat16 takes tens of times as long as
    # in float32 (torch 2.13, processors of Intel and AMD), so that one runs in float32.
    slow = transposed and x.device.type == "cpu" and x.dtype == torch.bfloat16
    dtype = torch.float32 if slow else x.dtype
    convolve = F.conv_transpose2d if transposed else F.conv2d
    with full_precision(x):
        kernel = kernel.to(dtype).expand(x.shape[1], 1, -1, -1)
        y = convolve(x.to(dtype), kernel, stride=stride, padding=padding, groups=x.shape[1])
        return y.to(x.dtype)


_matrices: WeakIdKeyDictionary = WeakIdKeyDictionary()
"""By filter kernel: its banded matrices for the sizes that were asked for."""

LARGEST_BAND = 256
"""Pixels up to which filters are matrix products: their cost an output grows with the size."""


def band_matrix(kernel: Tensor, size: int, stride: int, padding: int, transposed: bool,
                dtype: torch.dtype) -> Tensor:
    """The separable kernel along one axis as a matrix: (size of the result, size)."""
    known = _matrices.setdefault(kernel, {})
    key = size, stride, padding, transposed, dtype
    if key not in known:
        taps = kernel[:, 0].double().sum(dim=1) / kernel.double().sum().sqrt()  # (1, taps)
        convolve = F.conv_transpose1d if transposed else F.conv1d
        with torch.inference_mode(False):  # it is kept for trainings, too
            identity = torch.eye(size, dtype=torch.float64, device=kernel.device)
            columns = convolve(identity[:, None], taps[None], stride=stride, padding=padding)
            known[key] = columns[:, 0].t().to(dtype).contiguous()
    return known[key]


def filter_by_matrices(x: Tensor, kernel: Tensor, stride: int, padding: int,
                       transposed: bool) -> Tensor:
    """The same filter as two matrix products, along the height and along the width. GPUs have units
    for products, but a depthwise convolution in half precision took half of a training step (H100,
    cuDNN of torch 2.11)."""
    n, channels, height, width = x.shape
    rows, columns = (band_matrix(kernel, size, stride, padding, transposed, x.dtype)
                     for size in (height, width))
    with full_precision(x):
        if channels > 3 and x.is_contiguous(memory_format=torch.channels_last):
            y = rows @ x.permute(0, 2, 3, 1).flatten(2)              # (N, H', W C)
            y = columns @ y.reshape(-1, width, channels)             # (N H', W', C)
            return y.reshape(n, len(rows), len(columns), channels).permute(0, 3, 1, 2)
        return rows @ x @ columns.t()                                # (N, C, H', W')


def _resample(x: Tensor, kernel: Tensor, stride: int, padding: int,
              transposed: bool = False) -> Tensor:
    if x.is_cuda and max(x.shape[2:]) <= LARGEST_BAND:
        return filter_by_matrices(x, kernel, stride, padding, transposed)
    differentiate = torch.is_grad_enabled() and x.requires_grad
    resample = _FixedFilter.apply if differentiate else _filter
    return resample(x, kernel, stride, padding, transposed)


def upsample2(x: Tensor, kernel: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, 2H, 2W): insert zeros, then low-pass, as one transposed convolution.
    `kernel` is `fir_kernel(gain=4)`: three of four values are zeros."""
    return _resample(x, kernel, stride=2, padding=1, transposed=True)


def blur(x: Tensor, kernel: Tensor, padding: int) -> Tensor:
    """Low-pass filter with zero padding: (N, C, H, W) -> (N, C, H + 2 padding - 3, ...)."""
    return _resample(x, kernel, stride=1, padding=padding)


def downsample2(x: Tensor, kernel: Tensor) -> Tensor:
    """(N, C, H, W) -> (N, C, H/2, W/2): low-pass, then keep every second pixel."""
    return _resample(x, kernel, stride=2, padding=1)


class EqualConv2d(nn.Module):
    """Convolution with an equalised learning rate, optional FIR downsampling by 2 before it.

    Shape: (N, in_channels, H, W) -> (N, out_channels, H, W) or (..., H/2, W/2) when `down`.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, bias: bool = True,
                 down: bool = False, activate: bool = False, gain: float = 1.0,
                 clamp: float | None = None):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.scale = 1.0 / math.sqrt(in_channels * kernel**2)
        self.kernel, self.down, self.activate, self.gain = kernel, down, activate, gain
        self.clamp = clamp
        if down:
            self.register_buffer("fir", fir_kernel(), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        act = self.gain * (SQRT2 if self.activate else 1.0)
        bias = None if self.bias is None else self.bias * act
        stride, padding = 1, self.kernel // 2
        if self.down and self.kernel == 1:
            x = downsample2(x, self.fir)
        elif self.down:
            x = blur(x, self.fir, padding=2)
            stride, padding = 2, 0
        x = F.conv2d(x, self.weight * (self.scale * act), bias, stride=stride, padding=padding)
        clamp = self.clamp and self.clamp * self.gain
        if self.activate:
            return leaky_relu(x, clamp)
        return x.clamp(-clamp, clamp) if clamp else x


class ModulatedConv2d(nn.Module):
    """Convolution whose weight is scaled per sample by a style, then renormalised (demodulation).

    The textbook builds one weight per sample, w' = s_i w / |s w|, and runs a grouped convolution.
    Because scaling a weight's input channels equals scaling the input, and likewise for the output,
    the same numbers come from ONE convolution with the shared weight:

        y = conv(x * s, w) * d,      d_o = 1 / sqrt( sum_i s_i^2 sum_k w_oik^2 + 1e-8 )

    Args:
        demodulate: divide by the norm; off in toRGB, whose kernel is 1.
        up: upsample by 2: a transposed convolution followed by the FIR filter; with kernel 3.
    Shape: x (N, I, H, W), style (N, I) -> (N, O, H, W) or (N, O, 2H, 2W), and the scale d (N, O, 1,
        1), or None, which the caller applies together with the bias.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int, demodulate: bool = True,
                 up: bool = False):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(out_channels, in_channels, kernel, kernel))
        self.scale = 1.0 / math.sqrt(in_channels * kernel**2)
        self.kernel, self.demodulate, self.up = kernel, demodulate, up
        if up:
            self.register_buffer("fir", fir_kernel(gain=4.0), persistent=False)

    def forward(self, x: Tensor, style: Tensor) -> tuple[Tensor, Tensor | None]:
        style = style * self.scale  # the equalised gain rides on the style: one small product
        if not self.demodulate:  # toRGB: a small matrix a sample costs less than scaling x
            matrices = (style[:, :, None] * self.weight[:, :, 0, 0].t()).to(x.dtype)  # (N, I, O)
            pixels = torch.bmm(x.permute(0, 2, 3, 1).flatten(1, 2), matrices)         # (N, H W, O)
            return pixels.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2), None
        if in_float16(x):  # demodulation undoes any factor, so take one that cannot overflow
            largest = style.abs().amax(dim=1, keepdim=True).clamp(min=1e-8)
            style = style / largest * (self.kernel**2 * x.shape[1]) ** -0.5
        with full_precision(x):  # a sum of squares deserves float32
            energy = self.weight.square().sum(dim=(2, 3))            # (O, I)
            scale = (style.square() @ energy.t() + 1e-8).rsqrt()     # (N, O)
            scale = scale[:, :, None, None]
        x = x * style[:, :, None, None].to(x.dtype)
        if not self.up:
            x = F.conv2d(x, self.weight, padding=self.kernel // 2)
        else:
            x = F.conv_transpose2d(x, self.weight.transpose(0, 1), stride=2)
            x = blur(x, self.fir, padding=1)
        return x, scale
