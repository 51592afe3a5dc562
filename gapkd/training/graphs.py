"""The steps of a training as CUDA graphs.

A step of a small network is a thousand small kernels, and Python launches them more slowly than a
GPU computes them. A graph records them once and launches them together from then on. What it reads
stays in place: the images are copied in, rates and weights that change are tensors, and random
numbers come from the run's own generator, so that a replay draws what the step itself would have
drawn.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import torch
from torch import Tensor

WARM_UP = 3
"""Ordinary runs of a step before it is recorded, in which libraries set themselves up."""


class StepGraphs:
    """Runs steps, and from their fourth time on replays them.

    Args:
        rng: the generator of all their random numbers, on a GPU; None: steps run as written.
    """

    def __init__(self, rng: torch.Generator | None):
        self.rng = rng
        self.runs: Counter = Counter()
        self.recorded: dict = {}
        self.images: Tensor | None = None  # what all graphs read
        # memory that all graphs share, and the stream whose it is: they run one after the other
        self.pool = self.stream = None

    def run(self, kind: tuple, step: Callable[[Tensor | None, int | None], dict[str, Tensor]],
            reals: Tensor | None, crossover: int | None) -> dict[str, Tensor]:
        """What step(reals, crossover) returns; replayed, it is overwritten by the next replay.

        Args:
            kind: all that makes the step take another course; each kind has its graph.
        """
        if self.rng is None:
            return step(reals, crossover)
        self.runs[kind] += 1
        if self.runs[kind] <= WARM_UP:
            return step(reals, crossover)
        if kind not in self.recorded:
            self.recorded[kind] = self.record(step, reals, crossover)
        graph, notes = self.recorded[kind]
        if reals is not None:
            self.images.copy_(reals)
        with torch.cuda.device(self.rng.device):
            graph.replay()
        return notes

    def record(self, step: Callable, reals: Tensor | None, crossover: int | None) -> tuple:
        if self.images is None and reals is not None:
            self.images = reals.clone()
        images = None if reals is None else self.images
        with torch.cuda.device(self.rng.device):  # else it would be recorded on the first GPU
            self.stream = self.stream or torch.cuda.Stream()
            graph = torch.cuda.CUDAGraph()
            graph.register_generator_state(self.rng)
            # Another thread may be loading images meanwhile.
            with torch.cuda.graph(graph, self.pool, self.stream,
                                  capture_error_mode="thread_local"):
                notes = {name: value.detach() for name, value in step(images, crossover).items()}
        self.pool = self.pool or graph.pool()
        return graph, notes

    def set_rate(self, group: dict, rate: float) -> None:
        """Set an optimiser group's learning rate, in place where a graph reads it."""
        group["capturable"] = self.rng is not None
        if self.rng is None:
            group["lr"] = rate
        elif isinstance(group["lr"], Tensor) and group["lr"].device.type == self.rng.device.type:
            group["lr"].fill_(rate)
        else:
            group["lr"] = torch.tensor(rate, device=self.rng.device)
