"""Several processes train as one: the same weights, one writer, a clear end when one dies."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from tiny import config, distill_config, newest

from gapkd import parallel
from gapkd.data.datasets import open_dataset
from gapkd.metrics.attributes import load_attribute_network
from gapkd.metrics.evaluation import evaluate_generator, real_features
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.settings import TrainConfig
from gapkd.training import loop
from gapkd.training.loop import distill, train_gan
from gapkd.training.trainer import share_of_batch


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("localhost", 0))
        return str(s.getsockname()[1])


def _member(rank: int, port: str, task, arguments: tuple, results) -> None:
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2",
                   "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    try:
        results.put((rank, task(*arguments)))
    except Exception as error:  # the test wants to see it
        results.put((rank, error))
    parallel.leave()


def together(task, *arguments) -> list:
    """What `task(*arguments)` returns, or raises, in each of two processes that train together."""
    processes, port = multiprocessing.get_context("forkserver"), free_port()
    processes.set_forkserver_preload(["gapkd.training.loop"])
    results = processes.Queue()
    members = [processes.Process(target=_member, args=(rank, port, task, arguments, results))
               for rank in (0, 1)]
    for member in members:
        member.start()
    found = dict(results.get(timeout=240) for _ in members)
    for member in members:
        member.join(60)
    return [found[0], found[1]]


# -------------------------------------------------------------------------------- the pieces


def _pieces() -> dict:
    parallel.join()
    me = parallel.rank()
    x = torch.full((2, 3), 1.0 + me, requires_grad=True)
    everything = parallel.gather(x)
    (everything * torch.arange(12.0).view(4, 3)).sum().backward()
    pair = [torch.full((2,), float(me)), torch.full((3, 1), 10.0 * me)]
    parallel.average_(pair)
    return {
        "count": parallel.count(), "gathered": everything.tolist(), "gradient": x.grad.tolist(),
        "average": [t.flatten().tolist() for t in pair],
        "mean": parallel.mean(torch.tensor(float(me))).item(),
        "objects": parallel.gather_objects({"me": me}),
        "first": parallel.from_first(lambda: f"from {me}"),
        "anyone": [parallel.anyone(me == 1), parallel.anyone(False)],
        "rows": parallel.rows(16, 4).tolist(), "threads": torch.get_num_threads(),
    }


DEALT = ([0, 1, 4, 5, 8, 9, 12, 13], [2, 3, 6, 7, 10, 11, 14, 15])
"""The rows of 16 that two processes take, in groups of 4."""


def test_the_pieces_in_two_processes():
    first, second = together(_pieces)
    for one, rows in zip((first, second), DEALT, strict=True):
        assert one["rows"] == rows and one["count"] == 2 and one["mean"] == 0.5
        assert one["average"] == [[0.5, 0.5], [5.0, 5.0, 5.0]]
        assert one["gathered"] == [[1.0] * 3] * 2 + [[2.0] * 3] * 2
        assert one["objects"] == [{"me": 0}, {"me": 1}] and one["first"] == "from 0"
        assert one["anyone"] == [True, False]
        assert one["threads"] <= max(1, os.cpu_count() // 2)
    # Both processes used all rows in the same way, so each gets twice the gradient of one use.
    assert first["gradient"] == [[0.0, 2.0, 4.0], [6.0, 8.0, 10.0]]
    assert second["gradient"] == [[12.0, 14.0, 16.0], [18.0, 20.0, 22.0]]


def _slow_answer() -> str:
    parallel.TIMEOUT = timedelta(seconds=8)
    parallel.join()
    return parallel.from_first(lambda: time.sleep(11) or "there it is")


def test_the_first_process_may_take_its_time():
    assert together(_slow_answer) == ["there it is"] * 2


def _uneven(out: str) -> None:
    train_gan(config(Path(out), batch=12))


def _uneven_student(out: str) -> None:
    loop.make_student = None  # what may take hours comes after
    distill(distill_config(Path(out), batch=12, teacher="toyfaces32"))


def _whole_batch(out: str) -> None:
    parallel.join()
    share_of_batch(config(Path(out), batch=16), Discriminator(8, 4, mbstd_group=None))


def _other_settings(out: str) -> None:
    train_gan(config(Path(out), batch=8, seed=int(os.environ["RANK"])))


@pytest.mark.parametrize("task, message", [
    (_uneven, "batch=12 cannot be shared by 2 processes in whole groups of 4: .* multiple of 8"),
    (_uneven_student, "batch=12 cannot be shared by 2 processes in whole groups of 4"),
    (_whole_batch, "takes the spread of the whole batch, .*: train with one process"),
    (_other_settings, "process . has other settings than process .: start all of them with one"),
])
def test_what_does_not_fit_together_is_refused(tmp_path, task, message):
    errors = together(task, str(tmp_path / "run"))
    assert any(isinstance(e, ValueError) and re.search(message, str(e)) for e in errors), errors


# ---------------------------------------------------------------------------------- training


def _teacher(out: str, changes: dict) -> tuple[dict, list]:
    return _weights(train_gan(config(Path(out), **{"batch": 16, "images": 64} | changes)))


def _student(out: str, teacher: str, changes: dict) -> tuple[dict, list]:
    small = {"batch": 16, "images": 64, "perceptual_weight": 0.0}
    teacher = "toyfaces32" if "moment_weight" in changes else teacher  # seen by the network
    return _weights(distill(distill_config(Path(out), Path(teacher), **small | changes)))


def _weights(result) -> tuple[dict, list]:
    networks = {"G": result.generator, "D": result.discriminator}
    weights = {f"{kind}.{name}": value.tolist() for kind, network in networks.items()
               for name, value in network.state_dict().items()}
    return weights, result.log


def assert_close(one, several) -> None:
    (ours, log), (theirs, other) = one, several
    assert ours.keys() == theirs.keys()
    for name in ours:
        a, b = torch.tensor(ours[name]), torch.tensor(theirs[name])
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4, msg=lambda m, n=name: n + m)
    for a, b in zip(log, other, strict=True):
        for name in a.keys() - {"seconds"}:
            assert b[name] == pytest.approx(a[name], rel=1e-3, abs=1e-4), name


def test_two_processes_train_a_gan_like_one(tmp_path):
    changes = {"adversarial": "relativistic"}
    one = _teacher(str(tmp_path / "one"), changes)
    first, second = together(_teacher, str(tmp_path / "two"), changes)
    assert first[0] == second[0]  # bit for bit
    assert_close(one, first)
    assert sum(1 for _ in open(tmp_path / "two" / "log.jsonl")) == len(one[1])  # one writer


def test_two_processes_see_the_magnitudes_that_one_sees(tmp_path):
    """Of StyleGAN3's layers; after one step, before Adam makes rounding visible."""
    changes = {"architecture": "stylegan3-t", "resolution": 16, "channels": (6, 4), "layers": 4,
               "d_channels": (4,), "margin": 2, "path_weight": 0.0, "images": 16}
    one, _ = _teacher(str(tmp_path / "one"), changes)
    (first, _), (second, _) = together(_teacher, str(tmp_path / "two"), changes)
    assert first == second
    tracked = [name for name in one if name.endswith("magnitude_ema")]
    assert len(tracked) == 5
    for name in tracked:
        assert first[name] == pytest.approx(one[name], rel=1e-6) != 1


@pytest.mark.parametrize("changes", [{}, {"ld_offsets": "none", "path_weight": 0.0},
                                     {"feature_weight": 2.0}, {"moment_weight": 5.0}])
def test_two_processes_distil_like_one(tmp_path, teacher_file, changes):
    one = _student(str(tmp_path / "one"), str(teacher_file), changes)
    first, second = together(_student, str(tmp_path / "two"), str(teacher_file), changes)
    assert first[0] == second[0]
    assert_close(one, first)


def test_two_processes_that_go_on_log_what_an_unbroken_run_logs(tmp_path):
    """From a checkpoint between two lines of the log."""
    changes = {"log_every": 32, "checkpoint_every": 16, "images": 32}
    unbroken, _ = together(_teacher, str(tmp_path / "whole"), changes)
    run = tmp_path / "run"
    together(_teacher, str(run), changes)
    newest(run).unlink()
    resumed, _ = together(_teacher, str(run), changes | {"resume": True})
    assert_close(unbroken, resumed)
    assert "loss_d" in resumed[1][-1]


def test_another_number_of_processes_goes_on_and_says_so(tmp_path):
    one = _teacher(str(tmp_path / "one"), {})
    together(_teacher, str(tmp_path / "run"), {"images": 32})
    message = r"trained by 2 process\(es\) and goes on with 1: .*not bit for bit"
    with pytest.warns(UserWarning, match=message):
        resumed = _teacher(str(tmp_path / "run"), {"resume": True})
    assert_close(one, resumed)


def _judge() -> dict:
    parallel.join()
    net, dataset = load_attribute_network(), open_dataset("toyfaces", 32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        G, teacher = (Generator(32, 8, 8, 4, mapping_layers=2).eval() for _ in range(2))
    real = real_features(net, dataset, 250)
    return evaluate_generator(G, net, 250, teacher=teacher, real=real)


def test_two_processes_measure_like_one():
    one, (first, second) = _judge(), together(_judge)
    assert first == second
    for name in one:
        # of the chance level the pair where two parts meet is left out
        close = 0.02 if name in ("l1_chance", "perceptual_chance") else 1e-4
        assert first[name] == pytest.approx(one[name], rel=close, abs=1e-6), name


# --------------------------------------------------------------------------- torchrun itself


def test_processes_that_do_not_find_one_another_are_counted(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(parallel, "_meeting_point", lambda: (dist.HashStore(), 0, 1))
    try:
        with pytest.raises(parallel.ProcessLostError, match="started 2 processes, but 1 found"):
            parallel.join()
    finally:
        parallel.leave()


OPTIONS = (
    "--resolution 8 --channels 8 --d-channels 8 --z-dim 8 --w-dim 8 --mapping-layers 2 --batch 16 "
    "--log-every 16 --grid-every 0 --checkpoint-every 16 --path-weight 2 "
    "--precision float32 --no-progress").split()


def torchrun(out: Path, images: int, restarts: int = 0) -> subprocess.Popen:
    """A teacher's training in two processes, under torchrun's eyes."""
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2",
             f"--max_restarts={restarts}", "-m", "gapkd", "teacher"]
    return subprocess.Popen(
        [*start, "--out", str(out), "--images", str(images), *OPTIONS], text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ | {"OMP_NUM_THREADS": "1"})


def kill_the_second(job: subprocess.Popen, run: Path) -> None:
    """Wait for two checkpoints, then kill the process of rank 1."""
    deadline = time.monotonic() + 150
    while len(list(run.glob("checkpoints/*.pt"))) < 2:
        assert job.poll() is None, job.stdout.read()
        assert time.monotonic() < deadline
        time.sleep(0.05)
    for number in Path(f"/proc/{job.pid}/task/{job.pid}/children").read_text().split():
        if b"\0RANK=1\0" in Path(f"/proc/{number}/environ").read_bytes():
            os.kill(int(number), signal.SIGKILL)
            return
    pytest.fail("there is no process of rank 1")


linux = pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="looks into /proc")


@pytest.mark.slow
@linux
def test_torchrun_restarts_after_a_death_and_the_weights_are_those_of_a_calm_run(tmp_path):
    out = tmp_path / "run"
    job = torchrun(out, 2400, restarts=1)
    kill_the_second(job, out)
    output = job.communicate(timeout=240)[0]
    assert job.returncode == 0, output
    assert output.count("teacher written to") == 1
    same = {"images": 2400, "log_every": 16, "grid_every": 0, "checkpoint_every": 0}
    (calm, _), _ = together(_teacher, str(tmp_path / "calm"), same)
    stopped = torch.load(newest(out), weights_only=True)
    assert stopped["images"] == 2400
    for name, value in stopped["G_ema"].items():
        assert calm[f"G.{name}"] == value.tolist()


@pytest.mark.slow
@linux
def test_without_restarts_a_death_ends_the_job_with_a_sentence(tmp_path):
    out = tmp_path / "run"
    job = torchrun(out, 10_000_000)
    kill_the_second(job, out)
    output = job.communicate(timeout=120)[0]
    assert job.returncode != 0
    message = r"gapkd: process 0 on \S+ cannot exchange numbers with the other processes .*--resume"
    assert re.search(message, output)
    assert json.loads((out / "settings.json").read_text())["kind"] == "teacher"


def test_restarts_need_a_named_folder_and_a_named_job(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ValueError, match="name its folder with out"):
        train_gan(TrainConfig())
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    with pytest.raises(ValueError, match="add --standalone"):
        train_gan(config(tmp_path))


@pytest.mark.parametrize("begun_by, resumes", [("this-job", True), ("another-job", False)])
def test_a_restart_takes_up_its_own_run_only(monkeypatch, tmp_path, begun_by, resumes):
    for name, value in (("MAX_RESTARTS", "3"), ("RUN_ID", begun_by), ("RESTART_COUNT", "0")):
        monkeypatch.setenv(f"TORCHELASTIC_{name}", value)
    train_gan(config(tmp_path, images=16))
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "this-job")
    if resumes:
        assert [r["images"] for r in train_gan(config(tmp_path, images=32)).log] == [8, 16, 24, 32]
    else:
        with pytest.raises(ValueError, match="already holds a run: go on with it"):
            train_gan(config(tmp_path, images=32))


def test_a_mistake_that_one_process_alone_meets_is_heard(tmp_path):
    command = [sys.executable, "-m", "gapkd", "sample", "nowhere.safetensors"]
    second = os.environ | {"RANK": "1", "WORLD_SIZE": "1"}
    job = subprocess.run(command, text=True, capture_output=True, env=second, timeout=120,
                         cwd=tmp_path)
    assert job.returncode == 2 and "gapkd (process 1): there is no checkpoint" in job.stderr


def _elsewhere(out: str) -> list:
    """Two machines: each process in a working folder of its own; only the first finds the run."""
    os.chdir(Path(out, os.environ["RANK"]))
    settings = {"batch": 16, "resolution": 32, "fid_every": 16, "fid_samples": 20}
    train_gan(config(Path("run"), images=32, **settings))
    return train_gan(config(Path("run"), images=64, resume=True, **settings)).log


def test_processes_without_a_common_disk_resume(tmp_path):
    for rank in "01":
        (tmp_path / rank).mkdir()
    first, second = together(_elsewhere, str(tmp_path))
    assert [r["images"] for r in first] == [16, 32, 48, 64] == [r["images"] for r in second]
    assert all("fid_toyfaces_20" in record for record in first)
    assert not (tmp_path / "1" / "run").exists()
