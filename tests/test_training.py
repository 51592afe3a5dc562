"""Training: the steps do what they say, runs resume exactly, bad input and bad luck lose nothing."""

from __future__ import annotations

import json
import platform
import subprocess
import sys
import warnings

import pytest
import torch
from tiny import config, distill_config, equal, newest

from gapkd.cli import main
from gapkd.data.datasets import open_dataset
from gapkd.data.images import save_png
from gapkd.distillation.distiller import Guide
from gapkd.files.checkpoints import CheckpointError, load_generator, read_metadata, save_network
from gapkd.metrics.evaluation import evaluate_generator, real_features
from gapkd.metrics.features import load_attribute_network
from gapkd.networks.layers import fir_kernel, upsample2
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.settings import DistillConfig, TrainConfig, from_dict, to_dict, widths
from gapkd.training import loop as training
from gapkd.training.loop import distill, train_gan
from gapkd.training.trainer import Trainer, TrainingDiverged, lazy_adam


def test_a_run_leaves_what_it_promises(tmp_path):
    result = train_gan(config(tmp_path / "run"), probe=lambda G: {"probe": G.num_ws})
    files = {p.name for p in (tmp_path / "run").iterdir()}
    promised = {"settings.json", "log.jsonl", "checkpoints", "generator.safetensors", "discriminator.safetensors"}
    assert promised <= files
    assert sorted(p.name for p in (tmp_path / "run" / "grids").iterdir()) == ["000000016.png", "000000032.png"]
    log = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert log == result.log and [r["images"] for r in log] == [8, 16, 24, 32]
    assert {"loss_g", "loss_d", "r1", "path", "real_logit"} <= log[1].keys() | log[0].keys()
    assert "probe" in log[1] and "probe" in log[3] and "probe" not in log[0]
    assert equal(load_generator(result.checkpoint), result.generator)


def test_same_seed_same_weights_other_seed_other_weights(tmp_path):
    a, b, c = (train_gan(config(tmp_path / n, seed=s, images=16)).generator for n, s in (("a", 0), ("b", 0), ("c", 1)))
    assert equal(a, b) and not equal(a, c)


def test_distillation_moves_the_student_towards_its_teacher(tmp_path, teacher_file, fake_distance):
    teacher = load_generator(teacher_file)
    z = torch.randn(64, 8, generator=torch.Generator().manual_seed(9))
    gap = lambda G: {"gap": (G(z) - teacher(z)).abs().mean().item()}  # noqa: E731
    settings = distill_config(tmp_path / "r", teacher_file, images=640, probe_every=4, gan_weight=0.0, lr=0.01)
    log = distill(settings, gap).log
    gaps = [r["gap"] for r in log if "gap" in r]
    assert gaps[-1] < 0.7 * gaps[0]
    assert equal(load_generator(teacher_file), teacher)


@pytest.mark.parametrize("changes", [
    {"ld_views": 1}, {"ld_kind": "mse", "ld_offsets": "global"}, {"ld_queue": 2, "ld_eigenvalues": True},
    {"ld_balance": 0.5, "ld_weight": 0.0, "precision": "bf16"}, {"ld_offsets": "random", "rgb_levels": "all"},
    {"mapping": "inherit-frozen", "synthesis": "pruned"}, {"mapping": "random", "kernel": 1, "perceptual_weight": 0.0},
    {"rgb_weight": 0.0, "perceptual_weight": 0.0, "ld_weight": 0.0}])
def test_every_option_trains(tmp_path, teacher_file, fake_distance, changes):
    result = distill(distill_config(tmp_path / "r", teacher_file, images=8, **changes))
    record = result.log[-1]
    assert ("ld" in record) == (changes.get("ld_weight", 30) > 0 or "ld_balance" in changes)
    assert ("ld_weight" in record) == ("ld_balance" in changes)
    assert ("rgb" in record) == (changes.get("rgb_weight", 3) > 0)
    if changes.get("mapping") == "inherit-frozen":
        teacher = load_generator(teacher_file)
        assert all(torch.equal(a, b) for a, b in zip(result.generator.mapping.layers.state_dict().values(),
                                                     teacher.mapping.layers.state_dict().values(), strict=True))


def test_toy_features_for_other_images_are_warned_of(tmp_path, teacher_file, fake_distance):
    images = tmp_path / "photos"
    images.mkdir()
    for number in range(4):
        save_png(torch.rand(1, 3, 32, 32) * 2 - 1, images / f"{number}.png")
    with pytest.warns(UserWarning, match="knows rendered toy faces only: for other images choose"):
        distill(distill_config(tmp_path / "r", teacher_file, images=4, data=str(images)))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="the perceptual loss")
        distill(distill_config(tmp_path / "s", teacher_file, images=4, data=str(images), perceptual_weight=0.0))
        distill(distill_config(tmp_path / "t", teacher_file, images=4))


def test_content_mask_is_given_the_teachers_images(tmp_path, teacher_file, fake_distance):
    seen = []

    def mask(images):
        seen.append(images.shape)
        return torch.zeros_like(images[:, :1])

    log = distill(distill_config(tmp_path / "r", teacher_file, images=8), content_mask=mask).log
    assert seen == [(4, 3, 32, 32)] * 2 and log[-1]["rgb"] == 0 and log[-1]["ld"] > 0


def test_ema_equals_its_definition(tmp_path):
    trainer = Trainer(config(tmp_path), Generator(8, 8, 8, 8, mapping_layers=1), Discriminator(8, 8))
    before = [p.clone() for p in trainer.G_ema.parameters()]
    trainer.train_step()
    decay = 0.5 ** (4 / min(10_000, 4 * 0.05))
    for average, start, value in zip(trainer.G_ema.parameters(), before, trainer.G.parameters(), strict=True):
        torch.testing.assert_close(average, decay * start + (1 - decay) * value.detach())


def test_lazy_regularisation_corrects_adam():
    frozen = torch.nn.Linear(1, 1).requires_grad_(False)
    optimiser = lazy_adam({torch.nn.Linear(1, 1): 0.002, frozen: 1.0, torch.nn.Linear(1, 2): 0.02}, every=16)
    slow, fast = optimiser.param_groups
    assert slow["lr"] == pytest.approx(0.002 * 16 / 17) and fast["lr"] == pytest.approx(0.02 * 16 / 17)
    assert slow["betas"] == fast["betas"] == pytest.approx((0, 0.99 ** (16 / 17)))


def test_a_run_starts_from_another_at_the_same_or_half_the_resolution(tmp_path):
    small = train_gan(config(tmp_path / "small", images=8))
    G, D = Generator(16, 8, 8, [8, 8, 4], mapping_layers=2), Discriminator(16, [8, 8, 4])
    fresh = Discriminator(16, [8, 8, 4]).blocks[0].conv0.weight.shape
    training.start_from(G, D, str(tmp_path / "small"))
    z = torch.randn(3, 8)
    ours, theirs = G.synthesis(G.mapping(z)), small.generator.synthesis(small.generator.mapping(z))
    torch.testing.assert_close(ours.rgbs[1], theirs.image)  # the coarse levels are the smaller network
    torch.testing.assert_close(ours.image, upsample2(theirs.image, fir_kernel(gain=4.0)))  # enlarged, no more
    assert D.blocks[0].conv0.weight.shape == fresh
    assert torch.equal(D.blocks[1].conv0.weight, small.discriminator.blocks[0].conv0.weight)
    result = train_gan(config(tmp_path / "big", resolution=16, channels=(8, 8, 4), d_channels=(8, 8, 4), images=8,
                              start_from=str(tmp_path / "small")))
    assert result.generator.resolution == 16
    started = read_metadata(result.checkpoint)["provenance"]["started_from"]
    assert started["images"] == 8 and started["settings"]["resolution"] == 8
    same = train_gan(config(tmp_path / "same", images=8, lr=1e-9, start_from=str(tmp_path / "small")))
    torch.testing.assert_close(same.generator(z), small.generator(z), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="choose resolution=8 or 16, not 32"):
        train_gan(config(tmp_path / "x", resolution=32, start_from=str(tmp_path / "small")))
    with pytest.raises(ValueError, match="mapping.layers.2.weight is missing or has another shape"):
        train_gan(config(tmp_path / "x", mapping_layers=3, start_from=str(tmp_path / "small")))
    with pytest.raises(ValueError, match="is a file: name the run's folder"):
        train_gan(config(tmp_path / "x", start_from=str(tmp_path / "small" / "generator.safetensors")))
    with pytest.raises(ValueError, match="another shape"):
        train_gan(config(tmp_path / "x", resolution=16, channels=(6,), start_from=str(tmp_path / "small")))


def test_the_discriminator_may_go_first(tmp_path):
    start = config(tmp_path / "run", images=12, batch=4, d_first=8, probe_every=4, log_every=4)
    with torch.random.fork_rng():
        torch.manual_seed(start.seed)
        before = Generator(8, 8, 8, [8, 8], mapping_layers=2)
    untouched = []

    def probe(G):
        untouched.append(equal(G, before))
        return {"probed": 1.0}

    result = train_gan(start, probe)
    assert untouched == [True, True, False]
    assert [("loss_g" in r, "loss_d" in r) for r in result.log] == [(False, True), (False, True), (True, True)]


def test_noise_can_be_left_out_of_a_student(tmp_path, teacher_file, fake_distance):
    for noise in (True, False):
        student = distill(distill_config(tmp_path / str(noise), teacher_file, images=8, noise=noise)).generator
        assert any(bool(conv.noise_strength != 0) for conv in student.synthesis.convs) == noise


def test_noise_can_be_left_out(tmp_path):
    def strengths(**changes):
        result = train_gan(config(tmp_path / "-".join(changes) / "run", images=8, **changes))
        return torch.stack([conv.noise_strength for conv in result.generator.synthesis.convs])

    assert bool((strengths() != 0).all())
    assert bool((strengths(noise=False) == 0).all())
    assert bool((strengths(noise=False, start_from=str(tmp_path / "run")) == 0).all())


def test_divergence_stops_with_a_sentence_and_keeps_the_last_good_checkpoint(tmp_path):
    out = tmp_path / "run"
    train_gan(config(out, images=16))
    good = newest(out).read_bytes()

    def poison(G):
        for p in G.parameters():
            p.fill_(float("nan"))
        return {}

    with pytest.raises(TrainingDiverged, match="diverged near image .* lower lr"):
        trainer_config = config(out, images=64, resume=True, probe_every=4)
        original = Trainer.train_step

        def step(self):
            original(self)
            with torch.no_grad():
                poison(self.G)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Trainer, "train_step", step)
            train_gan(trainer_config)
    assert newest(out).read_bytes() == good


@pytest.mark.parametrize("cls, values, message", [
    (TrainConfig, {"bach": 4}, "no setting bach; did you mean batch"),
    (TrainConfig, {"batch": 0}, "batch must be at least 1"),
    (TrainConfig, {"batch": "x"}, "batch must be of type int"),
    (DistillConfig, {"keep": 0.0}, r"keep must lie in \(0, 1\]"),
    (DistillConfig, {"mapping": "copy"}, "mapping must be one of"), (TrainConfig, {"style_mixing": 2.0}, "probability"),
    (TrainConfig, {"seed": -1}, "seed must not be negative"),
    (TrainConfig, {"d_first": 100_000}, "d_first must be below images"),
    (TrainConfig, {"z_dim": 0}, "z_dim must be at least 1"),
    (DistillConfig, {"ld_blocks": "2,3"}, "ld_blocks must be a tuple of int"),
    (DistillConfig, {"ld_blocks": ["2"]}, "ld_blocks must be a tuple of int"),
    (DistillConfig, {"gan_weight": 0.0, "rgb_weight": 0, "perceptual_weight": 0, "ld_weight": 0}, "all 0"),
    (DistillConfig, {"ld_queue": -1}, "ld_queue must not be negative"),
    (DistillConfig, {"ld_eigenvalues": True, "ld_offsets": "random"}, "ld_eigenvalues needs steps along SeFa"),
    (DistillConfig, {"ld_balance": 1.0, "rgb_weight": 0}, "ld_balance ties"),
    (DistillConfig, {"recipe": "gapkd", "ld_queue": 8}, "give it a weight"),
    (DistillConfig, {"ld_weight": 0, "ld_balance": 1, "ld_blocks": []}, "ld_blocks must name at least one"),
    (DistillConfig, {"ld_views": 3}, "ld_views must be one of"), (TrainConfig, {"resume": True}, "resume needs out")])
def test_bad_settings(cls, values, message):
    with pytest.raises(ValueError, match=message):
        from_dict(cls, values)


def test_settings_survive_json():
    settings = DistillConfig(ld_blocks=(1, 2), d_channels=(8, 4))
    assert from_dict(DistillConfig, json.loads(json.dumps(to_dict(settings)))) == settings


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_trains_and_resumes_exactly(tmp_path, precision):
    exact = Trainer(config(tmp_path), Generator(8, 8, 8, 8, mapping_layers=1), Discriminator(8, 8))
    z = exact.draw_latents(4, slice(None))
    half = Trainer(config(tmp_path, precision=precision), exact.G, exact.D)
    with half.autocast(), torch.no_grad():
        ours = half.G.synthesis(half.to_ws(half.G, z), noise="const")
    theirs = exact.G.synthesis(exact.to_ws(exact.G, z), noise="const")
    assert ours.features[-1].dtype == {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    assert ours.image.dtype == torch.float32
    torch.testing.assert_close(ours.image, theirs.image, rtol=0, atol=0.05)
    whole = train_gan(config(tmp_path / "whole", precision=precision))
    train_gan(config(tmp_path / "half", precision=precision, images=16))
    assert equal(whole.generator, train_gan(config(tmp_path / "half", precision=precision, resume=True)).generator)


def test_float16_survives_styles_that_would_overflow_it():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        G = Generator(8, 8, 8, 8, mapping_layers=1)
    with torch.no_grad():
        for conv in G.synthesis.convs:
            conv.affine.bias.fill_(3e5)  # float16 ends at 65,504
        exact = G(torch.ones(2, 8))
        with torch.autocast("cpu", torch.float16):
            half = G(torch.ones(2, 8))
        torch.testing.assert_close(half, exact, rtol=0, atol=0.05)
        G.synthesis.convs[0].bias.fill_(1e6)
        with torch.autocast("cpu", torch.float16):
            assert bool(G(torch.ones(2, 8)).isfinite().all())


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_training_on_a_gpu(tmp_path, teacher_file):
    train_gan(config(tmp_path / "gan", images=8, device="cuda", flip=True))
    result = distill(distill_config(tmp_path / "student", teacher_file, images=8, device="cuda", flip=True))
    assert next(result.generator.parameters()).is_cuda


def test_widths_name_the_finest_blocks():
    assert widths((64, 32), 32) == [64, 64, 64, 32] and widths((64,), 16) == [64, 64, 64]
    assert widths((8, 6, 4, 2), 32) == [8, 6, 4, 2]
    with pytest.raises(ValueError, match="channels names 3 blocks, but a 8 px network has 2"):
        Discriminator(8, widths((8, 8, 8), 8))


@pytest.mark.parametrize("changes", [{"w_dim": 6}, {"resolution": 16}])
def test_a_student_that_does_not_fit_its_teacher(tmp_path, teacher_file, fake_distance, changes):
    teacher = load_generator(teacher_file)
    guide = Guide(distill_config(tmp_path, teacher_file), teacher)
    student = Generator(**teacher.architecture() | {"channels": 4} | changes)
    noise = student.synthesis.draw_noise(2, torch.Generator())
    with pytest.raises(ValueError, match="cannot be compared: make the student with make_student"):
        ws = torch.randn(2, student.num_ws, student.w_dim)
        guide.compare(student, ws, torch.randn(2, 8, 8), noise, None)


def test_conditional_networks_are_drawn_from_but_not_distilled(tmp_path, capsys):
    file, sheet = tmp_path / "c.safetensors", tmp_path / "sheet.png"
    save_network(Generator(32, 8, 8, 8, mapping_layers=2, c_dim=3), file)
    with pytest.raises(ValueError, match="the network is conditional, with 3 classes"):
        distill(distill_config(tmp_path / "r", file))
    for label in ("-1", "2"):
        assert main(["sample", "--generator", str(file), "--count", "5", "--label", label, "--out", str(sheet)]) == 0
        sheet.unlink()
    assert main(["sample", "--generator", str(file), "--label", "3", "--out", str(sheet)]) == 2
    assert "has 3 classes, 0 to 2; -1 takes them in turn" in capsys.readouterr().err


def test_a_stylegan3_cannot_be_grown(tmp_path):
    small = {"architecture": "stylegan3-t", "layers": 4, "path_weight": 0.0, "images": 4}
    train_gan(config(tmp_path / "small", resolution=16, **small))
    with pytest.raises(ValueError, match="only a StyleGAN2 can be grown; choose resolution=16"):
        train_gan(config(tmp_path / "large", resolution=32, start_from=str(tmp_path / "small"), **small))


def test_bad_networks(tmp_path, teacher_file):
    with pytest.raises(CheckpointError, match="there is no checkpoint"):
        distill(distill_config(tmp_path / "r", tmp_path / "missing.safetensors"))
    with pytest.raises(ValueError, match="ld_blocks must name blocks 1 to 3"):
        distill(distill_config(tmp_path / "r", teacher_file, ld_blocks=(9,)))
    with pytest.raises(ValueError, match="power of two"):
        train_gan(config(tmp_path / "r", resolution=48))
    small = tmp_path / "d.safetensors"
    save_network(Discriminator(8, 4), small)
    with pytest.raises(ValueError, match="same resolution"):
        distill(distill_config(tmp_path / "r", teacher_file, discriminator=str(small)))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
                                   RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried")])
def test_too_little_memory_names_the_setting(tmp_path, monkeypatch, capsys, error):
    def step(trainer):
        raise error

    monkeypatch.setattr(Trainer, "train_step", step)
    assert main(["teacher", "--out", str(tmp_path / "r"), "--resolution", "8", "--channels", "8", "--no-progress"]) == 2
    assert "a step with batch=32 at 8 px does not fit into the memory of cpu: lower batch" in capsys.readouterr().err


def test_other_errors_of_a_step_are_not_called_memory(tmp_path, monkeypatch):
    def step(trainer):
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr(Trainer, "train_step", step)
    with pytest.raises(RuntimeError, match="^shapes cannot be multiplied$"):
        train_gan(config(tmp_path / "r"))


def test_the_fid_in_the_log_is_that_of_the_saved_generator(tmp_path):
    result = train_gan(config(tmp_path / "r", resolution=32, images=16, batch=8, fid_every=8, fid_samples=60))
    measured = [r["fid_toyfaces_60"] for r in result.log if "fid_toyfaces_60" in r]
    network, dataset = load_attribute_network(), open_dataset("toyfaces", 32)
    figures = evaluate_generator(result.generator, network, 60, seed=30_000, real=real_features(network, dataset, 60))
    assert len(measured) == 2 and measured[-1] == pytest.approx(figures["fid_toyfaces_60"], rel=1e-4)


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library")
def test_freed_memory_stays_with_a_training_process():
    """Without it, a tensor of 200 MB goes back to the system as soon as it is freed."""
    program = ("import torch; from gapkd.training.trainer import keep_memory; {call}\n"
               "x = torch.ones(50_000_000); del x\n"
               "print([line.split()[1] for line in open('/proc/self/status') if line.startswith('VmRSS')][0])")
    kept, usual = (int(subprocess.run([sys.executable, "-c", program.format(call=call)], capture_output=True, text=True,
                                      check=True).stdout) for call in ("keep_memory()", "pass"))
    assert kept - usual > 150_000  # kB


def test_tensorboard_without_its_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ValueError, match="tensorboard=True needs the extra `tensorboard`: pip install"):
        train_gan(config(tmp_path / "r", tensorboard=True))
    assert not (tmp_path / "r").exists()
