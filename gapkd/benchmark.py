"""How fast this machine runs the parts that a chapter waits for. One table, no pass or fail.

Absolute figures depend on the machine and on what else it does; compare ratios within one table.
"""

from __future__ import annotations

import json
import statistics
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from gapkd.checkpoints import load_generator, write_atomically
from gapkd.cost import macs, seconds, speed_ratio
from gapkd.distillation import Guide
from gapkd.runs import provenance
from gapkd.settings import DistillConfig, TrainConfig, widths
from gapkd.students import make_student
from gapkd.stylegan2 import Discriminator, Generator
from gapkd.toyfaces import toy_faces
from gapkd.trainer import Trainer, choose_device


@dataclass(frozen=True)
class BenchmarkConfig:
    """Time training steps, forward passes and the renderer."""

    teacher: str = "toyfaces32"
    """The teacher's file, or the name of an embedded one."""
    steps: int = 48
    """Timed training steps of each kind: three R1 periods."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"..."""
    threads: int = 0
    """CPU threads; 0: as they are."""
    out: str = ""
    """JSON file to write the table to, with commit and hardware; empty: none."""


def _rate(run: Callable[[], object], images: int, repeats: int, device: torch.device) -> float:
    """Images a second: `images` over the mean of `repeats` calls, after one that does not count."""
    seconds(run, device)
    return images * repeats / seconds(lambda: [run() for _ in range(repeats)], device)


def run_benchmark(config: BenchmarkConfig) -> list[tuple[str, str]]:
    """Returns (what, figure) rows."""
    if config.threads:
        torch.set_num_threads(config.threads)
    device = choose_device(config.device)
    teacher = load_generator(config.teacher).to(device)
    student = make_student(teacher).eval().to(device)
    r = teacher.resolution
    rows = [("threads", str(torch.get_num_threads())), ("device", device.type)]
    rows.append((f"toy faces rendered, {r} px", f"{_rate(lambda: toy_faces(256, r), 256, 10, device):.0f} images/s"))

    with tempfile.TemporaryDirectory() as folder:
        train = TrainConfig(out=folder, resolution=r, device=config.device, progress=False)
        fresh = Generator(**teacher.architecture())
        trainer = Trainer(train, fresh, Discriminator(r, widths(train.d_channels, r)))
        rate = _rate(trainer.train_step, train.batch, config.steps, device)
        rows.append((f"GAN training, {r} px teacher", f"{rate:.0f} images/s"))
        for name, changes in {"distillation, total loss": {}, "distillation without L_ld": {"ld_weight": 0.0},
                              "distillation without L_gan": {"gan_weight": 0.0}}.items():
            settings = DistillConfig(out=folder, teacher=config.teacher, device=config.device, progress=False,
                                     **changes)
            guide = Guide(settings, load_generator(config.teacher).to(device))
            guided = Trainer(settings, make_student(teacher), Discriminator(r, widths(settings.d_channels, r)), guide)
            rate = _rate(guided.train_step, settings.batch, config.steps, device)
            rows.append((name, f"{rate:.0f} images/s"))
    for batch in (1, 16):
        ratios = [speed_ratio(student, teacher, batch=batch) for _ in range(3)]
        rows.append((f"forward, student over teacher, batch {batch}", f"{statistics.median(ratios):.1f} times"))
    rows.append(("MACs, teacher over student", f"{macs(teacher) / macs(student):.1f} times"))
    if config.out:
        write_atomically(config.out, json.dumps({"rows": rows, "teacher": config.teacher, **provenance()},
                                                indent=1).encode())
    return rows


def show(rows: Sequence[Sequence[str]]) -> str:
    """Rows as a Markdown table."""
    return "\n".join(["| what | figure |", "|---|--:|", *(f"| {name} | {figure} |" for name, figure in rows)])
