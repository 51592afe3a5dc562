"""Evaluating generators: batch size and seed, agreement with oneself, complete tables."""

from __future__ import annotations

import pytest
import torch
from test_metrics import pictures, tiny_network

from gapkd.metrics.distribution import collect
from gapkd.metrics.evaluation import draw_latents, evaluate_generator, evaluation_table, format_table, sample_images
from gapkd.networks.stylegan2 import Generator


def tiny_generator(seed: int) -> Generator:
    torch.manual_seed(seed)
    return Generator(32, 8, 8, 8, mapping_layers=2).eval().requires_grad_(False)


class Pictures:
    """A tiny finite dataset."""

    resolution, name, size = 32, "pictures", 80

    def load(self, indices: torch.Tensor) -> torch.Tensor:
        return pictures(80, 5)[indices]


def test_batch_size_changes_nothing():
    net, G, T = tiny_network(), tiny_generator(0), tiny_generator(1)
    real = collect(net, pictures(60, 3))
    whole = evaluate_generator(G, net, 60, seed=4, teacher=T, real=real, batch=60)
    parts = evaluate_generator(G, net, 60, seed=4, teacher=T, real=real, batch=17)
    assert whole.keys() == parts.keys()
    for name, value in whole.items():
        assert value == pytest.approx(parts[name], rel=1e-3, abs=1e-6), name
    torch.testing.assert_close(torch.cat(list(sample_images(G, 20, 1, batch=20))),
                               torch.cat(list(sample_images(G, 20, 1, batch=3))), atol=1e-5, rtol=0)


def test_a_generator_agrees_with_itself_and_names_are_complete():
    net, G = tiny_network(), tiny_generator(0)
    result = evaluate_generator(G, net, 40, teacher=G, real=collect(net, pictures(40, 3)))
    assert (
        result["agree_hat"] == result["agree_mean_accuracy"] == 1 and result["l1"] == 0 < result["l1_chance"]
    )
    assert result["fid_to_teacher_toyfaces_40"] < 1e-6 < result["fid_toyfaces_40"]
    assert {
        "kid_toyfaces_40",
        "precision_toyfaces_40",
        "recall_toyfaces_40",
        "agree_yaw_chance",
    } <= result.keys()
    assert all(type(value) is float for value in result.values())


def test_seeds_decide_the_latents():
    G = tiny_generator(0)
    assert torch.equal(draw_latents(G, 5, 1)[0], draw_latents(G, 5, 1)[0])
    assert not torch.equal(draw_latents(G, 5, 1)[0], draw_latents(G, 5, 2)[0])


def test_generators_that_cannot_be_compared_are_refused():
    torch.manual_seed(0)
    other = Generator(32, 9, 8, 8, mapping_layers=2)
    with pytest.raises(ValueError, match="z_dim 8 and 9"):
        evaluate_generator(tiny_generator(0), tiny_network(), 10, teacher=other)


def test_every_table_has_a_real_and_a_teacher_row():
    net, T, S = tiny_network(), tiny_generator(1), tiny_generator(0)
    rows = evaluation_table({"student": S}, net, Pictures(), T, samples=40, seed=0)
    assert [row["name"] for row in rows] == ["real", "teacher", "student"]
    assert rows[0]["fid_toyfaces_40"] < rows[1]["fid_toyfaces_40"]  # an untrained generator is no camera
    assert rows[1]["agree_hat"] == 1 and "agree_hat" not in rows[0]
    text = format_table(rows)
    assert text.splitlines()[0].startswith("| | fid_toyfaces_40 |") and len(text.splitlines()) == 5
    with pytest.raises(ValueError, match="samples=40 or fewer"):
        evaluation_table({}, net, Pictures(), T, samples=41)


def test_another_feature_space_names_its_figures():
    class Colours:
        name = "colours"

        def embed(self, images):
            return images.mean(dim=(2, 3))

    rows = evaluation_table({"student": tiny_generator(0)}, tiny_network(), Pictures(), tiny_generator(1), samples=40,
                            space=Colours())
    assert {"fid_colours_40", "fid_to_teacher_colours_40", "agree_hat", "l1"} <= rows[2].keys()
    assert not any("toyfaces" in name for row in rows for name in row)


def test_without_a_teacher_nothing_is_called_one():
    rows = evaluation_table({"mine": tiny_generator(0)}, tiny_network(), Pictures(), None, samples=40)
    assert [row["name"] for row in rows] == ["real", "mine"]
    assert not any(name.startswith(("agree", "l1", "fid_to_teacher")) for name in rows[1])
