"""Every command through its entry point: what it writes, and one sentence for bad input."""

from __future__ import annotations

import errno
import io
import json
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import fields
from pathlib import Path
from unittest.mock import Mock

import pytest
import torch
from PIL import Image

import gapkd
from gapkd import chapters, cli
from gapkd.cli import main
from gapkd.cli.options import GROUPS, parsed
from gapkd.data.datasets import load_image, open_dataset
from gapkd.files.checkpoints import load_generator, read_metadata, save_network
from gapkd.metrics.editing import load_directions
from gapkd.metrics.sampling import draw_sheet
from gapkd.progress import show
from gapkd.settings import DistillConfig, TrainConfig
from gapkd.training.loop import resume_run
from gapkd.training.plan import PlanConfig

SMALL = "--batch 4 --images 8 --no-progress --precision float32 --d-channels 4".split()
NETWORK = "--resolution 8 --z-dim 8 --w-dim 8 --mapping-layers 1 --channels 4 3".split()


@pytest.fixture
def teacher(teacher_file):
    return str(teacher_file)


def refusal(capsys, *arguments) -> str:
    """The one sentence on stderr with which a command refuses."""
    assert main([str(argument) for argument in arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gapkd: ") and err.count("\n") == 1 and "Traceback" not in err
    return err


def test_teacher(tmp_path, capsys):
    """A note about its data is one line without the place in the code."""
    for i in range(4):
        Image.new("RGB", (20, 12), (60 * i, 0, 0)).save(tmp_path / f"{i}.png")
    out = tmp_path / "run"
    assert main(["teacher", "--data", str(tmp_path), "--out", str(out), *NETWORK, *SMALL]) == 0
    file, said = out / "generator.safetensors", capsys.readouterr()
    assert f"teacher written to {file}" in said.out
    assert said.err.startswith("gapkd: 4 of the 4 images in ")
    assert said.err.count("\n") == 1 and ".py" not in said.err
    assert load_generator(file).channels == [(4, 4), (3, 3)]
    assert read_metadata(file)["provenance"]["settings"]["batch"] == 4


def test_a_run_among_its_images_does_not_learn_from_what_it_drew(tmp_path, capsys):
    for i in range(4):
        Image.new("RGB", (16, 16), (i, 0, 0)).save(tmp_path / f"{i}.png")
    options = [*NETWORK, *SMALL, "--grid-every", "4"]
    for out in (tmp_path / "run", tmp_path):
        assert main(["teacher", "--data", str(tmp_path), "--out", str(out), *options]) == 0
        assert list(out.glob("grids/*.png"))
        images = json.loads((out / "settings.json").read_text())["settings"]["images"]
        assert main(["resume", str(out), "--images", str(images + 8)]) == 0
        assert json.loads((out / "data.json").read_text()) == [f"{i}.png" for i in range(4)]


def test_distil_with_every_loss(tmp_path, teacher):
    out = tmp_path / "run"
    options = "--keep 0.5 --kernel 1 --mapping inherit-frozen --ld-blocks 1 2".split()
    assert main(["distill", "--teacher", teacher, "--out", str(out), *options, *SMALL]) == 0
    assert load_generator(out / "generator.safetensors").channels[0] == (4, 4)
    last = json.loads((out / "log.jsonl").read_text().splitlines()[-1])
    assert {"loss_rgb", "loss_perceptual", "loss_ld", "loss_gan"} <= last.keys()


@pytest.mark.parametrize("options", ["--lr 0.004 --recipe gapkd", "--recipe=gapkd --lr=0.004"])
def test_what_is_given_wins_over_the_recipe(monkeypatch, options):
    monkeypatch.setattr("gapkd.training.loop.distill", run := Mock())
    assert main(["distill", *options.split()]) == 0
    run.assert_called_once_with(DistillConfig(recipe="gapkd", lr=0.004))
    assert run.call_args[0][0].synthesis == "pruned-diversity"


@pytest.mark.parametrize(("options", "given"), [
    ("--tensorboard", {"tensorboard": True}),
    ("--no-tensorboard --cuda-graphs", {"tensorboard": False, "cuda_graphs": True}),
    ("--cuda_graphs False --images 9", {"cuda_graphs": False, "images": 9}),
    ("--tensorboard None", {})])
def test_switches_of_a_run_that_goes_on(monkeypatch, options, given):
    run = Mock(return_value=Mock(checkpoint="there"))
    monkeypatch.setattr("gapkd.training.loop.resume_run", run)
    assert main(["resume", "runs/x", *options.split()]) == 0
    assert run.call_args == (("runs/x",), {"images": 0, "device": "", "progress": True} | given)


def test_a_path_in_an_option_may_begin_with_the_home_folder(tmp_path, teacher, monkeypatch):
    """--out=~/x, which few shells spell out, and what Python code may name."""
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copy(teacher, tmp_path / "net.safetensors")
    assert main(["sample", "~/net.safetensors", "--out=~/faces.png", "--count", "1"]) == 0
    size = load_generator("~/net.safetensors").resolution
    assert load_image("~/faces.png", size).shape == (1, 3, size, size)
    (tmp_path / "photos").mkdir()
    (tmp_path / "faces.png").rename(tmp_path / "photos" / "face.png")
    assert open_dataset("~/photos", size).size == 1
    with pytest.raises(ValueError, match=f"{tmp_path}/run holds no run of gapkd"):
        resume_run("~/run")


def test_evaluate(tmp_path, teacher, capsys):
    out = tmp_path / "table.json"
    command = ["evaluate", teacher, "--samples", "40"]
    assert main([*command, "--teacher", teacher, "--out", str(out)]) == 0
    record = json.loads(out.read_text())
    assert [row["name"] for row in record["rows"]] == ["real", "teacher", "teacher.safetensors"]
    assert record["rows"][2]["l1"] == 0 and record["samples"] == 40 and record["commit"]
    assert "fid_toyfaces_40" in capsys.readouterr().out
    assert "exists already" in refusal(capsys, *command, "--out", out)
    assert main(command) == 0
    alone = capsys.readouterr().out
    assert "| teacher.safetensors |" in alone and "agree" not in alone


def test_evaluate_in_a_space_that_is_not_there(teacher, capsys, monkeypatch):
    for module in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3"):
        monkeypatch.setitem(sys.modules, module, None)
    said = refusal(capsys, "evaluate", teacher, "--features", "inception")
    assert 'need the extra "metrics"' in said


def test_sample(tmp_path, teacher, capsys):
    out = tmp_path / "sheet.png"
    command = ["sample", teacher, "--out", str(out)]
    assert main([*command, "--count", "6", "--columns", "3"]) == 0
    assert Image.open(out).size == (3 * 33 - 1, 2 * 33 - 1)
    few = tmp_path / "few.png"
    wide = ["--count", "2", "--columns", "1000000000"]
    assert main(["sample", teacher, "--out", str(few), *wide]) == 0
    assert Image.open(few).size == (2 * 33 - 1, 32)
    assert "exists already" in refusal(capsys, *command)


def test_sample_as_single_files(tmp_path, teacher, capsys):
    command = ["sample", teacher, "--separate", "--count", "3", "--seed", "5", "--out"]
    assert main([*command, str(tmp_path / "faces")]) == 0
    dataset = open_dataset(str(tmp_path / "faces"), 32)
    assert dataset.names == [f"00000{n}.png" for n in range(3)]
    drawn = draw_sheet(load_generator(teacher), 3, 5).clamp(-1, 1)
    torch.testing.assert_close(dataset.load(torch.arange(3)), drawn, atol=0.01, rtol=0)
    assert "exists already: remove it or choose another folder" in refusal(
        capsys, *command, tmp_path / "faces")
    assert main([*command, str(tmp_path / "more.png")]) == 0  # as the default: a folder "more"
    assert sorted(file.name for file in (tmp_path / "more").iterdir()) == dataset.names
    assert not (tmp_path / "more.png").exists()


@pytest.mark.parametrize("option", [["--no-alone"], ["--samples", "200"], ["--seed", "1"]])
def test_directions_of_the_weights_look_at_no_images(tmp_path, teacher, capsys, option):
    said = refusal(capsys, "directions", teacher, "--out", tmp_path / "d.safetensors",
                   "--attributes", "none", *option)
    name = option[0].removeprefix("--no-").removeprefix("--")
    assert f"{name} is for directions that are found in images" in said
    assert not list(tmp_path.glob("d.*"))


def test_a_direction_that_is_named_twice_is_written_once(tmp_path, teacher):
    out, names = tmp_path / "d.safetensors", ["SeFa 2", "SeFa 1", "SeFa 2"]
    command = ["directions", teacher, "--out", str(out), "--attributes", "none", "--names", *names]
    assert main(command) == 0
    assert load_directions(out).names == ("SeFa 2", "SeFa 1")


@pytest.mark.parametrize("provenance, images", [
    ({}, ""), ({"settings": {"data": "toyfaces"}}, ""),
    ({"settings": {"data": "a/b.zip"}}, "b.zip"),
    ({"source": "theirs"}, "images that its file does not name")])
def test_directions_of_other_images_by_the_toy_faces_network_are_named(
        tmp_path, teacher, capsys, provenance, images):
    file = save_network(load_generator(teacher), tmp_path / "net.safetensors", provenance)
    command = ["directions", str(file), "--names", "hats", "--out"]  # which are no factor
    assert main([*command, str(tmp_path / "d.safetensors")]) == 2
    said = capsys.readouterr().err
    assert said.count("was trained on") == bool(images)
    assert f"{file} was trained on {images}, and its factors are read by" in said or not images
    assert main([*command, str(tmp_path / "d.safetensors"), "--attributes", "none"]) == 2
    assert "was trained on" not in capsys.readouterr().err


@pytest.mark.parametrize("arguments, message", [
    ("distill --teacher nowhere.safetensors", "there is no checkpoint nowhere.safetensors"),
    ("teacher --resolution 48", "power of two"),
    ("teacher --data no/such/folder", "no/such/folder"),
    ("teacher --data no\x1b[31m/folder", r"no\x1b[31m/folder"),
    ("chapter 99", "there is no chapter 99"),
    ("sample README.md", "is text: expected a network as"),
    ("sample .", "is a folder: name the file in it"),
    ("sample toyfaces32 --seed -1", "seed must lie between 0"),
    ("sample toyfaces32 --seed 99999999999999999999", "seed must lie between 0"),
    ("sample toyfaces32 --out faces.jpg", "must end in .png"),
    ("sample toyfaces32 --truncation nan", "truncation must lie between -1000 and 1000"),
    ("sample toyfaces32 --truncation 1e39", "truncation must lie between -1000 and 1000"),
    ("sample TOYFACES32.safetensors", "did you mean toyfaces32?"),
    ("distill --kind mobile --rgb-levels all --ld-weight 0", "leave rgb_levels at last"),
    ("distill --teacher toyfaces32_stylegan3 --rgb-levels all --ld-blocks 1",
     "a stylegan3-generator draws one image, not one a level: leave rgb_levels at last"),
    ("distill --kind mobile --teacher toyfaces32_stylegan3 --feature-weight 1 --ld-blocks 1",
     "which a mobile student shares with a StyleGAN2 alone"),
    ("sample toyfaces32 --count 0", "count and columns must be at least 1"),
    ("sample toyfaces32 --label 0", "has no classes: leave it at -1"),
    ("sample toyfaces32 --count 1000000000", "at most 262,144 at 32 px, not 1,000,000,000: draw"),
    ("evaluate toyfaces32 --samples 3", "samples must lie between 4 and 1,000,000, and seed"),
    ("evaluate toyfaces32 --samples 1000000000", "samples must lie between 4 and 1,000,000"),
    ("directions toyfaces32 --out d.safetensors --samples 9", "samples must lie between 100 and"),
    ("directions toyfaces32 --out d.safetensors --samples 1000000000", "100 and 1,000,000, and"),
    ("distill --keep 1.5", "keep must lie in (0, 1], not 1.5"),
    ("distil", "there is no command distil: did you mean distill?"),
    ("evalute", "there is no command evalute: did you mean evaluate?"),
    ("xyzzy", "there is no command xyzzy: see gapkd --help"),
])
def test_bad_input_is_one_sentence(tmp_path, monkeypatch, capsys, arguments, message):
    (tmp_path / "README.md").write_text("not a network")
    monkeypatch.chdir(tmp_path)
    assert message in refusal(capsys, *arguments.split())
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize("options, message", [
    ("--keeep 0.5", "--keep"), ("--keep many", "keep"), ("--recipe papper", "papper"),
    ("--teacher no-such --generator", "Unrecognized options: --generator"),
    ("--images 1.5", "'1.5' is no whole number"), ("--images inf", "'inf' is no whole number"),
    ("--images 2k", "'2k' is no whole number"),
])
def test_mistyped_options_are_named(capsys, options, message):
    with pytest.raises(SystemExit) as caught:
        main(["distill", *options.split()])
    assert caught.value.code == 2
    output = capsys.readouterr()
    assert message in output.err + output.out and "Traceback" not in output.err


@pytest.mark.parametrize("word, number", [
    ("1e6", 1_000_000), ("2.5E3", 2_500), ("20_000", 20_000), ("2000.0", 2000)])
def test_whole_numbers_as_people_write_them(word, number):
    options = ["--images", word, "--ld-blocks", "2", word]
    config = parsed("distill", DistillConfig, options, "")
    assert config.images == number and type(config.images) is int
    assert config.ld_blocks == (2, number)


def test_embedded_networks_that_are_nearly_right(capsys):
    said = refusal(capsys, "distill", "--teacher", "toyfaces46")
    assert "there is no checkpoint toyfaces46 (did you mean toyfaces64?): give a file" in said
    assert "did you mean" not in refusal(capsys, "distill", "--teacher", "/nowhere/at/all")


@pytest.mark.parametrize("cls", [DistillConfig, TrainConfig])
def test_every_option_of_a_training_is_in_one_group(cls):
    grouped = [name for names in GROUPS.values() for name in names]
    assert len(set(grouped)) == len(grouped)
    assert {field.name for field in fields(cls)} <= set(grouped)


@pytest.mark.parametrize("command", ["distill", "teacher"])
def test_options_of_a_training_are_shown_in_groups(command, capsys):
    with pytest.raises(SystemExit):
        main([command, "--help"])
    shown = capsys.readouterr().out
    titles = re.findall(r"^\W+(\w+) options\W+$", shown, re.MULTILINE)
    assert titles[0] == "main" and set(titles[1:]) <= GROUPS.keys() and len(titles) >= 6
    assert "Length of the training in images drawn. Paper: 450,000" in " ".join(shown.split())


@pytest.mark.parametrize("command", cli.ALL)
def test_every_command_describes_its_options_and_its_example_is_understood(command, capsys):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    cls, example = cli.settings_of(command), cli.ALL[command][2]
    said = capsys.readouterr().out
    assert caught.value.code == 0 and f"usage: gapkd {command} " in said
    assert f"example: gapkd {command} {example}" in said
    assert isinstance(parsed(command, cls, example.split(), ""), cls)


@pytest.mark.parametrize("options", ["--generator x --seed 1", "--seed 1 --generator=x",
                                     "x --seed 1"])
@pytest.mark.parametrize("command", ["sample", "evaluate"])
def test_the_generator_may_stand_where_all_commands_have_it(command, options):
    config = parsed(command, cli.settings_of(command), options.split(), "")
    assert (config.generator, config.seed) == ("x", 1)


WITHOUT_TORCH = """
import sys
from gapkd.cli import main
try:
    main(sys.argv[1:])
finally:
    print("torch" in sys.modules, file=sys.stderr)
"""


@pytest.mark.parametrize("arguments", ["--help", "--version", "distill --help",
                                       "sample --help"])
def test_help_does_not_wait_for_torch(arguments):
    command = [sys.executable, "-c", WITHOUT_TORCH, *arguments.split()]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "False\n"
    shown = "usage: gapkd " if arguments.endswith("--help") else f"gapkd {gapkd.__version__}\n"
    assert done.stdout.startswith(shown)


def test_the_overview_is_one_screen_with_every_command(capsys):
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert 24 <= len(lines) <= 40 and max(map(len, lines)) <= 80
    listed = [match[1] for line in lines if (match := re.match(r"  (\w+) ", line))]
    assert listed[:2] == ["distill", "chapter"] and listed == list(cli.ALL)
    assert main([]) == 2 and "usage: gapkd COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize("command, refused", [("plan", True), ("evaluate", False)])
def test_several_processes_are_for_what_they_can_share(monkeypatch, capsys, command, refused):
    monkeypatch.setattr(cli, "find", lambda name: _nothing)
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main([command]) == (2 if refused else 0)
    assert ("torchrun is for teacher" in capsys.readouterr().err) == refused


def _nothing(config: PlanConfig) -> None:
    """A command that does nothing."""


@pytest.mark.parametrize("error, status, message", [
    (KeyboardInterrupt(), 130, "gapkd: interrupted\n"),
    (OSError("the disk is full"), 2, "gapkd: the disk is full\n"),
    *((error, 2, "gapkd: there is too little memory for that: ask for less, or close other "
                 "programs\n")
      for error in (RuntimeError("alloc_cpu.cpp: can't allocate memory: you tried"),
                    torch.OutOfMemoryError("CUDA out of memory. Tried"), MemoryError())),
])
def test_how_a_command_may_end(monkeypatch, capsys, error, status, message):
    monkeypatch.setattr(cli, "run", Mock(side_effect=error))
    assert main(["plan"]) == status
    assert capsys.readouterr().err == message


def test_a_fault_of_ours_is_shown_with_its_place(monkeypatch):
    monkeypatch.setattr(cli, "run", Mock(side_effect=RuntimeError("shapes")))
    with pytest.raises(RuntimeError, match="shapes"):
        main(["plan"])


def test_a_reader_that_has_seen_enough_ends_it_quietly(tmp_path):
    table = tmp_path / "t.yml"
    seeds = ", ".join(map(str, range(3000)))
    table.write_text(f"seeds: [{seeds}]\narms: {{a: {{}}}}\nresults: {tmp_path / 'r.jsonl'}\n")
    command = f"{sys.executable} -m gapkd sweep {table} --dry-run | head -1"
    shell = ["bash", "-o", "pipefail", "-c", command]
    done = subprocess.run(shell, capture_output=True, text=True)
    assert done.stdout.startswith("0 of 3000 runs") and done.stderr == ""
    assert done.returncode == 141


def test_what_the_encoding_of_the_output_lacks_is_spelt_out(tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "cp1252"))
    assert main(["sample", teacher, "--count", "1", "--out", str(tmp_path / "ü→.png")]) == 0
    assert sys.stdout.buffer.getvalue().endswith(b"/\xfc\\u2192.png\n")


def test_what_cannot_be_printed_is_said_on_stderr(tmp_path, teacher, capsys, monkeypatch):
    out, full = tmp_path / "table.json", Mock(side_effect=OSError(28, "No space left on device"))
    monkeypatch.setattr(sys, "stdout", Mock(write=full, encoding="utf-8"))
    assert main(["evaluate", teacher, "--samples", "40", "--out", str(out)]) == 0
    said = capsys.readouterr().err
    assert "written (No space left on device), so this stands here:\n| " in said
    assert f"stands here:\nwritten to {out}\n" in said and out.exists()
    monkeypatch.setattr(sys, "stderr", Mock(write=full))  # it may go to the same disk
    show("on it goes")


def test_a_folder_that_is_gone_is_said_to_be(tmp_path, capsys, monkeypatch):
    (gone := tmp_path / "gone").mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert "the folder you stand in is gone: cd to another" in refusal(capsys, "sample", "x")


def test_what_is_printed_commands_no_terminal(tmp_path, teacher, capsys):
    odd = shutil.copy(teacher, tmp_path / "\x1b[2J\u202egnp\x07.safetensors")
    assert main(["evaluate", str(odd), "--samples", "40"]) == 0
    said = capsys.readouterr().out
    assert r"| \x1b[2J\u202egnp\x07.safetensors |" in said and said.count("\n") == 4


@pytest.mark.parametrize("command", [
    "sample toyfaces32 --out OUT.png", "directions toyfaces32 --out OUT.safetensors",
    "convert toyfaces32 OUT.pt", "export toyfaces32 --onnx OUT.onnx",
    "export toyfaces32 --program OUT.pt2", "demo toyfaces32 --out OUT",
    "share toyfaces32 --out OUT", "evaluate toyfaces32 --out OUT.json",
    "judge --data toyfaces --out OUT.safetensors",
    "teacher --out OUT", "distill --out OUT --synthesis slimmed", "chapter 04 --out OUT",
    "sweep table.yml --results OUT.jsonl"])
@pytest.mark.parametrize("place, message", [
    ("file/x", "file is a file: choose another"),
    ("locked/x", "locked is not writable: choose"),
    ("n" * 300, "File name too long): choose another")])
def test_outputs_are_checked_before_the_work(tmp_path, monkeypatch, capsys, command, place,
                                             message):
    """Nothing is loaded, drawn or trained before."""
    (tmp_path / "file").touch()
    (tmp_path / "locked").mkdir()
    (tmp_path / "table.yml").write_text("arms: {paper: }\nresults: r.jsonl")
    monkeypatch.chdir(tmp_path)
    temporary = tempfile.TemporaryFile

    def unless_locked(dir):
        if "locked" in str(dir):
            raise OSError(errno.EROFS, "Read-only file system")
        return temporary(dir=dir)

    monkeypatch.setattr("tempfile.TemporaryFile", unless_locked)
    worked = Mock(side_effect=AssertionError)
    monkeypatch.setattr("papermill.execute_notebook", worked)
    for name in ("files.checkpoints._load", "metrics.attributes.fit_network",
                 "training.loop.fresh_generator", "training.loop.load_generator"):
        monkeypatch.setattr(f"gapkd.{name}", worked)
    assert message in refusal(capsys, *command.replace("OUT", place).split())


WRITTEN = [chapters.ROOT / "README.md", chapters.ROOT / "tools" / "guide.md",
           *sorted(chapters.NOTEBOOKS.rglob("*.ipynb"))]
TYPED = re.compile(r"(?:^|`|-m )gapkd ([a-z]+)((?: +[^`\n ]+)*)", re.MULTILINE)


def prose(file: Path) -> str:
    """What a page says outside its code cells, each command on one line."""
    text = file.read_text()
    if file.suffix == ".ipynb":
        cells = json.loads(text)["cells"]
        text = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    return re.sub(r"\s*\\\n\s*", " ", text)


@pytest.mark.parametrize("file", WRITTEN, ids=lambda file: file.stem)
def test_what_we_tell_people_to_type_is_known(file):
    for command, words in TYPED.findall(prose(file)):
        assert command in cli.ALL, f"gapkd {command}"
        options = [field.name.replace("_", "-") for field in fields(cli.settings_of(command))]
        for option in re.findall(r"--([\w-]+)", words):
            assert option.removeprefix("no-") in ["help", *options], f"{command} --{option}"
