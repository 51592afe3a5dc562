"""The renderer: deterministic, independent of resolution and batch, and every factor shows."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from gapkd.data.datasets import ImageFolder, ToyFaces
from gapkd.data.toyfaces import (
    CATEGORICAL,
    CONTINUOUS,
    FREQUENCIES,
    draw_factors,
    face_mask,
    render,
    toy_faces,
)


def test_a_face_depends_on_seed_and_number_alone():
    images, factors = toy_faces(torch.tensor([3, 900_000_000_007, 5]), 32, seed=4)
    alone, own = toy_faces(torch.tensor([900_000_000_007]), 32, seed=4)
    torch.testing.assert_close(images[1:2], alone)
    assert all(torch.equal(factors[k][1:2], own[k]) for k in factors)
    assert not torch.allclose(images[1], images[0])
    assert not torch.allclose(toy_faces(4, 32, seed=5)[0][:3], images)


@pytest.mark.parametrize("indices", [[0, 2], np.array([0, 2]), torch.tensor([0, 2]).short()])
def test_whole_numbers_are_indices_however_they_come(indices):
    assert toy_faces(indices)[0].equal(toy_faces(torch.tensor([0, 2]))[0])


@pytest.mark.parametrize("indices", [torch.tensor([True, False]), torch.tensor([1.7]), [-1], 0.5])
def test_masks_fractions_and_negative_numbers_are_no_indices(indices, tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "a.png")
    for load in (toy_faces, ToyFaces().load, ImageFolder(tmp_path, 32).load):
        with pytest.raises(ValueError, match=r"mask.nonzero\(\)\[:, 0\] makes them of a mask; not"):
            load(indices)


def test_faces_are_float32_whatever_the_default_is(float64):
    assert toy_faces(2)[0].dtype == torch.float32


def test_colours_lie_on_the_cpu_whatever_the_default_was_at_their_import():
    code = ("import torch; torch.set_default_device('meta'); import gapkd.data.toyfaces as t; "
            "print(t.HAIR.device, t.IRIS.device, t.SKIN.device)")
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.split() == ["cpu"] * 3


def test_the_faces_of_the_embedded_teachers_are_drawn_today():
    """Recorded: a teacher has seen these; a renderer that draws others is another dataset."""
    images, factors = toy_faces(torch.arange(64), 32, seed=0)
    assert factors["hair_colour"][:12].tolist() == [1, 0, 2, 1, 0, 2, 0, 0, 2, 3, 1, 0]
    colours, columns = images.mean(dim=(0, 2, 3)), images.mean(dim=(0, 1, 2))[::8]
    for found, recorded in ((images.std(), 0.459362), (colours, [0.186884, 0.131376, -0.018049]),
                            (columns, [0.331507, 0.075757, -0.065586, 0.021657])):
        torch.testing.assert_close(found, torch.tensor(recorded), atol=1e-5, rtol=0)


def test_the_same_face_at_every_resolution():
    numbers = torch.arange(24)
    small, large = toy_faces(numbers, 32)[0], toy_faces(numbers, 128)[0]
    difference = (F.avg_pool2d(large, 4) - small).abs()
    other = (F.avg_pool2d(large.roll(1, 0), 4) - small).abs()
    assert difference.mean() < 0.05 < 3 * difference.mean() < other.mean()


def test_ranges_frequencies_and_independence():
    factors = draw_factors(torch.arange(25_000), seed=1)
    assert set(factors) == set(CATEGORICAL) | set(CONTINUOUS)
    for name, (low, high) in CONTINUOUS.items():
        value = factors[name]
        assert value.dtype == torch.float32 and low <= value.min() and value.max() <= high
        assert abs(value.mean().item() - (low + high) / 2) < 0.02 * (high - low)
    grown = factors["hair_style"] > 0
    assert factors["fringe"][~grown].max() == 0  # the one exception: bald heads have no fringe
    for name, classes in CATEGORICAL.items():
        seen = factors[name][grown] if name == "fringe" else factors[name]
        counts = torch.bincount(seen, minlength=len(classes)) / len(seen)
        torch.testing.assert_close(counts, torch.tensor(FREQUENCIES[name]), atol=0.015, rtol=0)
    table = torch.stack([v[grown].float() for v in factors.values()])
    assert (torch.corrcoef(table) - torch.eye(len(table))).abs().max() < 0.04


PLAIN = {"hair_style": 1, "hair_colour": 1, "fringe": 0, "iris_colour": 0, "glasses": 0, "beard": 0}


def face(**changes) -> torch.Tensor:
    factors = {name: torch.tensor([PLAIN[name]]) for name in CATEGORICAL}
    factors |= {name: torch.tensor([(low + high) / 2]) for name, (low, high) in CONTINUOUS.items()}
    factors["mouth_opening"] = torch.tensor([0.5])
    factors |= {name: torch.tensor([value]) for name, value in changes.items()}
    return render(factors, 32)


@pytest.mark.parametrize("name", [*CATEGORICAL, *CONTINUOUS])
def test_every_factor_shows_at_32_pixels(name):
    """Any two values of a factor differ by more than 0.25 in some pixels of a 32 px face."""
    values = range(len(CATEGORICAL[name])) if name in CATEGORICAL else CONTINUOUS[name]
    pictures = [face(**{name: value}) for value in values]
    for i, a in enumerate(pictures):
        for b in pictures[i + 1:]:
            assert (a - b).abs().amax() > 0.25, name


def test_mask_covers_the_face_and_not_the_corners():
    mask = face_mask(draw_factors(torch.arange(50)), 32)
    assert mask.shape == (50, 1, 32, 32) and mask.min() >= 0 and mask.max() <= 1
    assert (mask[:, 0, 16, 16] > 0.99).all()
    assert mask[:, 0, 0, [0, -1]].max() < 0.01


def test_mask_leaves_the_shirt_out():
    """Of long-haired faces too: their hair falls behind it."""
    factors = draw_factors(torch.arange(100))
    other = factors | {"shirt_hue": 1 - factors["shirt_hue"]}
    changed = (render(factors, 64) - render(other, 64)).abs().amax(dim=1, keepdim=True)
    mask = face_mask(factors, 64)
    shirt = changed > 0.9 * changed.amax(dim=(1, 2, 3), keepdim=True)
    assert (shirt.sum(dim=(1, 2, 3)) > 50).sum() > 80
    assert mask[shirt].max() < 0.1
    long_hair = (factors["hair_style"] == 2)[:, None, None, None] & (mask > 0.5)
    assert long_hair[:, :, 32:, :12].any() and long_hair[:, :, 32:, -12:].any()  # but not the hair
