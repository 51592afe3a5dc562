"""The attribute network: shapes, files, training on toy faces and on labels, and what the embedded
one can read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from tiny import attribute_network, distill_config, pictures

from gapkd.cli import main
from gapkd.data.datasets import ImageFolder
from gapkd.data.toyfaces import CATEGORICAL, CONTINUOUS, face_mask, toy_faces
from gapkd.files.checkpoints import CheckpointError, read_metadata, save_network
from gapkd.metrics.attributes import (
    HELD_OUT,
    AttributeConfig,
    AttributeNetwork,
    _LabelLessons,
    _roughen,
    _ToyLessons,
    factor_loss,
    factors_of,
    head_mask,
    load_attribute_network,
    reading_scores,
    train_attribute_network,
)
from gapkd.training.loop import distill


def test_shapes():
    net, images = attribute_network(), pictures(4, 0)
    shapes = [tuple(m.shape) for m in net.features(images)]
    assert shapes == [(4, 8, 16, 16), (4, 8, 8, 8), (4, 16, 4, 4), (4, 16, 2, 2)]
    assert net.embed(images).shape == (4, 48)
    read = {name: tuple(value.shape) for name, value in net.factors(images).items()}
    assert read == {"hat": (4, 3), "glasses": (4, 2), "yaw": (4,), "size": (4,)}
    faces = AttributeNetwork().factors(images)  # a head for every factor of the renderer
    assert [*faces] == [*CATEGORICAL, *CONTINUOUS]
    assert {n: faces[n].shape[1] for n in CATEGORICAL} == {n: len(c) for n, c in
                                                           CATEGORICAL.items()}


def test_larger_images_are_averaged_down_and_smaller_ones_refused():
    net, large = attribute_network(), torch.rand(2, 3, 128, 128)
    torch.testing.assert_close(net.embed(large), net.embed(F.avg_pool2d(large, 4)))
    with pytest.raises(ValueError, match="at least 32, not"):
        net.embed(pictures(2, 0, resolution=16))
    with pytest.raises(ValueError, match=r"floats in \[-1, 1\], not torch.uint8"):
        net.embed(pictures(2, 0).byte())


def test_a_saved_network_reads_the_same_even_when_the_renderer_has_other_factors(tmp_path):
    net, images = attribute_network(), pictures(4, 0)
    path = save_network(net, tmp_path / "net.safetensors", {"steps": 3})
    again = load_attribute_network(path)
    assert again.categorical == net.categorical and again.continuous == net.continuous
    assert torch.equal(again.embed(images), net.embed(images))
    assert not any(p.requires_grad for p in again.parameters()) and not again.training
    assert read_metadata(path)["provenance"] == {"steps": 3}
    with pytest.raises(ValueError, match="other images than toy faces"):
        head_mask(again, images)


def test_unusable_files_raise_one_sentence(tmp_path):
    path = tmp_path / "net.safetensors"
    with pytest.raises(CheckpointError, match="no checkpoint"):
        load_attribute_network(path)
    net = attribute_network()
    save_network(net, path)
    tensors, whole = load_file(path), path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(CheckpointError, match="truncated"):
        load_attribute_network(path)
    metadata = {"gapkd": "1", "kind": "attribute-network", "provenance": "{}"}
    broken = {name: tensor * torch.nan for name, tensor in tensors.items()}
    far = {name: tensor.double() * 1e200 for name, tensor in tensors.items()}
    for weights, changes, message in ((tensors, {"hidden": 13}, "Error"), (broken, {}, "finite"),
                                      (far, {}, "finite"),
                                      (tensors, {"channels": [8] * 10**6}, "four blocks"),
                                      (tensors, {"name": 7}, "must be a text")):
        architecture = json.dumps(net.architecture() | changes)
        save_file(weights, path, metadata | {"architecture": architecture})
        with pytest.raises(CheckpointError, match=f"do not fit the architecture .*{message}"):
            load_attribute_network(path)
    save_file(tensors, path, metadata | {"kind": "stylegan2-generator", "architecture": "{}"})
    with pytest.raises(CheckpointError, match="holds a stylegan2-generator"):
        load_attribute_network(path)


def test_the_embedded_network_reads_faces_it_has_not_seen():
    net = load_attribute_network()
    faces = (toy_faces(part, 32, seed=11) for part in (HELD_OUT + torch.arange(500)).split(250))
    assert _ToyLessons(toys := AttributeConfig("toyfaces")).unseen.min() >= toys.images
    scores = reading_scores(net, faces)
    assert all(scores[name] > 0.98 for name in net.categorical)
    assert 0.65 < scores["glasses_majority"] < 0.75
    assert sum(scores[n] for n in net.continuous) / len(net.continuous) > 0.9
    stored = read_metadata("attributes")["provenance"]["held_out"]["scores_32px"]
    for name, score in stored.items():  # the card tells the truth
        assert abs(score - scores[name]) < 0.06, name


# -- training


def train(out: Path, data: str, **changes) -> dict[str, float]:
    settings = {"images": 640, "batch": 16, "progress": False} | changes
    return train_attribute_network(AttributeConfig(data, str(out), **settings))


def labelled(folder: Path, labels: list) -> str:
    """Grey noise; under label 1 (or a vector that begins with 1) the lower half is bright."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    names = [f"{k:03d}.png" for k in range(len(labels))]
    for name, label in zip(names, labels, strict=True):
        pixels = noise.integers(0, 120, (32, 32), dtype=np.uint8)
        pixels[16:] += 100 * np.uint8(np.ravel(label)[0] == 1)
        Image.fromarray(pixels).save(folder / name)
    entries = list(zip(names, labels, strict=True))
    (folder / "dataset.json").write_text(json.dumps({"labels": entries}))
    return str(folder)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A folder of 120 labelled images, the file of the network that learnt them, and its scores."""
    root = tmp_path_factory.mktemp("judge")
    data = labelled(root / "halves", [k % 3 % 2 for k in range(120)])
    return data, str(root / "judge.safetensors"), train(root / "judge.safetensors", data)


def test_training_on_toy_faces_learns_and_leaves_the_global_random_state_alone(tmp_path):
    state, path = torch.get_rng_state(), tmp_path / "faces.safetensors"
    scores = train(path, "toyfaces", seed=1)
    assert torch.equal(state, torch.get_rng_state())
    net = load_attribute_network(path)
    torch.manual_seed(1)
    images, factors = toy_faces(torch.arange(1000, 1064), 32, 7)
    untrained = factor_loss(AttributeNetwork(), images, factors)
    assert factor_loss(net, images, factors) < 0.85 * untrained
    assert scores["background_hue"] > 0.5 and net.name == "toyfaces"
    provenance = read_metadata(path)["provenance"]
    assert provenance["held_out"] == {"images": 5000, "scores": scores}
    assert {"command": "judge", "data": "toyfaces", "images": 640}.items() <= provenance.items()


def test_half_of_the_images_are_read_blurred_and_noisy():
    flat, board = torch.zeros(400, 3, 16, 16), torch.ones(400, 3, 16, 16)
    board[..., ::2, 1::2] = board[..., 1::2, ::2] = -1  # a blur turns it grey
    noise = _roughen(flat, torch.Generator().manual_seed(0)).std(dim=(1, 2, 3))
    sharp = (board * _roughen(board, torch.Generator().manual_seed(0))).mean(dim=(1, 2, 3))
    for changed in (noise > 0, sharp < 1):
        assert changed.float().mean().item() == pytest.approx(0.5, abs=0.1)
    assert 0.07 < noise.max() < 0.09 and 0.5 < sharp.min() < 0.6


def test_it_reads_labels_that_it_has_not_seen_and_is_the_same_for_the_same_seed(judged, tmp_path):
    data, file, scores = judged
    assert scores["label"] > 0.9 > scores["label_majority"] and scores["label_score"] > 0.9
    net = load_attribute_network(file)
    assert net.name == "halves" and net.categorical == {"label": ("0", "1")}
    assert read_metadata(file)["provenance"]["held_out"] == {"images": 12, "scores": scores}
    train(tmp_path / "again.safetensors", data)
    again = load_attribute_network(tmp_path / "again.safetensors").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in net.state_dict().items())


def test_labelled_images_are_mirrored_only_where_that_is_asked_for(tmp_path):
    """Labels may know left from right."""
    (tmp_path / "sides").mkdir()
    names = [f"{k:02d}.png" for k in range(40)]
    for k, name in enumerate(names):
        pixels = np.zeros((32, 32), np.uint8)
        pixels[:, 16 * (k % 2):16 * (k % 2) + 16] = 255
        Image.fromarray(pixels).save(tmp_path / "sides" / name)
    labels = [[name, k % 2] for k, name in enumerate(names)]
    (tmp_path / "sides" / "dataset.json").write_text(json.dumps({"labels": labels}))
    for flip in (False, True):
        lessons = _LabelLessons(AttributeConfig(str(tmp_path / "sides"), flip=flip))
        images, factors = lessons.batch(0)
        right = images[:, 0, 0, -1] > 0
        contradicted = (right != factors["label"].bool()).float().mean()
        assert 0.3 < contradicted < 0.7 if flip else contradicted == 0
    rows = []
    lessons.read = lambda asked: rows.append(asked) or (images, {})
    for step in range(4):
        lessons.batch(step)
    assert not {*torch.cat(rows).tolist()} & {*lessons.unseen.tolist()}  # what is held out
    train(tmp_path / "j.safetensors", str(tmp_path / "sides"), flip=True, images=16)
    assert read_metadata(tmp_path / "j.safetensors")["provenance"]["flip"] is True
    with pytest.raises(ValueError, match="toy faces are not mirrored: leave it out"):
        AttributeConfig("toyfaces", flip=True)


def test_labels_of_every_kind(tmp_path):
    three = ImageFolder(labelled(tmp_path / "three", [5, 7, 9, 7]), 32)
    classes, truth = factors_of(three)
    assert classes == {"label": ["5", "7", "9"]} and truth["label"].tolist() == [0, 1, 2, 1]
    vectors = labelled(tmp_path / "vectors", [[1.0, 2.0, 0.5], [0.0, 2.0, -0.5]])
    classes, truth = factors_of(ImageFolder(vectors, 32))
    assert not classes and [*truth] == ["label_0", "label_2"]
    assert truth["label_2"].tolist() == [0.5, -0.5]


@pytest.mark.parametrize("far", [1_700_000_000, -3e38, 3e38])
def test_large_numbers_are_told_apart_and_learnt(tmp_path, far):
    """In 32 bits the first would be rounded, and the difference of the others no number."""
    data = labelled(tmp_path / "d", [[far + k if abs(far) < 1e9 * 2 else far * (-1)**k, k]
                                     for k in range(20)])
    scores = train(tmp_path / "j.safetensors", data, images=64)
    assert [*scores] == ["label_0", "label_1"] and all(map(math.isfinite, scores.values()))


def test_a_reading_that_is_the_same_for_all_images_has_no_correlation():
    net, (images, factors) = AttributeNetwork(), toy_faces(20, 32)
    torch.nn.init.zeros_(net.heads.weight)
    scores = reading_scores(net, [(images, factors)])
    assert {scores[name] for name in net.continuous} == {0.0}


def test_it_stands_in_for_the_embedded_network(judged, tmp_path, teacher_file, capsys):
    data, file, _ = judged
    changes = {"data": data, "perceptual": file, "fid_features": file, "fid_every": 8,
               "fid_samples": 20}
    log = distill(distill_config(tmp_path / "run", teacher_file, **changes)).log
    assert "loss_perceptual" in log[-1] and log[-1]["fid_halves_20"] > 0
    inputs = json.loads((tmp_path / "run" / "settings.json").read_text())["inputs"]
    assert inputs.keys() == {"teacher", "perceptual", "data"}
    assert main(["evaluate", "--generator", str(teacher_file), "--teacher", str(teacher_file),
                 "--data", data, "--features", file, "--samples", "20"]) == 0
    assert "fid_halves_20" in capsys.readouterr().out


def test_what_is_rare_is_both_learnt_and_measured_even_in_a_step_or_two(tmp_path):
    """Wherever the two images lie. The schedule divides by the length of its phases."""
    for k, pair in enumerate([(0, 1), (4, 11), (7, 19)]):
        data = labelled(tmp_path / str(k), [int(i in pair) for i in range(20)])
        out, held_out = tmp_path / f"{k}.safetensors", 0.5 + k / 9
        scores = train(out, data, images=4 * (k + 1), batch=4, held_out=held_out)
        assert scores["label_majority"] < 1 and math.isfinite(scores["label_score"])


def test_what_only_one_image_shows_is_left_out(tmp_path):
    data = labelled(tmp_path / "d", [[float(k % 2), float(k == 3)] for k in range(20)])
    with pytest.warns(UserWarning, match="^label_1 of .* differ in a single image"):
        scores = train(tmp_path / "j.safetensors", data, images=4, batch=4)
    assert scores.keys() == {"label_0"} and math.isfinite(scores["label_0"])


def test_a_class_of_one_image_is_mentioned(tmp_path):
    data = labelled(tmp_path / "d", [{7: 2, 8: 3}.get(k, k % 2) for k in range(20)])
    with pytest.warns(UserWarning, match="^2 of the 4 classes of .* have a single image each"):
        train(tmp_path / "j.safetensors", data, images=16)


@pytest.mark.parametrize("labels, message", [
    ([int(k == 3) for k in range(20)], "alike but for a single image"),
    ([[math.nan if k == 3 else k / 20] for k in range(20)], "label of 003.png .* finite"),
    (None, "has no labels: a judge needs a dataset.json"), ([1, 1, 1], "are all alike"),
    ([[1.0], [1.0]], "are all alike"), ([0, 1], "too few to hold 0.1 of them out: add images or")])
def test_labels_that_teach_nothing(tmp_path, labels, message):
    data = labelled(tmp_path / "d", labels or [0, 1, 0])
    if labels is None:
        (tmp_path / "d" / "dataset.json").unlink()
    with pytest.raises(ValueError, match=message):
        train(tmp_path / "j.safetensors", data)


def test_bad_settings_and_files(judged, tmp_path, teacher_file):
    for changes, message in (({"batch": 0}, "batch must be at least 1"),
                             ({"held_out": 1.0}, "held_out must lie between"),
                             ({"seed": -1}, "seed must lie between 0 and 2.63 - 1, not -1"),
                             ({"seed": 2**63}, "seed must lie between 0 and")):
        with pytest.raises(ValueError, match=message):
            AttributeConfig(**{"data": "d"} | changes)
    with pytest.raises(ValueError, match="exists already"):
        train(judged[1], judged[0])
    with pytest.raises(ValueError, match="must end in .safetensors"):
        train("judge.pt", judged[0])
    with pytest.raises(ValueError, match="perceptual must be 'toyfaces', 'lpips', 'imagenet' or"):
        distill_config(tmp_path, teacher_file, perceptual="lpip")
    with pytest.raises(CheckpointError, match="a discriminator was asked for"):
        distill(distill_config(tmp_path / "r", teacher_file, perceptual=str(teacher_file)))


def test_head_masks_are_those_of_the_renderer():
    images, factors = toy_faces(torch.arange(60_000_000, 60_000_200))
    truth, found = face_mask(factors) > 0.5, head_mask(load_attribute_network(), images) > 0.5
    overlap = (truth & found).sum(dim=(1, 2, 3)) / (truth | found).sum(dim=(1, 2, 3))
    assert overlap.mean() > 0.98 and overlap.min() > 0.9
    # What one mask for all faces would reach.
    blind = (truth.float().mean(dim=0) > 0.5).expand_as(truth)
    assert ((truth & blind).sum() / (truth | blind).sum()) < 0.9


@pytest.mark.parametrize("use", [AttributeNetwork.embed, head_mask])
def test_the_network_takes_floats_of_any_size_and_no_others(use):
    net, images = load_attribute_network(), toy_faces(4, 32)[0]
    for kind, far in ((torch.float64, 1e-5), (torch.float16, 0.01)):
        torch.testing.assert_close(use(net, images.to(kind)), use(net, images), atol=far, rtol=far)
    with pytest.raises(ValueError, match="not torch.uint8: torch.as_tensor"):
        use(net, images.byte())


def test_what_is_read_beyond_its_range_is_drawn_at_its_end():
    net, images = load_attribute_network(), toy_faces(8, 32)[0]
    for shift in (5.0, -5.0):
        net.heads.bias[-len(CONTINUOUS):] = shift
        mask = head_mask(net, images)
        net.heads.bias[-len(CONTINUOUS):] = 2 * shift
        assert torch.equal(head_mask(net, images), mask)
