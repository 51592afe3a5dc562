"""The StyleGAN2 networks against an independent slow version, and their behaviour."""

from __future__ import annotations

import pytest
import slow_reference
import torch

from gapkd.networks.layers import blur, downsample2, fir_kernel, upsample2
from gapkd.networks.stylegan2 import Discriminator, Generator, config_f_channels, minibatch_std, mix_styles


def tiny(**changes) -> Generator:
    torch.manual_seed(0)
    G = Generator(**{"resolution": 32, "z_dim": 12, "w_dim": 12, "channels": [(6, 5), (7, 6), (5, 8), (4, 3)],
                     "mapping_layers": 3} | changes)
    with torch.no_grad():  # move every parameter that starts at a neutral value
        for name, p in G.named_parameters():
            if name.endswith(("bias", "noise_strength")):
                p.add_(0.3 * torch.randn_like(p))
    return G.eval()


@pytest.mark.parametrize("kernel", [1, 3])
def test_equals_grouped_convolution_per_sample_in_float64(kernel):
    G = tiny(kernel=kernel).double()
    z = torch.randn(3, 12, dtype=torch.float64)
    state = G.state_dict()
    w = slow_reference.mapping(state, z, layers=3)
    torch.testing.assert_close(G.mapping(z), w, atol=1e-10, rtol=0)
    ws = w[:, None].repeat(1, G.num_ws, 1) + 0.1 * torch.randn(3, G.num_ws, 12, dtype=torch.float64)
    torch.testing.assert_close(G.synthesis(ws).image, slow_reference.synthesis(state, ws, blocks=4), atol=1e-10, rtol=0)
    noise = [m.double() for m in G.synthesis.draw_noise(3, torch.Generator().manual_seed(1))]
    torch.testing.assert_close(G.synthesis(ws, noise=noise).image,
                               slow_reference.synthesis(state, ws, blocks=4, noise=noise), atol=1e-10, rtol=0)


def test_gradients_equal_those_of_the_slow_version():
    G = tiny().double()
    ws = torch.randn(2, G.num_ws, 12, dtype=torch.float64, requires_grad=True)
    fast = torch.autograd.grad(G.synthesis(ws).image.square().sum(), ws)[0]
    slow = torch.autograd.grad(slow_reference.synthesis(G.state_dict(), ws, blocks=4).square().sum(), ws)[0]
    torch.testing.assert_close(fast, slow, atol=1e-8, rtol=1e-8)


@torch.no_grad()
def test_output_shapes_and_levels():
    G = tiny()
    out = G.synthesis(torch.randn(2, 12))
    assert [tuple(f.shape) for f in out.features] == [(2, 5, 4, 4), (2, 6, 8, 8), (2, 8, 16, 16), (2, 3, 32, 32)]
    assert [tuple(r.shape) for r in out.rgbs] == [(2, 3, r, r) for r in (4, 8, 16, 32)]
    assert out.rgbs[-1] is out.image and G.num_ws == 8


@torch.no_grad()
def test_noise_modes():
    G = tiny()
    z = torch.randn(2, 12)
    seeded = [torch.Generator().manual_seed(s) for s in (3, 3, 4)]
    first, again, other = (G(z, noise="random", generator=g) for g in seeded)
    assert torch.equal(first, again) and not torch.allclose(first, other)
    maps = [conv.noise_const for conv in G.synthesis.convs]
    assert torch.equal(G(z, noise="const"), G(z, noise=maps))
    assert torch.equal(G(z, noise="none"), G(z, noise=[torch.zeros_like(m) for m in maps]))
    with pytest.raises(ValueError, match="pass generator"):
        G(z, noise="random")
    with pytest.raises(ValueError, match="needs 7"):
        G(z, noise=maps[:-1])


@pytest.mark.parametrize("noise", ["none", "const", "random"])
@torch.no_grad()
def test_features_stay_channels_last(noise):
    """The layout that convolutions are fast in must not get lost between two layers."""
    G = tiny()
    out = G.synthesis(torch.randn(2, 12), noise=noise, generator=torch.Generator())
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in [*out.features, *out.rgbs])


@torch.no_grad()
def test_truncation_zero_is_the_average_face():
    G = tiny()
    w = G.mapping(torch.randn(400, 12))
    for _ in range(3000):
        G.mapping.track(w)
    torch.testing.assert_close(G.mapping.w_avg, w.mean(dim=0), atol=1e-4, rtol=0)
    a, b = G(torch.randn(2, 12), truncation=0.0)
    torch.testing.assert_close(a, b)


@torch.no_grad()
def test_style_mixing_takes_coarse_from_one_and_fine_from_the_other():
    G = tiny()
    a, b = G.mapping(torch.randn(2, 1, 12).unbind(0)[0]), G.mapping(torch.randn(1, 12))
    ws = mix_styles(a, b, 3, G.num_ws)
    assert torch.equal(ws[:, 2], a) and torch.equal(ws[:, 3], b)
    mixed = G.synthesis(ws)
    pure = G.synthesis(a)
    torch.testing.assert_close(mixed.features[1], pure.features[1])  # layers 0..2 are a's
    assert not torch.allclose(mixed.features[2], pure.features[2])
    with pytest.raises(ValueError, match="crossover"):
        mix_styles(a, b, 9, G.num_ws)


def test_conditional_networks_use_their_label():
    G = tiny(c_dim=3)
    D = Discriminator(32, 8, c_dim=3)
    z, eye = torch.randn(2, 12), torch.eye(3)
    assert not torch.allclose(G(z, eye[[0, 1]]), G(z, eye[[2, 1]])[:, :])
    images = torch.randn(2, 3, 32, 32)
    assert D(images, eye[[0, 1]]).shape == (2, 1)
    assert not torch.allclose(D(images, eye[[0, 1]]), D(images, eye[[2, 2]]))
    with pytest.raises(ValueError, match="conditional"):
        G(z)


def test_minibatch_std_by_hand():
    x = torch.randn(8, 2, 4, 4)
    out = minibatch_std(x, group=4)
    for first in (0, 1):  # images first, first + 2, first + 4, first + 6 form a group
        std = (x[first::2].var(dim=0, unbiased=False) + 1e-8).sqrt().mean()
        torch.testing.assert_close(out[first::2, 2], std.expand(4, 4, 4))
    assert minibatch_std(x[:3]).shape == (3, 3, 4, 4)


def test_architecture_rebuilds_the_network():
    G = tiny(kernel=1)
    twin = Generator(**G.architecture())
    twin.load_state_dict(G.state_dict())
    z = torch.randn(2, 12)
    assert torch.equal(G(z), twin(z))


def test_config_f_widths():
    assert config_f_channels(1024) == [512, 512, 512, 512, 512, 256, 128, 64, 32]


@pytest.mark.parametrize("arguments, message", [
    ({"resolution": 48}, "power of two"), ({"resolution": 4}, "power of two"), ({"kernel": 5}, "kernel"),
    ({"channels": [8, 8]}, "names 2 blocks"), ({"channels": 0}, "at least 1")])
def test_bad_architecture(arguments, message):
    with pytest.raises(ValueError, match=message):
        tiny(**arguments)


def test_bad_inputs():
    G = tiny()
    with pytest.raises(ValueError, match=r"z must have shape \(N, 12\)"):
        G(torch.randn(2, 13))
    with pytest.raises(ValueError, match="ws must have shape"):
        G.synthesis(torch.randn(2, 7, 12))
    with pytest.raises(ValueError, match="images must have shape"):
        Discriminator(32, 8)(torch.randn(2, 3, 16, 16))


def test_autocast_stays_close_and_returns_float32():
    G = tiny(channels=16)
    z = torch.randn(4, 12)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        half = G(z)
    full = G(z)
    assert half.dtype == torch.float32
    assert (half - full).square().mean().sqrt() < 0.05 * full.std()


@pytest.mark.parametrize("operation, size", [(upsample2, 4), (downsample2, 8), (lambda x, k: blur(x, k, 2), 5)])
def test_resampling_differentiates_twice(operation, size):
    x = torch.randn(2, 3, size, size, dtype=torch.float64, requires_grad=True)
    kernel = fir_kernel().double()
    assert torch.autograd.gradcheck(lambda x: operation(x, kernel), x)
    assert torch.autograd.gradgradcheck(lambda x: operation(x, kernel).square(), x)
    with torch.no_grad():
        plain = operation(x, kernel)
    torch.testing.assert_close(operation(x, kernel), plain)
