"""EQ-T and EQ-R: a picture that moves as it should scores high, another what it must."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from gapkd.metrics.equivariance import equivariance, inner, motion, moved, resample
from gapkd.networks.stylegan2 import Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator


def waves(points: torch.Tensor) -> torch.Tensor:
    """A smooth picture: (..., 2) in widths of the image -> (..., 3), at most 4 cycles over it."""
    k = torch.tensor([[3.0, 1.0], [-2.0, 2.5], [0.5, -3.5]], dtype=points.dtype)
    return torch.sin(2 * math.pi * points @ k.T + torch.tensor([0.3, 1.0, 2.0], dtype=points.dtype))


def drawing(size: int, by: torch.Tensor) -> torch.Tensor:
    place = (torch.arange(size, dtype=torch.float64) + 0.5) / size - 0.5
    y, x = torch.meshgrid(place, place, indexing="ij")
    points = torch.stack([x, y, torch.ones_like(x)], dim=-1) @ by.inverse().T
    return waves(points[..., :2]).permute(2, 0, 1)[None]


class Drawing(AliasFreeGenerator):
    """A generator of a known picture: `waves`, moved by the input's transform, or deaf to it."""

    def __init__(self, deaf: bool = False):
        nn.Module.__init__(self)
        self.resolution, self.z_dim, self.c_dim, self.deaf = 64, 4, 0, deaf
        self.synthesis = nn.Module()
        self.synthesis.input = nn.Module()
        self.synthesis.input.register_buffer("transform", torch.eye(3, dtype=torch.float64))
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, z, c=None):
        by = motion() if self.deaf else self.synthesis.input.transform.inverse()
        return drawing(self.resolution, by).expand(len(z), -1, -1, -1)


@pytest.mark.parametrize("by", [motion(angle=0.7), motion(x=0.1, y=-0.03),
                                motion(angle=-2.0, x=0.05)])
def test_resampling_moves_a_known_picture(by):
    seen = inner(64, by)
    moved_before, moved_after = resample(drawing(64, by)), resample(drawing(64, motion()), by)
    assert seen.sum() > 1000
    torch.testing.assert_close(moved_before[..., seen], moved_after[..., seen], atol=1e-3, rtol=0)


def test_only_pixels_far_from_the_border_count_before_and_after():
    seen = inner(64, motion(x=0.25))
    assert seen[32].nonzero().flatten()[[0, -1]].tolist() == [16 + 6, 63 - 6]
    assert seen[:, 32].nonzero().flatten()[[0, -1]].tolist() == [6, 63 - 6]


def test_a_motion_is_what_its_words_say():
    point = torch.tensor([0.25, 0.0, 1.0], dtype=torch.float64)  # to the right of the centre
    for by, expected in ((motion(angle=math.pi / 2), [0.0, 0.25, 1.0]),
                         (motion(x=0.1, y=0.2), [0.35, 0.2, 1.0])):
        torch.testing.assert_close(by @ point, torch.tensor(expected, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["translation", "rotation"])
def test_a_picture_that_moves_scores_high_and_one_that_does_not_scores_low(kind):
    assert equivariance(Drawing(), kind, samples=8, batch=2) > 60
    # unrelated sines of amplitude 1 differ by a mean square of 1; small motions leave some likeness
    assert 0 < equivariance(Drawing(deaf=True), kind, samples=16, batch=1) < 12


def test_shifts_reach_an_eighth_of_the_image_and_turns_all_around(monkeypatch):
    drawn = []

    def watched(angle: float = 0.0, x: float = 0.0, y: float = 0.0) -> torch.Tensor:
        drawn.append((angle / math.pi, 8 * x, 8 * y))
        return motion(angle, x, y)

    monkeypatch.setattr("gapkd.metrics.equivariance.motion", watched)
    monkeypatch.setattr("gapkd.metrics.equivariance.resample", lambda images, by=None: images)
    equivariance(Drawing(), "translation", samples=200, batch=1)
    assert all(0.97 < furthest <= 1 for furthest in torch.tensor(drawn).abs().amax(dim=0))


def alias_free(kernel: int, radial: bool) -> AliasFreeGenerator:
    torch.manual_seed(0)
    G = AliasFreeGenerator(32, 16, 16, [8] * 5, kernel, radial).eval().requires_grad_(False)
    G.synthesis.output_scale /= G(torch.randn(16, 16)).std().item()  # about [-1, 1]
    return G


def test_what_the_architectures_promise():
    networks = alias_free(3, False), alias_free(1, True)
    shifted, turned = ([equivariance(G, kind, 8, batch=4) for G in networks]
                       for kind in ("translation", "rotation"))
    assert min(shifted) > 35 and turned[1] > turned[0] + 10


def test_the_generator_is_left_as_it_was():
    G = alias_free(1, True)
    z = torch.randn(2, 16, generator=torch.Generator().manual_seed(0))
    before = G(z)
    with moved(G, motion(angle=1.0)):
        assert not torch.allclose(G(z), before, atol=0.01)
    assert torch.equal(G(z), before)


def test_bad_input():
    with pytest.raises(ValueError, match="kind must be 'translation' or 'rotation'"):
        equivariance(alias_free(1, True), "scaling")
    with pytest.raises(ValueError, match="only a StyleGAN3 has an input that can be moved"):
        equivariance(Generator(32, 8, 8, 8, mapping_layers=2), "rotation")
