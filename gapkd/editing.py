"""Editing: directions in W with a name, what a step along them does to the image, and what it should have left alone.

A student that has inherited the teacher's mapping network shares its W, so a direction that is found on one should work
on the other.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from gapkd.checkpoints import write_atomically


@dataclass(frozen=True)
class Directions:
    """Named directions in W.

    Args:
        names: one a direction, such as "smile".
        vectors: (K, w_dim), unit rows.
        reach: (K,), a step that changes the image plainly without leaving W's own range: how far sliders should go,
            either way.
    """

    names: tuple[str, ...]
    vectors: Tensor
    reach: Tensor

    def __post_init__(self):
        if self.vectors.ndim != 2 or not len(self.names) == len(self.vectors) == len(self.reach) > 0:
            raise ValueError(f"{len(self.names)} names, vectors of shape {tuple(self.vectors.shape)} and "
                             f"{len(self.reach)} reaches do not belong together")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, name: str) -> Tensor:
        """The unit vector (w_dim,) of that name."""
        return self.vectors[self.index(name)]

    def index(self, name: str) -> int:
        """Number of the direction of that name; raises ValueError that lists the names."""
        if name not in self.names:
            raise ValueError(f"there is no direction {name!r}; there are: {', '.join(self.names)}")
        return self.names.index(name)

    def pick(self, names: list[str] | tuple[str, ...]) -> Directions:
        """Those directions, in that order."""
        rows = [self.index(name) for name in names]
        return Directions(tuple(names), self.vectors[rows], self.reach[rows])


def save_directions(directions: Directions, path: str | Path) -> Path:
    """Save as safetensors, the names in the metadata."""
    tensors = {"vectors": directions.vectors.cpu().contiguous(), "reach": directions.reach.cpu().contiguous()}
    return write_atomically(path, to_bytes(tensors, {"gapkd": "1", "kind": "directions",
                                                     "names": json.dumps(directions.names)}))


def load_directions(path: str | Path) -> Directions:
    """Load what `save_directions` wrote. Raises ValueError for anything else."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no file of directions {path}: write one with `gapkd directions`")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("kind") != "directions":
                raise ValueError(f"{path} holds no directions: write such a file with `gapkd directions`")
            names = tuple(map(str, json.loads(metadata["names"])))
            return Directions(names, file.get_tensor("vectors").float(), file.get_tensor("reach").float())
    except (SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is damaged or no file of directions ({error}): write it anew with "
                         "`gapkd directions`") from error
