"""The commands that train: distill, teacher, resume."""

from __future__ import annotations

from dataclasses import dataclass
from types import ModuleType
from typing import Literal

import tyro

from gapkd.cli import say
from gapkd.settings import DistillConfig, TrainConfig


@dataclass(frozen=True)
class ResumeConfig:
    """Go on with a run that was stopped, under the settings that it was started with."""

    run: tyro.conf.Positional[str]
    """Its folder."""
    images: int = 0
    """New length of the run in images; 0: as before. (Where the rate falls or the discriminator
    begins late, as in the recipe gapkd, the length is part of the training: a run that is to be
    lengthened begins with --lr-end 1 --gan-from 0.)"""
    device: str = ""
    """"auto", "cpu", "cuda"...; empty: as before."""
    progress: bool = True
    """Show a progress bar."""
    data: str | None = None
    """Where its images are by now. Here and below, what is not given stays as before."""
    teacher: str | None = None
    """Where its teacher is by now."""
    perceptual: str | None = None
    """Where the network of its perceptual loss is by now."""
    fid_every: int | None = None
    """Images between two measurements of the FID; 0: none."""
    fid_samples: int | None = None
    """Images a measurement of the FID."""
    fid_features: str | None = None
    """Feature space of that FID."""
    log_every: int | None = None
    """Images between two lines of the log."""
    grid_every: int | None = None
    """Images between two sample grids; 0: none."""
    checkpoint_every: int | None = None
    """Images between two checkpoints; 0: only at the end or when interrupted."""
    precision: Literal["auto", "bf16", "fp16", "tf32", "float32"] | None = None
    """Of the computation."""
    cuda_graphs: bool | None = None
    """On a GPU, replay each step as one CUDA graph."""
    tensorboard: bool | None = None
    """Write log and grids for TensorBoard too."""


def distill(config: DistillConfig) -> None:
    say(f"student written to {_loop().distill(config).checkpoint}")


def teacher(config: TrainConfig) -> None:
    say(f"teacher written to {_loop().train_gan(config).checkpoint}")


def resume(config: ResumeConfig) -> None:
    given = {name: value for name, value in vars(config).items() if value is not None}
    result = _loop().resume_run(given.pop("run"), **given)
    say(f"written to {result.checkpoint}")


def _loop() -> ModuleType:
    """The loop of training, in a process that is ready for it."""
    from gapkd import parallel
    from gapkd.training import loop

    parallel.keep_memory()
    return loop
