"""Every command through its entry point: what it writes, and one sentence for bad input."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
from PIL import Image

from gapkd.cli import main
from gapkd.files.checkpoints import load_generator, read_metadata, save_network
from gapkd.networks.stylegan2 import Generator

SMALL = ["--batch", "4", "--images", "8", "--no-progress", "--precision", "float32", "--d-channels", "4"]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    torch.manual_seed(0)
    file = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    save_network(Generator(32, 8, 8, 6, mapping_layers=1), file)
    return str(file)


def test_teacher(tmp_path, capsys):
    out = tmp_path / "run"
    network = ["--resolution", "8", "--z-dim", "8", "--w-dim", "8", "--mapping-layers", "1", "--channels", "4", "3"]
    assert main(["teacher", "--out", str(out), *network, *SMALL]) == 0
    assert f"teacher written to {out / 'generator.safetensors'}" in capsys.readouterr().out
    assert load_generator(out / "generator.safetensors").channels == [(4, 4), (3, 3)]
    assert read_metadata(out / "generator.safetensors")["provenance"]["settings"]["batch"] == 4


def test_distil_with_every_loss(tmp_path, teacher):
    out = tmp_path / "run"
    options = ["--keep", "0.5", "--kernel", "1", "--mapping", "inherit-frozen", "--ld-blocks", "1", "2"]
    assert main(["distill", "--teacher", teacher, "--out", str(out), *options, *SMALL]) == 0
    assert load_generator(out / "generator.safetensors").channels[0] == (3, 3)
    assert {"rgb", "perceptual", "ld", "gan"} <= json.loads((out / "log.jsonl").read_text().splitlines()[-1]).keys()


def test_evaluate(tmp_path, teacher, capsys):
    out = tmp_path / "table.json"
    assert main(["evaluate", "--generator", teacher, "--teacher", teacher, "--samples", "40", "--out", str(out)]) == 0
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == ["real", "teacher", "teacher.safetensors"]
    assert rows[2]["l1"] == 0
    assert "fid_toyfaces_40" in capsys.readouterr().out


def test_evaluate_alone_and_in_a_space_that_is_not_there(teacher, capsys, monkeypatch):
    assert main(["evaluate", "--generator", teacher, "--samples", "40"]) == 0
    shown = capsys.readouterr().out
    assert "| teacher.safetensors |" in shown and "agree" not in shown
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    monkeypatch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
    assert main(["evaluate", "--generator", teacher, "--samples", "40", "--features", "inception"]) == 2
    assert 'need the extra "metrics"' in capsys.readouterr().err
    assert main(["evaluate", "--generator", teacher, "--samples", "1"]) == 2
    assert "samples must be at least 2" in capsys.readouterr().err


def test_sample(tmp_path, teacher, capsys):
    out = tmp_path / "sheet.png"
    assert main(["sample", "--generator", teacher, "--out", str(out), "--count", "6", "--columns", "3"]) == 0
    assert Image.open(out).size == (3 * 33 - 1, 2 * 33 - 1)
    assert main(["sample", "--generator", teacher, "--out", str(out)]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["sample", "--generator", teacher, "--out", str(tmp_path / "new.png"), "--truncation", "nan"]) == 2
    assert "truncation must be a number" in capsys.readouterr().err and not (tmp_path / "new.png").exists()


@pytest.mark.parametrize("arguments, message", [
    (["distill", "--teacher", "nowhere.safetensors"], "there is no checkpoint nowhere.safetensors"),
    (["teacher", "--resolution", "48"], "power of two"),
    (["teacher", "--data", "no/such/folder"], "no/such/folder"),
    (["sample", "--generator", "README.md"], "is text: expected a network as"),
    (["chapter", "99"], "there is no chapter 99")])
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "README.md").write_text("not a network")
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    err = capsys.readouterr().err
    assert err.startswith("gapkd: ") and message in err and err.count("\n") == 1 and "Traceback" not in err


@pytest.mark.parametrize("arguments, message", [
    (["distill", "--keeep", "0.5"], "--keep"), (["distil"], "distill"), (["distill", "--keep", "many"], "keep"),
    (["distill", "--keep", "1.5"], "keep must lie in (0, 1]"), (["study", "--arms", "ful"], "there is no arm ful")])
def test_mistyped_options_are_named(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert message in output.err + output.out and "Traceback" not in output.err


def test_a_note_is_one_line_without_the_place_in_the_code(tmp_path, capsys):
    for i in range(4):
        Image.new("RGB", (20, 12), (i, 0, 0)).save(tmp_path / f"{i}.png")
    options = ["--images", "8", "--resolution", "8", "--channels", "4", "--d-channels", "4", "--batch", "4"]
    assert main(["teacher", "--data", str(tmp_path), "--out", str(tmp_path / "run"), *options, "--no-progress"]) == 0
    err = capsys.readouterr().err
    assert err.startswith("gapkd: 4 of the 4 images in ") and err.count("\n") == 1 and ".py" not in err


@pytest.mark.parametrize("options, message", [(["--seed", "-1"], "seed must lie between 0"),
                                              (["--seed", "99999999999999999999"], "seed must lie between 0"),
                                              (["--out", "faces.jpg"], "must end in .png"),
                                              (["--generator", "."], "is a folder: name the file in it")])
def test_sample_refuses(options, message, capsys):
    given = [] if "--generator" in options else ["--generator", "toyfaces32"]
    assert main(["sample", *given, *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path):
    (tmp_path / "t.yml").write_text("seeds: [" + ", ".join(map(str, range(3000))) + "]\narms: {a: {}}\n"
                                    f"results: {tmp_path / 'r.jsonl'}\n")
    command = f"{sys.executable} -m gapkd sweep {tmp_path / 't.yml'} --dry-run | head -1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("0 of 3000 runs") and done.stderr == "" and done.returncode == 141
