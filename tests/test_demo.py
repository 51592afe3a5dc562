"""`gapkd demo`: what lies in the folder, what is refused, where the runtime comes from. The page itself: see
test_demo_browser.py."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("onnxruntime", reason="needs the extra `export`")

import handmade  # noqa: E402

from gapkd import demo, webruntime  # noqa: E402
from gapkd.cli import main  # noqa: E402
from gapkd.sharing.web import DemoConfig, DemoError, draw, latent, mulberry32, open_network, write_demo  # noqa: E402
from gapkd.sharing.webruntime import SCRIPT, VERSION, WASM, WebRuntimeError, fetch_runtime  # noqa: E402


@pytest.fixture
def runtime(tmp_path):
    """A folder that looks like onnxruntime-web."""
    folder = tmp_path / "runtime" / "dist"
    folder.mkdir(parents=True)
    (folder / SCRIPT).write_bytes(b"export {};")
    (folder / WASM).write_bytes(b"\0asm and so on")
    return folder.parent


@pytest.fixture
def files(tmp_path):
    return [str(handmade.write(tmp_path / f"{name}.onnx", seed)) for seed, name in enumerate(("s", "t"))]


@pytest.fixture
def written(files, runtime, tmp_path):
    return write_demo(DemoConfig(*files, out=str(tmp_path / "a" / "page"), runtime=str(runtime), seed=5,
                                 truncation=0.7))


def test_what_lies_in_the_folder(written, files):
    record = json.loads((written / "networks.json").read_text())
    assert set(record["files"]) == {path.name for path in written.iterdir()} >= {
        "index.html", "style.css", "app.js", "worker.js", SCRIPT, f"{WASM}.gz", "student.onnx", "teacher.onnx"}
    assert gzip.decompress((written / f"{WASM}.gz").read_bytes()) == b"\0asm and so on"
    assert record["start"] == {"seed": 5, "truncation": 0.7}
    assert record["runtime"] == "onnxruntime-web of another version"
    student, teacher = record["networks"]
    assert (student["role"], student["name"], teacher["role"], teacher["name"]) == ("student", "s", "teacher", "t")
    assert {k: student[k] for k in handmade.SIZES} == handmade.SIZES
    assert student["bytes"] == (written / "student.onnx").stat().st_size and student["precision"] == "float32"
    facts = dict(student["about"])
    assert facts["trained"] == "1,000 images, seed 0" and facts["made"] == "commit abc, 2026-01-01"
    assert facts["checked"].startswith("100 latents, at most 3.0e-06") and facts["sha256"] == "ab" * 8


def test_every_file_that_the_page_names_is_there(written):
    text = "".join((written / name).read_text() for name in ("index.html", "worker.js"))
    for name in [path.name for path in written.iterdir() if path.suffix in (".js", ".css", ".gz", ".mjs")]:
        named = text + "".join(path.read_text() for path in written.glob("*.js") if path.name != name)
        assert f'"{name}"' in named or f'"./{name}"' in named, f"{name} is in the folder, but nothing asks for it"
    assert "://" not in text.replace("http://www.w3.org", ""), "the page names an address"


def test_the_pages_networks_ask_for_nothing_optional_and_draw_the_same(written, files):
    from gapkd.sharing.export import session

    z = latent(5, 6)[None]
    for name, file in (("student", files[0]), ("teacher", files[1])):
        opened = session(written / f"{name}.onnx")
        assert [value.name for value in opened.get_inputs()] == ["z", "truncation", "offset"]
        whole = session(file).run(["image"], {"z": z.astype("f"), "truncation": np.array([0.7], "f")})[0][0]
        seen = np.asarray(Image.open(written / f"{name}.png")).transpose(2, 0, 1)
        assert np.abs(seen - (whole + 1) * 127.5).max() <= 0.51


def test_networks_that_share_w_are_edited_alike_and_others_each_in_its_own(files, runtime, tmp_path):
    def vectors(*pair):
        record = json.loads((write_demo(DemoConfig(*pair, out=str(tmp_path / "p"), runtime=str(runtime)))
                             / "networks.json").read_text())
        return [network["directions"] and network["directions"]["vectors"] for network in record["networks"]]

    own = [np.round(open_network(path, "x").facts["directions"]["vectors"], 6) for path in files]
    first, second = vectors(*files)
    assert second is None and np.array_equal(first, own[1])
    stranger = str(handmade.write(tmp_path / "stranger.onnx", 1, mapping=5))
    first, second = vectors(files[0], stranger)
    assert np.array_equal(first, own[0]) and np.array_equal(second, own[1])
    named = str(handmade.write(tmp_path / "named.onnx", 0, given=True))  # chosen ones come before a teacher's SeFa
    assert np.array_equal(vectors(named, files[1])[0], own[0])
    nameless = str(handmade.write(tmp_path / "nameless.onnx", 1, names=()))
    assert np.array_equal(vectors(files[0], nameless)[0], own[0])


def test_one_network_with_classes(runtime, tmp_path):
    file = str(handmade.write(tmp_path / "n.onnx", c_dim=3))
    page = write_demo(DemoConfig(file, out=str(tmp_path / "page"), runtime=str(runtime)))
    network, = json.loads((page / "networks.json").read_text())["networks"]
    assert (network["role"], network["file"], network["c_dim"]) == ("network", "network.onnx", 3)
    picture = np.asarray(Image.open(page / "network.png"))
    assert np.array_equal(draw(open_network(file, "network"), latent(0, 6)[None])[0][0], picture)


def test_latents_are_standard_normal_and_their_own():
    z = np.stack([latent(seed, 7) for seed in range(3000)])
    assert z.shape == (3000, 7) and abs(z.mean()) < 0.02 and abs(z.std() - 1) < 0.02
    assert np.abs(np.corrcoef(z.T) - np.eye(7)).max() < 0.07
    assert np.array_equal(latent(3, 8)[:7], latent(3, 7)) and len(np.unique(z)) == z.size
    # mulberry32's known first numbers of two seeds
    assert [x * 2**32 for x in mulberry32(0, 3)] == [1144304738, 1416247, 958946056]
    assert [x * 2**32 for x in mulberry32(12345, 2)] == [4207900869, 1317490944]


@pytest.mark.parametrize("changes, message", [
    ({"inputs": "ws"}, "s.onnx is the synthesis network alone, which draws from ws: export it again with --inputs z"),
    ({"directions": {"names": ["a"], "vectors": [[1.0, 0.0]], "reach": [1.0]}}, "width 2, but its w_dim is 6"),
    ({"directions": {"names": ["a"], "vectors": [[1.0] * 6], "reach": [0.0]}}, "directions in .*s.onnx are damaged"),
    ({"directions": {"names": ["a"], "vectors": [[1.0] * 6] * 2, "reach": [1.0]}}, "the directions in .* are damaged"),
    ({"directions": 3}, "lacks what `gapkd export` notes"), ({"z_dim": "many"}, "lacks what `gapkd export` notes"),
    ({"z_dim": 10**12}, "sizes are"), ({"num_ws": 5}, "does not draw")])
def test_files_that_are_not_as_they_should_be(changes, message, runtime, tmp_path):
    whole = handmade.write(tmp_path / "t.onnx")
    bad = tmp_path / "s.onnx"
    handmade.write(bad)
    import onnx

    model = onnx.load(bad)
    facts = json.loads(model.metadata_props[0].value) | changes
    onnx.helper.set_model_props(model, {"gapkd": json.dumps(facts)})
    onnx.save(model, bad)
    for pair in ((str(bad),), (str(bad), str(whole)), (str(whole), str(bad))):
        with pytest.raises(DemoError, match=message):
            write_demo(DemoConfig(*pair, out=str(tmp_path / "page"), runtime=str(runtime)))
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("changes, message", [
    ({"z_dim": 4}, "z_dim 6 and .* 4"), ({"w_dim": 4}, "w_dim 6 and .* 4"), ({"c_dim": 2}, "c_dim 0 and .* 2"),
    ({"mapping": 5, "names": ("yaw", "glasses")}, "do not share W, and hold directions of other names")])
def test_pairs_that_do_not_belong_together(changes, message, files, runtime, tmp_path):
    other = handmade.write(tmp_path / "other.onnx", **changes)
    with pytest.raises(DemoError, match=message):
        write_demo(DemoConfig(files[0], str(other), out=str(tmp_path / "page"), runtime=str(runtime)))
    assert not (tmp_path / "page").exists()


@pytest.mark.parametrize("options, message", [
    (["missing.onnx"], "there is no file missing.onnx"), (["text.onnx"], "text.onnx is no ONNX file of `gapkd export`"),
    (["s.onnx", "--seed", "-1"], "seed must lie between"), (["s.onnx", "--truncation", "nan"], "truncation must lie"),
    (["s.onnx", "--runtime", "nowhere"], "nowhere holds no onnxruntime-web: give --runtime a folder"),
    (["s.onnx", "--out", "text.onnx"], "text.onnx is no folder"), (["s.onnx", "--out", "full"], "full holds mine.txt")])
def test_the_command_refuses_in_one_sentence(options, message, runtime, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    handmade.write(tmp_path / "s.onnx")
    (tmp_path / "text.onnx").write_text("no network")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    given = [] if "--runtime" in options else ["--runtime", str(runtime)]
    assert main(["demo", *options, *given]) == 2
    err = capsys.readouterr().err
    assert err.startswith("gapkd: ") and message in err and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


def test_the_command_says_how_to_open_the_page(files, runtime, tmp_path, capsys):
    assert main(["demo", *files, "--out", str(tmp_path / "page"), "--runtime", str(runtime)]) == 0
    assert f"python -m http.server --directory {tmp_path / 'page'}" in capsys.readouterr().out


def test_a_page_is_replaced_but_nothing_else_is(files, runtime, tmp_path):
    out = tmp_path / "page"
    out.mkdir()  # an empty folder will do
    config = DemoConfig(*files, out=str(out), runtime=str(runtime))
    write_demo(config)
    write_demo(DemoConfig(files[0], out=str(out), runtime=str(runtime)))
    assert (out / "network.onnx").exists() and not (out / "teacher.onnx").exists()
    (out / "mine.txt").write_text("mine")
    with pytest.raises(DemoError, match="holds mine.txt, which is none of a page's files"):
        write_demo(config)
    assert (out / "mine.txt").read_text() == "mine" and (out / "network.onnx").exists()
    (out / "mine.txt").unlink()
    (out / "networks.json").write_text('{"files": ["index.html"]}')
    with pytest.raises(DemoError, match="none of a page's files"):
        write_demo(config)


def test_a_disk_that_fills_up_leaves_the_former_page(files, runtime, tmp_path, monkeypatch):
    out = tmp_path / "page"
    config = DemoConfig(*files, out=str(out), runtime=str(runtime))
    write_demo(config)
    before = {path: path.read_bytes() for path in out.iterdir()}
    write, count = demo.write_atomically, []

    def full(path, content):
        count.append(path)
        if len(count) == 9:
            raise OSError(28, "No space left on device")
        return write(path, content)

    monkeypatch.setattr(demo, "write_atomically", full)
    with pytest.raises(DemoError, match="No space left on device.*choose another out"):
        write_demo(config)
    monkeypatch.undo()
    replace = os.replace

    def stubborn(source, target):
        if Path(source).name == "new":
            raise OSError(16, "Device or resource busy")
        replace(source, target)

    monkeypatch.setattr(demo.os, "replace", stubborn)
    with pytest.raises(DemoError, match="busy"):
        write_demo(config)
    assert {path: path.read_bytes() for path in out.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


# -- the runtime -------------------------------------------------------------------------------------------------


def fake_npm(folder: Path, monkeypatch, script: str) -> None:
    """An npm that is a Python script, and the only program on the path."""
    folder.mkdir()
    (folder / "npm").write_text(f"#!{sys.executable}\n{script}")
    (folder / "npm").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("GAPKD_CACHE", str(folder / "cache"))


def archive(path: Path, content: dict[str, bytes]) -> None:
    with tarfile.open(path, "w:gz") as file:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            file.addfile(entry, io.BytesIO(data))


CONTENT = {SCRIPT: b"export {};", WASM: b"\0asm"}


@pytest.fixture
def packed(tmp_path):
    archive(tmp_path / "packed.tgz", {f"package/dist/{k}": v for k, v in CONTENT.items()} | {"package/big": b"x"})
    return tmp_path / "packed.tgz"


def test_npm_is_asked_once_for_the_exact_version(packed, tmp_path, monkeypatch):
    fake_npm(tmp_path / "bin", monkeypatch, "import shutil, sys\n"
             f"open({str(tmp_path / 'said')!r}, 'a').write(' '.join(sys.argv[1:]) + '\\n')\n"
             f"shutil.copy({str(packed)!r}, 'onnxruntime-web.tgz')\n")
    monkeypatch.setattr(webruntime, "RUNTIME", {k: hashlib.sha256(v).hexdigest() for k, v in CONTENT.items()})
    folder = fetch_runtime()
    assert {name: (folder / name).read_bytes() for name in CONTENT} == CONTENT
    assert fetch_runtime() == folder == tmp_path / "bin" / "cache" / f"onnxruntime-web-{VERSION}"
    said = (tmp_path / "said").read_text()
    assert said.startswith(f"pack onnxruntime-web@{VERSION} ") and said.count("\n") == 1
    assert "--ignore-scripts" in said, "nothing of what is fetched may run"
    (folder / WASM).write_bytes(b"damaged")
    assert (fetch_runtime() / WASM).read_bytes() == CONTENT[WASM]


def test_what_npm_brings_is_verified(packed, tmp_path, monkeypatch):
    fake_npm(tmp_path / "bin", monkeypatch, f"import shutil\nshutil.copy({str(packed)!r}, 'o.tgz')\n")
    with pytest.raises(WebRuntimeError, match="another check sum: it was altered; nothing was kept"):
        fetch_runtime()
    archive(packed, {"package/readme": b"x"})
    with pytest.raises(WebRuntimeError, match=f"what npm fetched is not onnxruntime-web {VERSION}"):
        fetch_runtime()
    assert not list((tmp_path / "bin" / "cache").rglob("*.mjs"))


def test_without_npm_or_connection_it_says_what_to_do(files, tmp_path, monkeypatch, capsys):
    fake_npm(tmp_path / "bin", monkeypatch, "import sys\nsys.exit('npm error code ENOTFOUND\\nnpm error more')\n")
    assert main(["demo", *files, "--out", str(tmp_path / "page")]) == 2
    err = capsys.readouterr().err
    assert "npm could not fetch onnxruntime-web" in err and "(npm error code ENOTFOUND)" in err and "--runtime" in err
    (tmp_path / "bin" / "npm").unlink()
    assert main(["demo", *files, "--out", str(tmp_path / "page")]) == 2
    err = capsys.readouterr().err
    assert "install Node.js, which brings npm, or give --runtime a folder with" in err and err.count("\n") == 1
    assert not (tmp_path / "page").exists()


def test_a_cache_that_cannot_be_written_says_so(packed, tmp_path, monkeypatch):
    fake_npm(tmp_path / "bin", monkeypatch, "")
    (tmp_path / "bin" / "cache").write_text("no folder")
    with pytest.raises(WebRuntimeError, match="could not be stored in .*: set GAPKD_CACHE"):
        fetch_runtime()


def test_a_damaged_runtime_is_refused(files, runtime, tmp_path):
    (runtime / "dist" / WASM).write_bytes(b"<html>")
    with pytest.raises(WebRuntimeError, match="is damaged: install onnxruntime-web again"):
        write_demo(DemoConfig(*files, out=str(tmp_path / "page"), runtime=str(runtime)))
