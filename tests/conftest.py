from __future__ import annotations

import os

import pytest
import torch
from browser import chromium
from recorded import arrays
from tiny import perturb, quicken_latent_space

from gapkd.files.checkpoints import save_network
from gapkd.networks.stylegan2 import Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator


def pytest_configure(config):
    """What is recorded or compared here was computed on CPUs: only `pytest -m gpu` sees a GPU."""
    if config.option.markexpr != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(autouse=True)
def seeded():
    """Every test draws the same numbers each time it runs; other ones than the seeds 0, 1, 2 of
    settings give."""
    torch.manual_seed(20_220)


@pytest.fixture
def float64():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture(scope="module")
def browser():
    """A headless chromium. It lasts one file of tests: later ones may run asyncio, which an open
    browser forbids."""
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="session")
def teacher_file(tmp_path_factory):
    """A small 32 px teacher on the disk; like a trained one it has noise, biases and an average
    w."""
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_network(perturb(Generator(32, 8, 8, 8, mapping_layers=2)), path)
    return path


@pytest.fixture(scope="session")
def networks():
    """A generator of each family, of unequal widths, made to look trained; not to be changed."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = {"stylegan2": Generator(16, 12, 12, [(10, 12), (14, 10), (8, 6)], mapping_layers=2),
                 "stylegan3": AliasFreeGenerator(32, 12, 12, [10, 12, 8, 6], mapping_layers=2,
                                                 margin=2)}
        for G in found.values():
            perturb(G).eval().requires_grad_(False)
    return found


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
    """Squared difference in place of the attribute network, which most tests of the loop do not
    need."""
    monkeypatch.setattr("gapkd.training.loop.distance_for",
                        lambda name, device: lambda a, b: (a - b).square().mean((1, 2, 3)))
