"""StyleGAN3's filtered non-linearity: numbers, derivatives, pieces, precisions."""

from __future__ import annotations

import pytest
import torch

from gapkd.networks import filtered_lrelu
from gapkd.networks.filtered_lrelu import FilteredLeakyReLU, low_pass
from tools.textbook import textbook

CASES = [{}, {"radial": True}, {"up": 4, "padding": (3, 2)}, {"clamp": 0.3},
         {"size": 20, "padding": (-2, -3)}, {"size": 22, "down": 4},
         {"size": 14, "up": 4, "padding": (5, 6), "radial": True},
         {"size": 12, "up": 1, "down": 1, "padding": (-2, -2)}]


def layer(size: int = 9, up: int = 2, down: int = 2, padding: tuple[int, int] = (9, 8),
          radial: bool = False, clamp: float | None = None) -> FilteredLeakyReLU:
    up_filter = low_pass(6 * up if up > 1 else 1, 4.0, 3.0, 32.0)
    down_filter = low_pass(6 * down if down > 1 else 1, 5.0, 4.0, 32.0, radial)
    return FilteredLeakyReLU(size, up_filter, down_filter, up, down, padding, 0.2, 2**0.5, clamp)


@pytest.mark.parametrize("arguments", CASES)
def test_the_same_numbers_and_gradients_as_the_textbooks_steps(float64, arguments):
    act = layer(**arguments)
    x = torch.randn(2, 3, act.size, act.size, requires_grad=True)
    inputs = x, torch.randn(3, requires_grad=True), torch.randn(2, 3, requires_grad=True)
    ours, theirs = act(*inputs), textbook(act)(*inputs)
    assert ours.shape[-1] == act.out
    torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
    weight = torch.randn_like(ours)
    for a, b in zip(*[torch.autograd.grad((y * weight).sum(), inputs) for y in (ours, theirs)],
                    strict=True):
        torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("arguments", CASES[:5])
def test_second_derivatives_are_those_of_finite_differences(float64, arguments):
    act = layer(**arguments)
    x = torch.randn(1, 2, act.size, act.size, requires_grad=True)
    bias, scale = torch.randn(2, requires_grad=True), torch.randn(1, 2, requires_grad=True)
    assert torch.autograd.gradgradcheck(act, (x, bias, scale), fast_mode=True)


@pytest.mark.parametrize("radial", [False, True])
def test_pieces_of_any_size_make_the_same_image(float64, radial, monkeypatch):
    act = layer(radial=radial)
    x, bias = torch.randn(5, 40, act.size, act.size, requires_grad=True), torch.randn(40)
    found = []
    # One sample of 16 channels; likewise; two whole samples; all.
    for piece in (1, 20 * act.fine**2, 100 * act.fine**2, 10**9):
        monkeypatch.setattr(filtered_lrelu, "PIECE", piece)
        y = act(x, bias)
        found.append((y, *torch.autograd.grad(y.square().sum(), x)))
    for y, gradient in found[1:]:
        torch.testing.assert_close(y, found[0][0], atol=1e-12, rtol=0)
        torch.testing.assert_close(gradient, found[0][1], atol=1e-11, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_loses_nothing_but_what_rounding_takes(dtype):
    act = layer()
    x = torch.randn(2, 3, act.size, act.size).to(dtype).requires_grad_()
    bias = torch.randn(3).to(dtype)
    with torch.autocast("cpu", torch.bfloat16):
        y = act(x, bias)
        y.backward(torch.ones_like(y))
    exact = act.double()(x.detach().double(), bias.double())
    assert y.dtype == x.grad.dtype == dtype
    torch.testing.assert_close(y.double(), exact, atol=0.02, rtol=0.02)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_without_samples_there_are_none_and_shapes_are_known_without_numbers(device):
    act = layer().to(device)
    for n in (0, 2):
        x = torch.zeros(n, 3, act.size, act.size, device=device, requires_grad=True)
        y = act(x, torch.zeros(3, device=device))
        assert y.shape == (n, 3, act.out, act.out)
        assert torch.autograd.grad(y.sum(), x)[0].shape == x.shape
