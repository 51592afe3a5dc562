"""Runs: what they leave, what they start from, options of a whole run, bad input and bad luck.
Whole steps, written out: test_assembly; stopping and resuming: test_resume."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
import sys
import warnings
from unittest.mock import MagicMock

import pytest
import torch
from PIL import Image
from tiny import config, distill_config, equal, newest

from gapkd.cli import main
from gapkd.data.datasets import open_dataset
from gapkd.data.images import save_png
from gapkd.files.checkpoints import (
    load_discriminator,
    load_generator,
    read_metadata,
    save_network,
)
from gapkd.metrics.attributes import load_attribute_network
from gapkd.metrics.evaluation import evaluate_generator, real_features
from gapkd.metrics.features import distance_for
from gapkd.networks.layers import fir_kernel, upsample2
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.training import loop, runs
from gapkd.training.loop import distill, fresh_generator, train_gan
from gapkd.training.trainer import Trainer, TrainingDiverged


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
    assert seen == [(16, 3, 32, 32)] * 25 + [(4, 3, 32, 32)] * 2 and log[-1]["rgb"] == 0


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
    assert run.log[-1]["perceptual"] > 0 and torch.equal(distance(a, b), before)
    assert not equal(load_discriminator(file), run.discriminator)  # the one that judges learns


def test_the_discriminator_may_go_first(tmp_path):
    settings = config(tmp_path / "run", images=12, d_first=8, probe_every=4, log_every=4)
    torch.manual_seed(settings.seed)
    before = Generator(8, 8, 8, [8, 8], mapping_layers=2)
    log = train_gan(settings, lambda G: {"untouched": equal(G, before)}).log
    assert [r["untouched"] for r in log] == [True, True, False]
    assert [("loss_g" in r, "loss_d" in r) for r in log] == [(False, True)] * 2 + [(True, True)]


@pytest.mark.parametrize("noise", [True, False])
def test_noise_can_be_left_out(tmp_path, teacher_file, fake_distance, noise):
    changes = {"images": 4, "noise": noise}
    teacher = train_gan(config(tmp_path / "teacher", **changes)).generator
    student = distill(distill_config(tmp_path / "student", teacher_file, **changes)).generator
    for G in (teacher, student):
        assert any(bool(conv.noise_strength != 0) for conv in G.synthesis.convs) == noise


@pytest.mark.parametrize("precision, dtype", [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_resumes_exactly(tmp_path, precision, dtype):
    for name, lengths in (("whole", [16]), ("half", [8, 16])):
        for images in lengths:
            run = train_gan(config(tmp_path / name, images=images, precision=precision,
                                   resume=images > lengths[0]))
    assert equal(run.generator, load_generator(tmp_path / "whole" / "generator.safetensors"))
    scalers = [torch.load(newest(tmp_path / name))["scaler"] for name in ("whole", "half")]
    assert scalers[0] == scalers[1] and bool(scalers[0]) == (precision == "fp16")
    half = Trainer(config(tmp_path, precision=precision), Generator(8, 8, 8), Discriminator(8))
    with half.autocast():
        assert half.G.synthesis(torch.randn(4, 8)).features[-1].dtype == dtype
    assert half.scaler.is_enabled() == (precision == "fp16")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16", "fp16"])
def test_training_on_a_gpu(tmp_path, teacher_file, precision):
    changes = {"images": 8, "device": "cuda", "precision": precision}
    train_gan(config(tmp_path / "gan", **changes))
    result = distill(distill_config(tmp_path / "student", teacher_file, **changes))
    assert next(result.generator.parameters()).is_cuda
    assert torch.backends.cuda.matmul.allow_tf32 == (precision == "tf32")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_a_step_that_is_replayed_does_what_it_did_as_it_was_written(tmp_path, precision):
    settings = {"images": 40, "batch": 4, "adversarial": "relativistic", "r1_every": 2,
                "path_weight": 1.0, "path_every": 3, "style_mixing": 0.5, "lr_end": 0.1,
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


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_faces_rendered_on_a_gpu():
    indices = torch.tensor([5, 4095, 4096, 20_000, 7])
    found = open_dataset("toyfaces", 64, seed=3, device="cuda").load(indices)
    assert found.is_cuda
    torch.testing.assert_close(found.cpu(), open_dataset("toyfaces", 64, seed=3).load(indices),
                               rtol=0, atol=2e-3)


def test_the_fid_in_the_log_is_that_of_the_saved_generator(tmp_path):
    result = train_gan(config(tmp_path / "r", resolution=32, images=16, batch=8, fid_every=8,
                              fid_samples=60, ema_rampup=0.0))
    measured = [r["fid_toyfaces_60"] for r in result.log if "fid_toyfaces_60" in r]
    network = load_attribute_network()
    real = real_features(network, open_dataset("toyfaces", 32), 60)
    found = evaluate_generator(result.generator, network, 60, seed=30_000, real=real)
    assert len(measured) == 2
    assert measured[-1] == pytest.approx(found["fid_toyfaces_60"], rel=1e-4)


# ---------------------------------------------------------------------- starting from another run


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A finished run at 8 px."""
    return train_gan(config(tmp_path_factory.mktemp("small") / "run", images=8))


def test_a_run_starts_from_one_of_half_the_resolution(tmp_path, small):
    G, D = Generator(16, 8, 8, [8, 8, 4], mapping_layers=2), Discriminator(16, [8, 8, 4])
    new_block = D.blocks[0].conv0.weight.clone()
    loop.start_from(G, D, str(small.folder))
    w = torch.randn(3, 8)
    ours, theirs = G.synthesis(w), small.generator.synthesis(w)
    torch.testing.assert_close(ours.rgbs[1], theirs.image)  # the coarse levels are the old ones
    torch.testing.assert_close(ours.image, upsample2(theirs.image, fir_kernel(gain=4.0)))
    assert torch.equal(D.blocks[0].conv0.weight, new_block)
    assert equal(D.blocks[1], small.discriminator.blocks[0])
    assert equal(D.fc, small.discriminator.fc)
    result = train_gan(config(tmp_path / "big", resolution=16, channels=(8, 8, 4), images=8,
                              d_channels=(8, 8, 4), start_from=str(small.folder)))
    started = read_metadata(result.checkpoint)["provenance"]["started_from"]
    assert started["images"] == 8 and started["settings"]["resolution"] == 8


def test_a_run_starts_from_one_of_its_resolution(tmp_path, small):
    old = shutil.copytree(small.folder, tmp_path / "old")
    settings = {"lr": 1e-12, "noise": False, "start_from": str(old)}
    train_gan(config(tmp_path / "run", images=4, **settings))
    shutil.rmtree(old)  # is not asked for again
    result = train_gan(config(tmp_path / "run", images=8, resume=True, **settings))
    z = torch.randn(3, 8)
    torch.testing.assert_close(result.generator(z), small.generator(z, noise="none"))
    assert read_metadata(result.checkpoint)["provenance"]["started_from"]["images"] == 8


@pytest.mark.parametrize("changes, message", [
    ({"resolution": 32}, "holds 8 px networks: choose resolution=8 or 16, not 32"),
    ({"mapping_layers": 3}, "mapping.layers.2.weight is missing or has another shape"),
    ({"resolution": 16, "channels": (6,)}, "another shape .* for all blocks but the last"),
    ({"start_from": "generator.safetensors"}, "is a file: name the run's folder"),
    ({"start_from": "no/run"}, "there is no run .*no/run to start from: name the folder"),
    ({"resolution": 16, "architecture": "stylegan3-t", "layers": 4, "path_weight": 0.0},
     "only a StyleGAN2 can be grown; choose resolution=8")])
def test_bad_starts(tmp_path, small, changes, message):
    changes = {"start_from": ""} | changes
    changes["start_from"] = str(small.folder / changes["start_from"])
    with pytest.raises(ValueError, match=message):
        train_gan(config(tmp_path / "x", **changes))


# ---------------------------------------------------------------------- bad input and bad luck


def test_bad_networks(tmp_path, teacher_file):
    small, missing = str(tmp_path / "d.safetensors"), tmp_path / "missing.safetensors"
    save_network(Discriminator(8, 4), small)
    for teacher, changes, message in (
            (missing, {}, "there is no checkpoint"),
            (teacher_file, {"discriminator": small}, "is for 8 px, .* same resolution"),
            (teacher_file, {"perceptual": str(teacher_file)}, "a discriminator was asked for")):
        with pytest.raises(ValueError, match=message):
            distill(distill_config(tmp_path / "r", teacher, **changes))


def test_conditional_networks_are_drawn_from_but_not_distilled(tmp_path, capsys):
    file, sheet = tmp_path / "c.safetensors", tmp_path / "sheet.png"
    save_network(Generator(32, 8, 8, 8, mapping_layers=2, c_dim=3), file)
    with pytest.raises(ValueError, match="the network is conditional, with 3 classes"):
        distill(distill_config(tmp_path / "r", file))
    for label, code in (("-1", 0), ("2", 0), ("3", 2)):
        assert main(["sample", "--generator", str(file), "--label", label, "--count", "5",
                     "--out", str(sheet)]) == code
        sheet.unlink(missing_ok=True)
    assert "has 3 classes, 0 to 2; -1 takes them in turn" in capsys.readouterr().err


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


def test_means_are_logged_and_logits_that_run_away_are_divergence(tmp_path):
    trainer = Trainer(config(tmp_path), Generator(8, 8, 8), Discriminator(8))
    for values in ((1.0, 3.0), (5.0,)):
        for value in values:
            trainer.note(loss=torch.tensor(value))
        assert trainer.take_notes() == {"loss": sum(values) / len(values)}
    trainer.note(fake_logit=torch.tensor(-2e6))
    with pytest.raises(TrainingDiverged, match=r"near image 0: fake_logit = -2e\+06; lower lr"):
        trainer.take_notes()


@pytest.mark.parametrize("error, message", [
    (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
     "a step with batch=4 at 8 px does not fit into the memory of cpu: lower batch"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "a step with batch=4"),
    (RuntimeError("shapes cannot be multiplied"), "^shapes cannot be multiplied$")])
def test_too_little_memory_names_the_setting(tmp_path, monkeypatch, error, message):
    def step(trainer):
        raise error

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(RuntimeError, match=message) as caught:
        train_gan(config(tmp_path / "r"))
    assert isinstance(caught.value, loop.OutOfMemory) == message.startswith("a step")


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
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="needs the extra `tensorboard`: pip install"):
        train_gan(config(tmp_path / "r", tensorboard=True))
    assert not (tmp_path / "r").exists()
