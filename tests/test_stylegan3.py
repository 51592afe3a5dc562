"""StyleGAN3: plans, movement, training, bad input. Its numbers, filters too: test_foreign
(recorded), test_textbook and test_filtered_lrelu (written out)."""

from __future__ import annotations

import pytest
import torch
from tiny import config, distill_config, equal

from gapkd.files.checkpoints import load_generator
from gapkd.networks.stylegan3 import (
    AliasFreeGenerator,
    FourierInput,
    plan_layers,
    stylegan3_channels,
)
from gapkd.training.loop import distill, train_gan


def test_sizes_and_rates_are_the_published_ones():
    plans = plan_layers(256, stylegan3_channels(256))
    sizes = [36, 36, 36, 52, 52, 84, 84, 148, 148, 148, 276, 276, 276, 256, 256]
    assert [p.out_size for p in plans] == sizes
    assert [p.out_channels for p in plans] == [512] * 9 + [362, 256, 181, 128, 128, 3]
    assert plans[-1].torgb and [p.critical for p in plans] == [False] * 12 + [True] * 3
    assert plans[0].in_cutoff == 2 and plans[-1].out_cutoff == 128


@pytest.mark.parametrize("kernel, radial", [(3, False), (1, True)])
@torch.no_grad()
def test_a_shift_of_the_input_shifts_the_image(kernel, radial):
    """By four pixels, a whole number of samples in every layer: the same image, moved."""
    G = AliasFreeGenerator(32, 8, 8, [16] * 6, kernel, radial, mapping_layers=1).eval()
    w = torch.randn(2, 8)
    still = G.synthesis(w).image
    G.synthesis.input.transform[0, 2] = -4 / 32
    moved = G.synthesis(w).image
    G.synthesis.output_scale *= 2
    torch.testing.assert_close(G.synthesis(w).image, 2 * moved)
    inside = (moved[..., 4:] - still[..., :-4]).abs().mean() / still.abs().mean()
    opposite = (moved[..., :-4] - still[..., 4:]).abs().mean() / still.abs().mean()
    assert inside < 0.05 < opposite
    G.synthesis.input.transform[:2, :2] *= 100  # all lies above the band limit and is faded out
    assert not G.synthesis.input(w).any()


@torch.no_grad()
def test_the_frequencies_of_the_input_fill_the_band_evenly():
    """A uniform disc: the squares of the radii are uniform from 0 to the cutoff's. A fresh affine
    moves nothing, whatever w is."""
    signal = FourierInput(w_dim=3, channels=20_000, size=4, rate=16.0, cutoff=2.0)
    area = (signal.freqs.norm(dim=1) / 2).square().sort().values
    torch.testing.assert_close(area, torch.linspace(0, 1, 20_000), atol=0.02, rtol=0)
    turn = signal.freqs[:, 1].atan2(signal.freqs[:, 0]).sort().values / torch.pi
    torch.testing.assert_close(turn, torch.linspace(-1, 1, 20_000), atol=0.04, rtol=0)
    torch.testing.assert_close(signal.affine(torch.randn(2, 3)), torch.eye(4)[:1].expand(2, 4))


@torch.no_grad()
def test_waves_beyond_the_band_limit_fade_out_along_a_ramp():
    """Enlarged by 1.5, a wave at the cutoff of 2 stands at 3, a sixth of the way to rate / 2."""
    signal = FourierInput(w_dim=3, channels=1, size=8, rate=16.0, cutoff=2.0)
    signal.freqs.copy_(torch.tensor([[2.0, 0.0]]))
    still = FourierInput(w_dim=3, channels=1, size=8, rate=16.0, cutoff=3.0)  # fades nothing
    still.freqs.copy_(torch.tensor([[3.0, 0.0]]))
    still.weight.copy_(signal.weight)
    still.phases.copy_(signal.phases)
    signal.transform[:2, :2] *= 1.5
    w = torch.randn(2, 3)
    torch.testing.assert_close(signal(w), still(w) * 5 / 6)


def test_magnitudes_are_tracked_in_training_only():
    G = AliasFreeGenerator(16, 6, 6, [4, 4, 4, 4], mapping_layers=1)
    z, first = torch.randn(2, 6), G.synthesis.layers[0]
    with torch.no_grad():
        G.train()(z)  # as for a discriminator, which leaves the generator as it is
        assert first.magnitude_ema == 1
    G.eval()(z)
    assert first.magnitude_ema == 1
    G.train()(z)
    with torch.no_grad():
        square = G.synthesis.input(G.mapping(z)).square().mean()
        torch.testing.assert_close(first.magnitude_ema, 0.999 + 0.001 * square)
        x, w = torch.randn(2, 4, first.plan.in_size, first.plan.in_size), torch.randn(2, 6)
        tracked = first.eval()(x, w)
        first.magnitude_ema *= 4
        torch.testing.assert_close(first(2 * x, w), tracked)  # keeps the signal's size


def test_training_and_distilling(tmp_path):
    small = {"resolution": 16, "channels": (6, 4), "layers": 4, "d_channels": (4,), "images": 8,
             "path_weight": 0.0, "margin": 2}
    turned = [train_gan(config(tmp_path / f"r{mixing}", architecture="stylegan3-r", **small,
                               style_mixing=mixing)).generator for mixing in (0.0, 1.0)]
    assert turned[0].kernel == 1 and turned[0].radial and turned[0].margin == 2
    assert equal(*turned)  # StyleGAN3 is trained without
    teacher = train_gan(config(tmp_path / "t", architecture="stylegan3-t", **small))
    assert teacher.generator.channels == [6, 6, 4, 4] and teacher.generator.kernel == 3
    assert any(layer.magnitude_ema != 1 for layer in teacher.generator.synthesis.layers)
    settings = {"perceptual_weight": 0.0, "path_weight": 0.0, "images": 8}
    student = distill(distill_config(tmp_path / "student", teacher.checkpoint, **settings))
    assert student.log[-1]["loss_ld"] > 0 and student.generator.channels == [3, 3, 2, 2]
    assert equal(load_generator(student.checkpoint), student.generator)
    with pytest.raises(ValueError, match="without path-length regularisation"):
        train_gan(config(tmp_path / "x", architecture="stylegan3-t", **small | {"path_weight": 2}))


@pytest.mark.parametrize("arguments, message", [
    ({"resolution": 48}, "power of two"), ({"resolution": 8}, "at least 16, not 8"),
    ({"kernel": 2}, "kernel must be 3"), ({"channels": [4, 4]}, "names 2 layers")])
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        AliasFreeGenerator(**{"resolution": 16, "z_dim": 4, "w_dim": 4, "channels": [4] * 4}
                           | arguments)
