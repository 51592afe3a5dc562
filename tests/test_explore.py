"""The explorer, driven through its widgets without a kernel."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from gapkd.metrics.editing import Directions
from gapkd.networks.stylegan2 import Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.viewing.explore import Explorer
from gapkd.viewing.figures import to_png

NAMED = Directions(("smile", "glasses"), torch.eye(8)[2:4], torch.tensor([3.0, 5.0]))


def networks(c_dim=0):
    """StyleGAN2 at two resolutions, and StyleGAN3."""
    torch.manual_seed(0)
    return {"teacher": Generator(32, 8, 8, 8, mapping_layers=2, c_dim=c_dim).eval(),
            "student": Generator(16, 8, 8, 4, mapping_layers=2, c_dim=c_dim).eval(),
            "alias-free": AliasFreeGenerator(16, 8, 8, [8, 8, 8], c_dim=c_dim, margin=2).eval()}


@pytest.fixture
def explorer():
    return Explorer(networks(), torch.eye(8)[:3], size=64)


@pytest.fixture
def named():
    return Explorer(networks(c_dim=3), NAMED, size=64)


def shown(explorer):
    return {name: image.value for name, image in explorer.images.items()}


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def z(seed):
    return torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind, moves", [
    ("explorer", {"seed": 5, "truncation": 0.3, "strength": 4.0, "direction": 2,
                  "layers": 2, "other": 3}),
    ("named", {"seed": 5, "truncation": 0.3, "strength": 1.0, "direction": 1, "category": 2,
               "layers": 2, "other": 3})])
def test_every_control_changes_its_pictures_and_reset_brings_them_back_at_once(
        kind, moves, monkeypatch, request):
    explorer = request.getfixturevalue(kind)
    first = shown(explorer)
    assert {id(control) for control in explorer.controls} == {
        id(getattr(explorer, name)) for name in moves}
    for name, value in moves.items():
        before = shown(explorer)
        getattr(explorer, name).value = value
        assert all(after != before[label] for label, after in shown(explorer).items()), name
    drawn, draw = [], explorer.draw
    monkeypatch.setattr(explorer, "draw", lambda G: drawn.append(G) or draw(G))
    explorer.reset.click()
    assert shown(explorer) == first and len(drawn) == 3  # each generator once


def test_pictures_are_what_the_generator_draws_and_strength_is_a_length_in_w_along_rows(explorer):
    explorer.seed.value = 3
    for G in explorer.generators.values():
        torch.testing.assert_close(explorer.draw(G), G(z(3), truncation=0.7))
    explorer.truncation.value, explorer.direction.value, explorer.strength.value = 1.0, 2, -4.0
    for G in explorer.generators.values():
        moved = G.synthesis(G.mapping(z(3)) - 4 * torch.eye(8)[2]).image
        torch.testing.assert_close(explorer.draw(G), moved)


def test_strength_counts_in_reaches_along_named_directions(named):
    strength = named.strength
    assert [name for name, _ in named.direction.options] == ["smile", "glasses"]
    assert (strength.min, strength.max, strength.description) == (-1, 1, "strength (reach)")
    named.truncation.value, named.direction.label, strength.value = 1.0, "glasses", 0.5
    named.category.value = 2
    for G in named.generators.values():
        w = G.mapping(z(0), torch.eye(3)[2:])
        torch.testing.assert_close(named.draw(G), G.synthesis(w + 2.5 * NAMED["glasses"]).image)


def test_the_fine_layers_can_be_a_second_seeds(explorer):
    explorer.layers.value = 2
    for G in explorer.generators.values():
        ours, theirs = (G.truncate(G.mapping(z(seed)), 0.7) for seed in (0, 2))
        ws = torch.stack([ours] * (G.num_ws - 2) + [theirs] * 2, dim=1)  # (1, num_ws, w_dim)
        torch.testing.assert_close(explorer.draw(G), G.synthesis(ws).image)
    explorer.layers.value = explorer.layers.max  # more than the smaller network has
    for G in explorer.generators.values():
        torch.testing.assert_close(explorer.draw(G), G(z(2), truncation=0.7))


def test_small_images_keep_their_pixels_and_large_ones_are_reduced(explorer):
    student = pixels(explorer.images["student"].value)
    whole = student[::4, ::4].reshape(16, 1, 16, 1, 3)
    assert (student.reshape(16, 4, 16, 4, 3) == whole).all()
    smaller = Explorer(networks(), torch.eye(8), size=16).images["teacher"].value
    assert pixels(smaller).shape == (16, 16, 3)


def holds(sheet, tile):
    """Whether the pixels of `tile` lie somewhere in `sheet`."""
    size = len(tile)
    corners = np.argwhere((sheet[:-size + 1, :-size + 1] == tile[0, 0]).all(axis=2))
    return any((sheet[y:y + size, x:x + size] == tile).all() for y, x in corners)


def test_a_page_without_a_kernel_gets_what_the_widgets_show(explorer):
    before = pixels(to_png(explorer.sheet()))
    explorer.seed.value = 5
    bundle, metadata = explorer._repr_mimebundle_(include=None, exclude=None)
    assert "seed 5, truncation 0.7" in metadata["image/png"]["alt"]
    assert bundle["text/plain"] == metadata["image/png"]["alt"], "not a listing of widgets"
    view = bundle["application/vnd.jupyter.widget-view+json"]
    assert view["model_id"] == explorer.widget.model_id
    after = pixels(base64.b64decode(bundle["image/png"]))
    for label, png in shown(explorer).items():
        assert holds(after, pixels(png)) and not holds(before, pixels(png)), label


def test_looking_changes_no_network():
    every = networks()
    every["alias-free"].train()
    before = {name: {k: v.clone() for k, v in G.state_dict().items()} for name, G in every.items()}
    Explorer(every, torch.eye(8), size=64).strength.value = 2.0
    assert [G.training for G in every.values()] == [False, False, True]
    for name, G in every.items():
        assert all(torch.equal(v, before[name][k]) for k, v in G.state_dict().items()), name


def mapped(z_dim=8, w_dim=8, c_dim=0):
    return Generator(8, z_dim, w_dim, 4, mapping_layers=1, c_dim=c_dim)


@pytest.mark.parametrize("generators, message", [
    ({}, "give the generators with their labels"), (mapped(), "give the generators with their"),
    ({"teacher": "toyfaces32"}, "teacher is a str, not a generator"),
    ({"a": mapped(), "other": mapped(4, 8)}, "other has z_dim 4, w_dim 8 and c_dim 0, the first"),
    ({"a": mapped(), "other": mapped(8, 4)}, "other has z_dim 8, w_dim 4 and c_dim 0"),
    ({"a": mapped(), "other": mapped(c_dim=2)}, "other has z_dim 8, w_dim 8 and c_dim 2")])
def test_generators_must_share_their_latents(generators, message):
    with pytest.raises(ValueError, match=message):
        Explorer(generators, torch.eye(8))


ROWS = r"directions must be rows \(K, 8\)"


@pytest.mark.parametrize("directions, size, message", [
    *[(wrong, 64, ROWS) for wrong in (
        torch.eye(4), torch.zeros(0, 8), torch.zeros(8), None, [[0.0] * 8],
        Directions(("smile",), torch.eye(4)[:1], torch.ones(1)))],
    (torch.full((2, 8), torch.nan), 64, "must be finite"), (torch.eye(8), 3, "16 to 2048, not 3"),
    (Directions(("smile",), torch.eye(8)[:1], torch.zeros(1)), 64, "every reach above 0")])
def test_directions_and_size_must_fit(directions, size, message):
    with pytest.raises(ValueError, match=message):
        Explorer({"a": mapped()}, directions, size=size)
