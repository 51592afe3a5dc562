"""Runs: what they leave, what they start from, options of a whole run, bad input and bad luck.
Whole steps, written out: test_assembly; stopping and resuming: test_resume."""

from __future__ import annotations

import gc
import hashlib
import json
import math
import os
import platform
import re
import shutil
import subprocess
import sys
import time
import warnings
import weakref
from collections import defaultdict
from types import SimpleNamespace
from unittest.mock import MagicMock, Mock

import numpy as np
import pytest
import torch
from official_files import named_like_nvidia, nvidia_pickle
from PIL import Image
from safetensors.torch import save_file
from tiny import config, distill_config, equal, newest, perturb

from gapkd import parallel, progress
from gapkd.cli import main
from gapkd.data.datasets import open_dataset
from gapkd.data.images import save_png
from gapkd.distillation.distiller import Distiller
from gapkd.distillation.students import make_student
from gapkd.files.checkpoints import (
    CheckpointError,
    load_discriminator,
    load_generator,
    read_metadata,
    save_network,
)
from gapkd.files.foreign import to_rosinality
from gapkd.metrics.attributes import load_attribute_network
from gapkd.metrics.evaluation import (
    FidProbe,
    evaluate_generator,
    evaluation_table,
    shares_for,
)
from gapkd.metrics.features import distance_for
from gapkd.metrics.sampling import draw_latents
from gapkd.networks.stylegan2 import Discriminator, Generator, minibatch_std
from gapkd.settings import DistillConfig, TrainConfig
from gapkd.training import lessons, loop, runs
from gapkd.training.graphs import StepGraphs
from gapkd.training.lessons import Lessons
from gapkd.training.loop import distill, fresh_generator, train_gan
from gapkd.training.start import (
    check_student,
    networks_of_start,
    say_if_never_adversarial,
    say_if_nothing_varies,
    say_if_other_data,
    start_files,
)
from gapkd.training.trainer import PATH_EVERY, R1_EVERY, Trainer, TrainingDiverged


def on_gpu(test):
    """Mark of tests that need a GPU."""
    there_is_none = not torch.cuda.is_available()
    return pytest.mark.gpu(pytest.mark.skipif(there_is_none, reason="no CUDA device")(test))


def test_without_a_terminal_progress_is_lines_from_before_the_first_step(
        tmp_path, teacher_file, fake_distance, monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0.0)
    settings = {"images": 40, "synthesis": "slimmed", "batch": 8}
    distill(distill_config(tmp_path / "loud", teacher_file, progress=True, **settings))
    said = capsys.readouterr().err
    lines = said.splitlines()
    assert "\r" not in said and lines[0].startswith("choosing channels: 0 of ")
    assert any(line.startswith("distill: ") and " of 40" in line for line in lines)
    distill(distill_config(tmp_path / "quiet", teacher_file, progress=False, **settings))
    assert capsys.readouterr().err == ""


def test_progress_without_a_terminal_is_a_line_in_five_seconds(capsys):
    for _ in progress.bar(range(50), desc="deed", unit="steps"):
        time.sleep(0.001)
    assert capsys.readouterr().err == "deed: 0 of 50 steps in 00:00, ? to go\n"


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_that_are_off_outside_change_no_training(tmp_path, teacher_file, fake_distance,
                                                           mode):
    def trained(place):
        return (train_gan(config(tmp_path / f"{place}-teacher")).generator,
                distill(distill_config(tmp_path / f"{place}-student", teacher_file)).generator)

    usual = trained("usual")
    with mode():
        assert all(map(equal, trained("off"), usual))
        assert not torch.is_grad_enabled()


def test_a_run_leaves_what_it_promises(tmp_path):
    result = train_gan(config(tmp_path / "run"), probe=lambda G: {"learns": G.training})
    promised = {"settings.json", "log.jsonl", "checkpoints", "grids", "generator.safetensors",
                "discriminator.safetensors"}
    assert promised <= {p.name for p in result.folder.iterdir()}
    grids = sorted(p.name for p in (result.folder / "grids").iterdir())
    assert grids == ["000000016.png", "000000032.png"]
    log = [json.loads(line) for line in (result.folder / "log.jsonl").read_text().splitlines()]
    assert log == result.log and [r["images"] for r in log] == [8, 16, 24, 32]
    assert {"loss_g", "loss_d", "r1", "path", "path_length", "real_logit"} <= log[0].keys()
    assert [r.get("learns") for r in log] == [None, False, None, False]  # it is the average
    assert equal(load_generator(result.checkpoint), result.generator)
    assert not (result.generator.training or result.discriminator.training)
    card = read_metadata(result.checkpoint)["provenance"]
    assert card["images"] == 32 and card["settings"]["resolution"] == 8


@pytest.mark.parametrize("number", [torch.tensor(2.0), torch.tensor([2]), np.float32(2), 2])
def test_a_probe_may_return_tensors_and_numpys_numbers(tmp_path, number):
    result = train_gan(config(tmp_path), probe=lambda G: {"odd": number})
    assert json.loads((result.folder / "log.jsonl").read_text().splitlines()[-1])["odd"] == 2.0


@pytest.mark.parametrize(("found", "message"), [
    (None, "must return a dictionary of numbers by their names, not NoneType"),
    ({"odd": torch.zeros(3)}, "a probe's odd must be one number, not tensor"),
    ({"odd": "good"}, "a probe's odd must be one number, not 'good'")])
def test_what_a_probe_may_not_return_costs_nothing(tmp_path, found, message):
    with pytest.raises(ValueError, match=message):
        train_gan(config(tmp_path), probe=lambda G: found)
    assert list(tmp_path.glob("checkpoints/*.pt"))


def test_toy_faces_that_nobody_asked_for_are_named(tmp_path, teacher_file, capsys):
    """A forgotten --data compares a network of photographs with rendered faces."""
    own = tmp_path / "own.safetensors"
    teacher = load_generator(teacher_file)
    save_network(teacher, own, {"settings": {"data": "my/photos"}})
    with pytest.warns(UserWarning, match="own.safetensors was trained on photos, and here data is"):
        distill(distill_config(tmp_path / "run", own, images=8))
    with pytest.warns(UserWarning, match=f"{tmp_path} was trained on photos, and here data is"):
        networks_of_start(TrainConfig(start_from=str(tmp_path)))  # which holds one network
    main(["evaluate", str(own), "--samples", "8", "--no-progress"])
    assert "own.safetensors was trained on photos, and here data is" in capsys.readouterr().err


def test_a_network_of_another_repository_knows_other_images(tmp_path, teacher_file, capsys):
    torch.save(to_rosinality(load_generator(teacher_file)), tmp_path / "theirs.pt")
    content = nvidia_pickle(named_like_nvidia(load_generator(teacher_file)))
    (tmp_path / "theirs.bin").write_bytes(content)
    for name in ("theirs", "again"):  # which was converted from what was converted
        main(["convert", str(tmp_path / f"{name}.pt"), str(tmp_path / "again.safetensors")])
        shutil.copy(tmp_path / "again.safetensors", tmp_path / "again.pt")
    for name in ("theirs.pt", "theirs.bin", "again.safetensors"):
        say_if_other_data(str(tmp_path / name), "photos")
        with pytest.warns(UserWarning, match=f"{name} was trained on images that its file does"):
            say_if_other_data(str(tmp_path / name), "toyfaces")
    main(["evaluate", str(tmp_path / "theirs.pt"), "--samples", "8", "--no-progress"])
    assert "theirs.pt was trained on images that its file" in capsys.readouterr().err
    with warnings.catch_warnings(action="error"):
        say_if_other_data("toyfaces32", "toyfaces")


@pytest.mark.parametrize("settings, message", [
    ("x", ""), ([1], ""), ({"data": 5}, "trained on 5,"),
    ({"data": "k" * 10**5}, r"trained on k{150}\.\.\.k{150}, and"),
    ({"data": "\x1b[31mred\nline"}, r"trained on '\\x1b\[31mred\\nline', and")])
def test_a_file_may_say_anything_of_its_images(tmp_path, teacher_file, settings, message):
    save_network(load_generator(teacher_file), tmp_path / "odd.safetensors", {"settings": settings})
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        say_if_other_data(str(tmp_path / "odd.safetensors"), "toyfaces")
    said = [str(notice.message) for notice in notices]
    assert len(said) == bool(message) and re.search(message, "".join(said))


def test_figures_of_photographs_by_the_toy_faces_network_are_named(tmp_path, teacher_file, capsys):
    photos = tmp_path / "photos"
    photos.mkdir()
    for n in range(16):
        Image.new("RGB", (32, 32), (9 * n, 90, 200 - 9 * n)).save(photos / f"{n}.png")
    with pytest.warns(UserWarning, match="the FID of photos will be read by a network that knows"):
        distill(distill_config(tmp_path / "run", teacher_file, data=str(photos), images=8,
                               fid_every=8, fid_samples=8))
    main(["evaluate", str(teacher_file), "--data", str(photos), "--samples", "8"])
    assert "every figure of photos will be read by a network that" in capsys.readouterr().err


def test_a_probe_takes_no_place_of_a_loss(tmp_path, teacher_file, fake_distance):
    settings = distill_config(tmp_path / "run", teacher_file, images=4)
    last = distill(settings, lambda G: {"perceptual": -1.0}).log[-1]
    assert last["perceptual"] == -1 and last["loss_perceptual"] > 0
    for name in ("loss_rgb", "images"):
        settings = distill_config(tmp_path / name, teacher_file, images=4)
        message = f"may not call a number {name}, .*the state at image 4 is saved"
        with pytest.raises(ValueError, match=message):
            distill(settings, lambda G, name=name: {name: 1.0})


@pytest.mark.parametrize("data", ["toyfaces", "files"])
def test_the_seed_decides_which_images_are_seen(tmp_path, data):
    for number in range(8):
        save_png(torch.rand(1, 3, 8, 8), tmp_path / "files" / f"{number}.png", columns=1)
    source = str(tmp_path / data) if data == "files" else data
    batches = []
    for seed in (0, 0, 1):
        settings = config(tmp_path, seed=seed, data=source, flip=False)
        batches.append(Trainer(settings, Generator(8, 8, 8), Discriminator(8)).real_batch())
    assert torch.equal(batches[0], batches[1]) and not torch.equal(batches[0], batches[2])


def test_a_picture_whose_name_is_not_utf8_is_trained_on(tmp_path):
    photo = save_png(torch.rand(1, 3, 8, 8), tmp_path / "photos" / "a.png", columns=1)
    try:
        photo.rename(photo.with_name(os.fsdecode(b"m\xfcller.png")))
    except OSError:
        pytest.skip("this file system has no such names")
    assert train_gan(config(tmp_path / "run", images=4, data=str(photo.parent))).checkpoint.exists()


def test_toy_features_for_other_images_are_warned_of(tmp_path, teacher_file, fake_distance):
    for number in range(4):
        save_png(torch.rand(1, 3, 32, 32) * 2 - 1, tmp_path / "photos" / f"{number}.png", columns=1)
    photos = {"images": 4, "data": str(tmp_path / "photos")}
    with pytest.warns(UserWarning, match="knows rendered toy faces only: for other images choose"):
        distill(distill_config(tmp_path / "r", teacher_file, **photos))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the perceptual loss")
        distill(distill_config(tmp_path / "s", teacher_file, **photos, perceptual_weight=0.0))
        distill(distill_config(tmp_path / "t", teacher_file, images=4))


@pytest.mark.parametrize("channels, kind", [(1, "same"), (4, "mobile")])
def test_grey_and_rgba_teachers_are_used_as_any_other(tmp_path, channels, kind, capsys):
    torch.manual_seed(0)
    teacher = Generator(32, 8, 8, 8, mapping_layers=2, img_channels=channels).eval()
    teacher = save_network(teacher, tmp_path / "t.safetensors")
    result = distill(distill_config(tmp_path / "run", teacher, kind=kind, ld_blocks=(1,),
                                    perceptual="toyfaces", synthesis="random"))
    student = str(result.checkpoint)
    G = load_generator(student)
    assert G.img_channels == channels and G(torch.randn(2, 8)).shape == (2, channels, 32, 32)
    D = load_discriminator(tmp_path / "run" / "discriminator.safetensors")
    assert D.img_channels == channels
    both = ["--generator", student, "--teacher", str(teacher)]
    assert main(["evaluate", *both, "--samples", "40"]) == 0
    assert main(["sample", "--generator", student, "--out", str(tmp_path / "s.png")]) == 0
    assert main(["export", student, "--onnx", str(tmp_path / "g.onnx"), "--latents", "4"]) == 0
    assert main(["share", student, "--out", str(tmp_path / "shared")]) == 0
    assert load_generator(tmp_path / "shared").img_channels == channels
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.mode == "RGB"


def test_content_is_the_mask_of_losses_and_scores(tmp_path, teacher_file, fake_distance,
                                                  monkeypatch):
    seen = []

    def mask(net, images):
        seen.append(tuple(images.shape))
        return torch.zeros_like(images[:, :1])

    monkeypatch.setattr(loop, "head_mask", mask)
    log = distill(distill_config(tmp_path / "r", teacher_file, images=8, content="toyfaces",
                                 synthesis="pruned-content")).log
    # 400 images for the scores, then two steps
    assert seen == [(16, 3, 32, 32)] * 25 + [(4, 3, 32, 32)] * 2 and log[-1]["loss_rgb"] == 0


def test_the_distance_of_a_discriminator_stays_as_it_was(tmp_path, teacher_file):
    file = str(tmp_path / "d.safetensors")
    save_network(Discriminator(32, 4), file)
    a, b = torch.randn(2, 3, 3, 32, 32)
    distance = distance_for(file, torch.device("cpu"))
    before = distance(a, b)
    assert distance(a, a).abs().max() < 1e-6 and before.min() > 0
    grey = distance(a[:, :1], b[:, :1])  # are seen as they look
    assert torch.equal(grey, distance(a[:, :1].repeat(1, 3, 1, 1), b[:, :1].repeat(1, 3, 1, 1)))
    run = distill(distill_config(tmp_path / "r", teacher_file, images=4, perceptual=file,
                                 discriminator=file))
    assert run.log[-1]["loss_perceptual"] > 0 and torch.equal(distance(a, b), before)
    assert not equal(load_discriminator(file), run.discriminator)  # the one that judges learns


@pytest.mark.parametrize("noise", [True, False])
def test_noise_can_be_left_out(tmp_path, teacher_file, fake_distance, noise):
    changes = {"images": 4, "noise": noise}
    teacher = train_gan(config(tmp_path / "teacher", **changes)).generator
    student = distill(distill_config(tmp_path / "student", teacher_file, **changes)).generator
    for G in (teacher, student):
        assert any(bool(conv.noise_strength != 0) for conv in G.synthesis.convs) == noise


@pytest.mark.parametrize("has_bf16, capability, dtype", [
    (True, (8, 0), torch.bfloat16), (False, (7, 5), torch.float16), (False, (7, 0), torch.float16),
    (False, (6, 1), None)], ids=["A100", "T4", "V100", "P4"])
def test_what_auto_means_on_a_gpu(monkeypatch, has_bf16, capability, dtype):
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: has_bf16)
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device: capability)
    assert parallel.autocast_dtype("auto", torch.device("cuda", 0)) == dtype
    assert parallel.autocast_dtype("bf16", torch.device("cuda", 0)) == torch.bfloat16
    assert parallel.autocast_dtype("float32", torch.device("cuda", 0)) is None


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_is_what_features_have(tmp_path, precision, dtype):
    half = Trainer(config(tmp_path, precision=precision), Generator(8, 8, 8), Discriminator(8))
    with half.autocast():
        assert half.G.synthesis(torch.randn(4, 8)).features[-1].dtype == dtype
    assert half.scaler.is_enabled() == (precision == "fp16")


def test_regularisers_are_computed_in_float32(tmp_path):
    """They differentiate twice and square."""
    half = Trainer(config(tmp_path, precision="bf16"), Generator(8, 8, 8), Discriminator(8))
    seen = []
    for step, network in ((half.r1_step, half.D), (half.path_step, half.G.synthesis.convs[-1])):
        network.register_forward_hook(lambda _, given, out: seen.append(out.dtype))
        step(half.real_batch())
        assert seen and set(seen) == {torch.float32}
    half.generator_step(None)
    assert torch.bfloat16 in seen


def test_another_device_goes_on_with_numbers_of_its_own(tmp_path):
    trainer = Trainer(config(tmp_path, device="cpu"), Generator(8, 8, 8), Discriminator(8))
    before = trainer.state() | {"device": "cuda", "images": 12}
    with pytest.warns(UserWarning, match="cpu goes on with other random numbers"):
        trainer.load_state(before)
    fresh = torch.Generator().manual_seed(trainer.config.seed + 12)
    assert torch.equal(trainer.draw(3), torch.randn(3, generator=fresh))


def test_how_often_regularisers_come():
    assert (R1_EVERY, PATH_EVERY) == (16, 4)  # as in StyleGAN2


def test_the_average_of_w_does_not_begin_at_zero():
    """After forty steps of 0.995 that zero would still be most of it."""
    mapping = Generator(8, 8, 8).mapping
    first, then = torch.randn(2, 5, 8) + 1
    mapping.track(first)
    torch.testing.assert_close(mapping.w_avg, first.mean(dim=0))
    mapping.track(then)
    torch.testing.assert_close(mapping.w_avg, 0.995 * first.mean(dim=0) + 0.005 * then.mean(dim=0))


@pytest.mark.parametrize(("precision", "products", "convolutions"), [
    ("float32", False, False), ("tf32", True, True), ("bf16", False, True)])
def test_tf32_is_allowed_for_the_length_of_a_step(tmp_path, monkeypatch, precision, products,
                                                  convolutions):
    seen, real = [], Trainer.generator_step
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn

    def step(trainer, reals, crossover):
        seen.append((matmul.allow_tf32, cudnn.allow_tf32))
        return real(trainer, reals, crossover)

    monkeypatch.setattr(Trainer, "generator_step", step)
    before = matmul.allow_tf32, cudnn.allow_tf32
    trainer = Trainer(config(tmp_path, precision=precision), Generator(8, 8, 8), Discriminator(8))
    trainer.train_step()
    assert seen == [(products, convolutions)]
    assert (matmul.allow_tf32, cudnn.allow_tf32) == before


def test_a_trainer_that_nobody_holds_is_freed_at_once(tmp_path):
    """Not some time later: the next run of a sweep needs its memory."""
    trainer = Trainer(config(tmp_path), Generator(8, 8, 8), Discriminator(8))
    trainer.train_step()
    gone = weakref.ref(trainer)
    gc.disable()
    try:
        del trainer
        assert gone() is None
    finally:
        gc.enable()


@on_gpu
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "fp16"])
def test_training_on_a_gpu(tmp_path, teacher_file, precision):
    changes = {"images": 8, "device": "cuda", "precision": precision}
    train_gan(config(tmp_path / "gan", **changes))
    result = distill(distill_config(tmp_path / "student", teacher_file, **changes))
    assert next(result.generator.parameters()).is_cuda


@on_gpu
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_step_that_is_replayed_does_what_it_did_as_it_was_written(tmp_path, precision):
    settings = {"images": 40, "batch": 4, "adversarial": "relativistic",
                "path_weight": 1.0, "style_mixing": 0.5, "lr_end": 0.1,
                "r1_end": 0.1, "device": "cuda", "precision": precision}
    written, again, replayed = [
        train_gan(config(tmp_path / name, cuda_graphs=graphs, **settings))
        for name, graphs in (("written", False), ("again", False), ("replayed", True))]
    start, ours, theirs, same = [
        torch.cat([p.flatten().cpu() for p in G.parameters()])
        for G in (fresh_generator(config(tmp_path, **settings)), replayed.generator,
                  written.generator, again.generator)]
    # sums on a GPU come in any order: as near as a second run of the same, or rounding
    bound = max(4 * (theirs - same).norm(), 1e-3 * (theirs - start).norm())
    assert (ours - theirs).norm() <= bound
    assert [r["images"] for r in replayed.log] == [r["images"] for r in written.log]


@on_gpu
def test_a_resumed_run_on_a_gpu_goes_on_at_its_falling_rate(tmp_path):
    settings = {"images": 80, "batch": 4, "lr_end": 0.1, "device": "cuda", "path_weight": 0.0,
                "precision": "float32", "checkpoint_every": 40}
    train_gan(config(tmp_path, **settings))
    newest(tmp_path).unlink()
    c = config(tmp_path, **settings, resume=True)
    trainer = Trainer(c, fresh_generator(c), Discriminator(8, 8))
    trainer.load_state(torch.load(newest(tmp_path)))
    places = set()
    for _ in range(6):
        trainer.train_step()
        rates = [group["lr"] for group in trainer.groups()]
        assert all(rate.is_cuda for rate in rates)
        places.add(tuple(rate.data_ptr() for rate in rates))
        done = (trainer.images - c.batch) / c.images  # before the last step
        now = trainer.rates[-1] * (0.1 + 0.9 * (1 + math.cos(math.pi * done)) / 2)
        assert rates[-1].item() == pytest.approx(now, rel=1e-4)
    assert len(places) == 1  # where the graphs read them


def test_each_course_of_a_step_has_its_graph(tmp_path, teacher_file):
    """Where a second style begins, and whether the discriminator takes part, is part of a graph."""
    teacher = load_generator(teacher_file)
    c = distill_config(tmp_path, teacher_file, style_mixing=0.7, images=200, gan_from=0.2)
    trainer = Trainer(c, make_student(teacher, 0.5), Discriminator(32, 4),
                      Distiller(teacher, None, c))
    courses = defaultdict(set)

    def run(kind, step, reals, crossover):
        courses[kind].add((step.__name__, crossover, reals is None))
        return step(reals, crossover)

    trainer.graphs.run = run
    for _ in range(24):
        trainer.train_step()
    assert all(len(found) == 1 for found in courses.values())
    steps, layers, without = zip(*(found.pop() for found in courses.values()), strict=True)
    assert {"generator_step", "r1_step"} <= {*steps} and len({*layers}) > 2 and len({*without}) == 2


def test_all_graphs_read_one_batch_on_the_gpu_of_their_run(monkeypatch):
    """Without a GPU: what torch is asked to record."""
    for name in ("device", "Stream", "CUDAGraph", "graph"):
        monkeypatch.setattr(torch.cuda, name, MagicMock())
    graphs, read = StepGraphs(SimpleNamespace(device=torch.device("cuda:1"))), []

    def step(reals, crossover):
        read.append(reals.data_ptr())
        return {"loss": reals.sum()}

    for kind in ("discriminator", "r1"):
        for number in range(5):
            graphs.run((kind,), step, torch.full((2,), float(number)), None)
    assert len(read) == 8 and read[3] == read[7]  # three as written and one recorded, of each kind
    assert graphs.images.tolist() == [4, 4]  # what the last replay read
    assert {call.args for call in torch.cuda.device.call_args_list} == {(torch.device("cuda:1"),)}


def test_a_rate_changes_in_the_place_where_a_graph_reads_it():
    """A generator that names no device number ("cuda") and a tensor on "cuda:0" are at one
    place."""
    graphs = StepGraphs(SimpleNamespace(device=torch.device("cpu", 0)))  # tensors say "cpu"
    group = {"lr": 0.5}
    graphs.set_rate(group, 0.25)
    place = group["lr"]
    graphs.set_rate(group, 0.125)
    assert group["lr"] is place and place.item() == 0.125


@on_gpu
def test_faces_rendered_on_a_gpu():
    indices = torch.tensor([5, 4095, 4096, 20_000, 7])
    found = open_dataset("toyfaces", 64, seed=3, device="cuda").load(indices)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), open_dataset("toyfaces", 64, seed=3).load(indices),
                               rtol=0, atol=2e-3)


# ---------------------------------------------------------------------- starting from another run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished run at 8 px."""
    return train_gan(config(tmp_path_factory.mktemp("small") / "run", images=8))


def test_a_run_starts_from_one_of_its_resolution(tmp_path, small):
    old = shutil.copytree(small.folder, tmp_path / "old")
    settings = {"lr": 1e-12, "noise": False, "start_from": str(old), "channels": (9,)}
    train_gan(config(tmp_path / "run", images=4, **settings))
    shutil.rmtree(old)  # is not asked for again
    result = train_gan(config(tmp_path / "run", images=8, resume=True, **settings))
    z = torch.randn(3, 8)
    torch.testing.assert_close(result.generator(z), small.generator(z, noise="none"))
    assert read_metadata(result.checkpoint)["provenance"]["started_from"]["images"] == 8


@pytest.mark.parametrize("changes, message", [
    ({"resolution": 16}, "holds 8 px networks: choose resolution=8, not 16"),
    ({"architecture": "stylegan3-t"}, "holds a stylegan2, not a stylegan3-t: leave architecture"),
    ({"start_from": "generator.safetensors"}, "is a file of one network: name the run's folder, or "
                                              "one that holds this as generator.safetensors"),
    ({"start_from": "no/run"}, "there is no run .*no/run to start from: name the folder")])
def test_bad_starts(tmp_path, small, changes, message):
    changes = {"start_from": ""} | changes
    changes["start_from"] = str(small.folder / changes["start_from"])
    with pytest.raises(ValueError, match=message):
        train_gan(config(tmp_path / "x", **changes))


def test_a_run_starts_from_its_two_networks_alone(tmp_path, small):
    for file in small.folder.glob("*.safetensors"):
        shutil.copy(file, tmp_path)
    _, G, D = networks_of_start(TrainConfig(start_from=str(tmp_path)))
    assert equal(G, small.generator) and equal(D, small.discriminator)
    assert equal(load_generator(tmp_path), G)


def test_a_damaged_discriminator_is_not_replaced(tmp_path, small):
    run = shutil.copytree(small.folder, tmp_path / "run")
    file = run / "discriminator.safetensors"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(CheckpointError, match="discriminator.safetensors"):
        train_gan(config(tmp_path / "x", start_from=str(run)))


@pytest.fixture
def elsewhere(tmp_path):
    """A generator and a discriminator of unequal widths in a .pkl, as another repository pickles
    them."""
    G, D = perturb(Generator(8, 6, 5, [(7, 7), (3, 3)], mapping_layers=3)), Discriminator(8, [6, 4])
    named = map(named_like_nvidia, (G, D))
    (tmp_path / "net.pkl").write_bytes(nvidia_pickle(*named))
    return G, D, tmp_path / "net.pkl"


def test_a_run_starts_from_both_networks_of_another_repository(tmp_path, elsewhere):
    G, D, file = elsewhere
    photos = tmp_path / "photos"
    for number in range(4):
        save_png(torch.rand(1, 3, 8, 8), photos / f"{number}.png", columns=1)
    settings = {"out": str(tmp_path / "run"), "data": str(photos), "batch": 2, "images": 2,
                "start_from": str(file), "precision": "float32", "progress": False, "lr": 1e-12}
    with pytest.warns(UserWarning, match="net.pkl: 8 px networks, which keep their own widths"):
        run = train_gan(TrainConfig(**settings))  # no width, no resolution
    z = torch.randn(3, 6)
    torch.testing.assert_close(run.generator(z), G.eval()(z), rtol=1e-4, atol=1e-4)
    images = torch.randn(4, 3, 8, 8)
    torch.testing.assert_close(run.discriminator(images), D(images), rtol=1e-4, atol=1e-4)
    card = read_metadata(run.checkpoint)["provenance"]
    assert card["started_from"]["file"] == "net.pkl" and card["settings"]["channels"] == [7, 3]
    file.unlink()  # is not asked for again
    again = loop.resume_run(run.folder, images=6, progress=False)
    assert again.log[-1]["images"] == 6 and again.generator.channels == [(7, 7), (3, 3)]


def test_a_run_starts_from_another_repositorys_safetensors(tmp_path, elsewhere):
    """Whose discriminator stands in the same file, or in one of that name in its folder."""
    both = {"G_ema.": elsewhere[0], "D.": elsewhere[1]}
    state = {prefix + name: value.contiguous() for prefix, network in both.items()
             for name, value in named_like_nvidia(network).items()}
    save_file(state, tmp_path / "model.safetensors")
    elsewhere[2].unlink()
    (tmp_path / "config.json").write_text("{}")
    for start in (tmp_path / "model.safetensors", tmp_path):
        with pytest.warns(UserWarning, match="8 px networks, which keep their own widths"):
            _, G, D = networks_of_start(TrainConfig(start_from=str(start)))
        assert equal(G, elsewhere[0]) and equal(D, elsewhere[1])
    own = save_network(Discriminator(8, [3, 3]), tmp_path / "discriminator.safetensors")
    assert start_files(str(tmp_path)) == (tmp_path / "model.safetensors", own)


def test_files_that_no_run_can_start_from(tmp_path, elsewhere):
    G, D, file = elsewhere
    settings = {"start_from": str(file), "images": 2, "batch": 2}
    file.write_bytes(nvidia_pickle(named_like_nvidia(G), named_like_nvidia(Discriminator(16, 4))))
    with pytest.raises(ValueError, match="generator is one of 8 px, .* discriminator one of 16 px"):
        train_gan(config(tmp_path / "b", **settings))
    file.write_bytes(nvidia_pickle(named_like_nvidia(G)))
    with pytest.warns(UserWarning, match="a fresh discriminator begins, since there is none in"):
        run = train_gan(config(tmp_path / "c", **settings))
    assert run.discriminator.channels == [8, 8]


def test_a_run_starts_from_a_stopped_one(tmp_path):
    """From its folder, whose networks are not written yet, and from its checkpoint."""
    old = train_gan(config(tmp_path / "old", images=8))
    for file in old.folder.glob("*.safetensors"):
        file.unlink()
    for name, start in (("a", old.folder), ("b", newest(old.folder))):
        run = train_gan(config(tmp_path / name, images=4, lr=1e-12, start_from=str(start)))
        z = torch.randn(3, 8)
        torch.testing.assert_close(run.generator(z), old.generator(z))


def test_what_a_training_cannot_measure_is_known_before_it(tmp_path, teacher_file, monkeypatch):
    save_png(torch.rand(1, 3, 32, 32), tmp_path / "one" / "a.png", columns=1)
    monkeypatch.setattr(Trainer, "train_step", Mock(side_effect=AssertionError))
    for changes, message in (({}, "with R of at least 32, not .2, 3, 8, 8.*set fid_every to 0"),
                             ({"resolution": 32, "data": str(tmp_path / "one")}, "holds 1 image")):
        with pytest.raises(ValueError, match=f"the FID cannot be measured .*{message}"):
            train_gan(config(tmp_path / "r", fid_every=256, **changes))
    small = tmp_path / "small.safetensors"
    save_network(Generator(16, 8, 8, 8, mapping_layers=2), small)
    save_network(Discriminator(8, 4), tmp_path / "D.safetensors")
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    monkeypatch.setattr(loop, "first_student", Mock(side_effect=AssertionError))
    slow = {"synthesis": "slimmed"}  # what takes long comes last
    for teacher, changes, message in (
            (small, {"ld_weight": 0.0}, "cannot look at the teacher's images .*set perceptual_"),
            (small, {"ld_weight": 0.0, "perceptual_weight": 0.0, "moment_weight": 1.0},
             "cannot look at the teacher's images .*set perceptual_weight and moment_weight to 0"),
            (small, {"ld_blocks": (1,), "content": "toyfaces"}, "leave content empty"),
            (teacher_file, {"ld_blocks": (9,)}, "ld_blocks must name blocks 1 to 3"),
            (tmp_path / "missing.safetensors", {}, "there is no checkpoint"),
            (teacher_file, {"discriminator": str(tmp_path / "D.safetensors")},
             "32 px, .* discriminator one of 8 px,"),
            (teacher_file, {"perceptual": str(teacher_file)}, "a discriminator was asked for"),
            (teacher_file, {"keep": 0.5, "kind": "mobile"}, "another family"),
            (teacher_file, {"data": "nowhere"}, "there is no folder or zip at nowhere"),
            (teacher_file, {"tensorboard": True}, "needs the extra `tensorboard`: pip")):
        with pytest.raises(ValueError, match=message):
            distill(distill_config(tmp_path / "r", teacher, **slow | changes))
    for call, wrong, message in (
            (distill, config(tmp_path), "distill takes a DistillConfig, not a TrainConfig"),
            (train_gan, distill_config(tmp_path, tmp_path), "train_gan takes a TrainConfig, not "),
            (train_gan, "run", "train_gan takes a TrainConfig, not a str")):
        with pytest.raises(ValueError, match=message):
            call(wrong)
    with pytest.raises(ValueError, match="small.safetensors is a file: choose another out"):
        distill(distill_config(small / "r", teacher_file, **slow))


# ---------------------------------------------------------------------- bad input and bad luck


@pytest.fixture
def classes(tmp_path):
    """A folder of eight labelled pictures, in which class 1 of three does not occur, and a
    conditional teacher."""
    folder, labels = tmp_path / "pictures", [0, 0, 0, 2, 0, 0, 0, 2]
    folder.mkdir()
    for i in range(8):
        save_png(torch.rand(1, 3, 32, 32) * 2 - 1, folder / f"{i}.png", columns=1)
    pairs = [[f"{i}.png", label] for i, label in enumerate(labels)]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
    file = tmp_path / "conditional.safetensors"
    save_network(perturb(Generator(32, 8, 8, 8, mapping_layers=2, c_dim=3)), file)
    return folder, torch.tensor(labels), file


def test_a_conditional_sheet_shows_the_classes_that_are_asked_for(classes, tmp_path, capsys):
    for label, code in (("-1", 0), ("2", 0), ("3", 2)):
        out = str(tmp_path / f"sheet{label}.png")
        assert main(["sample", "--generator", str(classes[2]), "--label", label, "--count", "5",
                     "--out", out]) == code
    assert "has 3 classes, 0 to 2; -1 takes them in turn" in capsys.readouterr().err


@pytest.mark.parametrize("adversarial", ["logistic", "relativistic"])
def test_each_image_meets_the_label_that_it_was_drawn_for(classes, tmp_path, adversarial):
    folder, labels, file = classes
    teacher, D = load_generator(file), Discriminator(32, 4, c_dim=3)
    settings, student = {"data": str(folder), "flip": False}, make_student(teacher, 0.5)
    if adversarial == "relativistic":
        trainer = Trainer(config(tmp_path, adversarial=adversarial, **settings), student, D)
    else:
        c = distill_config(tmp_path, file, **settings)
        trainer = Trainer(c, student, D, Distiller(teacher, None, c))
    drawn = trainer.draw_latents(4000, slice(None), None)[3]
    assert drawn.mean(dim=0).tolist() == pytest.approx([0.75, 0, 0.25], abs=0.03)
    latents = trainer.draw_latents(4, slice(None), 3)
    z_a, z_b, _, given = latents
    ws = trainer.to_ws(teacher, latents)
    torch.testing.assert_close(ws[:, 0], teacher.mapping(z_a, given))
    torch.testing.assert_close(ws[:, -1], teacher.mapping(z_b, given))
    seen, asked = [], []
    D.register_forward_pre_hook(lambda _, given: seen.append((given[0].detach(), given[1])))
    for network in (trainer.G, teacher):
        network.mapping.register_forward_pre_hook(lambda _, given: asked.append(given[1]))
    for _ in range(4):
        trainer.train_step()
    pictures = open_dataset(str(folder), 32).load(torch.arange(8))
    real, of_drawn = [], []
    for images, c in seen:
        places = [(pictures - image).abs().amax(dim=(1, 2, 3)).min(dim=0) for image in images]
        if all(place.values < 1e-6 for place in places):
            real.append(c.tolist())
            assert c.argmax(dim=1).tolist() == [labels[place.indices].item() for place in places]
        else:
            of_drawn.append(c.tolist())
            assert any(torch.equal(c, other) for other in asked)
    assert len(real) >= 5  # of four steps, R1 among them
    if adversarial == "relativistic":  # pairs of one class, in both networks' steps and penalties
        assert sorted(of_drawn) == sorted(real)


def test_pairs_of_one_class_want_fresh_labels(classes, tmp_path):
    c = distill_config(tmp_path, classes[2], adversarial="relativistic", reuse=2, ld_weight=0.0)
    teacher = load_generator(classes[2])
    teacher.silence()
    with pytest.raises(ValueError, match="pairs images of one class, .*: set reuse to 1"):
        check_student(c, teacher)


@pytest.mark.parametrize("batch, group, varies", [(5, 4, False), (7, 4, False), (6, 4, True),
                                                  (1, 4, True), (5, 1, True), (5, None, True)])
def test_a_batch_without_groups_is_said(batch, group, varies, recwarn):
    D = Discriminator(8, 4, mbstd_group=group)
    say_if_nothing_varies(TrainConfig(batch=batch), D)
    said = [str(one.message) for one in recwarn]
    assert varies == (not said)
    if said:
        assert f"batch={batch} has no groups of 2 to 4 images" in said[0]
        feature = minibatch_std(torch.randn(batch, 2, 4, 4))[:, -1]
        assert feature.std() == 0  # as it says: nothing to see


def test_a_conditional_student(classes, tmp_path):
    folder, _, file = classes
    result = distill(distill_config(tmp_path / "run", file, data=str(folder),
                                    perceptual_weight=0.0))
    student, teacher = load_generator(result.checkpoint), load_generator(file)
    assert student.c_dim == 3 and result.discriminator.c_dim == 3
    found = evaluate_generator(student, load_attribute_network(), 60, teacher=teacher)
    assert {"agree_class0_mean_correlation", "agree_class2_mean_accuracy"} <= found.keys()
    same = evaluate_generator(teacher, load_attribute_network(), 60, teacher=teacher)
    assert same["agree_class1_mean_accuracy"] == 1


def test_classes_are_measured_as_often_as_the_data_have_them(classes, tmp_path, monkeypatch):
    folder, labels, file = classes
    G, dataset, met = load_generator(file), open_dataset(str(folder), 32), []
    G.mapping.register_forward_pre_hook(lambda _, given: met.append(given[1]))
    FidProbe(dataset, "toyfaces", 8, torch.device("cpu"))(G)
    _, c = draw_latents(G, 4000, 0, shares_for(G, dataset))
    assert c.mean(dim=0).tolist() == pytest.approx([0.75, 0, 0.25], abs=0.03)
    assert torch.cat(met)[:, 1].sum() == 0, "class 1 does not occur"
    met.clear()
    evaluation_table({"G": G}, load_attribute_network(), dataset, None, 4)
    assert torch.cat(met)[:, 1].sum() == 0
    with pytest.warns(UserWarning, match="toyfaces names no classes, so the network's . are drawn"):
        assert shares_for(G, open_dataset("toyfaces", 32)) is None


@pytest.mark.parametrize("images, never", [(64, True), (65, False), (160, True), (161, False)])
def test_a_discriminator_that_would_never_begin_is_told_of(images, never, recwarn):
    say_if_never_adversarial(DistillConfig(images=images, batch=32, gan_from=0.9))
    say_if_never_adversarial(DistillConfig(images=images, gan_from=0.9, gan_weight=0.0))
    steps = range(0, images, 32)
    assert never == (steps[-1] < 0.9 * images)
    said = f"{images} images in batches of 32 end before the discriminator begins"
    assert [said in str(w.message) for w in recwarn] == [True] * never


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_labels_are_embedded_in_full_precision(classes, tmp_path, precision):
    folder, _, file = classes
    result = distill(distill_config(tmp_path / "run", file, data=str(folder), images=8,
                                    perceptual_weight=0.0, precision=precision))
    G, c, z = load_generator(file), torch.eye(3), torch.randn(3, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(G.mapping(z, c), load_generator(file).mapping(z.clone(), c))
        w = G.mapping(z, c)
    assert torch.equal(w, G.mapping(z, c)) and result.log[-1]["images"] == 8


@pytest.mark.parametrize("architecture", ["stylegan2", "stylegan3-t"])
def test_a_conditional_teacher(classes, tmp_path, architecture):
    folder, labels, _ = classes
    settings = {"resolution": 32, "data": str(folder), "images": 8, "architecture": architecture,
                "layers": 4, "margin": 2, "path_weight": 0.0, "conditional": True}
    first = train_gan(config(tmp_path / "run", **settings))
    again = loop.resume_run(tmp_path / "run", images=12, progress=False)
    about = json.loads((tmp_path / "run/settings.json").read_text())
    names = [f"{i}.png" for i in range(8)]  # of a run that began when classes were not kept
    about["inputs"]["data"] = hashlib.sha256("\0".join(names).encode()).hexdigest()
    (tmp_path / "run/settings.json").write_text(json.dumps(about))
    (tmp_path / "run/data.json").write_text(json.dumps(names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = loop.resume_run(tmp_path / "run", images=12, progress=False)
    assert " (class 0)" in (tmp_path / "run/data.json").read_text()
    pairs = [[f"{i}.png", 2 - label] for i, label in enumerate(labels.tolist())]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
    with pytest.raises(ValueError, match=r"not what it was .*new: .*0.png \(class 2\)"):
        loop.resume_run(tmp_path / "run", images=16, progress=False)
    for result in (first, again):
        assert result.generator.c_dim == result.discriminator.c_dim == 3
        z, c = torch.randn(2, 8), torch.eye(3)[[0, 2]]
        assert (result.generator.mapping(z, c) - result.generator.mapping(z, c.flip(0))).any()


def test_classes_are_learnt_where_that_is_asked_for(classes, tmp_path):
    folder, _, _ = classes
    with pytest.warns(UserWarning, match="dataset.json of pictures are not learnt: --conditional"):
        plain = train_gan(config(tmp_path / "plain", resolution=32, data=str(folder), images=4))
    assert plain.generator.c_dim == 0
    with pytest.raises(ValueError, match="but toyfaces has no class labels: .*leave conditional o"):
        train_gan(config(tmp_path / "toys", conditional=True))
    with pytest.raises(ValueError, match="start_from=.*plain know no classes, .*: leave conditio"):
        train_gan(config(tmp_path / "on", resolution=32, data=str(folder), conditional=True,
                         start_from=str(tmp_path / "plain")))
    (folder / "dataset.json").write_text(json.dumps({"labels": [[f"{i}.png", i - 1]
                                                                for i in range(8)]}))
    with pytest.raises(ValueError, match="names class -1: number the classes from 0"):
        train_gan(config(tmp_path / "odd", resolution=32, data=str(folder), conditional=True))
    assert not (tmp_path / "odd").exists()


def test_a_conditional_training_needs_its_classes(classes, tmp_path):
    folder, labels, file = classes
    with pytest.raises(ValueError, match="with 3 classes, but toyfaces has no class labels"):
        distill(distill_config(tmp_path / "r", file))
    save_network(Discriminator(32, 4), tmp_path / "D.safetensors")
    with pytest.raises(ValueError, match="and 3 classes, the discriminator .* and 0 cl"):
        distill(distill_config(tmp_path / "r", file, data=str(folder),
                               perceptual_weight=0.0,
                               discriminator=str(tmp_path / "D.safetensors")))
    pairs = [[f"{i}.png", 3] for i in range(8)]
    (folder / "dataset.json").write_text(json.dumps({"labels": pairs}))
    with pytest.raises(ValueError, match="names class 3, but the network's classes are 0 to 2"):
        distill(distill_config(tmp_path / "r", file, data=str(folder), perceptual_weight=0.0))


@pytest.mark.parametrize("looked_at, message", [
    (True, "diverged near image 24: loss_d = nan; lower lr, .*; the last good .*, at image 16, is"),
    (False, "diverged near image 32: a weight is not finite; the last good .*, at image 16, is")])
def test_divergence_keeps_the_last_good_checkpoint(tmp_path, monkeypatch, looked_at, message):
    train_gan(config(tmp_path, images=16))
    good = newest(tmp_path).read_bytes()

    def poison(trainer):
        real(trainer)
        trainer.G.synthesis.const.data.fill_(float("nan"))
        if not looked_at:
            trainer.sums.clear()

    real = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", poison)
    with pytest.raises(TrainingDiverged, match=message):
        train_gan(config(tmp_path, images=64, resume=True))
    assert newest(tmp_path).read_bytes() == good


def test_spoilt_weights_that_cannot_be_measured_are_not_kept(tmp_path, monkeypatch):
    def poison(trainer):
        real(trainer)
        trainer.G_ema.synthesis.const.fill_(float("nan"))
        trainer.G.synthesis.const.data.fill_(float("nan"))

    def probe(G):
        raise ValueError("no numbers")

    real = Trainer.train_step
    monkeypatch.setattr(Trainer, "train_step", poison)
    with pytest.raises(TrainingDiverged, match="a weight is not finite; no checkpoint was written"):
        train_gan(config(tmp_path, images=16, probe_every=8, log_every=1000), probe)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_means_are_logged_and_logits_that_run_away_are_divergence(tmp_path):
    trainer = Trainer(config(tmp_path), Generator(8, 8, 8), Discriminator(8))
    for values in ((1.0, 3.0), (5.0,)):
        for value in values:
            trainer.note(loss=torch.tensor(value))
        assert trainer.take_notes() == {"loss": sum(values) / len(values)}
    trainer.note(fake_logit=torch.tensor(-2e6))
    with pytest.raises(TrainingDiverged, match=r"near image 0: fake_logit = -2e\+06; lower lr"):
        trainer.take_notes()


CPU_FULL = RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")


@pytest.mark.parametrize("error, changes, message", [
    (torch.OutOfMemoryError("CUDA out of memory"), {"batch": 8},
     "^a step with batch=8 at 8 px does not .* of cpu: lower batch, or take a machine with more"),
    (CPU_FULL, {"batch": 1}, "of cpu: take a machine with more free memory$"),
    (CPU_FULL, {"resume": True}, r"lower batch \(in a new run: this one keeps its batch\), or"),
    (RuntimeError("shapes cannot be multiplied"), {}, "^shapes cannot be multiplied$")])
def test_too_little_memory_names_what_helps(tmp_path, monkeypatch, error, changes, message):
    if "resume" in changes:
        train_gan(config(tmp_path, images=8))
    monkeypatch.setattr(Trainer, "train_step", Mock(side_effect=error))
    with pytest.raises(RuntimeError, match=message) as caught:
        train_gan(config(tmp_path, **changes))
    assert isinstance(caught.value, loop.OutOfMemory) == ("shapes" not in message)


def test_one_image_has_no_relations(tmp_path, teacher_file, fake_distance):
    log = distill(distill_config(tmp_path, teacher_file, batch=1, images=1, ld_weight=0.0)).log
    assert log[-1]["loss_rgb"] > 0 and "loss_ld" not in log[-1]


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_stays_with_a_training_process():
    """By default, a tensor of 200 MB goes back to the system as soon as it is freed."""
    program = """
import torch
from gapkd.parallel import keep_memory
def resident():
    x = torch.ones(50_000_000)
    del x
    lines = open("/proc/self/status").read().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
usual = resident()
keep_memory()
print(resident() - usual)"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert int(run.stdout) > 150_000, run.stderr  # kB


def test_tensorboard(tmp_path, monkeypatch):
    board = MagicMock()
    monkeypatch.setattr(runs, "_summary_writer", lambda: board)
    train_gan(config(tmp_path / "run", tensorboard=True, images=16))
    board.assert_called_once_with(str(tmp_path / "run" / "tensorboard"))
    scalars = {call.args[::2] for call in board().add_scalar.call_args_list}
    assert {("loss_g", 8), ("loss_d", 16), ("seconds", 16)} <= scalars
    ((name, images, count), _), = board().add_images.call_args_list
    assert (name, count) == ("samples", 16) and 0 <= images.min() < images.max() <= 1
    board().close.assert_called_once_with()


def test_lessons_are_given_as_often_as_asked_in_another_order_each_time(monkeypatch):
    monkeypatch.setattr(lessons, "MOST", 16)
    pool, dice, fresh = Lessons(3, 4, 16, True), torch.Generator().manual_seed(0), iter(range(1000))
    given = [pool.next(lambda: next(fresh), dice).latents for _ in range(100)]
    first, second, third = given[:16], given[16:32], given[32:48]
    assert first == list(range(16)) == sorted(second) == sorted(third)
    assert second != third != first and given[48:64] == list(range(16, 32))  # others come after
    once = Lessons(1, 4, 16, True)
    assert [once.next(lambda: next(fresh), dice).latents for _ in range(3)] == [36, 37, 38]
    with pytest.raises(ValueError, match="only 5 batches of 16 at 512 px fit: lower batch, or set"):
        Lessons(2, 16, 512, True)


def test_a_teacher_draws_a_lesson_once(tmp_path, monkeypatch):
    monkeypatch.setattr(lessons, "MOST", 3)
    monkeypatch.setattr(lessons, "FEWEST", 2)
    teacher, asked = Generator(16, 8, 8, 8, mapping_layers=2), []
    c = distill_config(tmp_path, "teacher", reuse=4, ld_weight=0.0, path_weight=0.0)
    student = make_student(teacher, 0.5)
    with pytest.raises(ValueError, match="reuse needs a student and a teacher without noise"):
        Trainer(c, student, Discriminator(16, 4), Distiller(teacher, None, c))
    for network in (teacher, student):
        network.silence()
    trainer = Trainer(c, student, Discriminator(16, 4), Distiller(teacher, None, c))
    teacher.synthesis.register_forward_hook(lambda *_: asked.append(1))
    for _ in range(12):
        trainer.train_step()
    assert len(asked) == 3  # and four times each of the three
