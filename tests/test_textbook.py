"""The textbook's form gives the same numbers and gradients: the benchmark compares like with like,
and the networks of the package are checked."""

from __future__ import annotations

import pytest
import torch
from tiny import perturb

from gapkd import textbook
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.training.adversarial import gradient_penalty


@pytest.mark.parametrize("kernel", [3, 1])
def test_generator(kernel):
    torch.manual_seed(0)
    G = perturb(Generator(16, 8, 8, [(6, 8), (4, 6), (4, 4)], kernel, mapping_layers=2)).double()
    slow = textbook.textbook(G)
    ws = torch.randn(3, G.num_ws, 8, dtype=torch.float64, requires_grad=True)
    drawn = G.synthesis.draw_noise(3, torch.Generator().manual_seed(1))
    for noise in ("const", "none", [m.double() for m in drawn]):
        images = [network.synthesis(ws, noise=noise).image for network in (G, slow)]
        torch.testing.assert_close(*images, rtol=1e-9, atol=1e-9)
    inputs = [[ws, *network.synthesis.parameters()] for network in (G, slow)]
    gradients = [torch.autograd.grad(image.square().sum(), x)
                 for image, x in zip(images, inputs, strict=True)]
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-8, atol=1e-8)


def test_discriminator():
    torch.manual_seed(0)
    D = Discriminator(16, [8, 6, 4]).double()
    slow = textbook.textbook(D)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(slow(images), D(images), rtol=1e-9, atol=1e-9)
    penalties = [gradient_penalty(network(images), images) for network in (slow, D)]
    torch.testing.assert_close(*penalties, rtol=1e-8, atol=1e-9)


def test_the_copy_is_a_copy():
    G = Generator(8, 8, 8, 8, mapping_layers=1)
    slow = textbook.textbook(G)
    assert type(G.synthesis) is not type(slow.synthesis)
    with torch.no_grad():
        slow.synthesis.const.zero_()
    assert bool(G.synthesis.const.any())


@pytest.mark.parametrize("kernel, radial, clamp", [(3, False, None), (1, True, None), (3, False, 0.5)])
def test_alias_free_generator(kernel, radial, clamp):
    torch.manual_seed(0)
    torch.set_default_dtype(torch.float64)
    try:
        G = AliasFreeGenerator(32, 8, 8, [6, 6, 5, 4, 4], kernel, radial, clamp=clamp).eval()
        slow = textbook.textbook(G)
        assert any(type(m) is textbook.FilteredLeakyReLU for m in slow.modules())
        z = torch.randn(2, 8)
        torch.testing.assert_close(slow(z), G(z), rtol=1e-10, atol=1e-10)
        for network in (G, slow):
            network.zero_grad()
            network(z).square().sum().backward()
        for (name, p), q in zip(G.named_parameters(), slow.named_parameters(), strict=True):
            torch.testing.assert_close(p.grad, q[1].grad, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")
    finally:
        torch.set_default_dtype(torch.float32)
