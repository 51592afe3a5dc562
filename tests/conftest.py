from __future__ import annotations

import pytest
import torch
from browser import chromium
from recorded import arrays
from tiny import quicken_latent_space

from gapkd.files.checkpoints import save_network
from gapkd.networks.stylegan2 import Generator


@pytest.fixture(scope="module")
def browser():
    """A headless chromium. It lasts one file of tests: later ones may run asyncio, which an open browser forbids."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory):
    """A small untrained 32 px teacher on the disk."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_network(Generator(32, 8, 8, 8, mapping_layers=2), path)
    return path


@pytest.fixture(scope="session")
def nvidia():
    return arrays("stylegan2_nvidia")


@pytest.fixture(scope="session")
def stylekd():
    return arrays("stylekd")


@pytest.fixture
def quick_latent_space(monkeypatch):
    """Path length, projection and edits with a handful of latents and steps."""
    quicken_latent_space(monkeypatch.setattr)


@pytest.fixture
def fake_distance(monkeypatch):
    """Squared difference in place of the attribute network, which most tests of the loop do not need."""
    monkeypatch.setattr("gapkd.distillation.distiller.distance_for",
                        lambda name, device: lambda a, b: (a - b).square().mean((1, 2, 3)))
