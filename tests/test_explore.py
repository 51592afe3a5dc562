"""The explorers, driven through their widgets without a kernel."""

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
from gapkd.viewing.explore import Explorer, StyleMixer

NAMED = Directions(("smile", "glasses"), torch.eye(8)[2:4], torch.tensor([3.0, 5.0]))


def networks(c_dim=0):
    """StyleGAN2 at two resolutions, and StyleGAN3."""
    torch.manual_seed(0)
    return {"teacher": Generator(32, 8, 8, 8, mapping_layers=2, c_dim=c_dim).eval(),
            "student": Generator(16, 8, 8, 4, mapping_layers=2, c_dim=c_dim).eval(),
            "alias-free": AliasFreeGenerator(16, 8, 8, [8, 8, 8], c_dim=c_dim, margin=2).eval()}


@pytest.fixture
def explorer():
    torch.manual_seed(0)
    pair = {name: Generator(16, 8, 8, 8, mapping_layers=2).eval() for name in ("teacher", "student")}
    return Explorer(pair, torch.eye(8)[:3], size=64)


EXPLORERS = {"rows": lambda: Explorer(networks(), torch.eye(8)[:3], size=64),
             "named, classes": lambda: Explorer(networks(c_dim=3), NAMED, size=64),
             "mixer": lambda: StyleMixer(networks(), size=64),
             "mixer, classes": lambda: StyleMixer(networks(c_dim=3), size=64)}
MOVES = {"rows": {"seed": 5, "truncation": 0.3, "strength": 4.0, "direction": 2},
         "named, classes": {"seed": 5, "truncation": 0.3, "strength": 1.0, "direction": 1, "category": 2},
         "mixer": {"seed": 5, "seed_b": 7, "crossover": 2, "truncation": 0.3}}
MOVES["mixer, classes"] = MOVES["mixer"] | {"category": 2}


def shown(explorer):
    return {name: image.value for name, image in explorer.images.items()}


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)))


def z(seed):
    return torch.randn(1, 8, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", EXPLORERS)
def test_every_control_changes_every_picture_and_reset_brings_them_back(kind):
    explorer = EXPLORERS[kind]()
    first, other = shown(explorer), {"seed": "seed B", "seed_b": "seed A"}
    assert {id(control) for control in explorer.controls} == {id(getattr(explorer, name)) for name in MOVES[kind]}
    for name, value in MOVES[kind].items():
        before = shown(explorer)
        getattr(explorer, name).value = value
        after = shown(explorer)
        for caption in after:  # in a mixer, a pure seed follows its own control alone
            pure = "mixer" in kind and (caption.endswith(other.get(name, "-")) or
                                        name == "crossover" and not caption.endswith("mixed"))
            assert (after[caption] == before[caption]) == pure, (name, caption)
    explorer.reset.click()
    assert shown(explorer) == first


def test_reset_draws_once(explorer, monkeypatch):
    explorer.seed.value, explorer.truncation.value, explorer.strength.value = 5, 0.3, 4.0
    drawn = []
    draw = explorer.draw
    monkeypatch.setattr(explorer, "draw", lambda G: drawn.append(G) or draw(G))
    explorer.reset.click()
    assert len(drawn) == 2  # each generator
    assert (explorer.seed.value, explorer.truncation.value, explorer.strength.value) == (0, 0.7, 0)


def test_the_direction_does_nothing_at_strength_zero(explorer):
    before = shown(explorer)
    explorer.direction.value = 1
    assert shown(explorer) == before


def test_pictures_are_what_the_generator_draws(explorer):
    explorer.seed.value, explorer.truncation.value = 3, 1.0
    G = explorer.generators["teacher"]
    torch.testing.assert_close(explorer.draw(G), G(z(3)))
    assert pixels(explorer.images["teacher"].value).shape == (64, 64, 3)


def test_strength_is_a_length_in_w_along_rows(explorer):
    explorer.truncation.value, explorer.direction.value, explorer.strength.value = 1.0, 2, -4.0
    G = explorer.generators["student"]
    torch.testing.assert_close(explorer.draw(G), G.synthesis(G.mapping(z(0)) - 4 * torch.eye(8)[2]).image)


def test_strength_counts_in_reaches_along_named_directions():
    explorer = Explorer(networks(), NAMED, size=64)
    assert [name for name, _ in explorer.direction.options] == ["smile", "glasses"]
    explorer.truncation.value, explorer.direction.label, explorer.strength.value = 1.0, "glasses", 0.5
    assert (explorer.strength.min, explorer.strength.max, explorer.strength.description) == (-1, 1, "strength (reach)")
    for G in explorer.generators.values():
        torch.testing.assert_close(explorer.draw(G), G.synthesis(G.mapping(z(0)) + 2.5 * NAMED["glasses"]).image)


def test_the_class_reaches_the_generator():
    explorer = Explorer(networks(c_dim=3), NAMED, size=64)
    explorer.category.value, explorer.truncation.value = 2, 1.0
    for G in explorer.generators.values():
        torch.testing.assert_close(explorer.draw(G), G(z(0), torch.eye(3)[2:]))
    assert Explorer(networks(), NAMED, size=64).category is None


def test_a_mixture_lies_between_its_pure_seeds():
    mixer = StyleMixer(networks(), size=64)
    mixer.seed.value, mixer.seed_b.value, mixer.truncation.value = 3, 4, 1.0
    assert mixer.crossover.max == 8  # of the one with most layers
    for G in mixer.generators.values():
        mixer.crossover.value = 2
        a, mixed, b = mixer.draw(G)
        torch.testing.assert_close(torch.stack([a, b]), torch.cat([G(z(3)), G(z(4))]))
        assert min((mixed - a).abs().max(), (mixed - b).abs().max()) > 1e-3
        mixer.crossover.value = 0
        torch.testing.assert_close(mixer.draw(G)[1], b)
        mixer.crossover.value = mixer.crossover.max
        torch.testing.assert_close(mixer.draw(G)[1], a)
        mixer.crossover.value = 2
        w_a, w_b = G.mapping(z(3)), G.mapping(z(4))
        ws = torch.stack([w_a if layer < 2 else w_b for layer in range(G.num_ws)], dim=1)
        torch.testing.assert_close(mixed, G.synthesis(ws).image[0])


def test_small_images_keep_their_pixels_and_large_ones_are_reduced():
    explorer = Explorer(networks(), torch.eye(8), size=64)
    student = pixels(explorer.images["student"].value)
    assert (student.reshape(16, 4, 16, 4, 3) == student[::4, ::4].reshape(16, 1, 16, 1, 3)).all()
    assert pixels(Explorer(networks(), torch.eye(8), size=16).images["teacher"].value).shape == (16, 16, 3)


def holds(sheet, tile):
    """Whether the pixels of `tile` lie somewhere in `sheet`."""
    size = len(tile)
    return any((sheet[y:y + size, x:x + size] == tile).all()
               for y, x in np.argwhere((sheet[:-size + 1, :-size + 1] == tile[0, 0]).all(axis=2)))


@pytest.mark.parametrize("kind", EXPLORERS)
def test_the_picture_holds_what_the_widgets_show(kind):
    explorer = EXPLORERS[kind]()
    before = explorer.picture()
    explorer.seed.value = 5
    sheet = np.asarray(explorer.picture())
    for caption, png in shown(explorer).items():
        assert holds(sheet, pixels(png)), caption
    assert not any(holds(np.asarray(before), pixels(png)) for caption, png in shown(explorer).items()
                   if not caption.endswith("seed B"))


def test_a_page_without_a_kernel_gets_the_picture(explorer):
    explorer.strength.value = 4.0
    bundle = explorer._repr_mimebundle_(include=None, exclude=None)
    assert bundle["application/vnd.jupyter.widget-view+json"]["model_id"] == explorer.widget.model_id
    assert (pixels(base64.b64decode(bundle["image/png"])) == np.asarray(explorer.picture())).all()


def test_looking_changes_no_network():
    every = networks()
    every["alias-free"].train()
    before = {name: {k: v.clone() for k, v in G.state_dict().items()} for name, G in every.items()}
    Explorer(every, torch.eye(8), size=64).strength.value = 2.0
    StyleMixer(every, size=64)
    assert [G.training for G in every.values()] == [False, False, True]
    for name, G in every.items():
        assert all(torch.equal(v, before[name][k]) for k, v in G.state_dict().items()), name


def test_generators_must_share_their_latents(explorer):
    with pytest.raises(ValueError, match="other has z_dim 4"):
        Explorer(explorer.generators | {"other": Generator(16, 4, 4, 8, mapping_layers=1)}, torch.eye(8))
    with pytest.raises(ValueError, match="conditional has z_dim 8, w_dim 8 and c_dim 2"):
        StyleMixer(explorer.generators | {"conditional": Generator(16, 8, 8, 8, mapping_layers=1, c_dim=2)})


@pytest.mark.parametrize("directions", [torch.eye(4), torch.zeros(0, 8), torch.zeros(8), None, [[0.0] * 8],
                                        Directions(("smile",), torch.eye(4)[:1], torch.ones(1))])
def test_directions_must_fit(explorer, directions):
    with pytest.raises(ValueError, match=r"directions must be rows \(K, 8\)"):
        Explorer(explorer.generators, directions)


def test_other_bad_input_is_refused(explorer):
    with pytest.raises(ValueError, match="give the generators with their labels"):
        StyleMixer({})
    with pytest.raises(ValueError, match="give the generators with their labels"):
        StyleMixer(explorer.generators["teacher"])
    with pytest.raises(ValueError, match="teacher is a str, not a generator"):
        StyleMixer({"teacher": "toyfaces32"})
    with pytest.raises(ValueError, match="not finite"):
        Explorer(explorer.generators, torch.full((2, 8), torch.nan))
    with pytest.raises(ValueError, match="needs a reach above 0"):
        Explorer(explorer.generators, Directions(("smile",), torch.eye(8)[:1], torch.zeros(1)))
    with pytest.raises(ValueError, match="16 to 2048, not 3"):
        StyleMixer(explorer.generators, size=3)
