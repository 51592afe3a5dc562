"""StyleGAN3: the recorded networks, filters against an independent slow version, shapes, gradients, bad input."""

from __future__ import annotations

import math

import pytest
import scipy.signal
import scipy.special
import torch
import torch.nn.functional as F
from recorded import arrays, under
from tiny import config, distill_config, equal

from gapkd.distillation.directions import sefa_directions
from gapkd.distillation.students import make_student
from gapkd.files.checkpoints import load_generator
from gapkd.networks.filtered_lrelu import FilteredLeakyReLU, kaiser_beta, low_pass
from gapkd.networks.stylegan3 import AliasFreeGenerator, plan_layers, stylegan3_channels
from gapkd.training.loop import distill, train_gan

CONFIGURATIONS = {"t": (3, False), "r": (1, True)}


def network(name: str) -> tuple[AliasFreeGenerator, dict[str, torch.Tensor]]:
    """The recorded generator and its recording."""
    data = arrays(f"stylegan3{name}_nvidia")
    kernel, radial = CONFIGURATIONS[name]
    G = AliasFreeGenerator(32, 48, 48, stylegan3_channels(32, 8, 384, 24), kernel, radial)
    state = {}
    for key, value in under("G.", data).items():
        parts = key.replace("mapping.fc", "mapping.layers.").split(".")
        if parts[1].startswith("L"):
            parts[1:2] = ["layers", parts[1][1:].split("_")[0]]
        if "filter" not in parts[-1]:
            state[".".join(parts)] = value
    G.load_state_dict(state)
    return G.eval(), data


@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.no_grad()
def test_recorded_networks(name):
    G, data = network(name)
    w = G.mapping(data["z"])
    assert G.num_ws == data["w"].shape[1]
    for layer in range(G.num_ws):
        torch.testing.assert_close(w, data["w"][:, layer], atol=1e-4, rtol=0)
    torch.testing.assert_close(G(data["z"]), data["image"], atol=1e-5, rtol=0)
    torch.testing.assert_close(G(data["z"], truncation=0.7), data["image_psi07"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_recorded_filters(name):
    G, data = network(name)
    found = 0
    for key, value in under("G.synthesis.", data).items():
        if "filter" in key:
            up, down = G.synthesis.layers[int(key[1:].split("_")[0])].activation.filters
            torch.testing.assert_close((up if "up_" in key else down).float(), value, atol=1e-6, rtol=0)
            found += 1
    assert found == 16


@pytest.mark.parametrize("taps, cutoff, width, rate",
                         [(12, 2.0, 9.0, 32.0), (24, 7.5, 16.0, 128.0), (6, 3.0, 2.0, 16.0)])
def test_filters_are_scipys(taps, cutoff, width, rate):
    ours = low_pass(taps, cutoff, width, rate)
    theirs = torch.from_numpy(scipy.signal.firwin(taps, cutoff, width=width, fs=rate))
    torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)
    assert kaiser_beta(60.0) == pytest.approx(scipy.signal.kaiser_beta(60.0))
    radial = low_pass(taps, cutoff, width, rate, radial=True)
    assert radial.shape == (taps, taps) and radial.sum() == pytest.approx(1)
    torch.testing.assert_close(radial, radial.t())


def slow(x, bias, f_up, f_down, up, down, padding, slope, gain):
    """The textbook's way, one step after the other: insert zeros, pad, filter, bend, filter, drop."""
    n, c, h, w = x.shape
    x = x + bias[None, :, None, None]
    big = x.new_zeros(n, c, h * up, w * up)
    big[:, :, ::up, ::up] = x
    before, after = padding
    big = F.pad(big, (before, after, before, after))
    kernel = torch.outer(f_up, f_up) * up**2
    big = F.conv2d(big.flatten(0, 1)[:, None], kernel.flip(0, 1)[None, None])
    big = torch.where(big >= 0, big, slope * big) * gain
    kernel = f_down if f_down.ndim == 2 else torch.outer(f_down, f_down)
    big = F.conv2d(big, kernel.flip(0, 1)[None, None])[:, :, ::down, ::down]
    return big.view(n, c, *big.shape[2:])


CASES = [(20, 2, 2, (9, 8), False), (36, 4, 2, (3, 2), False), (54, 2, 2, (-2, -3), False), (150, 2, 4, (9, 8), False),
         (40, 2, 2, (9, 8), True), (90, 4, 2, (5, 6), True), (34, 1, 1, (-2, -2), False)]


@pytest.mark.parametrize("size, up, down, padding, radial", CASES)
def test_the_filtered_nonlinearity_equals_the_slow_one(size, up, down, padding, radial, monkeypatch):
    torch.set_default_dtype(torch.float64)
    try:
        f_up = low_pass(6 * up if up > 1 else 1, 4.0, 3.0, 32.0)
        f_down = low_pass(6 * down if down > 1 else 1, 5.0, 4.0, 32.0, radial)
        layer = FilteredLeakyReLU(size, f_up, f_down, up, down, padding, 0.2, math.sqrt(2))
        x = torch.randn(2, 3, size, size, requires_grad=True)
        bias = torch.randn(3, requires_grad=True)
        ours, theirs = layer(x, bias), slow(x, bias, f_up, f_down, up, down, padding, 0.2, math.sqrt(2))
        assert ours.shape[-1] == layer.out
        torch.testing.assert_close(ours, theirs, atol=1e-10, rtol=0)
        weight = torch.randn_like(ours)
        for a, b in zip(*[torch.autograd.grad((y * weight).sum(), (x, bias)) for y in (ours, theirs)], strict=True):
            torch.testing.assert_close(a, b, atol=1e-10, rtol=1e-10)
    finally:
        torch.set_default_dtype(torch.float32)


def test_sizes_and_rates_are_the_published_ones():
    plans = plan_layers(256, stylegan3_channels(256))
    assert [p.out_size for p in plans] == [36, 36, 36, 52, 52, 84, 84, 148, 148, 148, 276, 276, 276, 256, 256]
    assert [p.out_channels for p in plans] == [512] * 9 + [362, 256, 181, 128, 128, 3]
    assert plans[-1].torgb and [p.critical for p in plans] == [False] * 12 + [True] * 3
    assert plans[0].in_cutoff == 2 and plans[-1].out_cutoff == 128


@pytest.mark.parametrize("name", CONFIGURATIONS)
@torch.no_grad()
def test_a_shift_of_the_input_shifts_the_image(name):
    """By four pixels, a whole number of samples in every layer: an image of the same face, moved."""
    G, data = network(name)
    still = G(data["z"])
    G.synthesis.input.transform[0, 2] = -4 / 32
    moved = G(data["z"])
    inside = (moved[..., 4:] - still[..., :-4]).abs().mean() / still.abs().mean()
    opposite = (moved[..., :-4] - still[..., 4:]).abs().mean() / still.abs().mean()
    assert inside < 0.05 < opposite


def test_every_parameter_gets_a_gradient_twice_differentiable():
    torch.manual_seed(0)
    G = AliasFreeGenerator(16, 6, 6, [4, 4, 4, 4], mapping_layers=1)
    ws = G.mapping(torch.randn(2, 6))
    image = G.synthesis(ws).image
    (gradient,) = torch.autograd.grad(image.square().sum(), ws, create_graph=True)
    gradient.square().sum().backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in G.synthesis.parameters())


def test_magnitudes_are_tracked_in_training_only():
    torch.manual_seed(0)
    G = AliasFreeGenerator(16, 6, 6, [4, 4, 4, 4], mapping_layers=1)
    z = torch.randn(2, 6)
    before = [layer.magnitude_ema.item() for layer in G.synthesis.layers]
    G.eval()(z)
    assert [layer.magnitude_ema.item() for layer in G.synthesis.layers] == before
    G.train()(z)
    assert all(layer.magnitude_ema.item() != 1 for layer in G.synthesis.layers)


def test_architecture_builds_the_same_network():
    torch.manual_seed(0)
    G = AliasFreeGenerator(16, 6, 5, [4, 3, 3, 2], 1, True, 3, c_dim=2, clamp=256.0)
    again = AliasFreeGenerator(**G.architecture())
    assert again.architecture() == G.architecture()
    again.load_state_dict(G.state_dict())
    z, c = torch.randn(2, 6), torch.eye(2)
    with torch.no_grad():
        assert torch.equal(again.eval()(z, c), G.eval()(z, c))


@pytest.mark.parametrize("synthesis", ["random", "pruned"])
@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_students(name, synthesis):
    teacher, data = network(name)
    student = make_student(teacher, keep=0.5, synthesis=synthesis)
    assert student.channels == [12, 12, 12, 12, 12, 9, 6, 6] and student.kernel == teacher.kernel
    assert torch.equal(student.mapping(data["z"]), teacher.mapping(data["z"]))
    whole = make_student(teacher, keep=1.0, synthesis="pruned").eval()
    with torch.no_grad():
        torch.testing.assert_close(whole(data["z"]), data["image"], atol=1e-5, rtol=0)
    assert sefa_directions(teacher, [1, 4], "split").shape == (10, 48)
    with pytest.raises(ValueError, match="has its teacher's kernel"):
        make_student(network("t")[0], kernel=1)


def test_pruning_keeps_the_channels_that_matter():
    """A teacher of which half the channels are dead: the pruned student draws its very images."""
    teacher, data = network("t")
    layers = teacher.synthesis.layers
    with torch.no_grad():
        for layer in layers:
            layer.weight[:, 1::2] = 0  # no odd channel is read
        teacher.synthesis.input.weight[:, 1::2] = 0
        student = make_student(teacher, keep=0.5, synthesis="pruned").eval()
        ours, theirs = student(data["z"]), teacher(data["z"])
    correlation = torch.corrcoef(torch.stack([ours.flatten(), theirs.flatten()]))[0, 1]
    assert correlation > 0.999


def test_training_and_distilling(tmp_path):
    small = {"resolution": 32, "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channels": (6, 4), "layers": 5,
             "d_channels": (4,), "path_weight": 0.0, "images": 16, "architecture": "stylegan3-t"}
    whole = train_gan(config(tmp_path / "whole", **small))
    train_gan(config(tmp_path / "half", **small | {"images": 8}))
    resumed = train_gan(config(tmp_path / "half", **small, resume=True))
    assert equal(whole.generator, resumed.generator) and whole.generator.channels[0] == 6
    assert any(layer.magnitude_ema != 1 for layer in whole.generator.synthesis.layers)
    student = distill(distill_config(tmp_path / "student", whole.checkpoint, perceptual_weight=0.0, path_weight=0.0))
    assert student.log[-1]["ld"] > 0 and student.generator.channels == [3, 3, 3, 2, 2]
    assert equal(load_generator(student.checkpoint), student.generator)
    with pytest.raises(ValueError, match="without path-length regularisation"):
        train_gan(config(tmp_path / "path", **small | {"path_weight": 2.0}))


@pytest.mark.parametrize("arguments, message", [
    ({"resolution": 48}, "power of two"), ({"kernel": 2}, "kernel must be 3"),
    ({"channels": [4, 4]}, "names 2 layers")])
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        AliasFreeGenerator(**{"resolution": 16, "z_dim": 4, "w_dim": 4, "channels": [4] * 4} | arguments)
    G = AliasFreeGenerator(16, 4, 4, [4] * 4, mapping_layers=1)
    with pytest.raises(ValueError, match="ws must have shape"):
        G.synthesis(torch.zeros(2, 3))
