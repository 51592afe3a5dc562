"""The guide's Python, run as it stands."""

from __future__ import annotations

import re

import pytest
import torch
from PIL import Image

import gapkd
from gapkd.chapters import ROOT
from gapkd.cli import main

GUIDE = (ROOT / "tools/guide.md").read_text()


def block(word: str) -> str:
    """The one piece of Python with this word."""
    blocks = re.findall(r"^```python\n(.*?)^```", GUIDE, re.DOTALL | re.MULTILINE)
    (found,) = (text for text in blocks if word in text)
    return found


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    return tmp_path


def test_a_generator_and_a_student():
    exec(block("out.features[i]").replace("[i]", "[0]"), found := {})
    assert found["images"].shape == found["out"].image.shape == (4, 3, 32, 32)


def test_a_loss_of_ones_own(folder):
    exec(block("distiller.total"), found := {})
    assert set(found["distiller"](found["ours"], found["theirs"])) == {"rgb", "perceptual", "ld"}
    narrow = gapkd.load_generator(folder / "runs/mine.safetensors").channels
    assert narrow == gapkd.make_student(found["teacher"], keep=0.3).channels


def test_a_projection(folder):
    exec(block("project(G"), found := {})
    assert found["found"].psnr.min() > 10
    assert Image.open(folder / "runs/projected.png").size == (2 * 33 - 1, 3 * 33 - 1)


def test_an_exported_network():
    pytest.importorskip("onnxruntime")
    assert main("export toyfaces32 --onnx student.onnx".split()) == 0
    exec(block("InferenceSession"), found := {})
    G = gapkd.load_generator("toyfaces32")
    drawn = G(torch.from_numpy(found["z"]), truncation=0.7).detach().numpy()
    assert abs(drawn - found["images"]).max() < 1e-3
