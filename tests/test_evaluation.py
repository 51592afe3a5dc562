"""Evaluating generators: batch size and seed, agreement with oneself, complete tables."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny import attribute_network, generator, perturb, pictures

from gapkd.metrics.distribution import collect
from gapkd.metrics.evaluation import (
    FidProbe,
    evaluate_generator,
    evaluation_table,
    format_table,
    real_features,
)
from gapkd.metrics.sampling import draw_latents, draw_sheet, draw_w, sample_images, share
from gapkd.networks.stylegan2 import Generator


class Pictures:
    """A tiny finite dataset."""

    resolution, name, size = 32, "pictures", 80

    def load(self, indices: torch.Tensor) -> torch.Tensor:
        return pictures(80, 5)[indices]


class Colours:
    """A feature space of three numbers."""

    name = "colours"

    def embed(self, images):
        return images.mean(dim=(2, 3))


@pytest.fixture(scope="module")
def conditional():
    torch.manual_seed(0)
    return Generator(8, 4, 4, 4, mapping_layers=1, c_dim=3).eval()


def test_latents_are_those_of_the_seed_for_every_batch_size(conditional):
    G = generator(0)
    (z, c), (other, _) = draw_latents(G, 5, 1), draw_latents(G, 5, 2)
    assert c is None and torch.equal(z, draw_latents(G, 5, 1)[0]) and not torch.equal(z, other)
    torch.testing.assert_close(draw_w(G, 5, 1), G.mapping(z))
    whole = torch.cat(list(sample_images(G, 20, 1, batch=20)))
    parts = [image for i in range(2) for image in sample_images(G, 20, 1, 3, part=(i, 2))]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)
    assert G(z).abs().max() > 1 == whole.abs().max()
    _, labels = draw_latents(conditional, 50, 0)
    assert labels.shape == (50, 3) and set(labels.sum(dim=1).tolist()) == {1.0}
    assert labels.sum(dim=0).min() > 5 and draw_w(conditional, 50, 0).shape == (50, 4)


@pytest.mark.parametrize("of", [1, 2, 3, 7])
def test_work_is_dealt_out_evenly(of):
    parts = [share(range(20), (number, of)) for number in range(of)]
    assert [i for part in parts for i in part] == list(range(20))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_networks_of_other_classes_are_not_compared(conditional):
    plain = Generator(8, 4, 4, 4, mapping_layers=1).eval()
    with pytest.raises(ValueError, match="cannot be compared z by z: they have c_dim 0 and 3"):
        evaluate_generator(plain, attribute_network(), 8, teacher=conditional)


def test_a_sheet_shows_all_classes_in_turn_or_one(conditional):
    sheet, alone = draw_sheet(conditional, 6, 4), draw_sheet(conditional, 6, 4, label=1)
    assert torch.equal(sheet[[1, 4]], alone[[1, 4]])
    assert (sheet[[0, 2, 3, 5]] - alone[[0, 2, 3, 5]]).abs().amax(dim=(1, 2, 3)).min() > 0
    average = draw_sheet(conditional, 2, 4, truncation=0.0)
    torch.testing.assert_close(average[0], average[1])


def test_batch_size_changes_nothing():
    net, G, T = attribute_network(), perturb(generator(0)), perturb(generator(1))
    real = collect(net, pictures(60, 3))
    whole, parts = (evaluate_generator(G, net, 60, seed=4, teacher=T, real=real, batch=batch)
                    for batch in (60, 17))
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert value == pytest.approx(parts[name], rel=1e-3, abs=1e-6), name


def test_a_generator_agrees_with_itself_and_names_are_complete():
    net, G = attribute_network(), generator(0)
    result = evaluate_generator(G, net, 40, teacher=G, real=collect(net, pictures(40, 3)))
    assert result["agree_hat"] == result["agree_mean_accuracy"] == 1
    assert result["l1"] == 0 < result["l1_chance"]
    assert result["fid_to_teacher_toyfaces_40"] < 1e-6 < result["fid_toyfaces_40"]
    assert {"kid_toyfaces_40", "precision_toyfaces_40", "agree_yaw_chance"} <= result.keys()
    assert all(type(value) is float for value in result.values())
    with pytest.raises(ValueError, match="z_dim 8 and 9"):
        evaluate_generator(G, net, 10, teacher=generator(0, z_dim=9))


def test_every_table_has_a_real_and_a_teacher_row():
    net, T, students = attribute_network(), generator(1), {"student": generator(0)}
    rows = evaluation_table(students, net, Pictures(), T, samples=40, seed=0)
    assert [row["name"] for row in rows] == ["real", "teacher", "student"]
    # other real images, not the same ones; an untrained network is no camera
    assert 1e-4 < rows[0]["fid_toyfaces_40"] < rows[1]["fid_toyfaces_40"]
    assert rows[1]["agree_hat"] == 1 and "agree_hat" not in rows[0]
    assert rows[1]["fid_to_teacher_toyfaces_40"] < 1e-6 < rows[2]["fid_to_teacher_toyfaces_40"]
    text = format_table(rows).splitlines()
    assert text[0].startswith("| | fid_toyfaces_40 |") and len(text) == 5
    assert "agree_hat |" not in text[0] and "agree_mean_accuracy |" in text[0]
    assert format_table(rows, ["l1"], digits=1).splitlines()[2:4] == ["| real | - |",
                                                                       "| teacher | 0.0 |"]
    with pytest.raises(ValueError, match="samples=40 or fewer"):
        evaluation_table({}, net, Pictures(), T, samples=41)


@pytest.mark.parametrize("count, samples, mend", [
    (9, 5, "take samples=4 or fewer, or add images"), (7, 4, "add images, 8 are the least"),
    (1, 8, "add images, 8 are the least")])
def test_what_is_advised_for_few_images_is_allowed(count, samples, mend):
    few = SimpleNamespace(name="few", size=count)
    with pytest.raises(ValueError, match=f"few holds {count} images, .* of {samples}: {mend}$"):
        evaluation_table({}, attribute_network(), few, None, samples)


def test_another_feature_space_names_its_metrics_and_no_teacher_is_called_one():
    net = attribute_network()
    rows = evaluation_table({"student": generator(0)}, net, Pictures(), generator(1), samples=40,
                            space=Colours())
    assert {"fid_colours_40", "fid_to_teacher_colours_40", "agree_hat", "l1"} <= rows[2].keys()
    assert not any("toyfaces" in name for row in rows for name in row)
    rows = evaluation_table({"mine": generator(0)}, net, Pictures(), None, samples=40)
    assert [row["name"] for row in rows] == ["real", "mine"]
    assert not any(name.startswith(("agree", "l1", "fid_to_teacher")) for name in rows[1])


def test_the_fid_of_a_training_is_that_of_its_generator(monkeypatch):
    monkeypatch.setattr("gapkd.metrics.features.reader", lambda name, device: Colours())
    probe, G = FidProbe(Pictures(), "toyfaces", 500, torch.device("cpu")), generator(0)
    real = real_features(Colours(), Pictures(), 80)  # no more than there are
    result = evaluate_generator(G, attribute_network(), 80, 30_000, real=real, space=Colours())
    assert probe(G) == {"fid_colours_80": pytest.approx(result["fid_colours_80"], rel=1e-5)}


def test_a_long_evaluation_says_how_far_it_is(capsys):
    net, G = attribute_network(), generator(0)
    evaluate_generator(G, net, samples=20, batch=10, progress="mine")
    assert "mine: 0 of 2 batches" in capsys.readouterr().err
    evaluate_generator(G, net, samples=20, batch=10)
    assert not capsys.readouterr().err
