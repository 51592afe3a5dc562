"""Runs that stop, by will or by force: what is resumed equals what was never stopped, and nothing is lost."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny import config, distill_config, equal, newest

from gapkd.cli import main
from gapkd.data.images import save_png
from gapkd.files.checkpoints import CheckpointError, load_generator, read_metadata, save_network
from gapkd.networks.stylegan2 import Generator
from gapkd.training.loop import best_record, distill, train_gan


def test_resume_is_exact(tmp_path):
    whole = train_gan(config(tmp_path / "whole"))
    train_gan(config(tmp_path / "half", images=16))
    resumed = train_gan(config(tmp_path / "half", resume=True))
    assert equal(whole.generator, resumed.generator) and equal(whole.discriminator, resumed.discriminator)
    strip = [{k: v for k, v in r.items() if k != "seconds"} for r in whole.log]
    assert strip == [{k: v for k, v in r.items() if k != "seconds"} for r in resumed.log]


@pytest.mark.parametrize("changes", [{}, {"ld_queue": 2, "ld_balance": 1.0}])
def test_distillation_resumes_exactly(tmp_path, teacher_file, fake_distance, changes):
    whole = distill(distill_config(tmp_path / "whole", teacher_file, **changes))
    distill(distill_config(tmp_path / "half", teacher_file, images=8, **changes))
    resumed = distill(distill_config(tmp_path / "half", teacher_file, resume=True, **changes))
    assert equal(whole.generator, resumed.generator)


def test_a_disk_that_fills_up_loses_nothing(tmp_path, monkeypatch):
    out = tmp_path / "run"
    train_gan(config(out, images=16))
    good, real = newest(out).read_bytes(), os.fsync

    def full(fd):
        if "checkpoints" in os.readlink(f"/proc/self/fd/{fd}"):
            raise OSError(28, "No space left on device")
        real(fd)

    with monkeypatch.context() as patch:
        patch.setattr("gapkd.files.storage.os.fsync", full)
        with pytest.raises(OSError, match="could not write .*000000032.pt .No space left on device.: free some"):
            train_gan(config(out, resume=True))
    assert newest(out).read_bytes() == good
    assert [f.suffix for f in (out / "checkpoints").iterdir()] == [".pt"]
    assert equal(train_gan(config(out, resume=True)).generator, train_gan(config(tmp_path / "whole")).generator)


@pytest.mark.parametrize("error, message", [
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "too little memory to read .*000000016.pt"),
    (MemoryError(), "too little memory to read"), (PermissionError(13, "Permission denied"), "Permission denied")])
def test_trouble_with_the_machine_condemns_no_checkpoint(tmp_path, monkeypatch, error, message):
    out = tmp_path / "run"
    train_gan(config(out, images=16))

    def load(*arguments, **options):
        raise error

    monkeypatch.setattr("gapkd.training.runs.torch.load", load)
    with pytest.raises(OSError, match=message):
        train_gan(config(out, resume=True))
    assert [f.suffix for f in (out / "checkpoints").iterdir()] == [".pt"]


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    for name, seed in (("a", 0), ("b", 1)):
        train_gan(config(tmp_path / name, images=16, seed=seed))
    newest(tmp_path / "b").replace(newest(tmp_path / "a"))
    with pytest.raises(CheckpointError, match="belongs to another run"):
        train_gan(config(tmp_path / "a", resume=True))


@pytest.mark.parametrize("left, message", [
    (["generator.safetensors", "settings.json", "log.jsonl"], "already holds networks"),
    (["settings.json"], "no run of gapkd wrote"), (["log.jsonl"], "no run of gapkd wrote")])
def test_files_of_others_are_not_written_over(tmp_path, left, message):
    for name in left:
        (tmp_path / name).write_text("{}")
    with pytest.raises(ValueError, match=message):
        train_gan(config(tmp_path))
    assert all((tmp_path / name).read_text() == "{}" for name in left)


def test_what_died_before_its_first_checkpoint_is_begun_anew(tmp_path):
    train_gan(config(tmp_path / "run", images=16))
    for file in [newest(tmp_path / "run"), *(tmp_path / "run").glob("*.safetensors")]:
        file.unlink()
    assert [r["images"] for r in train_gan(config(tmp_path / "run", images=16)).log] == [8, 16]


def test_two_trainings_in_one_folder(tmp_path):
    def second(G):
        with pytest.raises(ValueError, match="another process is training into"):
            train_gan(config(tmp_path, images=16))
        return {"tried": 1}

    assert train_gan(config(tmp_path, images=16), second).log[-1]["tried"] == 1


def test_other_images_are_noticed(tmp_path):
    for k in range(8):
        save_png(torch.rand(1, 3, 8, 8), tmp_path / "data" / f"{k}.png", columns=1)
    train_gan(config(tmp_path / "run", images=16, data=str(tmp_path / "data")))
    (tmp_path / "data" / "0.png").rename(tmp_path / "data" / "9.png")
    with pytest.raises(ValueError, match="data=.* is not what it was when the run began"):
        train_gan(config(tmp_path / "run", resume=True, data=str(tmp_path / "data")))


def test_another_precision_is_said(tmp_path, monkeypatch):
    train_gan(config(tmp_path, images=16, precision="auto"))
    was = torch.load(newest(tmp_path), weights_only=True)["dtype"]
    other = torch.bfloat16 if was == "None" else None
    monkeypatch.setattr("gapkd.training.trainer.autocast_dtype", lambda *_: other)
    with pytest.warns(UserWarning, match="goes on in (bfloat16|float32), which is what precision=auto means"):
        train_gan(config(tmp_path, images=32, precision="auto", resume=True))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_saves_and_says_so(tmp_path, number):
    script = ("import sys; from gapkd.cli import main; sys.exit(main(sys.argv[1:]))")
    options = ["teacher", "--out", str(tmp_path / "run"), "--images", "10000000", "--resolution", "8",
               "--channels", "8", "--d-channels", "8", "--z-dim", "8", "--w-dim", "8", "--batch", "4",
               "--log-every", "40"]
    run = subprocess.Popen([sys.executable, "-c", script, *options], stderr=subprocess.PIPE, text=True,
                           env=os.environ | {"OMP_NUM_THREADS": "1"})
    log = tmp_path / "run" / "log.jsonl"
    deadline = time.monotonic() + 90
    while not log.exists() and time.monotonic() < deadline and run.poll() is None:
        time.sleep(0.1)
    run.send_signal(number)
    _, err = run.communicate(timeout=60)
    assert run.returncode == 130 and "the state is saved" in err and "Traceback" not in err
    state = torch.load(newest(tmp_path / "run"), weights_only=True)
    assert state["images"] > 0 and state["images"] % 4 == 0


def test_resume_with_other_settings_names_the_field(tmp_path):
    train_gan(config(tmp_path / "r", images=16))
    with pytest.raises(ValueError, match="it was started with lr=0.0025, not 0.5; style_mixing=0.5, not 0.9; give"):
        train_gan(config(tmp_path / "r", resume=True, lr=0.5, style_mixing=0.9))


def test_resume_needs_only_the_folder(tmp_path, capsys):
    whole = train_gan(config(tmp_path / "whole", lr=0.001))
    train_gan(config(tmp_path / "half", lr=0.001, images=16))
    assert main(["resume", str(tmp_path / "half"), "--images", "32", "--no-progress"]) == 0
    assert equal(whole.generator, load_generator(tmp_path / "half" / "generator.safetensors"))
    assert main(["resume", str(tmp_path)]) == 2
    assert "holds no run of gapkd" in capsys.readouterr().err
    assert main(["resume", str(tmp_path / "half"), "--images", "8"]) == 2
    assert "is already at image 32" in capsys.readouterr().err


def test_a_finished_run_is_not_overwritten(tmp_path):
    train_gan(config(tmp_path / "r", images=8))
    with pytest.raises(ValueError, match="already holds a run: go on with it"):
        train_gan(config(tmp_path / "r", images=8))
    with pytest.raises(ValueError, match="no checkpoint to resume"):
        train_gan(config(tmp_path / "other", resume=True))


def bytes_turned(content: bytes) -> bytes:
    """The same length, but 40 bytes in the middle are others."""
    middle = len(content) // 2
    return content[:middle] + bytes(255 - b for b in content[middle:middle + 40]) + content[middle + 40:]


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"not a checkpoint", lambda b: b[:2000], bytes_turned])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path, damage):
    whole = train_gan(config(tmp_path / "whole"))
    out = tmp_path / "run"
    train_gan(config(out, images=24, checkpoint_every=8))
    assert [f.stem for f in sorted((out / "checkpoints").iterdir())] == ["000000016", "000000024"]
    file = newest(out)
    file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match="000000024.pt is not a whole checkpoint .* the one before it is used"):
        resumed = train_gan(config(out, resume=True))
    assert equal(resumed.generator, whole.generator)
    assert file.with_suffix(".damaged").exists()


def test_only_damaged_checkpoints(tmp_path):
    out = tmp_path / "r"
    train_gan(config(out, images=8))
    newest(out).write_bytes(b"")
    with pytest.warns(UserWarning), pytest.raises(CheckpointError, match="no checkpoint in .* is whole: start the run"):
        train_gan(config(out, resume=True))


def test_the_newest_checkpoints_and_the_best_one_stay(tmp_path, monkeypatch):
    values = iter([5.0, 2.0, 4.0, 3.0, 6.0, 7.0])

    class Judge:
        def __init__(self, *arguments): ...

        def __call__(self, G):
            return {"fid_fake_10": next(values)}

    monkeypatch.setattr("gapkd.training.loop.FidProbe", Judge)
    out = tmp_path / "run"
    log = train_gan(config(out, images=48, fid_every=8, checkpoint_every=8, keep_checkpoints=3)).log
    assert [int(f.stem) for f in sorted((out / "checkpoints").iterdir())] == [16, 32, 40, 48]
    assert best_record(log)["images"] == 16
    card = read_metadata(out / "best.safetensors")["provenance"]
    assert card["images"] == 16 and card["measured"]["fid_fake_10"] == 2.0
    state = torch.load(out / "checkpoints" / "000000016.pt", weights_only=True)
    best = load_generator(out / "best.safetensors").state_dict()
    assert all(torch.equal(value, best[name]) for name, value in state["G_ema"].items())


KILLS = 20


def _train_for_ever(out: str, begun) -> None:
    """In a process of its own: trains, with a checkpoint after every step, until it is killed."""
    again = bool(list(Path(out).glob("checkpoints/*.pt")))
    begun.set()
    train_gan(config(Path(out), images=10**9, checkpoint_every=4, grid_every=0, log_every=4, resume=again))


def test_a_run_killed_twenty_times_ends_like_one_that_was_not(tmp_path):
    processes, moments = multiprocessing.get_context("forkserver"), random.Random(0)
    processes.set_forkserver_preload(["gapkd.training.loop"])
    out = tmp_path / "killed"
    for kill in range(KILLS):
        begun, before = processes.Event(), set(out.glob("checkpoints/*.pt"))
        process = processes.Process(target=_train_for_ever, args=(str(out), begun))
        process.start()
        assert begun.wait(120)
        deadline = time.monotonic() + 120
        while kill % 2 and before >= set(out.glob("checkpoints/*.pt")) and time.monotonic() < deadline:
            time.sleep(0.01)  # every second one gets on at least by a step; the others may die while they start
        time.sleep(moments.uniform(0, 0.3))
        assert process.is_alive()
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
    reached = int(newest(out).stem)
    assert reached >= 4 * KILLS / 2  # it did get on between the kills
    common = {"images": reached + 40, "checkpoint_every": 0, "grid_every": 0, "log_every": 4}
    resumed = train_gan(config(out, resume=True, **common))
    whole = train_gan(config(tmp_path / "whole", **common))
    assert equal(resumed.generator, whole.generator) and equal(resumed.discriminator, whole.discriminator)
    states = [torch.load(newest(run), weights_only=True) for run in (out, tmp_path / "whole")]
    for state in states:
        state.pop("seconds")
    assert_same(*states)


def assert_same(a, b) -> None:
    """Equal, bit for bit, whatever is nested in whatever."""
    assert type(a) is type(b)
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


def test_resume_refuses_what_is_not_its_own(tmp_path, teacher_file, fake_distance):
    out = tmp_path / "run"
    own = tmp_path / "teacher.safetensors"
    own.write_bytes(teacher_file.read_bytes())
    distill(distill_config(out, own, images=8))
    again = distill_config(out, own, images=16, resume=True)
    good = newest(out).read_bytes()
    run = {"run": torch.load(newest(out), weights_only=True)["run"]}
    for state, message in (({"G": 1} | run, "does not hold the networks"), ({"device": "cuda"} | run, "trained on"),
                           ([1], "belongs to another run"), ({"G": 1}, "belongs to another run")):
        torch.save(state, newest(out))
        with pytest.raises(CheckpointError, match=message):
            distill(again)
    newest(out).write_bytes(good)
    save_network(Generator(32, 8, 8, 8, mapping_layers=2), own)
    with pytest.raises(ValueError, match="teacher=.* is not what it was when the run began"):
        distill(again)
