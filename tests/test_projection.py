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


@pytest.mark.parametrize("kind, steps", [("2", 300), ("3", 150)])
def test_what_a_generator_drew_is_found_again(kind, steps):
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
    found = project(G, targets, squared, steps)
    gain = found.psnr - start  # some end in a local minimum
    assert found.ws.shape == (3, G.num_ws, 8) and gain.median() > 10 and gain.min() > 5
    torch.testing.assert_close(found.psnr, psnr(found.images, targets))
    torch.testing.assert_close(found.perceptual, squared(found.images, targets))
    with torch.no_grad():
        again = G.synthesis(found.ws).image.clamp(-1, 1)
    torch.testing.assert_close(again, found.images)
    assert all(p.requires_grad and p.grad is None for p in G.parameters())


def test_batch_size_changes_nothing_and_the_perceptual_distance_is_heeded():
    torch.manual_seed(3)
    G, targets = Generator(8, 8, 8, 8, mapping_layers=2).eval(), torch.rand(2, 3, 8, 8)

    def colour(a, b):
        return (a.mean(dim=(2, 3)) - b.mean(dim=(2, 3))).square().sum(dim=1)

    together, alone = project(G, targets, colour, 30), project(G, targets[1:], colour, 30)
    torch.testing.assert_close(alone.ws, together.ws[1:], atol=1e-3, rtol=1e-3)
    heeded = project(G, targets, lambda a, b: 10 * colour(a, b), 30)
    assert heeded.perceptual.mean() < 0.5 * 10 * together.perceptual.mean()


def test_the_rate_falls_along_a_cosine(monkeypatch):
    rates, real = [], torch.optim.Adam.step

    def step(optimiser):
        rates.append(optimiser.param_groups[0]["lr"])
        return real(optimiser)

    monkeypatch.setattr(torch.optim.Adam, "step", step)
    G = Generator(8, 8, 8, 8, mapping_layers=1)
    project(G, torch.zeros(1, 3, 8, 8), squared, 3)
    assert rates == pytest.approx([0.2, 0.15, 0.05])  # 1 + cos of 0, 60, 120 degrees


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_may_be_off_around_a_projection(mode):
    G = Generator(8, 8, 8, 8, mapping_layers=1)
    with mode():
        found = project(G, torch.zeros(1, 3, 8, 8), squared, 3)
    torch.testing.assert_close(found.ws, project(G, torch.zeros(1, 3, 8, 8), squared, 3).ws)


def test_a_generator_in_half_precision_and_a_distance_by_its_name():
    G = Generator(32, 8, 8, 8, mapping_layers=1).half()
    found = project(G, torch.zeros(1, 3, 32, 32), "toyfaces", 2)
    assert found.psnr.isfinite().all() and found.perceptual.isfinite().all()
    assert found.ws.isfinite().all() and found.ws.std(dim=1).max() > 0  # it has moved


def test_bad_input():
    G = Generator(8, 8, 8, 8, mapping_layers=1)
    with pytest.raises(ValueError, match=r"must have shape \(N, 3, 8, 8\), not \(1, 3, 16, 16\): "):
        project(G, torch.zeros(1, 3, 16, 16), squared)
    target = torch.zeros(1, 3, 8, 8)
    for other, message in ((target.byte(), "not torch.uint8"), (target.numpy(), "not ndarray"),
                           (target + 255, "not values of up to 255: torch.as_tensor"),
                           (target + math.nan, "not values of up to nan")):
        with pytest.raises(ValueError, match=message):
            project(G, other, squared)
    project(G, target + 3, squared, 1)  # generators overshoot
    for kind in (torch.float16, torch.float64):
        assert project(G, target.to(kind), squared, 1).psnr.dtype == torch.float32
