"""StyleGAN2's behaviour. Its numbers: test_foreign (recorded) and test_textbook (written out)."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from recorded import STYLEKD, stylekd_network
from tiny import perturb

from gapkd.networks.families import build
from gapkd.networks.layers import (
    EqualConv2d,
    EqualLinear,
    _filter,
    blur,
    downsample2,
    filter_by_matrices,
    fir_kernel,
    upsample2,
)
from gapkd.networks.mapping import mix_styles, normalise
from gapkd.networks.mobile import MobileGenerator
from gapkd.networks.stylegan2 import (
    Discriminator,
    Generator,
    config_f,
    config_f_channels,
    minibatch_std,
)
from gapkd.networks.stylegan3 import AliasFreeGenerator


def tiny(**changes) -> Generator:
    torch.manual_seed(0)
    shape = {"resolution": 32, "z_dim": 12, "w_dim": 12, "mapping_layers": 3,
             "channels": [(6, 5), (7, 6), (5, 8), (4, 3)]}
    return perturb(Generator(**shape | changes)).eval().requires_grad_(False)


def test_output_shapes_and_levels():
    G = tiny()
    out = G.synthesis(torch.randn(2, 12))
    assert [f.shape[1:] for f in out.features] == [(5, 4, 4), (6, 8, 8), (8, 16, 16), (3, 32, 32)]
    assert [r.shape for r in out.rgbs] == [(2, 3, r, r) for r in (4, 8, 16, 32)]
    assert out.rgbs[-1] is out.image and G.num_ws == 8
    assert G.feature_widths() == [5, 6, 8, 3]


@torch.no_grad()
@pytest.mark.parametrize("name", STYLEKD)
def test_features_are_the_recorded_ones(stylekd, name):
    w, moved = stylekd[f"{name}.w"], stylekd[f"{name}.w"] + stylekd["offsets"][:, 0]
    features = stylekd_network(stylekd, name).synthesis(torch.cat([w, moved])).features
    for b in (1, 2, 3):
        recorded = stylekd[f"{name}.block{b}"]
        torch.testing.assert_close(features[b].flatten(1), recorded, atol=1e-4, rtol=0)


def test_noise_modes():
    G = tiny()
    z = torch.randn(2, 12)
    seeded = [torch.Generator().manual_seed(s) for s in (3, 3, 4)]
    first, again, other = (G(z, noise="random", generator=g) for g in seeded)
    assert torch.equal(first, again) and not torch.allclose(first, other)
    maps = [conv.noise_const for conv in G.synthesis.convs]
    assert torch.equal(G(z, noise="const"), G(z, noise=maps))
    fresh = G.synthesis.draw_noise(2, torch.Generator())
    alone = G(z[1:], noise=[m[1:] for m in fresh])
    torch.testing.assert_close(G(z, noise=fresh)[1:], alone)
    nothing = [torch.zeros_like(m) for m in maps]
    assert torch.equal(G(z, noise="none"), G(z, noise=nothing))
    assert not torch.equal(G(z, noise="none"), G(z))
    for noise, message in (("random", "pass generator"), (maps[:-1], "holds 6 maps, .* needs 7"),
                           ("soft", 'must be "const", "none", "random" or a list of maps, not .s')):
        with pytest.raises(ValueError, match=message):
            G(z, noise=noise)


@pytest.mark.parametrize("noise", ["none", "const", "random"])
def test_features_stay_channels_last(noise):
    """The layout that convolutions are fast in must not get lost between two layers."""
    out = tiny().synthesis(torch.randn(2, 12), noise=noise, generator=torch.Generator())
    for x in [*out.features, *out.rgbs]:
        assert x.is_contiguous(memory_format=torch.channels_last)


def test_conditional_networks_use_their_label():
    G, D = tiny(c_dim=3), Discriminator(32, [4, 6, 8, 10], c_dim=3)
    z, eye = torch.randn(2, 12), torch.eye(3)
    first, second = eye[[0, 1]], eye[[2, 1]]
    ours, theirs = G(z, first), G(z, second)
    assert not torch.allclose(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    x = torch.cat([normalise(z), normalise(G.mapping.embed(first))], dim=1)
    for layer in G.mapping.layers:
        x = layer(x)
    assert torch.equal(G.mapping(z, first), x)
    images = torch.randn(2, 3, 32, 32)
    maps = D.features(images)
    assert [m.shape[1:] for m in maps] == [(8, 16, 16), (6, 8, 8), (4, 4, 4)]
    x = D.out(D.fc(D.conv(minibatch_std(maps[-1])).flatten(1)))
    projected = (x * D.label(None, second)).sum(dim=1, keepdim=True) / 4**0.5
    torch.testing.assert_close(D(images, second), projected)
    with pytest.raises(ValueError, match=r"conditional: give one-hot labels c of shape \(N, 3\)"):
        G(z)
    with pytest.raises(ValueError, match="c must have 2 rows, one for each z, not 1"):
        G(z, first[:1])
    for dtype in (torch.int64, torch.bool, torch.float64):  # as one_hot gives them
        assert torch.equal(G(z, first.to(dtype)), ours)


def test_logits_keep_their_differences_far_from_zero():
    """The last two layers are computed in float32, whatever the rest is."""
    images = torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    D = Discriminator(16, 8)
    found = []
    for bias in (0.0, 64.0):
        D.out.bias.data.fill_(bias)
        with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
            found.append(D(images) - bias)
    assert found[0].dtype == torch.float32 and found[0].std() > 0.05
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=1e-4)


def test_minibatch_std_by_hand():
    x = torch.randn(8, 2, 4, 4)
    out = minibatch_std(x, group=4)
    for first in (0, 1):  # images first, first + 2, first + 4, first + 6 form a group
        std = (x[first::2].var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(out[first::2, 2], std.expand(4, 4, 4))
    assert torch.equal(minibatch_std(x[:6]), minibatch_std(x[:6], group=3))  # 4 divides not
    assert Discriminator(8, 4).mbstd_group == 4


@pytest.mark.parametrize("cls, arguments", [
    (Generator, (16, 6, 5, [4, 3, 3], 1, 3, 2, 9.0)),
    (Discriminator, (16, [4, 6, 8], 2, None, 9.0)),
    (AliasFreeGenerator, (16, 6, 5, [4, 3, 3, 2], 1, True, 3, 2, 1, 4, 0.5, 9.0))])
def test_architecture_rebuilds_the_network(cls, arguments):
    network = cls(*arguments)
    for (name, value), given in zip(network.architecture().items(), arguments, strict=False):
        assert value == given or name == "channels"
    twin = build(network.kind, network.architecture())
    assert type(twin) is cls and twin.architecture() == network.architecture()
    twin.load_state_dict(network.state_dict())


def test_equalised_layers_start_at_unit_variance_and_a_clamp_follows_the_gain():
    layer = EqualLinear(256, 256, lr_multiplier=0.01)
    assert layer.weight.std().item() == pytest.approx(100, rel=0.05)
    assert layer(torch.randn(64, 256)).std().item() == pytest.approx(1, rel=0.05)
    for activate, dtype in itertools.product((True, False), (torch.float32, torch.float16)):
        conv = EqualConv2d(3, 4, 1, activate=activate, gain=0.5, clamp=0.2).to(dtype)
        x = 100 * torch.randn(2, 3, 8, 8, dtype=dtype)
        assert conv(x).max().item() == pytest.approx(0.1, rel=1e-3)


def test_widths_of_configuration_f():
    assert config_f_channels(1024) == [512, 512, 512, 512, 512, 256, 128, 64, 32]
    assert config_f(8).channels == [(512, 512), (512, 512)]
    for resolution in ("256", np.int64(64), 48, True):
        with pytest.raises(ValueError, match="resolution must be an int, a power of two of at le"):
            config_f(resolution)


@pytest.mark.parametrize("arguments, message", [
    ({"resolution": 48}, "power of two of at least 8, not 48"), ({"resolution": 4}, "power of two"),
    ({"kernel": 5}, "kernel .* must be 1 or 3, not 5"),
    ({"channels": [8, 8]}, "names 2 blocks, but a 32 px network has 4"),
    ({"channels": 0}, "at least 1")])
def test_bad_architecture(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)


families = pytest.mark.parametrize("G", [
    Generator(16, 6, 6, 4, mapping_layers=1), MobileGenerator(16, 6, 6, 4, mapping_layers=1),
    AliasFreeGenerator(16, 6, 6, [4, 3, 3], mapping_layers=1)], ids=lambda G: G.kind)


@families
def test_truncation_may_differ_from_w_to_w(G):
    w, psis = torch.randn(3, G.w_dim), torch.tensor([0.0, 0.5, 1.0])
    wanted = torch.stack([G.truncate(one, psi) for one, psi in zip(w, psis.tolist(), strict=True)])
    for given in (psis, psis[:, None], psis.tolist(), psis.numpy()):
        torch.testing.assert_close(G.truncate(w, given), wanted)
    ws = w[:, None].expand(-1, G.num_ws, -1)
    torch.testing.assert_close(G.truncate(ws, psis)[:, 0], wanted)
    torch.testing.assert_close(G.truncate(w, np.float32(0.5)), G.truncate(w, 0.5))


@families
def test_styles_begin_around_one(G):
    """A fresh network's style is 1 plus what w adds, in every layer: toRGB, too."""
    biases = [value for name, value in G.state_dict().items()
              if name.endswith("affine.bias") and "input" not in name]
    assert len(biases) >= 4 and all(bool((bias == 1).all()) for bias in biases)


@families
def test_inputs_of_other_precisions_and_no_tensors(G):
    G, z = G.eval(), torch.randn(2, 6)
    assert torch.equal(G(z.double()), G(z)) and G(z.half()).dtype == torch.float32
    ws = G.mapping(z)
    for given in (ws.double(), ws.double()[:, None].expand(-1, G.num_ws, -1)):
        torch.testing.assert_close(G.synthesis(given).image, G(z))
    for given in (z.numpy(), z.tolist()):
        for call, name in ((G, "z"), (G.synthesis, "ws")):
            with pytest.raises(ValueError, match=f"{name} must have shape .* not a (ndarray|list)"):
                call(given)


def test_bad_inputs():
    G = tiny()
    for noise in (None, 3, {}, "perhaps"):
        with pytest.raises(ValueError, match='noise must be "const", .*, not (None|3|{}|.perhaps)'):
            G(torch.randn(2, 12), noise=noise)
    with pytest.raises(ValueError, match=r"z must have shape \(N, 12\), not \(2, 13\)"):
        G(torch.randn(2, 13))
    with pytest.raises(ValueError, match=r"ws must have shape \(N, 12\) or \(N, 8, 12\), not"):
        G.synthesis(torch.randn(2, 7, 12))
    with pytest.raises(ValueError, match=r"images must have shape \(N, 3, 32, 32\), not"):
        Discriminator(32, 8)(torch.randn(2, 3, 16, 16))
    with pytest.raises(ValueError, match="crossover must lie between 0 and num_ws = 8, not 9"):
        mix_styles(torch.zeros(1, 4), torch.zeros(1, 4), 9, 8)


def test_autocast_stays_close_and_returns_float32():
    G, D = tiny(channels=16), Discriminator(32, 16)
    z = torch.randn(4, 12)
    full = G(z)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        out = G.synthesis(G.mapping(z))
        assert D(full).dtype == torch.float32
    assert out.features[-1].dtype == torch.bfloat16 and out.image.dtype == torch.float32
    assert (out.image - full).square().mean().sqrt() < 0.05 * full.std()


@torch.no_grad()
def test_float16_survives_styles_that_would_overflow_it():
    torch.manual_seed(0)
    G = Generator(8, 8, 8, 8, mapping_layers=1)
    for conv in G.synthesis.convs:
        conv.affine.bias.fill_(3e5)  # float16 ends at 65,504
    exact = G(torch.ones(2, 8))
    with torch.autocast("cpu", torch.float16):
        half = G(torch.ones(2, 8))
    torch.testing.assert_close(half, exact, rtol=0, atol=0.05)
    G.synthesis.convs[0].bias.fill_(1e6)
    with torch.autocast("cpu", torch.float16):
        assert bool(G(torch.ones(2, 8)).isfinite().all())


@pytest.mark.parametrize("operation, size", [
    (upsample2, 4), (downsample2, 8), (lambda x, k: blur(x, k, 2), 5)])
def test_resampling_differentiates_twice(operation, size):
    x = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
    kernel = fir_kernel().double()
    assert torch.autograd.gradcheck(lambda x: operation(x, kernel), x)
    assert torch.autograd.gradgradcheck(lambda x: operation(x, kernel).square(), x)
    half = operation(x.detach().bfloat16(), kernel)
    torch.testing.assert_close(half.double(), operation(x, kernel), rtol=0.02, atol=0.02)


@pytest.mark.parametrize("arguments", [(2, 1, True), (1, 1, False), (1, 2, False), (2, 1, False)])
@pytest.mark.parametrize("channels", [3, 5])
def test_a_filter_is_two_matrix_products(arguments, channels):
    x = torch.randn(2, channels, 6, 8, dtype=torch.float64)
    kernel = fir_kernel(gain=4.0).double()
    expected = _filter(x, kernel, *arguments)
    for layout in (torch.contiguous_format, torch.channels_last):
        found = filter_by_matrices(x.contiguous(memory_format=layout), kernel, *arguments)
        torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last) or channels == 3


def test_a_filter_that_drew_an_image_can_be_trained_through():
    x, kernel = torch.randn(1, 4, 8, 8), fir_kernel()
    with torch.inference_mode():
        filter_by_matrices(x, kernel, 1, 1, False)
    x = x.clone().requires_grad_(True)
    filter_by_matrices(x, kernel, 1, 1, False).sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")
def test_a_gpu_draws_what_a_cpu_draws(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    G, z = Generator(32, 8, 8, 8, mapping_layers=2), torch.randn(4, 8)
    with torch.no_grad():
        torch.testing.assert_close(G.cuda()(z.cuda()).cpu(), G.cpu()(z), rtol=1e-4, atol=1e-4)
