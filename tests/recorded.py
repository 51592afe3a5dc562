"""The recorded arrays of tests/golden, and the networks they describe, loaded as a reader's files
are."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from official_files import torch_bytes

from gapkd.files.checkpoints import load_generator
from gapkd.networks.stylegan2 import Generator

GOLDEN = Path(__file__).parent / "golden"
STYLEKD = ("teacher", "student", "student_k1")


def arrays(name: str) -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file.files}


def under(prefix: str, data: dict) -> dict:
    return {k.removeprefix(prefix): v for k, v in data.items() if k.startswith(prefix)}


def stylekd_network(data: dict[str, torch.Tensor], name: str) -> Generator:
    """One of the three recorded generators in rosinality's layout."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.pt"
        file.write_bytes(torch_bytes({"g_ema": under(f"{name}.state.", data)}))
        return load_generator(file)
