"""Directions with names: found where the answer is known, kept in files, and measured."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from gapkd.cli import main
from gapkd.metrics import editing
from gapkd.metrics.attributes import load_attribute_network
from gapkd.metrics.editing import (
    Directions,
    EditAgreement,
    _least_squares,
    _logistic,
    direction_names,
    draw_readings,
    factor_changes,
    factor_directions,
    linear_fit,
    load_directions,
    measure_edits,
    reach_of,
    save_directions,
    sefa,
)
from gapkd.networks.base import SynthesisOutput
from gapkd.networks.stylegan2 import Generator


@pytest.fixture(scope="module")
def G():
    torch.manual_seed(0)
    return Generator(32, 8, 8, 4, mapping_layers=1).eval()


class Reader:
    """Reads two factors and a category straight from the first pixels; a second category hangs on
    the first factor."""

    continuous = {"tilt": (-1.0, 1.0), "light": (0.0, 1.0)}

    def __init__(self, sizes=False):
        self.categorical = {"hat": ("no", "yes")}
        if sizes:
            self.categorical["size"] = ("small", "middle", "large")

    def factors(self, images):
        a, b, c = images[:, 0, 0, :3].unbind(dim=1)
        return {"hat": torch.stack([-c, c], dim=1), "tilt": a, "light": b,
                "size": torch.stack([-a - 0.5, torch.zeros_like(a), a - 0.5], dim=1)}


WEIGHT = torch.zeros(6, 3)                # of w, for the first pixels
WEIGHT[0, 0] = WEIGHT[1, 0] = 0.2         # tilt
WEIGHT[1, 1] = WEIGHT[2, 1] = 0.2         # light shares an axis with it
WEIGHT[3, 2] = 0.3                        # hat


class Known(torch.nn.Module):
    """w is z, and the first pixels are known linear functions of it."""

    z_dim = w_dim = 6
    c_dim = 0

    def __init__(self, weight=WEIGHT):
        super().__init__()
        self.weight = torch.nn.Parameter(weight.clone())

    def mapping(self, z, c=None):
        return z

    def synthesis(self, w):
        image = torch.zeros(len(w), 3, 32, 32)
        image[:, 0, 0, :3] = w @ self.weight
        return SynthesisOutput(image, [], [image])


TILT_HAT = Directions(("tilt", "hat"), torch.eye(6)[[0, 3]], torch.tensor([2.0, 20.0]))


def test_a_direction_moves_its_own_factor_and_leaves_the_others():
    found = factor_directions(Known(), Reader(), samples=4000)
    assert found.names == ("hat", "tilt", "light")
    effect = found.vectors @ WEIGHT                                    # (K, 3): tilt, light, hat
    wanted = effect[[1, 2, 0]]
    assert wanted.diagonal().min() > 0.1
    assert (wanted - wanted.diagonal().diag()).abs().max() < 0.02
    torch.testing.assert_close(found.vectors.norm(dim=1), torch.ones(3))
    torch.testing.assert_close(found.reach, torch.full((3,), reach_of(Known())))


    plain = factor_directions(Known(), Reader(), ["tilt"], alone=False, samples=4000)
    tilt, light, _ = plain["tilt"] @ WEIGHT
    assert tilt > 0.2 and light > 0.1  # the gradient takes the other one along


def test_effects_are_measured_in_known_units():
    tilt, hat = measure_edits(Known(), Reader(), TILT_HAT, share=0.5, samples=400)
    # 2 x step x slope over the deviation
    assert tilt.moved == pytest.approx(2 * 1.0 * 0.2 / (0.2 * 2**0.5), rel=0.1)
    assert hat.moved == pytest.approx(1, abs=0.01) and max(tilt.drift, hat.drift) < 1e-5
    changes = factor_changes(Known(), Reader(), TILT_HAT, samples=400)  # hat, tilt, light
    expected = torch.tensor([[0, 2 * 0.2 / (0.2 * 2**0.5), 0], [1, 0, 0]])
    torch.testing.assert_close(changes, expected, atol=0.15, rtol=0)
    both = Directions(("tilt",), torch.eye(6)[1:2], torch.tensor([2.0]))  # moves tilt and light
    (effect,) = measure_edits(Known(), Reader(), both, share=0.5, samples=400)
    assert effect.drift == pytest.approx(1.0 * 0.2 / (0.2 * 2**0.5), rel=0.1)


def test_effects_of_directions_named_after_no_factor_are_refused_before_images_are_drawn(
        monkeypatch):
    monkeypatch.setattr(editing, "draw_w", None)
    with pytest.raises(ValueError, match="no factor 'SeFa 1' .* factor_changes takes"):
        measure_edits(Known(), Reader(), Directions(("SeFa 1",), torch.eye(6)[:1], torch.ones(1)))


def test_a_linear_factor_is_known_as_one():
    explained = linear_fit(Reader(), draw_readings(Known(), Reader(), samples=3000))
    assert explained["tilt"] > 0.9 and explained["light"] > 0.9 and 0.4 < explained["hat"] < 0.9


def test_chance_is_not_explained():
    """A fit to few samples explains these, and not those that it has not seen."""
    dice = torch.Generator().manual_seed(0)
    read = {name: torch.randn(100, generator=dice) for name in Reader.continuous}
    read["hat"] = torch.randint(2, (100,), generator=dice)
    explained = linear_fit(Reader(), (torch.randn(100, 60, generator=dice), read))
    assert max(explained.values()) < 0


def test_regressions_find_the_gradient():
    dice = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 3, dtype=torch.float64, generator=dice)
    truth = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    found = _least_squares(x, x @ truth, ridge=0.0)
    torch.testing.assert_close(found, truth, atol=1e-6, rtol=0)
    assert _least_squares(x, x @ truth).norm() < 0.9 * truth.norm()  # the ridge shrinks it
    chance = torch.rand(len(x), dtype=torch.float64, generator=dice)
    shown = (chance < torch.sigmoid(x @ truth + 0.5)).double()
    torch.testing.assert_close(_logistic(x, shown, ridge=0.0), truth, atol=0.1, rtol=0)


def test_names_come_from_the_attribute_network():
    names = direction_names(load_attribute_network())
    assert {"glasses", "smile", "hair_style: bald"} < set(names) and len(names) == len(set(names))


def test_unknown_and_constant_factors_are_named():
    with pytest.raises(ValueError, match="no factor 'hats'; there are: hat, size: small"):
        factor_directions(Known(), Reader(sizes=True), ["hats"], samples=200)
    with pytest.raises(ValueError, match="'light' is the same in all 200 images"):
        factor_directions(Known(WEIGHT * torch.tensor([1, 0, 1])), Reader(), ["light"], samples=200)


def test_sefa_needs_no_data_and_reaches_as_far_as_w(G):
    found = sefa(G, count=3)
    assert found.names == ("SeFa 1", "SeFa 2", "SeFa 3")
    torch.testing.assert_close(found.vectors @ found.vectors.t(), torch.eye(3), atol=1e-5, rtol=0)
    assert reach_of(Known()) == pytest.approx(6**0.5, rel=0.03)


def test_directions_on_the_disk(tmp_path, G):
    found = sefa(G, count=3)
    again = load_directions(save_directions(found, tmp_path / "d.safetensors"))
    assert again.names == found.names and torch.equal(again.vectors, found.vectors)
    assert again.belong_to(G) and TILT_HAT.belong_to(G)       # nobody knows whose the second are
    assert not again.belong_to(Generator(32, 8, 8, 4, mapping_layers=3))
    assert not again.belong_to(Generator(32, 8, 9, 4, mapping_layers=1))
    assert torch.equal(again.pick(["SeFa 3"]).vectors[0], found["SeFa 3"])
    with pytest.raises(ValueError, match="no direction 'smile'; there are: SeFa 1"):
        again["smile"]
    with pytest.raises(ValueError, match="1 names"):
        Directions(("a",), torch.eye(2), torch.ones(2))


@pytest.mark.parametrize("reach, origin, message", [
    (torch.ones(1, 1), None, r"1 names, vectors of shape \(1, 8\) and reaches of shape \(1, 1\)"),
    (torch.tensor([-2.0]), None, r"finite and not negative: \[-2.0\]"),
    (torch.tensor([torch.nan]), None, "finite and not negative"),
    (torch.ones(1), torch.zeros(3, 5), r"origin must have shape \(16, 8\), .* not \(3, 5\)")])
def test_reach_and_origin_must_fit_the_vectors(reach, origin, message):
    with pytest.raises(ValueError, match=message):
        Directions(("a",), torch.eye(8)[:1], reach, origin)


def test_other_files_are_refused(teacher_file, tmp_path):
    tensors = {"vectors": torch.eye(3)[:1], "reach": torch.ones(1)}
    cut, few = (safetensors.torch.save(tensors, {"kind": "directions", "names": names})
                for names in ("[", "[]"))
    endless = safetensors.torch.save(tensors | {"reach": torch.full((1,), torch.inf)},
                                     {"kind": "directions", "names": '["smile"]'})
    elsewhere = safetensors.torch.save(tensors | {"origin": torch.zeros(3, 5)},
                                       {"kind": "directions", "names": '["smile"]'})
    for content in (b"", b"rubbish" * 100, cut, few, endless, elsewhere):
        (tmp_path / "d.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match="d.safetensors is damaged or no file of directions"):
            load_directions(tmp_path / "d.safetensors")
    with pytest.raises(ValueError, match="holds no directions: write such a file with `gapkd dir"):
        load_directions(teacher_file)
    with pytest.raises(ValueError, match="there is no file of directions"):
        load_directions(tmp_path / "none.safetensors")


def test_the_command(teacher_file, tmp_path, capsys):
    out, other = str(tmp_path / "d.safetensors"), str(tmp_path / "e.safetensors")
    command = ["directions", str(teacher_file), "--out"]
    assert main([*command, out, "--attributes", "none"]) == 0
    assert "6 directions written to" in capsys.readouterr().out and len(load_directions(out)) == 6
    assert main([*command, out]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main([*command, other, "--names", "hats"]) == 2
    assert "no factor 'hats'" in capsys.readouterr().err


def test_edit_agreement_is_1_for_the_teacher_and_falls_for_others(monkeypatch):
    one = Directions(("SeFa 1",), torch.eye(6)[1:2], torch.ones(1))
    monkeypatch.setattr("gapkd.metrics.editing.sefa", lambda G: one)
    seen, draw_w, cudnn = [], editing.draw_w, torch.backends.cudnn
    monkeypatch.setattr(cudnn, "allow_tf32", True)
    monkeypatch.setattr(editing, "draw_w", lambda G, n, seed: (
        seen.append((seed, cudnn.allow_tf32)) or draw_w(G, n, seed)))
    agreement = EditAgreement(Known(), Reader(), samples=200, looked_at=2000)
    assert seen[-1] == (1, False)  # the seed of all records; no step is rounded away
    swapped = WEIGHT.flip(0)  # other axes do the same things
    assert agreement(Known()) == pytest.approx(1, abs=1e-6) and seen[-1] == (1, False)
    assert agreement(Known(0.5 * WEIGHT)) == pytest.approx(1, abs=0.02)
    assert abs(agreement(Known(swapped))) < 0.5 and agreement(Known(0 * WEIGHT)) == 0
