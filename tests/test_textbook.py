"""The textbook's form gives the same numbers and gradients: the benchmark compares like with like."""

from __future__ import annotations

import pytest
import torch

from gapkd import textbook
from gapkd.distillation.losses import r1_penalty
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator


@pytest.mark.parametrize("kernel", [3, 1])
def test_generator(kernel):
    torch.manual_seed(0)
    G = Generator(16, 8, 8, [(6, 8), (4, 6), (4, 4)], kernel, mapping_layers=2).double()
    with torch.no_grad():
        for conv in G.synthesis.convs:
            conv.noise_strength.fill_(0.3)
    slow = textbook.textbook(G)
    z = torch.randn(3, 8, dtype=torch.float64)
    torch.testing.assert_close(slow(z), G(z), rtol=1e-9, atol=1e-9)
    for network in (G, slow):
        network(z).square().sum().backward()
    for (name, p), q in zip(G.named_parameters(), slow.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-8, msg=lambda m, n=name: f"{n}: {m}")


def test_discriminator():
    torch.manual_seed(0)
    D = Discriminator(16, [8, 6, 4]).double()
    slow = textbook.textbook(D)
    images = torch.randn(4, 3, 16, 16, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(slow(images), D(images), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(r1_penalty(slow(images), images), r1_penalty(D(images), images), rtol=1e-8, atol=1e-9)


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
