"""Path lengths and projections whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch

from gapkd.metrics.distribution import path_length
from gapkd.metrics.projection import project, psnr
from gapkd.networks.stylegan2 import Generator, SynthesisOutput
from gapkd.networks.stylegan3 import AliasFreeGenerator


class Linear(torch.nn.Module):
    """Stands for a generator: z is w, and the image is a matrix times it."""

    resolution, z_dim, w_dim, c_dim, num_ws = 8, 6, 6, 0, 2

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.matrix = torch.nn.Parameter(torch.randn(6, 3 * 64, dtype=torch.float64) * 0.1)
        self.convs = []

    @property
    def synthesis(self):
        return self

    def mapping(self, z, c=None):
        return z.double()

    def forward(self, ws, noise=()):
        w = ws if ws.ndim == 2 else ws.mean(dim=1)
        image = (w @ self.matrix).view(-1, 3, 8, 8)
        return SynthesisOutput(image, [], [image])

    __call__ = forward


def squared(a, b):
    return (a - b).square().sum(dim=(1, 2, 3))


def test_the_path_length_of_a_linear_generator_is_that_of_its_matrix():
    """A step of epsilon moves the image by epsilon A (w_b - w_a), wherever one stands: E = 2 |A|^2."""
    G = Linear()
    generator = torch.Generator().manual_seed(7)
    lengths = []
    for n in (40, 40, 20):
        w_a, w_b = torch.randn(n, 6, generator=generator).double(), torch.randn(n, 6, generator=generator).double()
        torch.rand(n, 1, generator=generator)
        lengths.append(((w_b - w_a) @ G.matrix.detach()).square().sum(dim=1))
    lengths = torch.cat(lengths).sort().values
    expected = lengths[1:-1].mean().item()  # of 100, the 1st and the 99th percentile leave out one at either end
    assert path_length(G, squared, 100, seed=7, batch=40) == pytest.approx(expected, rel=1e-4)
    many = path_length(G, squared, 20_000, batch=5000)
    assert many == pytest.approx(2 * G.matrix.square().sum().item(), rel=0.05)


def test_the_step_does_not_change_the_path_length_of_a_smooth_generator():
    torch.manual_seed(0)
    G = Generator(8, 8, 8, 8, mapping_layers=2).eval().double()
    G.mapping.forward = lambda z, c=None: z.double()  # the mapping network's own input check is for float32
    a, b = (path_length(G, squared, 50, epsilon=e) for e in (1e-4, 1e-5))
    assert a > 0 and a == pytest.approx(b, rel=1e-2)


def test_psnr_by_hand():
    a = torch.zeros(2, 3, 4, 4)
    b = torch.stack([torch.full((3, 4, 4), 0.2), torch.full((3, 4, 4), 2.0)])
    torch.testing.assert_close(psnr(a, b), torch.tensor([10 * math.log10(4 / 0.04), 0.0]))


@pytest.mark.parametrize("optimiser, steps", [("adam", 300), ("lbfgs", 40)])
@pytest.mark.parametrize("kind", "23")
def test_what_a_generator_drew_is_found_again(kind, optimiser, steps):
    torch.manual_seed(1)
    G = (Generator(8, 8, 8, 8, mapping_layers=2) if kind == "2"
         else AliasFreeGenerator(16, 8, 8, [8, 8, 8], mapping_layers=2, margin=2)).eval()
    with torch.no_grad():
        for layer in [b.torgb.conv for b in G.synthesis.blocks] if kind == "2" else G.synthesis.layers[-1:]:
            layer.weight.mul_(0.2)  # within [-1, 1]: nothing is lost by clamping
        targets = G(torch.randn(3, 8)).clamp(-1, 1)
        start = psnr(G.synthesis(G.mapping(torch.randn(500, 8)).mean(dim=0, keepdim=True)).image.clamp(-1, 1), targets)
    before = [p.clone() for p in G.parameters()]
    found = project(G, targets, squared, steps, optimiser, perceptual_weight=0.0)
    gain = found.psnr - start  # some end in a local minimum
    assert found.ws.shape == (3, G.num_ws, 8) and gain.median() > 10 and gain.min() > 5
    torch.testing.assert_close(found.psnr, psnr(found.images, targets))
    with torch.no_grad():
        torch.testing.assert_close(G.synthesis(found.ws, noise=found.noise).image.clamp(-1, 1), found.images)
    assert all(map(torch.equal, before, G.parameters())) and all(p.requires_grad for p in G.parameters())


def test_batch_size_changes_nothing_and_noise_maps_only_if_asked():
    torch.manual_seed(2)
    G = Generator(8, 8, 8, 8, mapping_layers=2).eval()
    with torch.no_grad():
        for conv in G.synthesis.convs:
            conv.noise_strength.fill_(0.5)
    targets = torch.rand(2, 3, 8, 8) * 2 - 1
    together = project(G, targets, squared, 20)
    torch.testing.assert_close(project(G, targets[1:], squared, 20).ws, together.ws[1:], atol=1e-3, rtol=1e-3)
    assert all(torch.equal(m[0], c.noise_const[0]) for m, c in zip(together.noise, G.synthesis.convs, strict=True))
    assert project(G, targets, squared, 20, noise=True).psnr.mean() > together.psnr.mean()


def test_bad_input():
    G = Generator(8, 8, 8, 8, mapping_layers=1)
    with pytest.raises(ValueError, match=r"targets must have shape \(N, 3, 8, 8\), not \(1, 3, 16, 16\): crop and"):
        project(G, torch.zeros(1, 3, 16, 16), squared)
    with pytest.raises(ValueError, match='optimiser must be "adam" or "lbfgs"'):
        project(G, torch.zeros(1, 3, 8, 8), squared, optimiser="sgd")
