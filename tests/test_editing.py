"""Directions with names: found where the answer is known, kept in files, and measured."""

from __future__ import annotations

import pytest
import torch

from gapkd.cli import main
from gapkd.metrics.editing import (
    Directions,
    EditAgreement,
    _least_squares,
    _logistic,
    direction_names,
    factor_changes,
    factor_directions,
    linear_fit,
    load_directions,
    measure_edits,
    reach_of,
    read_factors,
    save_directions,
    sefa,
)
from gapkd.metrics.features import load_attribute_network
from gapkd.networks.stylegan2 import Generator, SynthesisOutput


@pytest.fixture(scope="module")
def G():
    torch.manual_seed(0)
    return Generator(32, 8, 8, 4, mapping_layers=1).eval()


class Reader:
    """Reads two factors and a category straight from the first pixels; a second category hangs on the first factor."""

    continuous = {"tilt": (-1.0, 1.0), "light": (0.0, 1.0)}

    def __init__(self, sizes=False):
        self.categorical = {"hat": ("no", "yes")} | ({"size": ("small", "middle", "large")} if sizes else {})

    def factors(self, images):
        a, b, c = images[:, 0, 0, 0], images[:, 0, 0, 1], images[:, 0, 0, 2]
        return {"hat": torch.stack([-c, c], dim=1), "tilt": a, "light": b,
                "size": torch.stack([-a - 0.5, torch.zeros_like(a), a - 0.5], dim=1)}


class Painter(torch.nn.Module):
    """A 'synthesis network' whose first pixels are known linear functions of w."""

    num_ws = 2

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(6, 3))
        with torch.no_grad():
            self.weight[0, 0] = self.weight[1, 0] = 0.2   # tilt
            self.weight[1, 1] = self.weight[2, 1] = 0.2   # light shares an axis with it
            self.weight[3, 2] = 0.3                       # hat

    def forward(self, ws, noise="const"):
        image = torch.zeros(len(ws), 3, 32, 32)
        image[:, 0, 0, :3] = ws @ self.weight
        return SynthesisOutput(image, [], [image])


class Known(torch.nn.Module):
    z_dim = w_dim = 6
    c_dim = 0
    resolution = 32

    def __init__(self):
        super().__init__()
        self.synthesis = Painter()

    def mapping(self, z, c=None):
        return z


def test_a_direction_moves_its_own_factor_and_leaves_the_others():
    found = factor_directions(Known(), Reader(), samples=4000)
    weight = Known().synthesis.weight.detach()
    effect = found.vectors @ weight                                       # (K, 3): tilt, light, hat
    tilt, light, hat = effect[found.index("tilt")], effect[found.index("light")], effect[found.index("hat")]
    assert tilt[0] > 0.1 and tilt[1:].abs().max() < 0.02
    assert light[1] > 0.1 and light[[0, 2]].abs().max() < 0.02
    assert hat[2] > 0.2 and hat[:2].abs().max() < 0.02
    torch.testing.assert_close(found.vectors.norm(dim=1), torch.ones(len(found)))


def test_the_plain_gradient_takes_the_others_along():
    found = factor_directions(Known(), Reader(), ["tilt"], alone=False, samples=4000)
    effect = found["tilt"] @ Known().synthesis.weight.detach()
    assert effect[0] > 0.2 and effect[1] > 0.1


def test_effects_are_measured_in_known_units():
    wanted = Directions(("tilt", "hat"), torch.eye(6)[[0, 3]], torch.tensor([2.0, 20.0]))
    tilt, hat = measure_edits(Known(), Reader(sizes=True), wanted, share=0.5, samples=400)
    assert tilt.moved == pytest.approx(2 * 1.0 * 0.2 / (0.2 * 2**0.5), rel=0.1)   # 2 x step x slope over the deviation
    assert tilt.drift < 1e-5 and tilt.kept < 1                                    # the size is a function of the tilt
    assert hat.moved == pytest.approx(1, abs=0.01) and hat.kept == 1 and hat.drift < 1e-5


def test_given_w_are_edited_too():
    wanted = Directions(("tilt",), torch.eye(6)[:1], torch.tensor([2.0]))
    ws = torch.randn(50, 2, 6, generator=torch.Generator().manual_seed(0))
    painter = Known()
    painter.synthesis.forward = lambda ws, noise="const": Painter().forward(ws.mean(dim=1))   # two layers, half each
    (effect,) = measure_edits(painter, Reader(), wanted, share=1.0, w=ws)
    assert effect.moved == pytest.approx(4 * 0.2 / (ws.mean(dim=1)[:, :2].sum(dim=1) * 0.2).std().item(), rel=1e-3)


def test_a_linear_factor_is_known_as_one():
    explained = linear_fit(Reader(), read_factors(Known(), Reader(), samples=3000))
    assert explained["tilt"] > 0.9 and explained["light"] > 0.9 and explained["hat"] > 0.4


def test_regressions_find_the_gradient():
    x = torch.randn(20_000, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = torch.tensor([1.0, -2.0, 0.0], dtype=torch.float64)
    torch.testing.assert_close(_least_squares(x, x @ truth, ridge=0.0), truth, atol=1e-6, rtol=0)
    shown = (torch.rand(len(x), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
             < torch.sigmoid(x @ truth + 0.5)).double()
    torch.testing.assert_close(_logistic(x, shown, ridge=0.0), truth, atol=0.1, rtol=0)


def test_names_come_from_the_attribute_network():
    names = direction_names(load_attribute_network())
    assert {"glasses", "smile", "hair_style: bald"} < set(names) and len(names) == len(set(names))


def test_unknown_and_constant_factors_are_named(G):
    with pytest.raises(ValueError, match="no factor 'hats'; there are: hat, size: small"):
        factor_directions(Known(), Reader(sizes=True), ["hats"], samples=200)
    flat = Known()
    with torch.no_grad():
        flat.synthesis.weight[:, 1] = 0
    with pytest.raises(ValueError, match="'light' is the same in all 200 images"):
        factor_directions(flat, Reader(), ["light"], samples=200)


def test_reach_is_the_radius_of_w():
    assert reach_of(Known()) == pytest.approx(6**0.5, rel=0.03)


def test_sefa_needs_no_data(G):
    found = sefa(G, count=3)
    assert found.names == ("SeFa 1", "SeFa 2", "SeFa 3")
    torch.testing.assert_close(found.vectors @ found.vectors.t(), torch.eye(3), atol=1e-5, rtol=0)


def test_directions_on_the_disk(tmp_path, G):
    found = sefa(G, count=3)
    again = load_directions(save_directions(found, tmp_path / "d.safetensors"))
    assert again.names == found.names and torch.equal(again.vectors, found.vectors)
    assert again.belong_to(G) and not again.belong_to(Generator(32, 8, 8, 4, mapping_layers=3))
    assert torch.equal(again.pick(["SeFa 3"]).vectors[0], found["SeFa 3"])
    with pytest.raises(ValueError, match="no direction 'smile'; there are: SeFa 1"):
        again.index("smile")


@pytest.mark.parametrize("content", [b"", b"rubbish" * 100])
def test_other_files_are_refused(tmp_path, content):
    (tmp_path / "d.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="d.safetensors is damaged or no file of directions"):
        load_directions(tmp_path / "d.safetensors")


def test_a_network_is_no_file_of_directions(teacher_file, tmp_path):
    with pytest.raises(ValueError, match="holds no directions: write such a file with `gapkd directions`"):
        load_directions(teacher_file)
    with pytest.raises(ValueError, match="there is no file of directions"):
        load_directions(tmp_path / "none.safetensors")


def test_parts_must_belong_together():
    with pytest.raises(ValueError, match="1 names"):
        Directions(("a",), torch.eye(2), torch.ones(2))


def test_the_command(teacher_file, tmp_path, capsys):
    out = tmp_path / "d.safetensors"
    assert main(["directions", str(teacher_file), "--out", str(out), "--attributes", "none"]) == 0
    assert "6 directions written to" in capsys.readouterr().out and len(load_directions(out)) == 6
    assert main(["directions", str(teacher_file), "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["directions", str(teacher_file), "--out", str(tmp_path / "e.safetensors"), "--names", "hats"]) == 2
    assert "no factor 'hats'" in capsys.readouterr().err


def test_changes_of_all_factors_are_measured():
    wanted = Directions(("any", "other"), torch.eye(6)[[0, 3]], torch.tensor([2.0, 20.0]))
    changes = factor_changes(Known(), Reader(), wanted, samples=400)           # columns: hat, tilt, light
    expected = [[0, 2 * 0.2 / (0.2 * 2**0.5), 0], [1, 0, 0]]
    torch.testing.assert_close(changes, torch.tensor(expected), atol=0.15, rtol=0)


def test_edit_agreement_is_1_for_the_teacher_and_falls_for_others(monkeypatch):
    monkeypatch.setattr("gapkd.metrics.editing.sefa",
                        lambda G: Directions(("SeFa 1",), torch.eye(6)[1:2], torch.ones(1)))
    teacher, net = Known(), Reader()
    agreement = EditAgreement(teacher, net, samples=200, looked_at=2000)
    assert agreement(Known()) == pytest.approx(1, abs=1e-6)
    fainter, swapped = Known(), Known()
    with torch.no_grad():
        fainter.synthesis.weight *= 0.5
        swapped.synthesis.weight[:, :2] = teacher.synthesis.weight[:, :2].flip(0)   # other axes of W do the same things
    assert agreement(fainter) == pytest.approx(1, abs=0.02)
    assert abs(agreement(swapped)) < 0.5
