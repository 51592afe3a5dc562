"""The attribute network: shapes, distance, files, training, and what the embedded one can read."""

from __future__ import annotations

import importlib.util
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from gapkd.data.toyfaces import CATEGORICAL, CONTINUOUS, toy_faces
from gapkd.files.checkpoints import CheckpointError, read_metadata
from gapkd.metrics import features
from gapkd.metrics.features import (
    AttributeNetwork,
    load_attribute_network,
    perceptual_distance,
    save_attribute_network,
)

FACTORS = {"categorical": {"hat": ("none", "cap", "crown"), "glasses": ("no", "yes")},
           "continuous": {"yaw": (-30.0, 30.0)}}


def tiny() -> AttributeNetwork:
    torch.manual_seed(0)
    return AttributeNetwork(**FACTORS, channels=(8, 8, 16, 16), hidden=12).eval()


def pictures(n: int = 4, resolution: int = 32, seed: int = 0) -> torch.Tensor:
    return torch.rand(n, 3, resolution, resolution, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def test_shapes():
    net, images = tiny(), pictures()
    assert [tuple(m.shape) for m in net.features(images)] == [
        (4, 8, 16, 16),
        (4, 8, 8, 8),
        (4, 16, 4, 4),
        (4, 16, 2, 2),
    ]
    assert net.embed(images).shape == (4, net.num_features) == (4, 48)
    read = net.factors(images)
    assert {name: tuple(value.shape) for name, value in read.items()} == {
        "hat": (4, 3),
        "glasses": (4, 2),
        "yaw": (4,),
    }


def test_the_default_network_has_a_head_for_every_factor_of_the_renderer():
    read = AttributeNetwork().factors(pictures(2))
    assert {n: v.shape[1] for n, v in read.items() if n in CATEGORICAL} == {
        n: len(c) for n, c in CATEGORICAL.items()
    }
    assert set(read) - set(CATEGORICAL) == set(CONTINUOUS)


def test_larger_images_are_averaged_down_and_smaller_ones_refused():
    net, large = tiny(), pictures(resolution=128)
    torch.testing.assert_close(net.embed(large), net.embed(F.avg_pool2d(large, 4)))
    with pytest.raises(ValueError, match="at least 32, not"):
        net.embed(pictures(resolution=16))


def test_perceptual_distance_equals_its_formula_and_passes_gradients_to_both_images():
    net, a, b = tiny().double(), pictures().double(), pictures(seed=1).double()
    a.requires_grad_(), b.requires_grad_()
    distance = perceptual_distance(net, a, b)
    expected = []
    for n in range(4):
        layers = []
        for x, y in zip(net.features(a[n:n + 1]), net.features(b[n:n + 1]), strict=True):
            cells = []
            for u, v in zip(x[0].flatten(1).T, y[0].flatten(1).T, strict=True):
                cells.append((u / u.norm() - v / v.norm()).square().sum())
            layers.append(torch.stack(cells).mean())
        expected.append(torch.stack(layers).mean())
    torch.testing.assert_close(distance.double(), torch.stack(expected), atol=1e-5, rtol=1e-5)
    distance.sum().backward()
    assert a.grad.abs().sum() > 0 and b.grad.abs().sum() > 0
    assert perceptual_distance(net, a, a).abs().max() == 0
    with pytest.raises(ValueError, match="images of one shape"):
        perceptual_distance(net, a, b[:2])


def test_a_saved_network_reads_the_same_even_when_the_renderer_has_other_factors(tmp_path):
    net, images = tiny(), pictures()
    save_attribute_network(net, tmp_path / "net.safetensors", {"steps": 3})
    again = load_attribute_network(tmp_path / "net.safetensors")
    assert again.categorical == net.categorical and again.continuous == net.continuous
    assert torch.equal(again.embed(images), net.embed(images))
    assert not any(p.requires_grad for p in again.parameters()) and not again.training
    assert read_metadata(tmp_path / "net.safetensors")["provenance"] == {"steps": 3}
    with pytest.raises(ValueError, match="trained on other toy faces: .*hat"):
        features.check_factors(again)


def test_unusable_files_raise_one_sentence(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_attribute_network(path)
    save_attribute_network(tiny(), path)
    tensors = load_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_attribute_network(path)
    metadata = {"gapkd": "1", "kind": "attribute-network", "provenance": "{}",
                "architecture": json.dumps(tiny().architecture() | {"hidden": 13})}
    save_file(tensors, path, metadata)
    with pytest.raises(CheckpointError, match="do not fit the architecture"):
        load_attribute_network(path)
    save_file(tensors, path, metadata | {"kind": "stylegan2-generator"})
    with pytest.raises(CheckpointError, match="holds a stylegan2-generator"):
        load_attribute_network(path)


def test_training_is_deterministic_learns_and_leaves_the_global_random_state_alone():
    losses: list[float] = []
    state = torch.get_rng_state()
    net = features.train_attribute_network(
        seed=1, steps=30, batch=16, log=lambda step, loss: losses.append(loss)
    )
    assert torch.equal(state, torch.get_rng_state())
    again = features.train_attribute_network(seed=1, steps=30, batch=16)
    assert all(torch.equal(p, q) for p, q in zip(net.parameters(), again.parameters(), strict=True))
    images, factors = toy_faces(torch.arange(1000, 1064), 32, 7)
    assert features.factor_loss(net, images, factors) < 0.8 * losses[0]


def test_the_embedded_network_reads_faces_it_has_not_seen():
    net = load_attribute_network()
    features.check_factors(net)
    scores = features.held_out_scores(net, samples=500, seed=11)
    stored = read_metadata("attributes")["provenance"]["held_out"]
    for name in net.categorical:
        assert scores[name] > 0.98, (name, scores[name])
    assert sum(scores[n] for n in net.continuous) / len(net.continuous) > 0.9
    for name, score in scores.items():  # the card tells the truth
        assert abs(score - stored["scores_32px"][name]) < 0.06, name


@pytest.mark.parametrize("open_network", [features.InceptionNetwork, features.lpips_distance])
def test_a_missing_extra_is_one_clear_sentence(open_network):
    if importlib.util.find_spec("torch_fidelity") and importlib.util.find_spec("lpips"):
        pytest.skip("the metrics extra is installed here")
    with pytest.raises(features.MissingExtraError, match=r"pip install -e .\.\[metrics\]"):
        open_network()
