"""Equality with outputs recorded from the reference implementations (float32, 1e-4 and better)."""

from __future__ import annotations

import pytest
import torch
from official_files import nvidia_pickle
from recorded import STYLEKD, stylekd_network, under

from gapkd.files.checkpoints import load_discriminator, load_generator


@pytest.fixture(scope="module")
def nvidia_file(nvidia, tmp_path_factory):
    file = tmp_path_factory.mktemp("nvidia") / "network.pkl"
    file.write_bytes(nvidia_pickle(under("G.", nvidia), under("D.", nvidia)))
    return file


@pytest.fixture(scope="module")
def nvidia_network(nvidia_file):
    return load_generator(nvidia_file)


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
def test_nvidia_discriminator(nvidia, nvidia_file):
    D = load_discriminator(nvidia_file)
    torch.testing.assert_close(D(nvidia["image"]), nvidia["logits"], atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("name", STYLEKD)
def test_stylekd_networks(stylekd, name):
    G = stylekd_network(stylekd, name)
    w = G.mapping(stylekd["z"])
    torch.testing.assert_close(w, stylekd[f"{name}.w"], atol=1e-4, rtol=0)
    torch.testing.assert_close(G(stylekd["z"]), stylekd[f"{name}.image"], atol=1e-4, rtol=0)
    moved = w + stylekd["offsets"][:, 0]
    features = G.synthesis(torch.cat([w, moved])).features
    for block in (1, 2, 3):
        torch.testing.assert_close(features[block].flatten(1), stylekd[f"{name}.block{block}"], atol=1e-4, rtol=0)
