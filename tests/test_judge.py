"""A judge learns the labels of a dataset, and stands wherever the embedded attribute network does."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tiny import distill_config

from gapkd.cli import main
from gapkd.data.datasets import ImageFolder
from gapkd.experiments.results import results_table, sweep_note
from gapkd.experiments.sweep import SweepConfig, run_sweep
from gapkd.files.checkpoints import CheckpointError, read_metadata
from gapkd.metrics.features import load_attribute_network
from gapkd.metrics.judge import JudgeConfig, factors_of, train_judge
from gapkd.training.loop import distill


def labelled(folder, labels: list) -> str:
    """Grey noise; under label 1 (or a vector that begins with 1) the lower half is bright."""
    folder.mkdir()
    noise = np.random.default_rng(0)
    names = [f"{k:03d}.png" for k in range(len(labels))]
    for name, label in zip(names, labels, strict=True):
        pixels = noise.integers(0, 120, (32, 32), dtype=np.uint8)
        pixels[16:] += 100 * np.uint8(np.ravel(label)[0] == 1)
        Image.fromarray(pixels).save(folder / name)
    (folder / "dataset.json").write_text(json.dumps({"labels": list(zip(names, labels, strict=True))}))
    return str(folder)


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    """A folder of 120 labelled images, and the file of their judge."""
    root = tmp_path_factory.mktemp("judge")
    data = labelled(root / "halves", [k % 3 % 2 for k in range(120)])
    file = root / "judge.safetensors"
    return data, str(file), train_judge(JudgeConfig(data, str(file), images=640, batch=16, progress=False))


def test_it_reads_labels_that_it_has_not_seen(judged):
    data, file, scores = judged
    assert scores["label"] > 0.9 > scores["label_majority"] and scores["label_score"] > 0.9
    net = load_attribute_network(file)
    assert net.name == "halves" and net.categorical == {"label": ("0", "1")}
    held_out = read_metadata(file)["provenance"]["held_out"]
    assert held_out == {"images": 12, "scores": scores}


def test_it_is_the_same_for_the_same_seed(judged, tmp_path):
    again = tmp_path / "again.safetensors"
    train_judge(JudgeConfig(judged[0], str(again), images=640, batch=16, progress=False))
    one, two = (load_attribute_network(f).state_dict() for f in (judged[1], again))
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_labels_of_every_kind(tmp_path):
    categorical, continuous, truth = factors_of(ImageFolder(labelled(tmp_path / "three", [5, 7, 9, 7]), 32))
    assert categorical == {"label": ["5", "7", "9"]} and not continuous and truth["label"].tolist() == [0, 1, 2, 1]
    vectors = labelled(tmp_path / "vectors", [[1.0, 2.0, 0.5], [0.0, 2.0, -0.5]])
    categorical, continuous, truth = factors_of(ImageFolder(vectors, 32))
    assert not categorical and continuous == {"label_0": [0.0, 1.0], "label_2": [-0.5, 0.5]}
    assert truth["label_2"].tolist() == [0.5, -0.5]


def test_it_stands_in_for_the_embedded_network(judged, tmp_path, teacher_file):
    data, file, _ = judged
    common = {"data": data, "perceptual": file, "fid_features": file, "fid_every": 8, "fid_samples": 20}
    log = distill(distill_config(tmp_path / "run", teacher_file, **common)).log
    assert "perceptual" in log[-1] and log[-1]["fid_halves_20"] > 0
    inputs = json.loads((tmp_path / "run" / "settings.json").read_text())["inputs"]
    assert inputs.keys() == {"teacher", "perceptual", "data"}


def test_evaluate_and_sweep_take_it(judged, tmp_path, teacher_file, quick_latent_space, capsys):
    data, file, _ = judged
    assert main(["evaluate", "--generator", str(teacher_file), "--teacher", str(teacher_file), "--data", data,
                 "--features", file, "--samples", "20"]) == 0
    assert "fid_halves_20" in capsys.readouterr().out
    table = tmp_path / "table.yml"
    table.write_text(yaml.safe_dump({
        "results": str(tmp_path / "r.jsonl"), "folder": str(tmp_path / "runs"), "samples": 40, "judge": file,
        "seeds": [0], "arms": {"paper": None},
        "settings": {"teacher": str(teacher_file), "data": data, "perceptual": file, "images": 16, "batch": 8,
                     "d_channels": [4], "keep": 0.5, "precision": "float32", "grid_every": 0}}))
    *references, run = run_sweep(SweepConfig(str(table)))
    assert {"agree_label", "agree_label_score", "fid_halves_40"} <= run["final"].keys()
    assert run["settings"]["data"] == "halves" and len(run["judge_sha256"]) == 64
    assert "| paper | 1 |" in results_table([run], references)
    assert "The judge: `gapkd judge`" in (note := sweep_note(str(table), [run], references))
    assert "on 12 images held out: label " in note


@pytest.mark.parametrize("labels, message", [(None, "has no labels: a judge needs a dataset.json"),
                                             ([1, 1, 1], "are all alike"), ([[1.0], [1.0]], "are all alike"),
                                             ([0, 1], "too few to hold 10% out")])
def test_labels_that_teach_nothing(tmp_path, labels, message):
    data = labelled(tmp_path / "d", labels or [0, 1, 0])
    if labels is None:
        (tmp_path / "d" / "dataset.json").unlink()
    with pytest.raises(ValueError, match=message):
        train_judge(JudgeConfig(data, str(tmp_path / "j.safetensors"), images=64, progress=False))


@pytest.mark.parametrize("changes, message", [
    ({"batch": 0}, "batch must be at least 1"), ({"held_out": 1.0}, "held_out must lie between"),
    ({"out": "judge.pt"}, "must end in .safetensors")])
def test_bad_settings(changes, message):
    with pytest.raises(ValueError, match=message):
        JudgeConfig(**{"data": "d"} | changes)


def test_bad_files(judged, tmp_path, teacher_file):
    with pytest.raises(ValueError, match="exists already"):
        train_judge(JudgeConfig(judged[0], judged[1]))
    with pytest.raises(ValueError, match="toy faces have a judge already"):
        train_judge(JudgeConfig("toyfaces", str(tmp_path / "j.safetensors")))
    with pytest.raises(ValueError, match="perceptual must be 'toyfaces', 'lpips' or the .safetensors file of"):
        distill_config(tmp_path, teacher_file, perceptual="lpip")
    with pytest.raises(CheckpointError, match="a discriminator was asked for"):
        distill(distill_config(tmp_path / "r", teacher_file, perceptual=str(teacher_file)))
