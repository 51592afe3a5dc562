"""The explorer, driven through its widgets without a kernel."""

from __future__ import annotations

import io

import pytest
import torch
from PIL import Image

from gapkd.explore import Explorer
from gapkd.stylegan2 import Generator


@pytest.fixture
def explorer():
    torch.manual_seed(0)
    networks = {name: Generator(16, 8, 8, 8, mapping_layers=2).eval() for name in ("teacher", "student")}
    return Explorer(networks, torch.eye(8)[:3], size=64)


def shown(explorer):
    return {name: image.value for name, image in explorer.images.items()}


def test_every_slider_changes_every_picture(explorer):
    moves = ((explorer.seed, 5), (explorer.truncation, 0.3), (explorer.strength, 4.0), (explorer.direction, 2))
    for control, value in moves:
        before = shown(explorer)
        control.value = value
        after = shown(explorer)
        assert all(before[name] != after[name] for name in before), control.description


def test_the_direction_does_nothing_at_strength_zero(explorer):
    before = shown(explorer)
    explorer.direction.value = 1
    assert shown(explorer) == before


def test_pictures_are_what_the_generator_draws(explorer):
    explorer.seed.value, explorer.truncation.value = 3, 1.0
    G = explorer.generators["teacher"]
    z = torch.randn(1, 8, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(explorer.draw(G), G(z))
    assert Image.open(io.BytesIO(explorer.images["teacher"].value)).size == (64, 64)


def test_generators_must_share_their_latents(explorer):
    with pytest.raises(ValueError, match="other has z_dim 4"):
        Explorer(explorer.generators | {"other": Generator(16, 4, 4, 8, mapping_layers=1)}, torch.eye(8))
