"""Runs that stop, by will or by force: what is resumed equals what was never stopped, and nothing
is lost."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import re
import shlex
import shutil
import signal
import time
import unicodedata
import warnings
from contextlib import nullcontext
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import config, distill_config, newest

from gapkd.cli import main
from gapkd.data.images import save_png
from gapkd.files.checkpoints import (
    CheckpointError,
    find_checkpoint,
    load_discriminator,
    load_generator,
    read_metadata,
    save_network,
)
from gapkd.networks.stylegan2 import Generator
from gapkd.training import lessons
from gapkd.training.loop import best_record, distill, resume_run, train_gan
from gapkd.training.runs import RunFolder, begun_by_this_job, digest_of
from gapkd.training.trainer import Trainer


def checkpoints(run: Path) -> list[str]:
    return sorted(f.name.lstrip("0") for f in (run / "checkpoints").iterdir())


def assert_same(found, expected) -> None:
    """Equal, bit for bit, whatever is nested in whatever."""
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


def final_state(run: Path) -> dict:
    """All numbers of a run's newest checkpoint but for its times."""
    state = torch.load(newest(run), weights_only=True)
    return {k: v for k, v in state.items() if k != "seconds" and not isinstance(v, str)}


def logged(run: Path) -> list[dict]:
    """The log but for its times, which rise."""
    log = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    seconds = [record.pop("seconds") for record in log]
    assert seconds == sorted(seconds) and seconds[0] > 0
    return log


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    """Two runs, "whole" of 32 images and "half" of 16."""
    folder = tmp_path_factory.mktemp("runs")
    train_gan(config(folder / "whole"))
    train_gan(config(folder / "half", images=16, checkpoint_every=12))
    return folder


@pytest.fixture
def half(runs, tmp_path) -> Path:
    """A copy of the half run, to go on with."""
    return shutil.copytree(runs / "half", tmp_path / "half")


def test_resume_is_exact_and_needs_only_the_folder(runs, half, capsys):
    assert main(["resume", str(half), "--images", "32", "--no-progress"]) == 0
    assert_same(final_state(half), final_state(runs / "whole"))
    assert logged(half) == logged(runs / "whole") and len(logged(half)) == 4
    for words, message in (([str(runs)], "holds no run of gapkd"),
                           ([str(half), "--images", "8"], "is already at image 32"),
                           ([str(half), "--device", "meta"], "device 'meta' is not usable here"),
                           ([str(half), "--device", "tpu9"], "device 'tpu9' is not usable here")):
        assert main(["resume", *words]) == 2
        assert message in capsys.readouterr().err


@pytest.mark.parametrize("changes", [
    {}, {"feature_weight": 3.0}, {"precision": "bf16"}, {"precision": "fp16"},
    {"reuse": 3, "ld_weight": 0.0, "path_weight": 0.0}])
def test_distillation_resumes_exactly(tmp_path, fake_distance, monkeypatch, changes):
    monkeypatch.setattr(lessons, "MOST", 3)
    monkeypatch.setattr(lessons, "FEWEST", 2)
    teacher = Generator(16, 8, 8, 8, mapping_layers=2)
    if "reuse" in changes:
        teacher.silence()
    file = save_network(teacher, tmp_path / "teacher.safetensors")
    settings = {"ld_blocks": (1, 2), "log_every": 4} | changes
    for name, lengths in (("whole", [28]), ("half", [20, 28])):  # 20: in the midst of a pass
        for images in lengths:
            log = distill(distill_config(tmp_path / name, file, images=images,
                                         resume=images > lengths[0], **settings)).log
    assert_same(final_state(tmp_path / "whole"), final_state(tmp_path / "half"))
    weights = {"gan": 1, "rgb": 3, "perceptual": 3, "ld": 30, "feature": 0}
    for name, weight in weights.items():
        assert (f"loss_{name}" in log[-1]) == bool(changes.get(f"{name}_weight", weight))
    scale = torch.load(newest(tmp_path / "half"), weights_only=True)["scaler"]
    assert bool(scale) == (changes.get("precision") == "fp16")


def test_a_slimmed_student_is_not_slimmed_again(tmp_path, teacher_file, fake_distance, monkeypatch):
    settings = {"synthesis": "slimmed", "lr_end": 0.5, "log_every": 4, "images": 20}
    log = distill(distill_config(tmp_path, teacher_file, **settings)).log
    assert [r["images"] for r in log] == [8, 12, 16, 20]  # the first four went into slimming
    monkeypatch.setattr("gapkd.distillation.students.slim", None)
    distill(distill_config(tmp_path, teacher_file, **settings, resume=True))
    with pytest.raises(ValueError, match="it was started with images=20, not 32"):
        distill(distill_config(tmp_path, teacher_file, **settings | {"images": 32}, resume=True))


def test_a_run_whose_last_batch_overshoots_can_be_taken_up(tmp_path):
    for resume in (False, True):
        result = train_gan(config(tmp_path, images=10, log_every=6, resume=resume))
        assert [r["images"] for r in result.log] == [8, 12]


@pytest.mark.parametrize("number", [
    signal.SIGINT, signal.SIGTERM,
    pytest.param(getattr(signal, "SIGHUP", None), marks=pytest.mark.skipif(
        not hasattr(signal, "SIGHUP"), reason="Windows has none"))])
def test_a_signal_saves_and_says_so(tmp_path, capsys, monkeypatch, number):
    real, outside = Trainer.train_step, signal.getsignal(number)
    before = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
    signal.signal(number, before)  # under nohup a hangup would be ignored

    def step(trainer):
        if trainer.images == 8:
            signal.raise_signal(number)
        real(trainer)

    monkeypatch.setattr(Trainer, "train_step", step)
    assert main(["teacher", "--out", str(tmp_path), "--resolution", "8", "--channels", "8",
                 "--batch", "4", "--images", "24", "--no-progress"]) == 130
    err = capsys.readouterr().err
    assert "stopped at image 12; the state is saved, and `gapkd resume" in err
    assert "Traceback" not in err and checkpoints(tmp_path) == ["12.pt"]
    assert signal.getsignal(number) == before
    signal.signal(number, outside)


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has none")
def test_a_closed_terminal_breaks_no_step_and_nohup_is_heeded(tmp_path, monkeypatch):
    """A shell that ends sends its signal twice, or another one after it."""
    real, sent = Trainer.train_step, [signal.SIGHUP, signal.SIGHUP, signal.SIGTERM]

    def step(trainer):
        for number in sent:
            signal.raise_signal(number)
        real(trainer)

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(KeyboardInterrupt, match="stopped at image 4; the state is saved"):
        train_gan(config(tmp_path / "run"))
    before, sent[1:] = signal.signal(signal.SIGHUP, signal.SIG_IGN), []
    try:
        assert train_gan(config(tmp_path / "nohup")).log[-1]["images"] == 32
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_signal_breaks_the_step(tmp_path, monkeypatch):
    def step(trainer):
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(KeyboardInterrupt, match="stopped at once"):
        train_gan(config(tmp_path / "run"))


# ---------------------------------------------------------------------- what is not to be resumed


def about(run: Path, **changes) -> None:
    """Change settings.json."""
    content = json.loads((run / "settings.json").read_text()) | changes
    (run / "settings.json").write_text(json.dumps(content))


def state(run: Path, content, mine: bool = True) -> None:
    """Put another state in the newest checkpoint's place, of this run or of any."""
    name = torch.load(newest(run), weights_only=True)["run"]
    torch.save(content | {"run": name} if mine else content, newest(run))


@pytest.mark.parametrize("put", [Path.touch, Path.mkdir, lambda file: file.symlink_to("nowhere")])
def test_a_name_alone_is_no_checkpoint(half, put):
    put(half / "checkpoints" / "000000099.pt")
    with warnings.catch_warnings(record=True):
        assert train_gan(config(half, images=32, resume=True)).log[-1]["images"] == 32


@pytest.mark.parametrize("edit, changes, message", [
    (None, {"lr": 0.5, "flip": False}, "with lr=0.0025, not 0.5; flip=True, not False; give"),
    (None, {"resume": False}, "already holds a run: go on with it"),
    (None, {"images": 8}, "is already at image 16: give images of at least that"),
    (lambda run: about(run, kind="distill"), {}, "holds a distill run, not a teacher run"),
    (lambda run: about(run, inputs=None), {}, "settings.json cannot be read"),
    (lambda run: state(run, {"G": 1}), {}, "does not hold the networks"),
    (lambda run: state(run, {"run": "another"}, mine=False), {}, "belongs to another run"),
    (lambda run: state(run, [1], mine=False), {}, "belongs to another run"),
    (lambda run: shutil.rmtree(run / "checkpoints"), {}, "holds no checkpoint to resume from")])
def test_what_does_not_fit_is_refused_and_left_alone(half, edit, changes, message):
    if edit:
        edit(half)
    before = {file: file.read_bytes() for file in half.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match=message):
        train_gan(config(half, **{"resume": True} | changes))
    changed = [f.name for f, content in before.items() if f.read_bytes() != content]
    assert changed == [] or changed == ["settings.json"] and "state" in edit.__code__.co_names


@pytest.mark.parametrize("content", [None, b"", b'{"kind": "teacher", "sett', b"\xff\xfe{\0}\0"])
def test_lost_settings_leave_the_networks(half, tmp_path, content):
    """What is advised works."""
    settings = half / "settings.json"
    settings.unlink() if content is None else settings.write_bytes(content)
    for name in ("generator", "discriminator"):
        (half / f"{name}.safetensors").unlink()
    start = str(half / "checkpoints" / "000000016.pt")
    advice = f"half/settings.json cannot be read, .* `gapkd teacher --start-from {start}`"
    with pytest.raises(ValueError, match=advice):
        resume_run(half)
    for resume in (False, True):
        with pytest.raises(ValueError, match=advice):
            train_gan(config(half, resume=resume))
    assert train_gan(config(tmp_path / "on", images=4, start_from=start)).log


@pytest.mark.parametrize("name", ["my run", "it's", "-d2"])
def test_an_advised_command_can_be_typed_as_it_stands(half, monkeypatch, name):
    monkeypatch.chdir(half.parent)
    half.rename(name)
    for spoil in (lambda: None, (Path(name) / "settings.json").unlink):
        spoil()
        with pytest.raises(ValueError) as error:
            train_gan(config(Path(name)))
        command = shlex.split(re.search("`gapkd (.*?)`", str(error.value))[1])
        start = ["--out", "on", "--images", "4", "--d-channels", "8", "--no-progress"]
        assert main(command + (start if command[0] == "teacher" else [])) == 0


@pytest.fixture
def photos(tmp_path):
    """Twelve pictures in a folder below "old"."""
    dice = torch.Generator().manual_seed(0)
    for k in range(12):
        images = torch.rand(1, 3, 32, 32, generator=dice)
        save_png(images, tmp_path / "old" / "photos" / f"{k:02}.png", columns=1)
    return tmp_path / "old" / "photos"


def test_data_and_teacher_may_move(tmp_path, teacher_file, photos, fake_distance, monkeypatch,
                                   capsys):
    """What is resumed from elsewhere equals what was never moved; a relative path counts from where
    the run was started."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(teacher_file, photos.parent / "teacher.safetensors")
    changes = {"data": "old/photos", "perceptual_weight": 0.0}
    for name, images in (("whole", 12), ("half", 4)):
        distill(distill_config(Path(name), "old/teacher.safetensors", images=images, **changes))
    photos.parent.rename(tmp_path / "new")
    for option, place, advice in (("--data", "new/photos", "--data PATH --teacher PATH"),
                                  ("--teacher", "new/teacher.safetensors", "--teacher PATH")):
        assert main(["resume", "half", "--images", "8"]) == 2
        err = capsys.readouterr().err
        assert f"say where it is now, `gapkd resume half {advice}`" in err
        settings = json.loads(Path("half/settings.json").read_text())
        settings["settings"][option[2:]] = place  # by hand, which must not make it another run
        Path("half/settings.json").write_text(json.dumps(settings))
    save_network(Generator(32, 8, 8, 8, mapping_layers=2), "other.safetensors")
    with pytest.raises(ValueError, match="teacher=other.* is not what it was when the run began"):
        resume_run("half", images=8, data="new/photos", teacher="other.safetensors")
    moved = ["--data", "new/photos", "--teacher", "new/teacher.safetensors", "--log-every", "4"]
    assert main(["resume", "half", "--images", "8", "--no-progress", *moved]) == 0
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    resume_run("../half", images=12, progress=False)
    assert_same(final_state(tmp_path / "half"), final_state(tmp_path / "whole"))


def test_other_spellings_of_the_same_names_are_the_same_data(tmp_path):
    """Accents that are composed otherwise, and a zip that holds the folder, not what lies in it."""
    def change(now: list[str]) -> str:
        folder = RunFolder(config(tmp_path), "teacher", names=now)
        folder.path = tmp_path
        return folder._change_of_data(digest_of(names))

    names = ["a.png (class 0)", "b/f.png (class 1)", "m\u00fcller.png (class 2)"]
    (tmp_path / "data.json").write_text(json.dumps(names))
    composed = [unicodedata.normalize("NFD", name) for name in names]
    packed = [f"photos/{name}" for name in composed]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert composed != names and not change(composed) and not change(packed)
    with pytest.warns(UserWarning, match="spelt in another way: they come in another order"):
        assert not change(packed[::-1])
    for other in (packed[1:], [*packed, "photos/c.png (class 0)"], [*packed[:2], packed[2] + "9"]):
        assert change(other).startswith("new: ")
    with pytest.warns(UserWarning, match="of the 3 images that the run began with are gone"):
        assert not change(names[1:])
    names = ["cats/0.png", "cats/1.png"]
    (tmp_path / "data.json").write_text(json.dumps(names))
    assert not change(["0.png", "1.png"]) and not change(["all/cats/0.png", "all/cats/1.png"])
    assert change(["dogs/0.png", "dogs/1.png"]).startswith("new: ")  # of equal names below


def test_pictures_that_were_away_may_come_back(tmp_path, photos):
    train_gan(config(tmp_path / "run", data=str(photos), images=4))
    began_with = (tmp_path / "run" / "data.json").read_text()
    photos.rename(tmp_path / "all")
    for images, names in ((8, range(6)), (12, range(3, 12)), (16, range(12))):
        photos.mkdir()
        for k in names:
            shutil.copy(tmp_path / "all" / f"{k:02}.png", photos)
        with nullcontext() if len(names) == 12 else pytest.warns(UserWarning, match="are gone"):
            resume_run(tmp_path / "run", images=images, progress=False)
        assert (tmp_path / "run" / "data.json").read_text() == began_with
        shutil.rmtree(photos)


@pytest.mark.filterwarnings("ignore:.* of the .* images")
def test_a_run_keeps_the_depth_of_its_pictures(tmp_path):
    """What the largest value of all tells is another thing without the brightest."""
    pictures, run = tmp_path / "photos", tmp_path / "run"
    pictures.mkdir()
    for i, largest in enumerate((60_000, 3000, 200)):
        Image.fromarray(np.full((8, 8), largest, np.uint16)).save(pictures / f"{i}.png")
    train_gan(config(run, data=str(pictures), images=4))
    (pictures / "2.png").unlink()
    resume_run(run, images=8, progress=False)
    (pictures / "0.png").rename(tmp_path / "0.png")
    with pytest.raises(ValueError, match="needs 12 bits by now and needed 16 .*: bring"):
        resume_run(run, images=12, progress=False)
    (tmp_path / "0.png").rename(pictures / "0.png")
    resume_run(run, images=12, progress=False)


def test_what_may_change_when_a_run_is_resumed(half):
    with pytest.raises(ValueError, match="a teacher run cannot be resumed with another lr: leave"):
        resume_run(half, lr=0.1)
    with pytest.raises(ValueError, match="a teacher run cannot be resumed with another teacher"):
        resume_run(half, teacher="toyfaces32")
    with pytest.warns(UserWarning, match="in float32 so far and goes on in float16"):
        log = resume_run(half, images=32, log_every=4, grid_every=8, checkpoint_every=4,
                         precision="fp16", progress=False).log
    assert [r["images"] for r in log] == [8, 16, 20, 24, 28, 32]
    with pytest.warns(UserWarning, match="in float16 so far and goes on in bfloat16"):
        resume_run(half, images=36, precision="bf16", progress=False)
    grids = sorted(int(file.stem) for file in half.glob("grids/*.png"))
    assert grids == [16, 24, 32, 36]


def edit(run: Path, **changes) -> None:
    """Change the settings in settings.json."""
    about(run, settings=json.loads((run / "settings.json").read_text())["settings"] | changes)


@pytest.mark.parametrize("changes, message", [
    ({"data": 5}, "half/settings.json was edited: data must be a text, not 5; give the old value"),
    ({"data": None}, "data must be a text, not None"),
    ({"fid_every": 8, "fid_features": 3}, "fid_features must be a text, not 3"),
    ({"data": "x" * 5000}, r"is not there any more: data=x{150}\.\.\.x{150}; say"),
    ({"device": "k" * 10**5}, "device 'k*[.]{3}k*' is not usable here"),
    ({"k" * 10**5: 1}, r"settings differ in k{150}\.\.\.k{150}\); go on"),
    ({"a\ngapkd: all is well": 1}, r"settings differ in 'a\\ngapkd: all is well'\); go on"),
    ({"data": "no\n\x1b[31m"}, r"is not there any more: data='no\\n\\x1b\[31m'; say"),
    ({"seed": 5}, "or settings.json was edited: bring .* or the old values in settings.json, back"),
    ({"channels": [16]}, "or settings.json was edited: bring")])
def test_settings_that_were_edited_by_hand(half, changes, message):
    edit(half, **changes)
    about(half, started_in=None)
    with pytest.raises(ValueError, match=message) as caught:
        resume_run(half, images=32, progress=False)
    assert len(str(caught.value)) < 1000


def test_one_width_may_stand_alone(half):
    edit(half, channels=8)
    assert resume_run(half, images=20, progress=False).log[-1]["images"] == 20


def test_a_run_of_another_device_goes_on_if_it_is_asked_for(half):
    content = torch.load(newest(half), weights_only=True)
    content |= {"device": "cuda", "rng": torch.zeros(16, dtype=torch.uint8)}
    torch.save(content, newest(half))
    with pytest.raises(CheckpointError, match="device=cuda, or, to go on .* with device=cpu"):
        resume_run(half, images=32, progress=False)
    with pytest.warns(UserWarning, match="trained on cuda, and cpu goes on with other random"):
        assert resume_run(half, images=32, device="cpu", progress=False).log[-1]["loss_g"] > 0


# ---------------------------------------------------------------------- pictures and measurements


def spoil(*files: Path) -> None:
    """Cut files off in the middle."""
    for file in files:
        file.write_bytes(file.read_bytes()[:len(file.read_bytes()) // 2])


def test_broken_pictures_end_a_run_once_and_nothing_is_lost(tmp_path, photos, monkeypatch):
    """They are named all at once, the state is saved, and without them the run goes on."""
    settings = config(tmp_path / "run", data=str(photos), checkpoint_every=0, batch=4)
    names = [photos / f"{k:02}.png" for k in (3, 7, 9)]
    real = Trainer.train_step

    def step(trainer):
        real(trainer)
        if trainer.images == 12:
            trainer.dataset._kept.clear()
            spoil(*names)

    monkeypatch.setattr(Trainer, "train_step", step)
    everything = (r"03.png in .* \(3 such files in all\); the others: 07.png, 09.png; stopped at "
                  r"image 12, the state is saved, and `gapkd resume")
    with pytest.raises(ValueError, match=everything):
        train_gan(settings)
    assert checkpoints(tmp_path / "run") == ["12.pt"]
    with pytest.raises(ValueError, match="the others: 07.png, 09.png$"):  # at once this time
        resume_run(tmp_path / "run", progress=False)
    for file in names:
        file.unlink()
    with pytest.warns(UserWarning, match=r"3 \(03.png, 07.png, 09.png\) of the 12 images that the "
                                         "run began with are gone: it goes on with the others"):
        log = resume_run(tmp_path / "run", progress=False).log
    assert [r["images"] for r in log] == [8, 16, 24, 32]
    resume_run(tmp_path / "run", images=36, progress=False)
    shutil.copy(photos / "00.png", photos / "99.png")
    with pytest.raises(ValueError, match=r"run began \(new: 1 \(99.png\); gone: 3 \(03.png"):
        resume_run(tmp_path / "run", images=40, progress=False)


def test_before_a_run_pictures_are_looked_at_for_a_while(tmp_path, photos, monkeypatch):
    monkeypatch.setattr("gapkd.data.datasets.AT_ONCE_PIXELS", 0)
    spoil(photos / "11.png")
    monkeypatch.setattr(Trainer, "train_step", Mock(side_effect=AssertionError))
    with pytest.raises(ValueError, match="11.png in .* cannot be read as an image"):
        train_gan(config(tmp_path / "run", data=str(photos)))
    monkeypatch.setattr("gapkd.training.loop.CHECK_SECONDS", -1)  # there is no time
    with pytest.raises(AssertionError):
        train_gan(config(tmp_path / "run", data=str(photos), batch=1))


def test_a_measurement_that_fails_costs_nothing_and_can_be_left_out(tmp_path, runs, monkeypatch):
    judge = Mock(side_effect=ValueError("the judge is ill"))
    judge.try_out = Mock()
    monkeypatch.setattr("gapkd.training.loop.FidProbe", lambda *arguments: judge)
    settings = {"fid_every": 12, "checkpoint_every": 0}
    message = "the judge is ill; the state at image 12 is saved: .* --fid-every 0 --grid-every 0"
    with pytest.raises(ValueError, match=message):
        train_gan(config(tmp_path, **settings))
    assert checkpoints(tmp_path) == ["12.pt"]
    with pytest.raises(ValueError, match=message):
        resume_run(tmp_path, progress=False)
    resume_run(tmp_path, progress=False, fid_every=0, checkpoint_every=16)
    assert_same(final_state(tmp_path), final_state(runs / "whole"))
    assert logged(tmp_path) == logged(runs / "whole")


def test_a_run_that_dies_in_a_measurement_takes_it_up_again(tmp_path):
    """The checkpoint due at the same image is written before, and the log lacks no line."""
    def probe(G, dies=True):
        if dies and torch.load(newest(tmp_path / "half"), weights_only=True)["images"] == 16:
            raise KeyboardInterrupt("power gone")
        return {"mean": G(torch.ones(1, 8)).mean().item()}

    whole = train_gan(config(tmp_path / "whole"), lambda G: probe(G, dies=False)).log
    with pytest.raises(KeyboardInterrupt):
        train_gan(config(tmp_path / "half"), probe)
    log = train_gan(config(tmp_path / "half", resume=True), lambda G: probe(G, dies=False)).log
    without = [{k: v for k, v in r.items() if k != "seconds"} for r in (*log, *whole)]
    assert without[:4] == without[4:] and [r["images"] for r in log] == [8, 16, 24, 32]


def test_a_stopped_run_can_be_looked_at(half, tmp_path):
    """By its folder or its checkpoint; once it has its networks, those are taken."""
    final = load_generator(half / "generator.safetensors")
    for file in half.glob("*.safetensors"):
        file.unlink()
    for place in (half, half / "checkpoints", newest(half)):
        assert_same(load_generator(place).state_dict(), final.state_dict())
    assert load_discriminator(newest(half)).channels == [8, 8]
    assert read_metadata(half)["provenance"]["images"] == 16
    for arguments in (["sample", "--generator", half, "--out", tmp_path / "s.png"],
                      ["convert", half, tmp_path / "g.safetensors"],
                      ["convert", half, tmp_path / "discriminator.safetensors"]):
        assert main([str(argument) for argument in arguments]) == 0
    assert_same(load_generator(tmp_path / "g.safetensors").state_dict(), final.state_dict())
    assert load_discriminator(tmp_path / "discriminator.safetensors").resolution == 8
    shutil.rmtree(half / "checkpoints")
    with pytest.raises(CheckpointError, match="half is a training that has not saved its networks"):
        load_generator(half)


def test_a_copy_of_a_run_draws_what_the_run_does(half, tmp_path):
    """A copy's files are all of one age: images tell which is the newest."""
    shutil.copy(newest(half), half / "checkpoints" / "000000020.pt")  # as if it had gone on
    for count, file in (20, "000000020.pt"), (16, "generator.safetensors"):
        copy = shutil.copytree(half, tmp_path / f"copy{count}")
        for there in copy.rglob("*.pt"):
            os.utime(there, (1, 1) if count == 20 else None)
            if int(there.stem) > count:
                there.unlink()
        assert find_checkpoint(copy).name == file
        assert load_discriminator(copy).channels == [8, 8]


@pytest.mark.parametrize("images, taken", [(4, "000000012.pt"), (12, "generator.safetensors"),
                                           (None, "000000012.pt")])
def test_a_damaged_checkpoint_is_not_drawn_with(half, images, taken, tmp_path, capsys):
    """What was saved before it is, and nothing is put aside: a resume does that."""
    G = load_generator(half)
    (half / "generator.safetensors").unlink()
    if images:
        save_network(G, half / "generator.safetensors", {"images": images})
    newest(half).write_bytes(bytes_turned(newest(half).read_bytes()))
    message = f"000000016.pt cannot be read whole: {taken}, which was saved before it, is taken"
    assert main(["sample", str(half), "--out", str(tmp_path / "s.png")]) == 0
    assert message in capsys.readouterr().err
    with pytest.warns(UserWarning, match=message):
        assert find_checkpoint(half).name == taken
    assert checkpoints(half) == ["12.pt", "16.pt"]
    for file in half.glob("checkpoints/*.pt"):
        file.write_bytes(b"")
    if not images:
        with pytest.raises(CheckpointError, match="000000016.pt is empty"):
            load_generator(half)


@pytest.mark.parametrize("left, message", [
    (["generator.safetensors", "settings.json", "log.jsonl"], "already holds networks"),
    *(([name], f"no run of gapkd wrote .*{name}: choose another out")
      for name in ("settings.json", "log.jsonl", "data.json", "grids/000000016.png")),
    (["below"], "settings.json cannot be made, since .*below is a file: choose another out")])
@pytest.mark.parametrize("content", ["{}", '{"kind": "vscode"}'])
def test_files_of_others_are_not_written_over(tmp_path, left, message, content):
    for name in left:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        train_gan(config(tmp_path / "below" / "run" if left == ["below"] else tmp_path))
    assert all((tmp_path / name).read_text() == content for name in left)


@pytest.mark.parametrize("name", ["000000016 (1).pt", "000000016.damaged"])
def test_a_run_whose_checkpoints_have_other_names_is_not_written_over(half, name):
    for file in half.glob("*.safetensors"):
        file.unlink()
    (half / "checkpoints" / "000000012.pt").unlink()
    newest(half).rename(half / "checkpoints" / name)
    log = (half / "log.jsonl").read_bytes()
    with pytest.raises(ValueError, match=f"from .{re.escape(name)} is named otherwise: .* in ano"):
        resume_run(half, images=32, progress=False)
    with pytest.raises(ValueError, match="already holds a run"):
        train_gan(config(half))
    assert (half / "log.jsonl").read_bytes() == log


def test_two_trainings_in_one_folder(tmp_path):
    def second(G):
        with pytest.raises(ValueError, match="another process is training into"):
            train_gan(config(tmp_path))
        return {"tried": 1}

    assert train_gan(config(tmp_path, images=4), second).log[-1]["tried"] == 1


# ---------------------------------------------------------------------- the disk


def test_what_died_before_its_first_checkpoint_is_begun_anew(half):
    shutil.rmtree(half / "checkpoints")
    for file in half.glob("*.safetensors"):
        file.unlink()
    train_gan(config(half, images=8))
    assert len((half / "log.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("torn", [b'{"imag', b'{"images": 32, "x": "\xff\xfe"}', bytes(8)])
def test_what_was_logged_after_the_checkpoint_is_logged_again(half, torn):
    """Blank lines in between, and an editor's mark at the beginning, do no harm."""
    before = (half / "log.jsonl").read_text().replace("\n", "\n\n")
    with open(half / "log.jsonl", "w", encoding="utf-8-sig") as file:
        file.write(before + '{"images": 24}\n')
    with open(half / "log.jsonl", "ab") as file:
        file.write(torn)  # then the power was gone
    log = train_gan(config(half, resume=True)).log
    assert [r["images"] for r in log] == [8, 16, 24, 32] and "loss_g" in log[2]


@pytest.mark.parametrize("line", ['{"imag', "[1]", '{"loss": 1}', '{"images": "8"}', "null",
                                  "[" * 100_000, "\xff"])
def test_a_line_of_the_log_that_is_no_record_is_named_and_nothing_cut(half, line):
    log = half / "log.jsonl"
    log.write_bytes(line.encode("latin-1") + b"\n" + log.read_bytes())
    before = log.read_bytes()
    message = "log.jsonl, line 1, is not a record of the run: mend"
    with pytest.raises(ValueError, match=message):
        resume_run(half, images=32, progress=False)
    assert log.read_bytes() == before


def test_a_disk_that_fills_up_loses_nothing(half, monkeypatch):
    good, real = newest(half).read_bytes(), os.fsync

    def full(fd):
        if "checkpoints" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(28, "No space left on device")
        real(fd)

    monkeypatch.setattr("gapkd.files.storage.os.fsync", full)
    with pytest.raises(OSError, match="could not write .*32.pt .No space left on device.: free"):
        train_gan(config(half, resume=True))
    assert newest(half).read_bytes() == good and checkpoints(half) == ["12.pt", "16.pt"]


@pytest.mark.parametrize("error, message", [
    (RuntimeError("can't allocate memory"), "too little memory to read .*000000016.pt"),
    (MemoryError(), "too little memory to read"),
    (PermissionError(13, "Permission denied"), "cannot read .*000000016.pt .Permission denied")])
def test_trouble_with_the_machine_condemns_no_checkpoint(half, monkeypatch, error, message):
    def load(*arguments, **options):
        raise error

    monkeypatch.setattr("gapkd.training.runs.torch.load", load)
    with pytest.raises(OSError, match=message):
        train_gan(config(half, resume=True))
    assert checkpoints(half) == ["12.pt", "16.pt"]


def bytes_turned(content: bytes) -> bytes:
    """The same length, but 40 bytes in the middle are others."""
    middle = len(content) // 2
    turned = bytes(255 - b for b in content[middle:middle + 40])
    return content[:middle] + turned + content[middle + 40:]


@pytest.mark.parametrize("damage", [
    lambda b: b"", lambda b: b"not a checkpoint", lambda b: b[:2000], bytes_turned])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(runs, half, damage):
    """It was written between two lines of the log, of which the second one must not change."""
    newest(half).write_bytes(damage(newest(half).read_bytes()))
    with pytest.warns(UserWarning, match="16.pt is not a whole checkpoint .* before it is used"):
        train_gan(config(half, resume=True))
    assert_same(final_state(half), final_state(runs / "whole"))
    assert logged(half) == logged(runs / "whole")
    assert checkpoints(half) == ["16.damaged", "16.pt", "32.pt"]
    for file in half.glob("checkpoints/*.pt"):
        file.write_bytes(b"")
    with pytest.warns(UserWarning, match="put aside"):
        with pytest.raises(CheckpointError, match="no checkpoint in .* is whole: start the run"):
            train_gan(config(half, resume=True))


def test_the_newest_checkpoints_and_the_best_one_stay(tmp_path, monkeypatch):
    values = iter([5.0, 2.0, 4.0, 3.0, 6.0, 7.0])
    judge = Mock(side_effect=lambda G: {"fid_fake_10": next(values)})
    monkeypatch.setattr("gapkd.training.loop.FidProbe", lambda *arguments: judge)
    log = train_gan(config(tmp_path, images=48, fid_every=8, checkpoint_every=24)).log
    # A record that is the lowest so far is kept at once.
    assert checkpoints(tmp_path) == ["16.pt", "24.pt", "48.pt"]
    assert best_record(log)["images"] == 16 and best_record([{"images": 8}]) is None
    card = read_metadata(tmp_path / "best.safetensors")["provenance"]
    assert card["images"] == 16 and card["measured"]["fid_fake_10"] == 2.0
    saved = torch.load(tmp_path / "checkpoints" / "000000016.pt", weights_only=True)
    assert_same(load_generator(tmp_path / "best.safetensors").state_dict(), saved["G_ema"])


def test_a_best_network_that_the_log_no_longer_knows_is_kept(tmp_path, monkeypatch):
    """The log is lost; or the FID has another name from now on."""
    name, values = "fid_fake_10", iter([5, 2, 4, 3, 6, 7, 8, 9, 10, 9.5, 9, 8, 7])
    judge = Mock(side_effect=lambda G: {name: next(values)})
    monkeypatch.setattr("gapkd.training.loop.FidProbe", lambda *arguments: judge)
    train_gan(config(tmp_path, images=48, fid_every=8, checkpoint_every=24))
    best = (tmp_path / "best.safetensors").read_bytes()
    (tmp_path / "log.jsonl").unlink()
    with pytest.warns(UserWarning, match="is kept as best-000000016.safetensors"):
        resume_run(tmp_path, images=64, progress=False)
    aside = tmp_path / "best-000000016.safetensors"
    assert aside.read_bytes() == best
    card = read_metadata(tmp_path / "best.safetensors")["provenance"]
    assert card["measured"]["images"] == 48 and card["measured"][name] == 8.0
    name = "fid_fake_20"
    with pytest.warns(UserWarning, match="is kept as best-000000048.safetensors"):
        resume_run(tmp_path, images=80, progress=False)
    assert read_metadata(tmp_path / "best.safetensors")["provenance"]["images"] == 80
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    log[-1][name] = 20.0  # measured again, elsewhere
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    with pytest.warns(UserWarning, match="is kept as best-000000080.safetensors"):
        resume_run(tmp_path, images=88, progress=False)


def test_a_run_that_dies_beside_its_best_network_finds_it_again(tmp_path, monkeypatch):
    values = iter([5.0, 2.0, 2.0, 4.0])
    judge = Mock(side_effect=lambda G: {"fid_fake_10": next(values)})
    monkeypatch.setattr("gapkd.training.loop.FidProbe", lambda *arguments: judge)
    with monkeypatch.context() as patch:
        write, written = RunFolder.save_network, []

        def die(self, network, name, card):
            written.append(name)
            if len(written) == 2:
                raise SystemExit
            write(self, network, name, card)

        patch.setattr(RunFolder, "save_network", die)
        with pytest.raises(SystemExit):
            train_gan(config(tmp_path, images=24, fid_every=8, checkpoint_every=8))
    train_gan(config(tmp_path, images=24, fid_every=8, checkpoint_every=8, resume=True))
    assert read_metadata(tmp_path / "best.safetensors")["provenance"]["images"] == 16


KILLS = 20


def _train_for_ever(out: str, begun) -> None:
    """In a process of its own: trains, with a checkpoint after every step, until it is killed."""
    again = bool(list(Path(out).glob("checkpoints/*.pt")))
    begun.set()
    train_gan(config(Path(out), images=10**9, checkpoint_every=4, grid_every=0, log_every=4,
                     resume=again))


def test_a_run_killed_twenty_times_ends_like_one_that_was_not(tmp_path):
    processes, moments = multiprocessing.get_context("forkserver"), random.Random(0)
    processes.set_forkserver_preload(["gapkd.training.loop", "torch._dynamo"])
    out = tmp_path / "killed"
    for kill in range(KILLS):
        begun, before = processes.Event(), set(out.glob("checkpoints/*.pt"))
        process = processes.Process(target=_train_for_ever, args=(str(out), begun))
        process.start()
        assert begun.wait(120)
        # Every second one gets on by at least a step; the others may die while they start.
        while kill % 2 and before >= set(out.glob("checkpoints/*.pt")) and process.is_alive():
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.3))
        process.kill()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    reached = int(newest(out).stem)
    assert reached >= 4 * KILLS / 2  # it did get on between the kills
    common = {"images": reached + 40, "checkpoint_every": 0, "grid_every": 0, "log_every": 4}
    train_gan(config(out, resume=True, **common))
    train_gan(config(tmp_path / "whole", **common))
    assert_same(final_state(out), final_state(tmp_path / "whole"))


def test_a_run_of_another_version_is_said_to_be_one(half):
    about = json.loads((half / "settings.json").read_text())
    about["settings"]["path_batch_shrink"] = 2  # a setting that has gone
    (half / "settings.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="another version of gapkd started it .*path_batch_shrink"):
        resume_run(half)


@pytest.mark.parametrize("change, said", [
    (lambda found: found["G"].update(kind="x"), "'x'"), (lambda found: found.pop("D"), "'D'"),
    (lambda found: found["D"]["architecture"].update(new=1), "argument 'new'"),
    (lambda found: found.update(G=None), "must be a mapping")])
def test_networks_that_nobody_knows_are_another_versions(half, change, said):
    networks = json.loads((half / "settings.json").read_text())["networks"]
    change(networks)
    about(half, networks=networks)
    with pytest.raises(ValueError, match=f"networks cannot be made .*{said}.*; another version"):
        resume_run(half, images=32, progress=False)


def test_other_files_among_the_checkpoints_are_left_alone(half):
    """Copies of ours, too."""
    others = ["mine.pt", "000000016 (best so far).pt", "000000012 copy.pt", "000000016_backup.pt"]
    for name in others:
        (half / "checkpoints" / name).write_bytes(b"x")
    assert resume_run(half, images=32, progress=False).log[-1]["images"] == 32
    assert all((half / "checkpoints" / name).read_bytes() == b"x" for name in others)
    (half / "generator.safetensors").unlink()
    assert load_generator(half).resolution == 8


def test_a_state_that_was_being_written_is_none_yet(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "J")
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "settings.json").write_text('{"job": "J"}')
    (tmp_path / "checkpoints" / ".000000032.pt.partial").touch()
    assert not begun_by_this_job(tmp_path)
    (tmp_path / "checkpoints" / "000000032.pt").touch()
    assert begun_by_this_job(tmp_path)
