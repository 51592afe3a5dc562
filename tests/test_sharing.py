"""Generators as folders for a hub: the round trip, a card that keeps to what is known, failures."""

from __future__ import annotations

import copy
import errno
import hashlib
import io
import json
import os
import re
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from official_files import named_like_nvidia, nvidia_pickle, torch_bytes
from PIL import Image
from recorded import under
from safetensors import safe_open
from safetensors.torch import save_file
from tiny import distill_config, equal

import gapkd
from gapkd.cli import main
from gapkd.files.checkpoints import CheckpointError, load_generator, read_metadata, save_network
from gapkd.files.checkpoints import sha256 as checksum
from gapkd.metrics.sampling import SHEET
from gapkd.networks.mobile import MobileGenerator
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.settings import LOSS_WEIGHTS
from gapkd.sharing.hub import repository_name, save_pretrained
from gapkd.sharing.origins import named, provenance_of
from gapkd.training.loop import distill
from gapkd.training.plan import architecture_of

hub = pytest.importorskip("huggingface_hub")
errors = pytest.importorskip("huggingface_hub.errors")

FILES = ["README.md", "config.json", "model.safetensors", "samples.png"]
DISTILLED = {
    "command": "distill", "images": 100_000, "seconds": 1254, "commit": "8b02f48d6152",
    "hardware": "a machine",
    "settings": {"teacher": "toyfaces32", "data": "toyfaces", "keep": 0.3, "rgb_weight": 3.0,
                 "seed": 5, "perceptual": "toyfaces", "perceptual_weight": 3.0,
                 "device": "cuda:3", "out": "/somewhere/private/run"}}


def stylegan2(**more) -> Generator:
    torch.manual_seed(0)
    sizes = {"resolution": 32, "z_dim": 8, "w_dim": 8, "channels": 6, "mapping_layers": 1}
    return Generator(**sizes | more)


def stylegan3() -> AliasFreeGenerator:
    torch.manual_seed(0)
    return AliasFreeGenerator(16, 8, 8, [8, 6, 4, 4], margin=4)


NETWORKS = {"stylegan2": stylegan2, "stylegan3": stylegan3,
            "mobile": lambda: MobileGenerator(8, 8, 8, channels=8, mapping_layers=1),
            "conditional": lambda: stylegan2(c_dim=3, resolution=8)}
network = pytest.mark.parametrize("kind", NETWORKS)


def card(folder: Path) -> tuple[dict, str]:
    """The data that hubs read of a folder's card, and its text."""
    read = hub.ModelCard.load(folder / "README.md")
    return read.data.to_dict(), read.text


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n")[1].split("\n## ")[0].strip()


@network
def test_the_round_trip_is_exact_and_keeps_to_the_conventions_of_the_hub(tmp_path, kind):
    G = NETWORKS[kind]()
    before = copy.deepcopy(G)
    folder = save_pretrained(G, tmp_path / "deep" / "net", {"seed": 3})
    assert sorted(os.listdir(folder)) == FILES and os.listdir(tmp_path / "deep") == ["net"]
    assert G.training and equal(G, before)  # a StyleGAN3 in training keeps book of what it draws
    loaded = gapkd.load_generator(folder)
    assert equal(loaded, G) and loaded.architecture() == G.architecture() and not loaded.training
    weights = folder / "model.safetensors"
    assert read_metadata(folder) == read_metadata(weights)
    assert read_metadata(folder)["provenance"] == {"seed": 3}
    assert checksum(str(folder)) == hashlib.sha256(weights.read_bytes()).hexdigest()
    config = json.loads((folder / "config.json").read_text())
    assert config["kind"] == G.kind and G.architecture().items() <= config.items()
    with safe_open(weights, "pt") as file:
        assert file.metadata()["format"] == "pt"

    class Mixed(hub.PyTorchModelHubMixin, type(G)):
        """What other tools read the folder with."""

    assert equal(Mixed.from_pretrained(folder), G)


@network
def test_generators_have_the_methods_of_the_hub(tmp_path, kind):
    G = NETWORKS[kind]()
    (tmp_path / "net").mkdir()  # an empty folder will do
    assert G.save_pretrained(tmp_path / "net", license="mit") is None
    assert sorted(os.listdir(tmp_path / "net")) == FILES
    loaded = type(G).from_pretrained(tmp_path / "net", map_location="cpu")
    assert equal(loaded, G) and not loaded.training
    other = Generator if kind == "mobile" else MobileGenerator
    with pytest.raises(ValueError, match=f"net is a {type(G).__name__}, not a {other.__name__}:"):
        other.from_pretrained(tmp_path / "net")


OURS = {"private": True, "token": "hf_x"}
THEIRS = {"commit_message": "m", "create_pr": True, "allow_patterns": "*",
          "ignore_patterns": ["x"], "delete_patterns": ["y"]}


@pytest.fixture
def sent(monkeypatch):
    """What a hub has been sent: the name, the folder's files, its card, how it was sent."""
    found = []

    def create_repo(self, repo_id, **given):
        found.append({**given, "token": self.token})
        return SimpleNamespace(repo_id=repo_id if "/" in repo_id else f"me/{repo_id}")

    def upload_folder(self, *, repo_id, folder_path, **given):
        folder = Path(folder_path)
        given |= found.pop()
        found.append((repo_id, folder.name, sorted(os.listdir(folder)), card(folder), given))
        return "https://a.commit"

    monkeypatch.setattr(hub.HfApi, "create_repo", create_repo)
    monkeypatch.setattr(hub.HfApi, "upload_folder", upload_folder)
    return found


@network
def test_uploading(tmp_path, sent, kind):
    G = NETWORKS[kind]()
    assert G.push_to_hub("net", license="mit") == "https://a.commit"
    assert G.save_pretrained(tmp_path / "a", push_to_hub=True) == "https://a.commit"
    assert G.save_pretrained(tmp_path / "b", push_to_hub=True, repo_id="us/big") is not None
    for (name, *files, (_, text), _), wanted in zip(sent, ("me/net", "me/a", "us/big"),
                                                    strict=True):
        assert [name, *files] == [wanted, wanted.split("/")[1], FILES]
        loading = section(text, "Load it and draw")
        assert f'\nG = gapkd.load_generator({name!r})\n' in loading
        module, family = type(G).__module__, type(G).__name__
        assert f'`{family}.from_pretrained({name!r})`, of `{module}`' in loading
        assert "folder" not in loading.split("```")[0]
    assert sent[0][3][0]["license"] == "mit"
    assert "gapkd.load_generator('a')" in card(tmp_path / "a")[1]


def test_arguments_of_the_hub_arrive(tmp_path, sent):
    G, more = stylegan2(), {"config": stylegan2().architecture(),
                            "model_card_kwargs": {"license": "mit"}}
    G.push_to_hub("me/net", branch="v2", **OURS, **THEIRS, **more)
    G.save_pretrained(tmp_path / "net", repo_id="me/net", push_to_hub=True, branch="v2", **OURS,
                      **THEIRS, **more)
    gapkd.push_to_hub(tmp_path / "net", "me/net", revision="v2", **OURS, **THEIRS)
    for name, _, _, (data, _), given in sent:
        assert name == "me/net" and data["license"] == "mit"
        assert given == {**OURS, **THEIRS, "revision": "v2", "exist_ok": True}


@pytest.mark.parametrize("what, repository, more, error, message", [
    ("G", "me/net", {"speed": 1}, TypeError, "argument 'speed'"),
    ("net", "me/net", {"license": "mit"}, TypeError, "license: goes with a generator"),
    ("away", "me/net", {}, ValueError, "'away' is no folder with model.safetensors in it"),
    ("G", "../net", {}, ValueError, "'../net' names no repository: give user/name"),
    ("G", "me/net", {"license": "?"}, ValueError, "names no licence")])
def test_what_cannot_be_uploaded_never_reaches_the_hub(tmp_path, monkeypatch, sent, what,
                                                       repository, more, error, message):
    monkeypatch.chdir(tmp_path)
    G = stylegan2()
    save_pretrained(G, "net")
    with pytest.raises(error, match=re.escape(message)):
        gapkd.push_to_hub(G if what == "G" else what, repository, **more)
    assert sent == []


@pytest.mark.parametrize("error, caught", [
    (OSError("no token"), ValueError), (errors.HTTPError("no token"), ValueError),
    (KeyError("no token"), KeyError)])
def test_only_the_network_is_blamed_on_the_network(monkeypatch, error, caught):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(hub.HfApi, "create_repo", fail)
    monkeypatch.setattr(hub, "hf_hub_download", fail)
    with pytest.raises(caught) as told:
        stylegan2().push_to_hub("me/net", branch="v2")
    sentence = ("nothing was uploaded to me/net (no token): check the name, the branch and the "
                "connection, and log in with `hf auth login`")
    assert caught is KeyError or str(told.value) == sentence
    with pytest.raises(caught) as told:
        load_generator("me/net", local_files_only=True)
    assert caught is KeyError or "could not be fetched (no token) and is not" in str(told.value)


@pytest.mark.parametrize("name", ["me/net", "here"])
def test_arguments_that_nobody_knows_are_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    save_pretrained(stylegan2(), "here")
    monkeypatch.setattr("gapkd.files.checkpoints.fetch", lambda address, **_: Path("here"))
    known = {"force_download": True, "token": False, "cache_dir": "c", "local_files_only": False,
             "revision": "v2", "map_location": "cpu", "strict": True}
    assert equal(Generator.from_pretrained(name, **known), stylegan2())
    for load in Generator.from_pretrained, load_generator:
        with pytest.raises(TypeError, match="unexpected argument speed: what can be said of a hub"):
            load(name, speed=1)
    with pytest.raises(ValueError, match="strict=False is not possible: weights that do not fit"):
        Generator.from_pretrained(name, strict=False)
    with pytest.raises(TypeError, match="'speed'"):
        stylegan2().save_pretrained("net", speed=1)
    assert not Path("net").exists()


COMMIT = "0123456789" * 4
FAULTS = {"private": (401, "RepoNotFound"), "gated": (403, "GatedRepo"), "ill": (500, "")}


class Hub(SimpleHTTPRequestHandler):
    """A hub at home: user/name/resolve/main/file is user/name/file of a folder."""

    def send_head(self):
        user, name, _, revision, *rest = [*self.path.strip("/").split("/"), "", ""]
        file = Path(self.directory, user, name, *filter(None, rest))
        code, fault = FAULTS.get(name, (404, "EntryNotFound"))
        if name not in FAULTS and not file.parent.is_dir():
            fault = "RepoNotFound"
        elif revision not in ("main", COMMIT):
            fault = "RevisionNotFound"
        elif file.is_file():
            code, fault = 200, ""
        content = file.read_bytes() if code == 200 else b""
        self.send_response(code)
        for header in ("X-Error-Code", fault), ("X-Repo-Commit", COMMIT), (
                "Content-Length", str(len(content))), ("ETag", f'"{len(content)}"'):
            self.send_header(*header)
        self.end_headers()
        return io.BytesIO(content)

    def log_message(self, *_):
        pass


ASK = """
import json, sys, gapkd
for name in json.load(sys.stdin):
    try:
        name, more = name if isinstance(name, list) else (name, {})
        print("found", type(gapkd.load_generator(name, **more)).__name__)
    except gapkd.CheckpointError as error:
        print(error)
"""


@pytest.fixture
def ask(tmp_path):
    """Loads generators by name in a process of its own, whose hub is a folder; returns what it
    says, a line each."""
    at_home = partial(Hub, directory=str(tmp_path / "hub"))

    def load(*names: str | tuple[str, dict], offline: bool = False) -> list[str]:
        with ThreadingHTTPServer(("127.0.0.1", 0), at_home) as server:
            address = f"http://127.0.0.1:{1 if offline else server.server_address[1]}"
            threading.Thread(target=server.serve_forever, daemon=True).start()
            environment = os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_ENDPOINT": address,
                                        "PYTHONPATH": str(Path(gapkd.__file__).parent.parent)}
            done = subprocess.run([sys.executable, "-c", ASK], cwd=tmp_path, env=environment,
                                  input=json.dumps(names), capture_output=True, text=True)
            server.shutdown()
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return load


@pytest.mark.slow
def test_repositories_of_a_hub(tmp_path, ask):
    me = tmp_path / "hub" / "me"
    save_pretrained(stylegan2(), me / "net")
    save_pretrained(stylegan3(), me / "edited")
    edited(w_dim=9)(me / "edited")
    (me / "old").mkdir()
    (me / "old" / "ffhq.pkl").write_bytes(nvidia_pickle(named_like_nvidia(stylegan2())))
    assert ask("me/net", "hf://me/net", "hf://me/net@main", "hf://me/old/ffhq.pkl") == (
        ["found Generator"] * 4)
    *found, again, offline = ask("me/net", f"hf://me/net@{COMMIT}",
                                 ("me/net", {"force_download": True}), "me/away", offline=True)
    assert found == ["found Generator"] * 2 and again.startswith("there is no checkpoint me/net")
    assert re.search(r"could not be fetched \(.*refused.*\) and is not in the cache: check the "
                     "connection", offline)
    away, *said = ask("me/away", "me/private", "hf://me/gated", "hf://me/net@v9", "hf://me/old",
                      "hf://me/ill", "hf://me", "hf://me/old/../x", "me/edited")
    for line, words in zip((away, *said), (
            "there is no checkpoint me/away here, and the hub shows no repository me/away, it may "
            "be private: check it, or log in with `hf auth login`",
            "the hub shows no repository me/private", "hf://me/gated is open to those alone who",
            "hf://me/net@v9 has no revision v9: check it", "hf://me/old holds no model.safetensors:"
            " name a file of it, as in hf://me/old/FILE", "hf://me/ill could not be fetched (the "
            "server says 500", "hf://me names no repository: give", "hf://me/old/../x",
            "config.json and model.safetensors beside it disagree about w_dim"), strict=True):
        assert words in line
    *found, absent, stranger, full, odd = ask(
        ("me/net", {"revision": COMMIT, "force_download": True, "token": False}),
        ("me/net", {"cache_dir": str(tmp_path / "c")}),
        ("me/net", {"cache_dir": str(tmp_path / "c"), "local_files_only": True}),
        ("me/net", {"cache_dir": str(tmp_path / "d"), "local_files_only": True}),
        ("me/net", {"cache_dir": str(tmp_path / "e"), "token": True}),
        ("me/net", {"cache_dir": str(me / "net" / "config.json")}), "me/a--b")
    assert found == ["found Generator"] * 3 and "leave out local_files_only, or bring" in absent
    assert "nobody is logged in: run `hf auth login`" in stranger
    assert "could not be stored (Not a directory)" in full and "give cache_dir" in full
    assert "a--b cannot be asked for so (Cannot have -- or" in odd
    # what is here comes first, and a folder of the user's name keeps the hub out
    save_pretrained(stylegan3(), tmp_path / "me" / "net")
    *found, typo = ask("me/net", "hf://me/net", "me/nut")
    assert found == ["found AliasFreeGenerator", "found Generator"]
    assert typo.startswith("there is no checkpoint me/nut: give a file")


def test_a_repository_as_teacher_is_the_base_model(tmp_path, monkeypatch):
    monkeypatch.setattr("gapkd.files.checkpoints.fetch", lambda address: tmp_path / "teacher")
    save_pretrained(stylegan2(), tmp_path / "teacher")
    result = distill(distill_config(tmp_path / "run", "some/where", ld_blocks=(1,)))
    provenance = provenance_of(result.checkpoint)
    assert provenance["settings"]["teacher"] == "hf://some/where"
    data, text = card(save_pretrained(result.generator, tmp_path / "net", provenance))
    assert data["base_model"] == "some/where" and "distilled from" in text
    assert "the generator `hf://some/where`" in text


def test_another_repositorys_network_is_told_of_alike_in_both_formats(tmp_path):
    state = {name: value.contiguous() for name, value in named_like_nvidia(stylegan2()).items()}
    save_file(state, tmp_path / "net.safetensors")
    (tmp_path / "net.pt").write_bytes(torch_bytes(state))
    for file in (tmp_path / "net.safetensors", tmp_path / "net.pt"):
        found = {"source": "NVIDIA's StyleGAN2", "file": file.name, "sha256": checksum(file)}
        assert provenance_of(file) == {"converted_from": found}


@network
def test_the_code_on_the_card_runs_elsewhere(tmp_path, kind):
    G = NETWORKS[kind]()
    _, text = card(save_pretrained(G, tmp_path / 'my "net" \N{SLIGHTLY SMILING FACE}'))
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    size = (8, 3, G.resolution, G.resolution)
    assert f"# {size}" in code
    root = str(Path(gapkd.__file__).parent.parent)
    environment = os.environ | {"PYTHONPATH": root, "GAPKD_DATA": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", f"{code}\nassert images.shape == {size}"],
                          cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    assert Image.open(tmp_path / "eight.png").height == G.resolution


@pytest.mark.parametrize("kind", ["stylegan2", "conditional"])
def test_the_sheet_is_what_the_card_says(tmp_path, kind):
    G = NETWORKS[kind]()
    folder, again = save_pretrained(G, tmp_path / "net"), tmp_path / "s.png"
    options = "--out", str(again), "--count", "32", "--seed", str(SHEET)
    assert main(["sample", str(folder), *options]) == 0
    sheet, again, times = Image.open(folder / "samples.png"), Image.open(again), 96 // G.resolution
    assert again.resize((again.width * times, again.height * times), 0).tobytes() == sheet.tobytes()
    classes = ", the classes in turn" if kind == "conditional" else ""
    said = f"The first 32 latents of seed {SHEET}{classes}, no truncation, every pixel"
    assert said in card(folder)[1]
    assert "and to distil further (`gapkd distill --teacher`)." in card(folder)[1]


def test_data_and_origin_of_a_student(tmp_path):
    folder = save_pretrained(stylegan2(), tmp_path / "Faces: a *small* {{ one }}", DISTILLED,
                             license="CC-BY-NC-4.0")
    data, text = card(folder)
    assert data == {"license": "cc-by-nc-4.0", "library_name": "gapkd", "datasets": ["toyfaces"],
                    "pipeline_tag": "unconditional-image-generation",
                    "tags": ["gapkd", "stylegan2", "gan", "image-generation",
                             "knowledge-distillation"]}  # nothing was measured: no model-index
    assert text.strip().startswith("# Faces: a \\*small\\* {{ one }}\n")
    origin = section(text, "Where it comes from")
    assert "`gapkd distill --seed 5 --out runs/stage1`, 100,000 images, 0.35 hours" in origin
    assert "hardware `a machine`, commit `8b02f48d6152`" in origin
    assert section(text, "How good it is") == "Nothing has been measured."
    assert section(text, "Licence").startswith("`CC-BY-NC-4.0`")
    assert "has not been measured" in section(text, "Intended use and limits")
    assert read_metadata(folder)["provenance"]["license"] == "CC-BY-NC-4.0"
    for file in folder.iterdir():  # where and with what it was trained is nobody's business
        assert not re.search(b"private|cuda:3", file.read_bytes())


@pytest.mark.parametrize("changes, words", [
    ({}, "distilled from the generator `toyfaces32` (one of the networks that come with gapkd):"),
    ({"teacher": "runs/big/generator.safetensors"}, "generator `big/generator.safetensors`: from"),
    ({"teacher": "/a/ffhq.pkl"}, "distilled from the generator `ffhq.pkl`: from"),
    ({name: 0.0 for name in LOSS_WEIGHTS[1:]}, "trained with the adversarial loss alone")])
def test_what_is_said_of_the_teacher(tmp_path, changes, words):
    provenance = DISTILLED | {"settings": DISTILLED["settings"] | changes}
    data, text = card(save_pretrained(stylegan2(), tmp_path / "net", provenance))
    assert "base_model" not in data  # which is a repository of a hub
    assert words in text.split("\n## ")[0]
    known = "teacher" not in changes  # who knows what another one has seen
    assert ("rendered toy faces, not" in text) == known


def test_costs_are_counted(tmp_path):
    G, teacher = stylegan2(), stylegan2(channels=12)
    text = card(save_pretrained(G, tmp_path / "net", teacher=teacher))[1]
    costs, size = section(text, "What it costs"), (tmp_path / "net" / "model.safetensors").stat()
    assert f"| parameters | {gapkd.parameters(G):,} | {gapkd.parameters(teacher):,} |" in costs
    assert f"| {gapkd.macs(G):,} | {gapkd.macs(teacher):,} |" in costs
    assert f"| {size.st_size / 1e6:.2f} MB | - |" in costs


@pytest.mark.parametrize("given, known, data, words", [
    ("", {}, {}, "No licence has been chosen for these weights"),
    ("", {"license": "apache-2.0"}, {"license": "apache-2.0"}, "`apache-2.0`, as stated"),
    ("mit", {"license": "apache-2.0"}, {"license": "mit"}, "`mit`, as stated"),
    ("My Own 1.0", {}, {"license": "other", "license_name": "my-own-1.0"}, "`My Own 1.0`, as")])
def test_licences(tmp_path, given, known, data, words):
    found, text = card(save_pretrained(stylegan2(), tmp_path / "net", known, license=given))
    assert {k: v for k, v in found.items() if k.startswith("license")} == data
    assert section(text, "Licence").startswith(words)


def test_an_embedded_network_has_its_licence_its_history_and_its_numbers(tmp_path):
    assert main(["share", "toyfaces32", "--out", str(tmp_path / "net")]) == 0
    data, text = card(tmp_path / "net")
    metrics = read_metadata("toyfaces32")["provenance"]["metrics"]
    assert data["license"] == "mit"
    results = data["model-index"][0]["results"][0]
    assert results["dataset"] == {"type": "toyfaces", "name": "toyfaces"}
    table = section(text, "How good it is")
    assert table.count("| `") == len(metrics["teacher"]) == len(results["metrics"])
    for name, value in metrics["teacher"].items():
        assert f"| `{name}` | {metrics['real'].get(name, 0):.4g} | {value:.4g} |" in table
    assert section(text, "Where it comes from").count("- stage ") == 3
    assert "--start-from runs/stage2 --" in text and "from scratch on rendered toy faces" in text


def test_the_numbers_on_the_card_are_those_of_evaluate(tmp_path, teacher_file, capsys):
    student = str(save_network(stylegan2(), tmp_path / "student.safetensors", DISTILLED))
    measuring = ["--teacher", str(teacher_file), "--samples", "40", "--seed", "3"]
    out, record = tmp_path / "shared", str(tmp_path / "e.json")
    assert main(["share", student, "--out", str(out), "--evaluate", *measuring]) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith(f"hf upload YOUR-NAME/shared {out}")
    assert main(["evaluate", student, "--out", record, *measuring]) == 0
    rows = json.loads(Path(record).read_text())["rows"]
    data, text = card(out)
    table = section(text, "How good it is")
    wanted = {name for name in rows[2] if not re.match("name$|agree_(?!mean_)|.*_chance$", name)}
    assert set(re.findall(r"^\| `(\w+)` \|", table, re.MULTILINE)) == wanted
    scores = {m["name"]: m for m in data["model-index"][0]["results"][0]["metrics"]}
    assert scores.keys() == wanted
    assert scores["fid_toyfaces_40"]["type"] == "fid_toyfaces"  # which is no fid
    assert scores["perceptual"]["type"] == "perceptual_toyfaces"
    assert data["metrics"] == sorted({score["type"] for score in scores.values()})
    assert not {"fid", "kid", "precision"} & set(data["metrics"])
    for name in wanted:
        assert scores[name]["value"] == pytest.approx(rows[2][name], rel=1e-3, abs=1e-9)
        cells = re.search(rf"`{name}` \| (.+) \|", table)[1].split(" | ")
        known = [float(cell.split(" (")[0]) for cell in cells if cell != "-"]
        in_rows = [row[name] for row in rows if name in row]
        assert known == pytest.approx(in_rows, rel=1e-3, abs=1e-9)
        if f"{name}_chance" in rows[2]:
            assert cells[2].endswith(f" ({rows[2][f'{name}_chance']:.4g})")
    assert "is the one whose perceptual distance this network was trained with" in table
    assert "`40` images a set, from latents of seed `3`, without truncation" in table
    assert "the teacher, `teacher.safetensors`" in table and "has not been measured" not in text
    for file in ("README.md", "model.safetensors"):
        assert str(tmp_path).encode() not in (out / file).read_bytes()
    # they travel with the weights
    assert main(["share", str(out), "--out", str(tmp_path / "again")]) == 0
    assert section(card(tmp_path / "again")[1], "How good it is") == table


@pytest.mark.parametrize("folder, name", [
    ("my page", "my-page"), ("a", "a"), ("Für Élise_2.0", "Fur-Elise_2.0"), ("..a--b.git", "a-b"),
    ("\N{SLIGHTLY SMILING FACE}", "gapkd"), ("x" * 200, "x" * 90), ("日本 1.", "1")])
def test_a_folder_gives_a_name_that_hubs_take(folder, name):
    assert repository_name(Path(folder)) == name
    hub.utils.validate_repo_id(f"YOUR-NAME/{name}")


def test_metrics_are_named_without_their_number_of_samples(tmp_path):
    numbers = {f"fid_toyfaces_{count}": 1.0 for count in ("5k", "1.5k", "300", "1234")}
    record = {"rows": [{"name": "net", **numbers}], "data": "toyfaces", "features": "toyfaces"}
    data, _ = card(save_pretrained(stylegan2(), tmp_path / "net", evaluation=record))
    assert data["metrics"] == ["fid_toyfaces"]


def test_foreign_files_are_named_with_their_checksum(tmp_path, stylekd):
    theirs = {"ffhq.pkl": nvidia_pickle(named_like_nvidia(stylegan2())),
              "student.pt": torch_bytes({"g_ema": under("student.state.", stylekd)})}
    for name, content in theirs.items():
        (tmp_path / name).write_bytes(content)
        out = tmp_path / f"{name}-shared"
        assert main(["share", str(tmp_path / name), "--out", str(out)]) == 0
        assert equal(load_generator(out), load_generator(tmp_path / name))
        data, text = card(out)
        origin, licence = section(text, "Where it comes from"), section(text, "Licence")
        who = "NVIDIA" if name == "ffhq.pkl" else "rosinality"
        assert f"those of the file `{name}` (`{who}'s StyleGAN2`)" in origin
        assert hashlib.sha256(content).hexdigest() in origin
        assert "that file does not tell" in origin
        assert "license" not in data and f"The licence of `{name}`" in licence
    own = tmp_path / "own.safetensors"
    assert main(["convert", str(tmp_path / "ffhq.pkl"), str(own)]) == 0
    assert main(["share", str(own), "--out", str(tmp_path / "c"), "--license", "other"]) == 0
    assert "`ffhq.pkl` allows" in section(card(tmp_path / "c")[1], "Licence")


def test_a_folder_will_do_wherever_a_generator_is_named(tmp_path, teacher_file, fake_distance,
                                                        capsys):
    folder = save_pretrained(load_generator(teacher_file), tmp_path / "teacher", {"seed": 1})
    both = [str(folder), "--teacher", str(folder)]
    assert main(["evaluate", *both, "--samples", "40"]) == 0
    rows = [line.split(" |")[0] for line in capsys.readouterr().out.splitlines()[2:]]
    assert rows == ["| real", "| teacher", "| teacher"]
    assert main(["convert", str(folder), str(tmp_path / "t.pt")]) == 0
    assert equal(load_generator(tmp_path / "t.pt"), load_generator(folder))
    result = distill(distill_config(tmp_path / "run", folder, ld_blocks=(1,)))
    inputs = json.loads((tmp_path / "run" / "settings.json").read_text())["inputs"]
    assert inputs["teacher"] == checksum(folder)
    assert provenance_of(result.checkpoint)["settings"]["teacher"] == str(folder)
    assert architecture_of(str(folder)) == read_metadata(teacher_file)["architecture"]


# ------------------------------------------------------------------------------- what is refused


def edited(**changes):
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text()) | changes
        kept = {name: value for name, value in config.items() if changes.get(name, 0) is not None}
        (folder / "config.json").write_text(json.dumps(kept))
    return edit


def written(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def cut(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(whole[:-9])


UNREADABLE = "cannot be read as the description of a network"


@pytest.mark.parametrize("spoil, message", [
    (edited(w_dim=9, z_dim=7), "model.safetensors beside it disagree about z_dim, w_dim: one of"),
    (edited(kernel=None), "disagree about kernel"),
    (lambda f: save_network(stylegan2(channels=5), f / "model.safetensors"), "about channels"),
    (edited(kind="stylegan3-generator"), "disagree about kind"),
    (edited(gapkd_format="3"), "is of the format '3', this gapkd reads '2': install a newer gapkd"),
    *[(written("config.json", content), UNREADABLE)
      for content in (b"{", b"[" * 10**5, b"\xff\xfe{}", b"[]")],
    (lambda f: (f / "model.safetensors").unlink(), "holds config.json, but no model.safetensors"),
    (written("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n"),
     "net/model.safetensors is a Git LFS pointer"),
    (cut, "net/model.safetensors is not a whole safetensors file")])
def test_a_spoilt_folder_is_one_sentence(tmp_path, spoil, message, capsys):
    folder = save_pretrained(stylegan2(), tmp_path / "net")
    spoil(folder)
    assert main(["sample", str(folder), "--out", str(tmp_path / "s.png")]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1


def test_config_json_may_be_missing_and_may_say_more(tmp_path):
    folder = save_pretrained(stylegan2(), tmp_path / "net")
    edited(a_hub="adds this")(folder)
    assert load_generator(folder).resolution == 32
    (folder / "config.json").unlink()
    assert load_generator(folder).resolution == 32
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="is a folder: name the file in it, for example "):
        load_generator(folder)


def endless() -> Generator:
    G = stylegan2()
    with torch.no_grad():
        G.synthesis.const[0, 0, 0, 0] = float("inf")
    return G


@pytest.mark.parametrize("options, message", [
    ({"folder": "there"}, "there exists already: remove it or choose another folder"),
    ({"folder": "link"}, "link exists already"), ({"folder": ""}, "'' is no printable name"),
    ({"folder": "."}, ". exists already"), ({"repo_id": "a/../b"}, "names no repository: give"),
    ({"config": {"w_dim": 9}}, "leave it out, or give G.architecture()"),
    ({"folder": "a\nb"}, r"'a\nb' is no printable name: choose another folder"),
    ({"folder": "file/net"}, "file is a file: choose another folder"),
    ({"license": "MIT\n---"}, "names no licence"), ({"license": "my: own"}, "names no licence"),
    ({"provenance": {"license": "?"}},
     "cc-by-nc-4.0; --license overrides it"),
    ({"evaluation": {"rows": []}}, "as `gapkd evaluate --out` writes it"),
    ({"G": Discriminator(8, 2)}, "not a Discriminator"), ({"G": endless()}, "are not finite")])
def test_what_cannot_be_shared_is_one_sentence_and_leaves_nothing(tmp_path, monkeypatch, options,
                                                                  message):
    monkeypatch.chdir(tmp_path)
    Path("there").mkdir()
    Path("there", "mine").write_text("")
    Path("file").write_text("")
    Path("link").symlink_to("nowhere")
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        save_pretrained(**{"G": stylegan2(), "folder": "net"} | options)
    assert "\n" not in str(caught.value) and sorted(os.listdir()) == ["file", "link", "there"]


@pytest.mark.parametrize("call, nth", [("replace", 1), ("replace", 3), ("rename", 1), ("fsync", 3)])
def test_a_disk_that_fails_leaves_nothing_behind(tmp_path, monkeypatch, capsys, call, nth):
    file = str(save_network(stylegan2(), tmp_path / "student.safetensors"))
    real, calls = getattr(os, call), []

    def full(*arguments, **named):
        calls.append(arguments)
        if len(calls) == nth:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(*arguments, **named)

    monkeypatch.setattr(os, call, full)
    assert main(["share", file, "--out", str(tmp_path / "net")]) == 2
    err = capsys.readouterr().err
    assert f"could not write the folder {tmp_path / 'net'} (No space left on device)" in err
    assert err.count("\n") == 1 and os.listdir(tmp_path) == ["student.safetensors"]


def test_a_folder_that_appears_meanwhile_is_left_alone(tmp_path, monkeypatch):
    real = os.rename

    def late(source, target):
        (tmp_path / "net").mkdir()
        (tmp_path / "net" / "mine").write_text("x")
        return real(source, target)

    monkeypatch.setattr(os, "rename", late)
    with pytest.raises(OSError, match="could not write the folder"):
        save_pretrained(stylegan2(), tmp_path / "net")
    assert os.listdir(tmp_path) == ["net"] and os.listdir(tmp_path / "net") == ["mine"]


@pytest.mark.parametrize("options, message", [
    (["--out", "there", "--evaluate"], "there exists already"),
    (["--samples", "9"], "samples says how to measure"),
    (["--data", "photos.zip"], "data says how to measure"),
    (["--teacher", "nobody.pkl"], "there is no checkpoint"),
    (["--evaluate", "--samples", "1"], "samples must lie between 4 and"),
    (["--evaluate", "--license", "?"], "names no licence")])
def test_share_complains_before_it_measures(tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    save_network(stylegan2(), "student.safetensors")
    Path("there", "mine").mkdir(parents=True)
    monkeypatch.setattr("gapkd.metrics.evaluation.evaluation_table",
                        lambda *_, **__: pytest.fail("it measured"))
    out = [] if "--out" in options else ["--out", "net"]
    assert main(["share", "student.safetensors", *out, *options]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and not Path("net").exists()


@pytest.mark.parametrize("file, name", [
    ("/a/b/ffhq.pkl", "ffhq.pkl"), ("https://host/x/ffhq.pkl#sha256=00", "ffhq.pkl"),
    ("runs/big/generator.safetensors", "big/generator.safetensors"),
    ("generator.safetensors", "generator.safetensors"), ("a#b.pkl", "a#b.pkl")])
def test_files_are_called_by_names_that_tell_them_apart(file, name):
    assert named(file) == name


TRICK = "\x1b[2J\u202e\x07`![x](y)` | <img>\n# a title {{ 1 + 1 }}"
HOSTILE = [
    {"command": "distill", "settings": {"teacher": TRICK, "data": "```", "recipe": ["a"]}},
    {"command": "teacher", "settings": {"data": 3}, "images": "many", "seconds": None,
     "hardware": "<script>"},
    {"command": "teacher", "settings": {"data": "x`<b>"}, "images": 1, "seconds": 2,
     "commit": TRICK, "hardware": "a"},
    {"command": "distill", "settings": [1], "evaluation": {"rows": [1]}, "metrics": [2],
     "started_from": "a run"},
    {"command": ["distill"], "metrics": {"real": 1, "<b>": {"fid": 1.0}}, "started_from": {"a": 1}},
    {"converted_from": {"file": "`<script>`", "source": {}}, "license": 3},
    {"metrics": {"real": {"fid": 1}, "x": {"fid": float("nan"), "kid": True, "l1": 1.0}}},
    {"evaluation": {"rows": [{"name": TRICK}, {"name": 2, "fid_a_1": 2.0, TRICK: 1}],
                    "data": "a|b", "samples": "s", "teacher": TRICK}}]


@pytest.mark.parametrize("provenance", HOSTILE)
def test_no_provenance_upsets_the_card(tmp_path, provenance):
    data, text = card(save_pretrained(stylegan2(), tmp_path / "net", provenance))
    assert data["library_name"] == "gapkd"
    assert text.replace("\n", "").isprintable()
    assert not re.search(r"\bnan\b|`kid`|True", text)  # what is no number is not measured
    plain = re.sub(r"```python\n.*?```", "", text, flags=re.DOTALL)
    plain = re.sub(r"`[^`\n]*`", "", plain)  # without code
    assert not re.search(r"<|\]\(y|`|\b2 \}\}", plain) and "\n# a title" not in text
    for table in re.findall(r"(?:^\|.*\n?)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.strip().splitlines()}) == 1
