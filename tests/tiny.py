"""Runs so small that a test can afford many of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from gapkd.experiments import bench
from gapkd.metrics.attributes import AttributeNetwork
from gapkd.metrics.editing import EditAgreement
from gapkd.metrics.evaluation import measure_latent_space
from gapkd.networks.stylegan2 import Generator
from gapkd.settings import DistillConfig, TrainConfig

TINY = {"resolution": 8, "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channels": (8,),
        "d_channels": (8,), "batch": 4, "images": 32, "precision": "float32", "progress": False,
        "log_every": 8, "probe_every": 16, "path_weight": 2.0, "grid_every": 16,
        "checkpoint_every": 16}


def config(out: Path, **changes) -> TrainConfig:
    return TrainConfig(**TINY | {"out": str(out)} | changes)


def distill_config(out: Path, teacher: Path, **changes) -> DistillConfig:
    fields = {field.name for field in dataclasses.fields(DistillConfig)}
    common = {name: value for name, value in TINY.items() if name in fields}
    own = {"out": str(out), "teacher": str(teacher), "keep": 0.5, "d_channels": (4,), "images": 16}
    return DistillConfig(**common | own | changes)


def perturb(network: torch.nn.Module) -> torch.nn.Module:
    """Make an untrained network look trained, in place: noise strengths, biases and w_avg are no
    longer 0."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith(("noise_strength", "bias")):
                scale = 100.0 if "mapping" in name else 1.0  # its stored biases are large
                value.add_(0.3 * scale * torch.randn_like(value))
        for name, value in network.named_buffers():
            if name.endswith("w_avg"):
                value.normal_()
            if name.endswith("magnitude_ema"):
                value.uniform_(0.5, 2.0)
    return network


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    states = a.state_dict().values(), b.state_dict().values()
    return all(torch.equal(x, y) for x, y in zip(*states, strict=True))


def newest(run: Path) -> Path:
    """The run's newest checkpoint."""
    return max((run / "checkpoints").glob("*.pt"))


def generator(seed: int, z_dim: int = 8) -> Generator:
    """A small untrained 32 px generator."""
    torch.manual_seed(seed)
    return Generator(32, z_dim, 8, 8, mapping_layers=2).eval().requires_grad_(False)


def attribute_network() -> AttributeNetwork:
    """Small and untrained, with factors of its own."""
    torch.manual_seed(0)
    categorical = {"hat": ("none", "cap", "crown"), "glasses": ("no", "yes")}
    continuous = {"yaw": (-30.0, 30.0), "size": (0.0, 1.0)}
    net = AttributeNetwork(categorical, continuous, channels=(8, 8, 16, 16), hidden=16)
    return net.eval().requires_grad_(False)


def pictures(n: int, seed: int, resolution: int = 32) -> torch.Tensor:
    """Blobs, (n, 3, R, R): the network sees differences in them."""
    coarse = torch.rand(n, 3, 4, 4, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return torch.nn.functional.interpolate(coarse, size=resolution, mode="nearest")


def quicken_latent_space(put: Callable[[object, str, object], None] = setattr) -> None:
    """Let the bench look at path length, projection and edits with a handful of latents and
    steps."""
    put(bench, "EditAgreement", partial(EditAgreement, samples=4, looked_at=40))
    put(bench, "measure_latent_space", lambda G, net, targets:
        measure_latent_space(G, net, targets[:4], samples=20, steps=2))
