"""MobileStyleGAN: its operations against slow ones, what goes where, and what a user does."""

from __future__ import annotations

import pytest
import torch
from tiny import distill_config, equal

from gapkd.distillation.distiller import Distiller
from gapkd.distillation.students import make_student
from gapkd.files.checkpoints import load_generator
from gapkd.metrics.cost import macs, parameters
from gapkd.networks.mobile import MobileGenerator, SeparableConv2d, inverse_haar
from gapkd.networks.stylegan2 import Discriminator, Generator, config_f
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.training.trainer import Trainer


def network(channels=(16, 24, 8), **changes) -> MobileGenerator:
    """32 px, with noise and biases, which a fresh network does not have."""
    G = MobileGenerator(32, 8, 8, channels, mapping_layers=2, **changes).eval()
    with torch.no_grad():
        for p in G.synthesis.parameters():
            p.add_(0.3 * torch.randn_like(p))
    return G


def test_inverse_haar_undoes_the_transform():
    bands = torch.randn(2, 12, 3, 5, dtype=torch.float64)
    image = inverse_haar(bands)
    a, b, c, d = (image[..., i::2, j::2] for i in (0, 1) for j in (0, 1))
    forward = [a + b + c + d, a + b - c - d, a - b + c - d, a - b - c + d]
    torch.testing.assert_close(torch.cat(forward, dim=1) / 2, bands)


def test_separable_convolution_equals_one_dense_weight_a_sample_and_differentiates_twice():
    conv = SeparableConv2d(2, 3).double()
    x, style = torch.randn(3, 8, 2, 3).double(), torch.randn(3, 2).double()

    def draw(bands, style, *_):
        y, scale = conv(inverse_haar(bands), style)
        return y * scale

    dense = conv.weight * conv.depthwise.transpose(0, 1)  # (O, I, 3, 3)
    dense = dense / dense.square().sum(dim=(1, 2, 3), keepdim=True).sqrt()
    for n in range(3):
        weight = dense * (1.348 * style[n].tanh())[:, None, None]
        wanted = torch.conv2d(inverse_haar(x)[n], weight, padding=1)
        torch.testing.assert_close(draw(x, style)[n], wanted, rtol=1e-6, atol=1e-6)
    inputs = x[:1].requires_grad_(), style[:1].requires_grad_(), conv.weight, conv.depthwise
    assert torch.autograd.gradgradcheck(draw, inputs)


def test_a_fresh_network_keeps_unit_variance():
    y, scale = SeparableConv2d(64, 64)(torch.randn(16, 64, 12, 12), 1 + torch.randn(16, 64))
    assert 0.9 < (y * scale)[..., 1:-1, 1:-1].var() < 1.1
    features = MobileGenerator(64, 8, 64, 64).synthesis(torch.randn(32, 64)).features
    assert all(0.4 < f[..., 2:-2, 2:-2].square().mean() < 1.5 for f in features[1:])


def test_every_layer_has_its_w_and_its_noise_map():
    G, rng = network(), torch.Generator()
    ws, noise = torch.randn(1, 8, 8), G.synthesis.draw_noise(1, rng.manual_seed(3))
    assert [m.shape[-1] for m in noise] == [4, 8, 8, 16, 16, 32, 32]  # a StyleGAN2's

    def drawn(ws, noise):
        out = G.synthesis(ws, noise=noise, generator=rng.manual_seed(3))
        return [*out.features, out.image]

    plain = drawn(ws, noise)
    for same in (noise[:5], "random"):
        assert all(map(torch.equal, drawn(ws, same), plain))
    for layer, first in enumerate([0, 1, 1, 2, 2, 4, 4, 3]):  # block or image that it reaches first
        step = (torch.arange(8) == layer).float()[:, None]
        maps = [m + (i == layer) for i, m in enumerate(noise)]
        for found, last in ((drawn(ws + step, noise), 8), (drawn(ws, maps), 5)):
            same = [torch.equal(a, b) for a, b in zip(found, plain, strict=True)]
            assert same == [stage < first or layer >= last for stage in range(4)]


@pytest.mark.parametrize("teacher, keep, widths", [
    (Generator(32, 8, 8, [40, 16, (3, 30), 9], mapping_layers=3, c_dim=2), 0.5, [20, 8, 16]),
    (AliasFreeGenerator(32, 8, 8, [40, 32, 24, 20, 16, 12], margin=2).eval(), 0.4, [16, 12, 8]),
    (network((24, 16, 8)), 0.5, [12, 8, 4])])
def test_a_student_of_every_family(teacher, keep, widths):
    student = make_student(teacher, keep, kind="mobile")
    assert student.feature_widths() == widths and equal(student.mapping, teacher.mapping)
    layers = student.synthesis.noise_layers(), teacher.synthesis.noise_layers()
    assert all(torch.equal(s.noise_const, t.noise_const) for s, t in zip(*layers, strict=False))
    z, c = torch.randn(2, 8), torch.eye(teacher.c_dim)[:2] if teacher.c_dim else None
    noise = teacher.synthesis.draw_noise(2, torch.Generator()) or "none"  # a StyleGAN3 has none
    assert student(z, c, noise=noise).shape == teacher(z, c, noise=noise).shape


def test_pruning_a_mobile_teacher_keeps_the_channels_that_matter():
    teacher, z = network(), torch.randn(3, 8)
    torch.testing.assert_close(make_student(teacher, 1.0, synthesis="pruned")(z), teacher(z))
    with torch.no_grad():
        for (reader,) in teacher.readers():
            reader.weight[:, 1::2] = 0
    student = make_student(teacher, 0.5, synthesis="pruned")
    assert student.feature_widths() == [8, 12, 4]
    torch.testing.assert_close(student(z), teacher(z), atol=1e-4, rtol=1e-3)
    make_student(teacher, 0.5, synthesis="slimmed", slimming_images=32)


@pytest.mark.parametrize("attempt, message", [
    (lambda G: make_student(G, kind="mobile", kernel=1), "depthwise convolutions are 3x3"),
    (lambda G: make_student(G, kind="mobile", synthesis="pruned"), "student of another family"),
    (lambda G: network()(torch.ones(1, 8), noise=[None] * 4), "noise holds 4 maps, .* needs 5"),
    (lambda G: MobileGenerator(16, channels=[8, 6]), "multiples of 4"),
    (lambda G: MobileGenerator(16, channels=[8] * 3), r"a 16 px mobile network has 2 \(4 to 8")])
def test_errors_name_the_mend(attempt, message):
    with pytest.raises(ValueError, match=message):
        attempt(Generator(16, 8, 8, 8, mapping_layers=1))


def test_costs_beside_the_published_ones():
    """At 1024 px: 8.01 M parameters, and 15.09 G operations, which count a multiplication and an
    addition as two, the heads that are not here, and the transforms as filters."""
    with torch.device("meta"):
        full = MobileGenerator(1024, channels=[512] * 5 + [256, 128, 64])
        student = MobileGenerator(**MobileGenerator.student_of(config_f(256), 0.3))
    assert (parameters(full), macs(full)) == (7_897_371, 7_285_497_856)
    assert 15.09e9 / 2 == pytest.approx(macs(full) + 0.186e9 + 0.075e9, rel=1e-3)
    assert (parameters(student), macs(student)) == (3_046_861, 370_490_576)


def test_a_short_distillation_draws_nearer_to_the_teacher(tmp_path):
    config = distill_config(tmp_path, "toyfaces32", images=400, batch=8, lr=0.005, ld_blocks=(1, 2))
    teacher = load_generator("toyfaces32")
    student, z = make_student(teacher, 0.5, kind="mobile"), torch.randn(32, teacher.z_dim)
    trainer = Trainer(config, student, Discriminator(32, 4), Distiller(teacher, None, config))
    before = (student(z) - teacher(z)).abs().mean()
    while trainer.images < config.images:
        trainer.train_step()
    assert {"loss_ld", "path", "loss_rgb"} <= set(trainer.take_notes())
    assert (student(z) - teacher(z)).abs().mean() < 0.6 * before


def test_styles_are_mixed_only_where_both_networks_mix_them(tmp_path, networks):
    config = distill_config(tmp_path, "teacher", style_mixing=1.0, ld_blocks=(1,))
    for teacher in networks.values():
        student, D = make_student(teacher, kind="mobile"), Discriminator(teacher.resolution, 4)
        trainer = Trainer(config, student, D, Distiller(teacher, None, config))
        trainer.train_step()
        for G in (student, teacher):
            ws = trainer.to_ws(G, trainer.draw_latents(4, slice(None), trainer.draw_crossover()))
            assert bool((ws != ws[:, :1]).any()) == teacher.mixes_styles
    finer = distill_config(tmp_path, "teacher", ld_blocks=(2,))
    teacher = networks["stylegan2"]
    with pytest.raises(ValueError, match="ld_blocks .* 1 to 1 of the 16 px mobile-generator"):
        Trainer(finer, make_student(teacher, kind="mobile"), D, Distiller(teacher, None, finer))
