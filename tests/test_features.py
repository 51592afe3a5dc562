"""The perceptual distance, and what is said when the networks of the papers are not there."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from tiny import attribute_network, pictures

from gapkd.metrics.features import (
    InceptionNetwork,
    MissingExtraError,
    lpips_distance,
    perceptual_distance,
)


def test_perceptual_distance_equals_its_formula_and_passes_gradients_to_both_images():
    net = attribute_network().double()
    a, b = (pictures(4, seed).double().requires_grad_() for seed in (0, 1))
    distance = perceptual_distance(net, a, b)
    expected = []
    for n in range(4):
        layers = []
        maps = zip(net.features(a[n:n + 1]), net.features(b[n:n + 1]), strict=True)
        for x, y in maps:
            cells = zip(x[0].flatten(1).T, y[0].flatten(1).T, strict=True)
            gaps = [(u / u.norm() - v / v.norm()).square().sum() for u, v in cells]
            layers.append(torch.stack(gaps).mean())
        expected.append(torch.stack(layers).mean())
    torch.testing.assert_close(distance.double(), torch.stack(expected), atol=1e-5, rtol=1e-5)
    distance.sum().backward()
    assert a.grad.abs().sum() > 0 and b.grad.abs().sum() > 0
    assert perceptual_distance(net, a, a).abs().max() == 0
    with pytest.raises(ValueError, match="images of one shape"):
        perceptual_distance(net, a, b[:2])


@pytest.mark.parametrize("open_network", [InceptionNetwork, lpips_distance])
def test_a_missing_extra_is_one_clear_sentence(open_network):
    if importlib.util.find_spec("torch_fidelity") and importlib.util.find_spec("lpips"):
        pytest.skip("the metrics extra is installed here")
    with pytest.raises(MissingExtraError, match=r"pip install .gapkd\[metrics\]"):
        open_network()
