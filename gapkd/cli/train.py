"""The commands that train: distill, teacher, resume."""

from __future__ import annotations

from dataclasses import dataclass

import tyro

from gapkd.cli import say
from gapkd.settings import DistillConfig, TrainConfig


@dataclass(frozen=True)
class ResumeConfig:
    """Go on with a run that was stopped, under the settings that it was started with."""

    run: tyro.conf.Positional[str]
    """Its folder."""
    images: int = 0
    """New length of the run in images; 0: as before."""
    device: str = ""
    """"auto", "cpu", "cuda"...; empty: as before."""
    progress: bool = True
    """Show a progress bar."""


def distill(config: DistillConfig) -> None:
    from gapkd.training import loop

    say(f"student written to {loop.distill(config).checkpoint}")


def teacher(config: TrainConfig) -> None:
    from gapkd.training import loop

    say(f"teacher written to {loop.train_gan(config).checkpoint}")


def resume(config: ResumeConfig) -> None:
    from gapkd.training import loop

    result = loop.resume_run(config.run, config.images, config.device, config.progress)
    say(f"written to {result.checkpoint}")
