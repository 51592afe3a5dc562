"""The teacher's images, each used several times.

A teacher draws the same image for the same latents for ever, and half of the time of a step with
image losses alone goes into its drawing. So some lessons (batches of latents, and what the teacher
made of them) are gathered, gone through a few times in a shuffled order, and replaced by new ones.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from gapkd import parallel
from gapkd.networks.base import SynthesisOutput

POOL_BYTES = 2**28
MOST, FEWEST = 128, 8
"""Lessons that are gathered: few would be learned by heart."""


@dataclass
class Lesson:
    """latents: what the batch was drawn from. teacher: its images, once it has drawn them."""

    latents: Any
    teacher: SynthesisOutput | None = None


class Lessons:
    """Gathers lessons and gives each of them `reuse` times.

    Args:
        reuse: 1: every lesson is a new one.
        batch, resolution: of the images that are kept, which decides how many lessons fit.
        silent: whether teacher and student are without noise.
    Raises ValueError when the same latents do not give the same image, when several processes would
        have to share lessons, and when so few fit that they would be learned by heart.
    """

    def __init__(self, reuse: int, batch: int, resolution: int, silent: bool):
        self.reuse, self.size = reuse, 1
        if reuse > 1:
            self.size = min(MOST, POOL_BYTES // (4 * 3 * resolution**2 * batch))
            if not silent:
                raise ValueError("reuse needs a student and a teacher without noise maps, which "
                                 "are drawn anew each time: set reuse to 1, or take such a teacher "
                                 "(toyfaces64)")
            if parallel.count() > 1:
                raise ValueError("reuse keeps images in one process: set reuse to 1, or train "
                                 "without torchrun")
            if self.size < FEWEST:
                raise ValueError(f"reuse={reuse} keeps teacher images in {POOL_BYTES >> 20} MB, "
                                 f"where only {self.size} batches of {batch} at {resolution} px "
                                 "fit: lower batch, or set reuse to 1")
        self.kept: list[Lesson] = []
        self.order: list[int] = []  # of this pass, the next one last
        self.passes = 0

    def next(self, draw: Callable[[], Any], dice: torch.Generator) -> Lesson:
        """A new lesson from what `draw` draws, or one that was kept."""
        if self.order:
            return self.kept[self.order.pop()]
        if len(self.kept) == self.size:
            self.passes += 1
            if self.passes < self.reuse:
                self.order = torch.randperm(self.size, generator=dice).tolist()
                return self.kept[self.order.pop()]
            self.kept, self.passes = [], 0
        self.kept.append(Lesson(draw()))
        return self.kept[-1]

    def state(self) -> dict:
        """All but the images, which the teacher draws again."""
        return {"latents": [lesson.latents for lesson in self.kept], "order": list(self.order),
                "passes": self.passes}

    def load_state(self, state: dict, device: torch.device) -> None:
        self.kept = [Lesson(tuple(value.to(device) if isinstance(value, torch.Tensor) else value
                                  for value in latents)) for latents in state["latents"]]
        self.order, self.passes = list(state["order"]), state["passes"]
