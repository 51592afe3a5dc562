"""The same image? Everything shown? On readings and pictures whose answer is known."""

from __future__ import annotations

import json

import pytest
import torch
from tiny import attribute_network, generator, pictures

from gapkd.data.toyfaces import CATEGORICAL, CONTINUOUS, toy_faces
from gapkd.metrics.agreement import (
    Agreement,
    agreement_probe,
    compare_readings,
    factor_coverage,
    read_factors,
    same_z_distance,
    semantic_agreement,
)
from gapkd.metrics.attributes import load_attribute_network
from gapkd.metrics.features import perceptual_distance


def test_identical_images_agree_completely():
    net, images = attribute_network(), pictures(60, 0)
    agreement = semantic_agreement(net, images, images.split(7))
    assert set(agreement) == {"hat", "glasses", "yaw", "size", "mean_accuracy", "mean_correlation"}
    assert all(entry.value == pytest.approx(1) for entry in agreement.values())


def test_unrelated_images_agree_as_chance_says():
    def reading(seed):
        dice = torch.Generator().manual_seed(seed)
        hat = torch.randint(3, (20_000,), generator=dice) // 2        # 2/3 and 1/3
        return {"hat": hat, "yaw": torch.randn(20_000, generator=dice)}

    result = compare_readings(reading(0), reading(1))
    assert result["hat"].kind == "accuracy" and result["yaw"].kind == "correlation"
    assert result["hat"].chance == pytest.approx(5 / 9, abs=0.01)
    assert result["hat"].value == pytest.approx(result["hat"].chance, abs=0.015)
    assert result["yaw"].chance == 0 and abs(result["yaw"].value) < 0.03
    assert result["mean_accuracy"] == result["hat"]
    with pytest.raises(ValueError, match="yaw was read in nan or infinite numbers"):
        compare_readings({"yaw": torch.tensor([1, torch.nan])}, {"yaw": torch.ones(2)})
    constant = {"yaw": torch.full((10,), 0.3)}  # it correlates with nothing
    assert compare_readings(constant, constant)["yaw"] == Agreement("correlation", 0.0, 0.0)


@pytest.mark.parametrize("batch", [1, 3, 7])
def test_distances_of_pairs_and_of_neighbours(batch):
    net, a, b = attribute_network(), pictures(7, 0), pictures(7, 1) * 2    # beyond 1: clamped
    found = same_z_distance(a.split(batch), b.split(batch), net)
    b = b.clamp(-1, 1)
    for name, x, y in (("", a, b), ("_chance", a[1:], b[:-1])):
        l1, perceptual = (x - y).abs().mean(), perceptual_distance(net, x, y).mean()
        assert found["l1" + name] == pytest.approx(l1.item(), rel=1e-5)
        assert found["perceptual" + name] == pytest.approx(perceptual.item(), rel=1e-5)


def test_what_cannot_be_compared_is_refused():
    net = attribute_network()
    with pytest.raises(ValueError, match="equally many images"):
        semantic_agreement(net, pictures(4, 0), pictures(5, 0))
    with pytest.raises(ValueError, match="images of one shape"):
        same_z_distance(pictures(4, 0), pictures(5, 0), net)
    with pytest.raises(ValueError, match="at least 2 pairs"):
        same_z_distance(pictures(1, 0), pictures(1, 0), net)


def test_a_probe_measures_what_evaluation_does():
    net, T, S = attribute_network(), generator(0), generator(1)
    probe = agreement_probe(T, net, samples=40)
    same, other = probe(T), probe(S)
    assert same["l1"] == 0 and same["agree_mean_accuracy"] == 1
    assert other["l1"] > 0 and other["agree_mean_correlation"] < 1
    assert set(other) == {"l1", "l1_chance", "perceptual", "perceptual_chance",
                          "agree_mean_accuracy", "agree_mean_accuracy_chance",
                          "agree_mean_correlation", "agree_mean_correlation_chance"}


# -- does a set of faces show everything?


def test_coverage_of_a_distribution_made_by_hand():
    """Four faces: `truth` shows bald and short hair, `made` short hair alone, and half of yaw."""
    truth = {name: torch.zeros(4, dtype=torch.int64) for name in CATEGORICAL}
    truth |= {name: torch.tensor([0.0, 0.4, 0.6, 1.0]) for name in CONTINUOUS}
    truth["hair_style"], truth["glasses"] = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    made = truth | {"hair_style": torch.ones(4, dtype=torch.int64), "yaw": truth["yaw"] / 2}
    found = factor_coverage(made, truth)
    assert json.loads(json.dumps(found)) == found
    assert found["shares"]["hair_style"] == {
        "bald": {"share": 0.0, "true": 0.5}, "short": {"share": 1.0, "true": 0.5},
        "long": {"share": 0.0, "true": 0.0}}
    assert found["shares"]["glasses"]["yes"] == {"share": 0.5, "true": 0.5}
    assert found["spread"]["yaw"] == pytest.approx(0.5)
    assert found["spread"]["smile"] == pytest.approx(1)
    # of bald and short hair, each with and without glasses, the bald ones are missing
    assert found["missing"]["hair_style, glasses"] == {"missing": 2, "cells": 4}
    assert found["missing"]["iris_colour, glasses"] == {"missing": 0, "cells": 2}
    assert found["missing_cells"] == 2 + 4  # with four more factors of one class each
    assert factor_coverage(truth, truth)["missing_cells"] == 0


def test_rendered_faces_cover_what_a_narrow_set_does_not():
    net = load_attribute_network()
    images, factors = toy_faces(torch.arange(2000), 32, seed=5)
    truth = read_factors(net, images)
    whole = factor_coverage(truth, factors)
    assert whole["missing"]["hair_style, fringe"]["cells"] == 7  # bald heads have no fringe
    assert whole["missing_cells"] <= 2
    for classes in whole["shares"].values():
        assert all(abs(entry["share"] - entry["true"]) < 0.04 for entry in classes.values())
    bare = images[(factors["beard"] != 2) & (factors["yaw"].abs() < 0.5)]
    narrow = factor_coverage(read_factors(net, bare), truth)
    assert narrow["shares"]["beard"]["full"]["share"] < 0.01
    assert narrow["spread"]["yaw"] == pytest.approx(0.5, abs=0.05)
    assert narrow["missing"]["glasses, beard"]["missing"] >= 1
