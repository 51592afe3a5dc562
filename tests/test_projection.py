"""What a generator drew is found again in W+."""

from __future__ import annotations

import math

import pytest
import torch

from gapkd.metrics.projection import project, psnr
from gapkd.networks.stylegan2 import Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator


def squared(a, b):
    return (a - b).square().sum(dim=(1, 2, 3))


def test_psnr_by_hand():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 2.0)])
    torch.testing.assert_close(psnr(a, b), torch.tensor([10 * math.log10(4 / 0.04), 0.0]))


@pytest.mark.parametrize("kind, optimiser, steps", [("2", "adam", 300), ("2", "lbfgs", 40),
                                                    ("3", "adam", 150), ("3", "lbfgs", 20)])
def test_what_a_generator_drew_is_found_again(kind, optimiser, steps):
    torch.manual_seed(1)
    if kind == "2":
        G = Generator(8, 8, 8, 8, mapping_layers=2).eval()
        last = [block.torgb.conv for block in G.synthesis.blocks]
    else:
        G = AliasFreeGenerator(16, 8, 8, [8, 8, 8], mapping_layers=2, margin=2).eval()
        last = G.synthesis.layers[-1:]
    with torch.no_grad():
        for layer in last:
            layer.weight.mul_(0.2)  # within [-1, 1]: nothing is lost by clamping
        targets = G(torch.randn(3, 8)).clamp(-1, 1)
        average = G.mapping(torch.randn(500, 8)).mean(dim=0, keepdim=True)
        start = psnr(G.synthesis(average).image.clamp(-1, 1), targets)
    before = [p.clone() for p in G.parameters()]
    found = project(G, targets, squared, steps, optimiser, perceptual_weight=0.0)
    gain = found.psnr - start  # some end in a local minimum
    assert found.ws.shape == (3, G.num_ws, 8) and gain.median() > 10 and gain.min() > 5
    torch.testing.assert_close(found.psnr, psnr(found.images, targets))
    torch.testing.assert_close(found.perceptual, squared(found.images, targets))
    with torch.no_grad():
        again = G.synthesis(found.ws, noise=found.noise).image.clamp(-1, 1)
    torch.testing.assert_close(again, found.images)
    assert all(map(torch.equal, before, G.parameters()))
    assert all(p.requires_grad for p in G.parameters())


def test_batch_size_changes_nothing_and_noise_maps_only_if_asked():
    torch.manual_seed(2)
    G = Generator(8, 8, 8, 8, mapping_layers=2).eval()
    with torch.no_grad():
        for conv in G.synthesis.convs:
            conv.noise_strength.fill_(0.5)
    targets = torch.rand(2, 3, 8, 8) * 2 - 1
    together, alone = project(G, targets, squared, 20), project(G, targets[1:], squared, 20)
    torch.testing.assert_close(alone.ws, together.ws[1:], atol=1e-3, rtol=1e-3)
    for found, conv in zip(together.noise, G.synthesis.convs, strict=True):
        assert torch.equal(found[0], conv.noise_const[0])
    assert project(G, targets, squared, 20, noise=True).psnr.mean() > together.psnr.mean()


def test_the_perceptual_distance_is_heeded():
    """Its weight moves the result towards what that distance likes: the mean colour, here."""
    torch.manual_seed(3)
    G, targets = Generator(8, 8, 8, 8, mapping_layers=2).eval(), torch.rand(2, 3, 8, 8)

    def colour(a, b):
        return (a.mean(dim=(2, 3)) - b.mean(dim=(2, 3))).square().sum(dim=1)

    plain, heeded = (project(G, targets, colour, 30, perceptual_weight=w) for w in (0.0, 10.0))
    assert heeded.perceptual.mean() < 0.5 * plain.perceptual.mean()


def test_bad_input():
    G = Generator(8, 8, 8, 8, mapping_layers=1)
    with pytest.raises(ValueError, match=r"must have shape \(N, 3, 8, 8\), not \(1, 3, 16, 16\): "):
        project(G, torch.zeros(1, 3, 16, 16), squared)
    with pytest.raises(ValueError, match='optimiser must be "adam" or "lbfgs"'):
        project(G, torch.zeros(1, 3, 8, 8), squared, optimiser="sgd")
