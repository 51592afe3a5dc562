"""Equality with outputs recorded from the reference implementations (float32, 1e-4 and better)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from reference_names import nvidia_discriminator, nvidia_generator, rosinality_generator

from gapkd.stylegan2 import Discriminator, Generator

GOLDEN = Path(__file__).parent / "golden"


def arrays(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def under(prefix: str, data: dict) -> dict:
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


@pytest.fixture(scope="module")
def nvidia():
    return arrays("stylegan2_nvidia")


@pytest.fixture(scope="module")
def stylekd():
    return arrays("stylekd")


@pytest.fixture(scope="module")
def nvidia_network(nvidia):
    G = Generator(32, 48, 48, [24, 24, 24, 12])
    G.load_state_dict(nvidia_generator(under("G.", nvidia)))
    return G.eval()


STYLEKD_CHANNELS = {"teacher": ([24, 24, 24, 16], 3), "student": ([8, 8, 8, 6], 3), "student_k1": ([8, 8, 8, 6], 1)}


def stylekd_network(data, name):
    channels, kernel = STYLEKD_CHANNELS[name]
    G = Generator(32, 48, 48, channels, kernel=kernel)
    G.load_state_dict(rosinality_generator(under(f"{name}.state.", data)))
    return G.eval()


@torch.no_grad()
def test_nvidia_mapping(nvidia, nvidia_network):
    w = nvidia_network.mapping(nvidia["z"])
    for layer in range(nvidia_network.num_ws):
        torch.testing.assert_close(w, nvidia["w"][:, layer], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("recorded, truncation", [("image", 1.0), ("image_psi07", 0.7)])
def test_nvidia_images(nvidia, nvidia_network, recorded, truncation):
    image = nvidia_network(nvidia["z"], truncation=truncation, noise="const")
    torch.testing.assert_close(image, nvidia[recorded], atol=1e-4, rtol=0)


@torch.no_grad()
def test_nvidia_discriminator(nvidia):
    D = Discriminator(32, [24, 24, 24, 12])
    D.load_state_dict(nvidia_discriminator(under("D.", nvidia)))
    torch.testing.assert_close(D(nvidia["image"]), nvidia["logits"], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", list(STYLEKD_CHANNELS))
def test_stylekd_networks(stylekd, name):
    G = stylekd_network(stylekd, name)
    w = G.mapping(stylekd["z"])
    torch.testing.assert_close(w, stylekd[f"{name}.w"], atol=1e-4, rtol=0)
    torch.testing.assert_close(G(stylekd["z"]), stylekd[f"{name}.image"], atol=1e-4, rtol=0)
    moved = w + stylekd["offsets"][:, 0]
    features = G.synthesis(torch.cat([w, moved])).features
    for block in (1, 2, 3):
        torch.testing.assert_close(features[block].flatten(1), stylekd[f"{name}.block{block}"], atol=1e-4, rtol=0)
