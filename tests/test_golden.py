"""Equality with outputs recorded from the reference implementations (float32, 1e-4 and better)."""

from __future__ import annotations

import pytest
import torch
from official_files import nvidia_pickle
from recorded import STYLEKD, stylekd_network, under

from gapkd.files.checkpoints import load_discriminator, load_generator


def close(found: torch.Tensor, recorded: torch.Tensor) -> None:
    torch.testing.assert_close(found, recorded, atol=1e-4, rtol=0)


@torch.no_grad()
def test_nvidias_networks(nvidia, tmp_path):
    file = tmp_path / "network.pkl"
    file.write_bytes(nvidia_pickle(under("G.", nvidia), under("D.", nvidia)))
    G, D = load_generator(file), load_discriminator(file)
    close(G.mapping(nvidia["z"])[:, None].expand(-1, G.num_ws, -1), nvidia["w"])
    close(G(nvidia["z"]), nvidia["image"])
    close(G(nvidia["z"], truncation=0.7), nvidia["image_psi07"])
    close(D(nvidia["image"]), nvidia["logits"])


@torch.no_grad()
@pytest.mark.parametrize("name", STYLEKD)
def test_stylekds_networks(stylekd, name):
    G = stylekd_network(stylekd, name)
    w = G.mapping(stylekd["z"])
    close(w, stylekd[f"{name}.w"])
    close(G(stylekd["z"]), stylekd[f"{name}.image"])
    moved = w + stylekd["offsets"][:, 0]
    features = G.synthesis(torch.cat([w, moved])).features
    for block in (1, 2, 3):
        close(features[block].flatten(1), stylekd[f"{name}.block{block}"])
