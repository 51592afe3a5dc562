"""Generators as folders for a model hub: the round trip, a card that keeps to what is known, and failures."""

from __future__ import annotations

import copy
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from official_files import named_like_nvidia, nvidia_pickle, torch_bytes
from PIL import Image
from recorded import under
from tiny import distill_config, equal

import gapkd
from gapkd.cli import main
from gapkd.cli.measure import EvaluateConfig
from gapkd.cli.share import ShareConfig
from gapkd.files import checkpoints
from gapkd.files.checkpoints import CheckpointError, load_generator, read_metadata, save_network, sha256
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.sharing.hub import save_pretrained
from gapkd.sharing.modelcard import LESSONS
from gapkd.sharing.origins import provenance_of
from gapkd.training.loop import distill
from gapkd.training.plan import architecture_of

FILES = ["README.md", "config.json", "model.safetensors", "samples.png"]
DISTILLED = {"command": "distill", "images": 100_000, "seconds": 1254, "commit": "8b02f48d6152",
             "hardware": "a machine",
             "settings": {"teacher": "toyfaces32", "data": "toyfaces", "keep": 0.3, "rgb_weight": 3.0, "seed": 5,
                          "perceptual": "toyfaces", "perceptual_weight": 3.0, "device": "cuda:3",
                          "out": "/somewhere/private/run"}}


def stylegan2(**more) -> Generator:
    torch.manual_seed(0)
    return Generator(**{"resolution": 32, "z_dim": 8, "w_dim": 8, "channels": 6, "mapping_layers": 1} | more)


def stylegan3() -> AliasFreeGenerator:
    torch.manual_seed(0)
    return AliasFreeGenerator(16, 8, 8, [8, 6, 4, 4], margin=4)


NETWORKS = {"stylegan2": stylegan2, "stylegan3": stylegan3, "conditional": lambda: stylegan2(c_dim=3, resolution=8)}
network = pytest.mark.parametrize("kind", NETWORKS)


def card(folder: Path) -> tuple[dict, str]:
    """Front matter and text of a folder's card."""
    nothing, front, text = (folder / "README.md").read_text().split("---\n", 2)
    assert nothing == ""
    return yaml.safe_load(front), text


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0].strip()


@network
def test_the_round_trip_is_exact_and_leaves_the_generator_alone(tmp_path, kind):
    G = NETWORKS[kind]()
    before = copy.deepcopy(G)
    folder = save_pretrained(G, tmp_path / "deep" / "net", {"seed": 3})
    assert sorted(p.name for p in folder.iterdir()) == FILES and os.listdir(tmp_path / "deep") == ["net"]
    assert G.training and equal(G, before)  # a StyleGAN3 in training keeps book of what it draws
    loaded = gapkd.load_generator(folder)
    assert equal(loaded, G) and loaded.architecture() == G.architecture() and not loaded.training
    assert read_metadata(folder) == read_metadata(folder / "model.safetensors")
    assert read_metadata(folder)["provenance"] == {"seed": 3}
    assert sha256(str(folder)) == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == G.architecture() and config["kind"] == checkpoints.kind_of(G)


@network
def test_the_code_on_the_card_runs(tmp_path, kind, monkeypatch):
    G = NETWORKS[kind]()
    _, text = card(save_pretrained(G, tmp_path / 'my "net"'))
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(re.search(r"```python\n(.*?)```", text, re.DOTALL)[1], names)
    assert names["images"].shape == (8, 3, G.resolution, G.resolution) and equal(names["G"], G)
    assert f"(8, 3, {G.resolution}, {G.resolution})" in text
    assert Image.open("eight.png").height == G.resolution


def test_the_code_on_the_card_runs_elsewhere(tmp_path):
    _, text = card(save_pretrained(stylegan2(), tmp_path / "net"))
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    environment = os.environ | {"PYTHONPATH": str(Path(gapkd.__file__).parent.parent)}
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and (tmp_path / "eight.png").exists()


@network
def test_the_sheet_is_what_the_card_says(tmp_path, kind):
    G = NETWORKS[kind]()
    folder = save_pretrained(G, tmp_path / "net", truncation=0.5)
    sheet, times = Image.open(folder / "samples.png"), 96 // G.resolution
    command = ["sample", "--generator", str(folder), "--out", str(tmp_path / "s.png"), "--count", "32", "--seed", "0"]
    assert main([*command, "--truncation", "0.5"]) == 0
    again = Image.open(tmp_path / "s.png")
    assert again.resize((again.width * times, again.height * times), 0).tobytes() == sheet.tobytes()
    classes = ", the classes in turn" if kind == "conditional" else ""
    assert f"The first 32 latents of seed 0{classes}, truncation 0.5, every pixel" in card(folder)[1]


def test_front_matter_and_origin_of_a_student(tmp_path):
    folder = save_pretrained(stylegan2(), tmp_path / "net", DISTILLED, name="Faces: a *small* one",
                             license="CC-BY-NC-4.0")
    front, text = card(folder)
    assert list(front) == ["license", "library_name", "pipeline_tag", "tags"]  # nothing was measured: no model-index
    assert front["license"] == "cc-by-nc-4.0" and front["library_name"] == "gapkd"
    assert front["tags"] == ["gapkd", "stylegan2", "gan", "image-generation", "knowledge-distillation"]
    assert text.startswith("\n# Faces: a \\*small\\* one\n") and "distilled from the generator `toyfaces32`" in text
    origin = section(text, "Where it comes from")
    assert "100,000 images, 0.35 hours, `a machine`, commit `8b02f48d6152`" in origin
    assert re.search(r"\| `keep` \| .* \| `0.3` \|", origin) and "`gapkd distill --seed 5`" in origin
    assert section(text, "How good it is") == "Nothing has been measured."
    assert section(text, "Licence").startswith("`CC-BY-NC-4.0`")
    assert "has not been measured" in section(text, "Intended use and limits")
    assert read_metadata(folder)["provenance"]["license"] == "CC-BY-NC-4.0"
    for file in folder.iterdir():  # where and with what it was trained is nobody's business
        assert b"private" not in file.read_bytes() and b"cuda:3" not in file.read_bytes()


@pytest.mark.parametrize("changes, words", [
    ({}, "It is a student: distilled from the generator `toyfaces32` (one of the networks that come with gapkd)"),
    ({"teacher": "runs/big/generator.safetensors"}, "from the generator `big/generator.safetensors`, so that"),
    ({"teacher": "/a/ffhq.pkl"}, "distilled from the generator `ffhq.pkl`, so that"),
    ({name: 0.0 for name in LESSONS}, "trained with the adversarial loss alone")])
def test_what_is_said_of_the_teacher(tmp_path, changes, words):
    provenance = DISTILLED | {"settings": DISTILLED["settings"] | changes}
    text = card(save_pretrained(stylegan2(), tmp_path / "net", provenance))[1]
    assert words in text.split("\n## ")[0]
    assert ("rendered toy faces, not" in text) == ("teacher" not in changes)  # who knows what that one has seen


def test_costs_are_counted(tmp_path):
    G, teacher = stylegan2(), stylegan2(channels=12)
    costs = section(card(save_pretrained(G, tmp_path / "net", teacher=teacher))[1], "What it costs")
    assert f"| parameters | {gapkd.parameters(G):,} | {gapkd.parameters(teacher):,} |" in costs
    assert f"| {gapkd.macs(G):,} | {gapkd.macs(teacher):,} |" in costs and f"| {gapkd.macs(G, 'paper'):,} |" in costs
    size = (tmp_path / "net" / "model.safetensors").stat().st_size
    assert f"| {size / 1e6:.2f} MB |" in costs


@pytest.mark.parametrize("given, known, front, words", [
    ("", {}, {}, "No licence has been chosen for these weights"),
    ("", {"license": "apache-2.0"}, {"license": "apache-2.0"}, "`apache-2.0`, as stated"),
    ("mit", {"license": "apache-2.0"}, {"license": "mit"}, "`mit`, as stated"),
    ("My Own 1.0", {}, {"license": "other", "license_name": "my-own-1.0"}, "`My Own 1.0`, as stated")])
def test_licences(tmp_path, given, known, front, words):
    found, text = card(save_pretrained(stylegan2(), tmp_path / "net", known, license=given))
    assert {k: v for k, v in found.items() if k.startswith("license")} == front
    assert section(text, "Licence").startswith(words)


def test_an_embedded_network_has_its_licence_its_history_and_its_figures(tmp_path):
    assert main(["share", "toyfaces32", "--out", str(tmp_path / "net")]) == 0
    front, text = card(tmp_path / "net")
    metrics = read_metadata("toyfaces32")["provenance"]["metrics"]
    results = front["model-index"][0]["results"][0]
    assert front["license"] == "mit" and results["dataset"] == {"type": "toyfaces", "name": "toyfaces"}
    assert {m["name"]: m["value"] for m in results["metrics"]} == {
        k: pytest.approx(v, rel=1e-3) for k, v in metrics["teacher"].items()}
    table = section(text, "How good it is")
    assert f"| FID to real ↓ `fid_toyfaces_5k` | {metrics['real']['fid_toyfaces_5k']:.4g} | " in table
    assert section(text, "Where it comes from").count("- stage ") == 3 and "from scratch on rendered toy faces" in text
    assert card(save_pretrained(load_generator("toyfaces32"), tmp_path / "x", {"metrics": {"fid": 2.5}}))[1].count(
        "does not say how") == 1  # figures of whoever knows how come without a claim


def test_the_figures_on_the_card_are_those_of_evaluate(tmp_path, teacher_file, capsys):
    student = str(save_network(stylegan2(), tmp_path / "student.safetensors", DISTILLED))
    measuring = ["--teacher", str(teacher_file), "--samples", "40", "--seed", "3"]
    out = tmp_path / "shared"
    assert main(["share", student, "--out", str(out), "--evaluate", *measuring]) == 0
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.endswith(f"hf upload YOUR-NAME/shared {out}")
    assert main(["evaluate", "--generator", student, "--out", str(tmp_path / "e.json"), *measuring]) == 0
    rows = json.loads((tmp_path / "e.json").read_text())["rows"]
    front, text = card(out)
    scores = {m["name"]: m for m in front["model-index"][0]["results"][0]["metrics"]}
    assert scores.keys() == {k for k in rows[2] if not k.endswith("_chance") and k != "name"
                             and not re.match("agree_(?!mean_)", k)}
    assert scores["fid_toyfaces_40"]["type"] == "fid"
    table = section(text, "How good it is")
    for name, score in scores.items():
        assert score["value"] == pytest.approx(rows[2][name], rel=1e-3, abs=1e-12)
        cells = re.search(rf"`{name}` \| (.+) \|", table)[1].split(" | ")
        known = [float(cell.split(" (")[0]) for cell in cells if cell != "-"]
        assert known == [pytest.approx(row[name], rel=1e-3, abs=1e-9) for row in rows if name in row]
        if f"{name}_chance" in rows[2]:
            assert cells[2].endswith(f" ({rows[2][f'{name}_chance']:.4g})")
    assert "is the one whose perceptual distance this network was trained with" in table
    assert "40 images a set, from latents of seed 3, without truncation" in table and "`teacher.safetensors`" in table
    assert "Not examined" in text and "has not been measured" not in text
    assert str(tmp_path).encode() not in (out / "model.safetensors").read_bytes() + (out / "README.md").read_bytes()
    # the figures travel with the weights
    assert main(["share", str(out), "--out", str(tmp_path / "again")]) == 0
    assert section(card(tmp_path / "again")[1], "How good it is") == table


def test_foreign_files_are_named_with_their_checksum(tmp_path, stylekd):
    theirs = {"ffhq.pkl": nvidia_pickle(named_like_nvidia(stylegan2())),
              "student.pt": torch_bytes({"g_ema": under("student.state.", stylekd)})}
    for name, content in theirs.items():
        (tmp_path / name).write_bytes(content)
        out = tmp_path / f"{name}-shared"
        assert main(["share", str(tmp_path / name), "--out", str(out)]) == 0
        assert equal(load_generator(out), load_generator(tmp_path / name))
        front, text = card(out)
        origin = section(text, "Where it comes from")
        who = "NVIDIA" if name == "ffhq.pkl" else "rosinality"
        assert f"those of the file `{name}` (`{who}'s StyleGAN2`)" in origin
        assert hashlib.sha256(content).hexdigest() in origin and "that file does not tell" in origin
        assert "license" not in front and f"The licence of `{name}`" in section(text, "Licence")
    assert main(["convert", str(tmp_path / "ffhq.pkl"), str(tmp_path / "own.safetensors")]) == 0
    assert main(["share", str(tmp_path / "own.safetensors"), "--out", str(tmp_path / "c"), "--license", "other"]) == 0
    assert "`ffhq.pkl` allows" in section(card(tmp_path / "c")[1], "Licence")


def test_a_folder_will_do_wherever_a_generator_is_named(tmp_path, teacher_file, fake_distance, capsys):
    folder = save_pretrained(load_generator(teacher_file), tmp_path / "teacher", {"seed": 1})  # called as a table's row
    assert main(["evaluate", "--generator", str(folder), "--teacher", str(folder), "--samples", "40"]) == 0
    rows = [line.split(" |")[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == ["| real", "| teacher", "| teacher"]
    assert main(["convert", str(folder), str(tmp_path / "t.pt")]) == 0
    assert equal(load_generator(tmp_path / "t.pt"), load_generator(folder))
    result = distill(distill_config(tmp_path / "run", folder, ld_blocks=(1,)))
    assert json.loads((tmp_path / "run" / "settings.json").read_text())["inputs"]["teacher"] == sha256(folder)
    assert provenance_of(result.checkpoint)["settings"]["teacher"] == str(folder)
    assert architecture_of(str(folder)) == read_metadata(teacher_file)["architecture"]


# ------------------------------------------------------------------------------------------- what is refused


def edited(**changes):
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))
    return edit


def other_width(folder: Path) -> None:
    architecture = json.loads((folder / "config.json").read_text())["architecture"]
    edited(architecture=architecture | {"w_dim": 9, "depth": 1})(folder)


def less(folder: Path) -> None:
    architecture = json.loads((folder / "config.json").read_text())["architecture"]
    del architecture["kernel"]
    edited(architecture=architecture)(folder)


def another_network(folder: Path) -> None:
    save_network(stylegan2(channels=5), folder / "model.safetensors")


@pytest.mark.parametrize("spoil, message", [
    (other_width, "config.json and model.safetensors beside it disagree about depth, w_dim: one of the two was"),
    (less, "disagree about kernel"), (another_network, "disagree about channels"),
    (edited(kind="stylegan3-generator"), "disagree about kind"),
    (edited(gapkd_format="2"), "is of the format '2', this gapkd reads '1': install a newer gapkd"),
    (edited(architecture=[["w_dim", 8]]), "cannot be read as the description of a network"),
    (lambda f: (f / "config.json").write_text("{"), "cannot be read as the description of a network"),
    (lambda f: (f / "config.json").write_text("[" * 10**5), "cannot be read as the description of a network"),
    (lambda f: (f / "config.json").write_bytes(b"\xff\xfe{}"), "cannot be read as the description of a network"),
    (lambda f: (f / "config.json").write_text("[]"), "cannot be read as the description of a network"),
    (lambda f: (f / "model.safetensors").unlink(), "holds config.json, but no model.safetensors: fetch the folder"),
    (lambda f: (f / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n"),
     "net/model.safetensors is a Git LFS pointer"),
    (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]),
     "net/model.safetensors is not a whole safetensors file")])
def test_a_spoilt_folder_is_one_sentence(tmp_path, spoil, message, capsys):
    folder = save_pretrained(stylegan2(), tmp_path / "net")
    spoil(folder)
    for use in (load_generator, read_metadata, sha256, lambda path: architecture_of(str(path))):
        if use is architecture_of and "no model" in message:
            continue
        with pytest.raises(ValueError, match=re.escape(message) if use is load_generator else "net") as caught:
            use(folder)
        assert "\n" not in str(caught.value)
    assert main(["sample", "--generator", str(folder), "--out", str(tmp_path / "s.png")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_config_json_may_be_missing_and_may_say_more(tmp_path):
    folder = save_pretrained(stylegan2(), tmp_path / "net")
    edited(a_hub="adds this")(folder)
    assert load_generator(folder).resolution == 32
    (folder / "config.json").unlink()
    assert load_generator(folder).resolution == 32
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is a folder: name the file in it, for example .*generator.safetensors"):
        load_generator(folder)


@pytest.mark.parametrize("options, message", [
    ({"folder": "there"}, "there exists already: remove it or choose another folder"),
    ({"folder": "link"}, "link exists already"), ({"folder": ""}, "'' cannot name a folder"),
    ({"folder": "a\nb"}, "cannot name a folder"), ({"folder": "file/net"}, "file is a file: choose another folder"),
    ({"name": "a\nb"}, "cannot be the name of a network"), ({"name": "x" * 97}, "cannot be the name of a network"),
    ({"license": "MIT\n---"}, "names no licence"), ({"license": "my: own"}, "names no licence"),
    ({"provenance": {"license": "?"}}, "names no licence"), ({"truncation": float("nan")}, "truncation must be a"),
    ({"evaluation": {"rows": []}}, "as `gapkd evaluate --out` writes it"),
    ({"G": Discriminator(8, 2)}, "not a Discriminator")])
def test_what_cannot_be_shared_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("file").write_text("")
    Path("link").symlink_to("nowhere")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        save_pretrained(**{"G": stylegan2(), "folder": "net"} | options)
    assert "\n" not in str(caught.value) and sorted(os.listdir()) == ["file", "link", "there"]


def test_weights_that_are_not_finite_are_not_shared(tmp_path):
    G = stylegan2()
    with torch.no_grad():
        G.synthesis.const[0, 0, 0, 0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        save_pretrained(G, tmp_path / "net")
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("call, nth", [("replace", 1), ("replace", 3), ("rename", 1), ("fsync", 3)])
def test_a_disk_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, capsys, call, nth):
    file = str(save_network(stylegan2(), tmp_path / "student.safetensors"))
    real, calls = getattr(os, call), []

    def full(*arguments):
        calls.append(arguments)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments)

    monkeypatch.setattr(f"gapkd.files.checkpoints.os.{call}", full)
    assert main(["share", file, "--out", str(tmp_path / "net")]) == 2
    err = capsys.readouterr().err
    assert f"could not write the folder {tmp_path / 'net'} (No space left on device)" in err and err.count("\n") == 1
    assert os.listdir(tmp_path) == ["student.safetensors"]


def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path, monkeypatch):
    real = checkpoints.write_atomically

    def slow(path, content):
        (tmp_path / "net").mkdir(exist_ok=True)
        (tmp_path / "net" / "mine").write_text("x")
        return real(path, content)

    monkeypatch.setattr(checkpoints, "write_atomically", slow)
    with pytest.raises(OSError, match="could not write the folder"):
        save_pretrained(stylegan2(), tmp_path / "net")
    assert os.listdir(tmp_path) == ["net"] and os.listdir(tmp_path / "net") == ["mine"]


@pytest.mark.parametrize("options, message", [
    (["--out", "there", "--evaluate"], "there exists already"), (["--samples", "9"], "samples says how to measure"),
    (["--data", "photos.zip"], "data says how to measure"), (["--teacher", "nobody.pkl"], "there is no checkpoint"),
    (["--evaluate", "--samples", "1"], "samples must be at least 2"),
    (["--evaluate", "--license", "?"], "names no licence"), (["--evaluate", "--name", "a\tb"], "cannot be the name"),
    (["--evaluate", "--truncation", "inf"], "truncation must be a number")])
def test_share_complains_before_it_measures(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    save_network(stylegan2(), "student.safetensors")
    Path("there").mkdir()
    monkeypatch.setattr("gapkd.cli.measure.evaluation_table", lambda *_, **__: pytest.fail("it measured"))
    out = [] if "--out" in options else ["--out", "net"]
    assert main(["share", "student.safetensors", *out, *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not Path("net").exists()
    assert ShareConfig("x", out="y").samples == EvaluateConfig("x").samples


@pytest.mark.parametrize("provenance", [
    {"command": "distill", "settings": {"teacher": "`![x](y)` | <img>\n# a title", "data": "```", "recipe": ["a"]}},
    {"command": "teacher", "settings": {"data": 3}, "images": "many", "seconds": None, "hardware": "<script>"},
    {"command": "teacher", "settings": {"data": "x`<b>"}, "images": 1, "seconds": 2, "commit": "<i>", "hardware": "a"},
    {"command": "distill", "settings": [1], "evaluation": {"rows": [1]}, "metrics": [2], "started_from": "a run"},
    {"converted_from": {"file": "`<script>`", "source": {}}, "license": 3, "metrics": {"fid": float("nan")}},
    {"evaluation": {"rows": [{"name": "<b>"}, {"name": 2, "fid_a_1": 2.0, "x|y": 1}], "data": "a|b", "samples": "s"}}])
def test_no_provenance_upsets_the_card(tmp_path, provenance):
    front, text = card(save_pretrained(stylegan2(), tmp_path / "net", provenance))
    assert front["library_name"] == "gapkd"
    plain = re.sub(r"`[^`\n]*`", "", re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL))  # without code
    assert not re.search(r"<|\]\(y|`", plain) and "\n# a title" not in text
    for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1
