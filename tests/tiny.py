"""Runs so small that a test can afford many of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from gapkd.settings import DistillConfig, TrainConfig

TINY = {"resolution": 8, "z_dim": 8, "w_dim": 8, "mapping_layers": 2, "channels": (8,), "d_channels": (8,), "batch": 4,
        "images": 32, "precision": "float32", "progress": False, "log_every": 8, "probe_every": 16, "path_weight": 2.0,
        "r1_every": 4, "grid_every": 16, "checkpoint_every": 16}


def config(out: Path, **changes) -> TrainConfig:
    return TrainConfig(**TINY | {"out": str(out)} | changes)


def distill_config(out: Path, teacher: Path, **changes) -> DistillConfig:
    common = {k: v for k, v in TINY.items() if k in {f.name for f in dataclasses.fields(DistillConfig)}}
    return DistillConfig(**common | {"out": str(out), "teacher": str(teacher), "keep": 0.5, "d_channels": (4,),
                                     "images": 16} | changes)


def perturb(network: torch.nn.Module) -> torch.nn.Module:
    """Make an untrained network look trained, in place: noise strengths, biases and w_avg are no longer 0."""
    with torch.no_grad():
        for name, value in network.named_parameters():
            if name.endswith(("noise_strength", "bias")):
                scale = 100.0 if "mapping" in name else 1.0  # stored biases of the mapping network are large
                value.add_(0.3 * scale * torch.randn_like(value))
        for name, value in network.named_buffers():
            if name.endswith("w_avg"):
                value.normal_()
    return network


def equal(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    return all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))


def newest(run: Path) -> Path:
    """The run's newest checkpoint."""
    return max((run / "checkpoints").glob("*.pt"))
