"""The textbook's form gives the same numbers and gradients: like is compared with like."""

from __future__ import annotations

import pytest
import torch
from tiny import perturb

from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.training.adversarial import gradient_penalty
from tools.textbook import FORMS, textbook

pytestmark = pytest.mark.usefixtures("float64")


def close(ours, book):
    torch.testing.assert_close(book, ours, rtol=1e-9, atol=1e-9)


def compare(network: torch.nn.Module, x: torch.Tensor) -> torch.nn.Module:
    """Outputs and gradients of both forms; returns the textbook's, which shares nothing."""
    slow = textbook(network)
    assert set(map(type, network.modules())) & FORMS.keys()
    assert not set(map(type, slow.modules())) & FORMS.keys()
    assert not set(network.parameters()) & set(slow.parameters())
    close(network(x), slow(x))
    for form in (network, slow):
        form(x).square().sum().backward()
    for p, q in zip(network.parameters(), slow.parameters(), strict=True):
        assert p.grad is not None
        close(p.grad, q.grad)
    return slow


@pytest.mark.parametrize("kernel", [3, 1])
def test_generator(kernel):
    G = perturb(Generator(16, 8, 8, [(6, 8), (4, 6), (4, 4)], kernel, mapping_layers=2))
    slow = compare(G, torch.randn(3, 8))
    # Every layer its own w, every image its own noise.
    ws, noise = torch.randn(3, G.num_ws, 8), G.synthesis.draw_noise(3, torch.Generator())
    close(G.synthesis(ws, noise=noise).image, slow.synthesis(ws, noise=noise).image)


def test_discriminator():
    D = Discriminator(16, [8, 6, 4])
    images = torch.randn(4, 3, 16, 16, requires_grad=True)
    slow = compare(D, images)
    close(gradient_penalty(D(images), images), gradient_penalty(slow(images), images))


@pytest.mark.parametrize("kernel, radial, clamp", [
    (3, False, None), (1, True, None), (3, False, 0.5)])
def test_alias_free_generator(kernel, radial, clamp):
    G = AliasFreeGenerator(32, 8, 8, [6, 6, 5, 4, 4], kernel, radial, clamp=clamp).eval()
    compare(G, torch.randn(2, 8))
