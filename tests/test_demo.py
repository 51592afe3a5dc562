"""`gapkd demo`: what lies in the folder, what is refused, where the runtime comes from. The page
itself: see test_demo_browser.py."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

pytest.importorskip("onnxruntime", reason="needs the extra `export`")

import handmade

from gapkd.cli import main
from gapkd.sharing import web
from gapkd.sharing.export import session
from gapkd.sharing.web import (
    NEEDED,
    VERSION,
    DemoConfig,
    DemoError,
    draw,
    fetched_runtime,
    latent,
    mulberry32,
    open_network,
    write_demo,
)

CONTENT = {name: name.encode() for name in NEEDED}
SCRIPT, WASM, *_ = NEEDED


@pytest.fixture
def runtime(tmp_path):
    """A folder that looks like onnxruntime-web."""
    folder = tmp_path / "runtime" / "dist"
    folder.mkdir(parents=True)
    for name, content in CONTENT.items():
        (folder / name).write_bytes(content)
    return folder.parent


@pytest.fixture
def page(runtime, tmp_path):
    """Writes the page of one or two ONNX files."""
    def write(*networks, **options):
        out = str(tmp_path / "a" / f"page{len(list((tmp_path / 'a').glob('*')))}")
        return write_demo(DemoConfig(*map(str, networks), out=out, runtime=str(runtime), **options))

    (tmp_path / "a").mkdir()
    return write


@pytest.fixture
def files(tmp_path):
    return [str(handmade.write(tmp_path / f"{name}.onnx", seed)) for seed, name in enumerate("st")]


def networks_of(folder):
    return json.loads((folder / "networks.json").read_text())["networks"]


def test_what_lies_in_the_folder(page, files):
    folder = page(*files, seed=5, truncation=0.7)
    assert {path.name for path in folder.iterdir()} >= {
        "index.html", "style.css", "app.js", "worker.js", SCRIPT, f"{WASM}.gz", "student.onnx",
        "teacher.onnx", "student.png", "teacher.png", "icon.png"}
    assert gzip.decompress((folder / f"{WASM}.gz").read_bytes()) == CONTENT[WASM]
    record = json.loads((folder / "networks.json").read_text())
    assert record["start"] == {"seed": 5, "truncation": 0.7}
    assert record["runtime"] == "onnxruntime-web as given"
    student, teacher = record["networks"]
    assert (student["role"], student["name"]) == ("student", "s")
    assert (teacher["role"], teacher["name"]) == ("teacher", "t")
    assert {name: student[name] for name in handmade.SIZES} == handmade.SIZES
    assert student["bytes"] == (folder / "student.onnx").stat().st_size
    facts = dict(student["about"])
    assert facts["trained"] == "1,000 images, seed 0"
    assert facts["made"] == "commit abc, date 2026-01-01"
    assert facts["checked"].startswith("100 latents, at most 3.0e-06")
    assert facts["sha256"] == "ab" * 8


def test_stages_are_summed_up(page, tmp_path):
    first = {"images": 1000, "settings": {}}
    made = {"settings": {"teacher": "a/big.pkl", "recipe": "gapkd"}, "images": 500,
            "started_from": first}
    folder = page(handmade.write(tmp_path / "n.onnx", provenance=made, check=[1]))
    facts = dict(networks_of(folder)[0]["about"])
    assert facts["trained"] == "1,500 images, 2 stages, teacher big.pkl, recipe gapkd"
    assert "checked" not in facts and "made" not in facts


def test_every_file_that_the_page_names_is_there(page, files):
    folder = page(*files)
    text = "".join((folder / name).read_text() for name in ("index.html", "worker.js"))
    scripts = {path.name: path.read_text() for path in folder.glob("*.js") if path.stem != "sw"}
    for path in folder.iterdir():
        if path.suffix in (".js", ".css", ".gz", ".mjs"):
            others = text + "".join(v for name, v in scripts.items() if name != path.name)
            assert re.search(rf'["`](\./)?{re.escape(path.name)}["#]', others), path.name
    assert "://" not in text.replace("http://www.w3.org", ""), "the page names an address"


def test_what_is_kept_for_a_visit_without_a_connection(page, files):
    def kept(folder):
        number, listed = (folder / "sw.js").read_text().splitlines()[:2]
        return number, json.loads(listed.removeprefix("const FILES = ").removesuffix(";"))

    folder = page(*files)
    number, listed = kept(folder)
    assert sorted(sum(listed.values(), ["sw.js", "preview.png"])) == sorted(os.listdir(folder))
    assert kept(page(*files))[0] == number != kept(page(*files, seed=3))[0]


def test_networks_that_are_no_student_and_teacher_have_names(page, files):
    folder = page(*files, names=("Ann", "Bob"), space=True)
    facts = [(n["role"], n["name"], n["file"]) for n in networks_of(folder)]
    assert facts == [("first", "Ann", "first.onnx"), ("second", "Bob", "second.onnx")]
    assert "Ann and Bob draw" in (folder / "README.md").read_text()
    assert "student and teacher draw" in (page(*files, space=True) / "README.md").read_text()
    [alone] = networks_of(page(files[0], names=("Ann",)))
    assert (alone["role"], alone["name"]) == ("network", "Ann")


def test_links_to_the_page_show_a_picture(page, files):
    for address, seen in (("", "preview.png"), ("https://a.b/c/", "https://a.b/c/preview.png")):
        folder = page(*files, address=address)
        text = (folder / "index.html").read_text()
        assert f'<meta property="og:image" content="{seen}">' in text
        assert ('<meta property="og:url" content="https://a.b/c/">' in text) == bool(address)
        for name in ("og:title", "og:description", "og:type", "og:image:alt", "twitter:card"):
            assert f'"{name}"' in text
    card = np.asarray(Image.open(folder / "preview.png"))
    assert card.shape == (630, 1200, 3)
    student = np.asarray(Image.open(folder / "student.png"))
    assert np.array_equal(card[31:599:71, 22:590:71][:8, :8], student)


def test_a_space_says_so_in_its_front_matter(page, files):
    assert not (page(*files) / "README.md").exists()
    front = (page(*files, space=True) / "README.md").read_text().split("---\n")[1]
    data = yaml.safe_load(front)
    assert (data["sdk"], data["app_file"], data["title"]) == ("static", "index.html", "page1")
    assert {"emoji", "colorFrom", "colorTo", "pinned"} <= data.keys()
    assert len(data["short_description"]) <= 60


def test_generators_are_exported_on_the_way(page, tmp_path, monkeypatch):
    asked = []

    def fake(config):
        asked.append(config.generator)
        handmade.write(Path(config.onnx), len(asked))

    monkeypatch.setattr(web, "export", fake)
    assert [n["role"] for n in networks_of(page())] == ["student", "teacher"]
    assert asked == ["toyfaces64_finished", "toyfaces64"]
    assert [n["role"] for n in networks_of(page("some/where"))] == ["network"]
    assert asked[2:] == ["some/where"]
    assert json.loads((page() / "networks.json").read_text())["start"] == {
        "seed": 10, "truncation": 0.7}


def test_the_pages_networks_ask_for_nothing_optional_and_draw_the_same(page, files):
    folder, z = page(*files, seed=5, truncation=0.7), latent(5, 6)[None]
    for name, file in zip(("student", "teacher"), files, strict=True):
        opened = session(folder / f"{name}.onnx")
        assert [value.name for value in opened.get_inputs()] == ["z", "truncation", "offset"]
        given = {"z": z.astype("f"), "truncation": np.array([0.7], "f")}
        whole = session(file).run(["image"], given)[0][0]
        seen = np.asarray(Image.open(folder / f"{name}.png")).transpose(2, 0, 1)
        assert np.abs(seen - (whole + 1) * 127.5).max() <= 0.51


def test_networks_that_share_w_are_edited_alike_and_others_each_in_its_own(page, files, tmp_path):
    def vectors(*pair):
        found = [network["directions"] for network in networks_of(page(*pair))]
        return [directions and directions["vectors"] for directions in found]

    own = []
    for file in files:
        own.append(np.round(open_network(file, "x").facts["directions"]["vectors"], 6))
    first, second = vectors(*files)
    assert second is None and np.array_equal(first, own[1])
    first, second = vectors(files[0], handmade.write(tmp_path / "stranger.onnx", 1, mapping=5))
    assert np.array_equal(first, own[0]) and np.array_equal(second, own[1])
    # chosen ones come before a teacher's SeFa
    named = handmade.write(tmp_path / "named.onnx", 0, given=True)
    assert np.array_equal(vectors(named, files[1])[0], own[0])
    nameless = handmade.write(tmp_path / "nameless.onnx", 1, names=())
    assert np.array_equal(vectors(files[0], nameless)[0], own[0])


def test_a_common_mean_is_no_common_w(monkeypatch):
    dice = np.random.default_rng(0)
    monkeypatch.setattr(web, "draw", lambda network, z: (None, 5 + dice.normal(size=(32, 4, 6))))
    assert not web.share_w([web.Network({"z_dim": 6}, b"")] * 2)


def test_one_network_with_classes(page, tmp_path):
    file = handmade.write(tmp_path / "n.onnx", c_dim=3)
    folder = page(file)
    network, = networks_of(folder)
    assert (network["role"], network["file"], network["c_dim"]) == ("network", "network.onnx", 3)
    picture = np.asarray(Image.open(folder / "network.png"))
    drawn, _ = draw(open_network(file, "network"), latent(DemoConfig.seed, 6)[None], 0.7)
    assert np.array_equal(drawn[0], picture)


def test_latents_are_standard_normal_and_their_own():
    z = np.stack([latent(seed, 7) for seed in range(3000)])
    assert z.shape == (3000, 7) and abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02
    assert np.abs(np.corrcoef(z.T) - np.eye(7)).max() < 0.07
    assert np.array_equal(latent(3, 8)[:7], latent(3, 7)) and len(np.unique(z)) == z.size
    # mulberry32's known first numbers of two seeds
    assert [x * 2**32 for x in mulberry32(0, 3)] == [1144304738, 1416247, 958946056]
    assert [x * 2**32 for x in mulberry32(12345, 2)] == [4207900869, 1317490944]


def given(vectors, reach=(1.0,)):
    return {"directions": {"names": ["a"], "vectors": vectors, "reach": list(reach)}}


@pytest.mark.parametrize("changes, message", [
    (given([[1.0, 0.0]]), "lacks what .* array of size 2 into shape .1,6."),
    (given([[1.0] * 6], (0.0,)), "s.onnx lacks what .* reach nowhere"),
    (given([[1.0] * 6] * 2), "lacks what `gapkd export` notes"),
    (given([[float("nan")] * 6]), "directions are not finite"),
    ({"directions": 3}, "lacks what `gapkd export` notes"),
    ({"z_dim": "many"}, "lacks what `gapkd export` notes"),
    ({"z_dim": float("inf")}, "lacks what `gapkd export` notes"), ({"z_dim": 10**12}, "sizes are"),
    ({"num_ws": 5}, "does not draw")])
def test_files_that_are_not_as_they_should_be(changes, message, files, page, tmp_path):
    import onnx

    bad, whole = files
    model = onnx.load(bad)
    facts = json.loads(model.metadata_props[0].value) | changes
    onnx.helper.set_model_props(model, {"gapkd": json.dumps(facts)})
    onnx.save(model, bad)
    for pair in ((bad,), (bad, whole), (whole, bad)):
        with pytest.raises(DemoError, match=message):
            page(*pair)
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize("changes, message", [
    ({"z_dim": 4}, "z_dim 6 and .* 4"), ({"w_dim": 4}, "w_dim 6 and .* 4"),
    ({"c_dim": 2}, "c_dim 0 and .* 2"),
    ({"mapping": 5, "names": ("yaw", "glasses")}, "do not share W, and hold directions of other")])
def test_pairs_that_do_not_belong_together(changes, message, files, page, tmp_path):
    with pytest.raises(DemoError, match=message):
        page(files[0], handmade.write(tmp_path / "other.onnx", **changes))
    assert not list((tmp_path / "a").iterdir())


@pytest.mark.parametrize("options, message", [
    (["missing.onnx"], "there is no file missing.onnx"),
    (["text.onnx"], "text.onnx is no ONNX file of `gapkd export`"),
    (["s.onnx", "--seed", "-1"], "seed must lie between"),
    (["s.onnx", "--truncation", "nan"], "truncation must lie"),
    (["s.onnx", "--names", "Ann", "Bob"], "names must name every network of the page, of which "
                                          "there are 1: not Ann, Bob"),
    (["s.onnx", "--names", " "], "names must name every network"),
    (["s.onnx", "--address", "my page"], "address must be that of a page, https://"),
    (["nobody"], "there is no checkpoint nobody"),
    (["s.onnx", "--runtime", "nowhere"], "nowhere holds no onnxruntime-web: give --runtime a"),
    (["s.onnx", "--out", "text.onnx"], "text.onnx exists already"),
    (["missing.onnx", "--out", "full"], "full exists already: remove it or choose another")])
def test_the_command_refuses_in_one_sentence(options, message, files, runtime, tmp_path,
                                             monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.onnx").write_text("no network")
    (tmp_path / "full" / "mine").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    own = [] if "--runtime" in options else ["--runtime", str(runtime)]
    assert main(["demo", *options, *own]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gapkd: ") and message in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_a_missing_runtime_is_found_before_networks_are_exported(files, monkeypatch, tmp_path):
    monkeypatch.setattr(web, "networks_of", lambda _: pytest.fail("exported"))
    with pytest.raises(web.DemoError, match="nowhere holds no onnxruntime-web"):
        write_demo(DemoConfig(files[0], out=str(tmp_path / "p"), runtime=str(tmp_path / "nowhere")))


def test_the_command_says_how_to_open_the_page(files, runtime, tmp_path, capsys):
    assert main(["demo", *files, "--out", str(tmp_path / "p"), "--runtime", str(runtime)]) == 0
    command = f"python -m http.server --bind 127.0.0.1 --directory {tmp_path / 'p'}"
    assert command in capsys.readouterr().out


# ------------------------------------------------------------------------------- the runtime


@pytest.fixture
def npm(tmp_path, monkeypatch):
    """An npm that packs what it is told to, and notes every call; returns how to tell it."""
    monkeypatch.setenv("GAPKD_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def make(content=CONTENT, folder="package/dist/", expected=True, script="") -> Path:
        path = tmp_path / "packed.tgz"
        with tarfile.open(path, "w:gz") as archive:
            for name, data in content.items():
                entry = tarfile.TarInfo(folder + name)
                entry.size = len(data)
                archive.addfile(entry, io.BytesIO(data))
        if expected:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            monkeypatch.setattr(web, "PACKAGE_SHA256", digest)
        calls, program = tmp_path / "calls", tmp_path / "bin" / "npm"
        program.parent.mkdir()
        if script is not None:
            program.write_text(f'#!/bin/sh\necho "$@" >> {calls}\n'
                               + (script or f"/bin/cat {path} > onnxruntime-web.tgz\n"))
            program.chmod(0o755)
        return calls

    return make


def test_npm_fetches_the_runtime_once(npm, files, tmp_path):
    calls = npm()
    assert fetched_runtime() == fetched_runtime() == CONTENT
    command = f"pack onnxruntime-web@{VERSION} --ignore-scripts --loglevel error"
    assert calls.read_text().splitlines() == [command]
    folder = write_demo(DemoConfig(*files, out=str(tmp_path / "page")))
    record = json.loads((folder / "networks.json").read_text())
    assert record["runtime"] == f"onnxruntime-web {VERSION}"
    cached = tmp_path / "cache" / f"onnxruntime-web-{VERSION}.tgz"
    cached.write_bytes(cached.read_bytes()[:60])  # damaged: it is fetched again
    assert fetched_runtime() == CONTENT and len(calls.read_text().splitlines()) == 2


@pytest.mark.parametrize("how, message", [
    ({"expected": False}, "has another check sum"), ({"folder": "elsewhere/"}, "not found"),
    ({"content": {SCRIPT: b""}}, "not found"), ({"script": "exit 0"}, "npm said: nothing"),
    ({"script": None}, "npm is missing, install Node.js"),
    ({"script": "echo no network >&2; exit 1"}, "npm said: no network")])
def test_a_runtime_that_is_not_to_be_had_says_how_to_mend_it(npm, files, tmp_path, capsys, how,
                                                             message):
    npm(**how)
    assert main(["demo", *files, "--out", str(tmp_path / "page")]) == 2
    err = capsys.readouterr().err
    assert message in err and f"give --runtime a folder with {SCRIPT}, {WASM}, " in err
    assert err.count("\n") == 1 and not (tmp_path / "page").exists()
