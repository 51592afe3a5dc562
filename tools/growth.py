"""How time and memory of a distillation step grow with resolution, channels and batch.

    python -m tools.growth --out data/results/growth.json --plot data/growth.png

What is counted beforehand (gapkd.training.plan) is laid beside what is measured, and a straight
line is fitted, from which one may guess at sizes between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import tyro
from matplotlib.figure import Figure

from gapkd.files.storage import write_atomically
from gapkd.parallel import choose_device
from gapkd.settings import widths
from gapkd.training.plan import activation_memory, networks_for, step_macs
from gapkd.viewing import figures
from tools.benchmark import alternate, peak_memory, prepare, step_seconds, store

GROWTH = {"resolution": ((32, 64, 16), (64, 64, 16), (128, 64, 16)),
          "channels": ((32, 16, 16), (32, 32, 16), (32, 64, 16), (32, 128, 16)),
          "batch": ((32, 64, 4), (32, 64, 8), (32, 64, 16), (32, 64, 32))}
"""(resolution, channels, batch) of the teacher whose step is measured: one grows at a time."""


@dataclass(frozen=True)
class GrowthConfig:
    """Measure how time and memory of a distillation step grow."""

    repeats: int = 5
    """Timed steps of each size."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"..."""
    out: str = "runs/growth.json"
    """JSON file for measurements and fitted lines, with commit and hardware; empty: none."""
    plot: str = "runs/growth.png"
    """Picture of them; empty: none."""


def measure_growth(config: GrowthConfig) -> dict:
    """{"rows", "seconds", "memory"}: what was measured, and the fitted lines (see `fit_line`)."""
    device = choose_device(config.device)
    rows = []
    sizes = {size for grown in GROWTH.values() for size in grown}
    for resolution, channels, batch in sorted(sizes):
        architecture = {"resolution": resolution, "z_dim": 128, "w_dim": 128, "channels": channels}
        n = networks_for(architecture, 0.3, widths((channels,), resolution), "toyfaces")
        make = partial(prepare, "distillation", resolution, batch, device, channels=channels)
        (times,) = alternate([make()], device, config.repeats)
        rows.append({
            "resolution": resolution, "channels": channels, "batch": batch,
            "seconds": step_seconds(times), "memory": peak_memory(make, device),
            "macs": step_macs(n) * batch, "counted_memory": activation_memory(n) * batch})
    growth = {"rows": rows}
    for measured, counted in (("seconds", "macs"), ("memory", "counted_memory")):
        growth[measured] = fit_line([r[counted] for r in rows], [r[measured] for r in rows])
    if config.plot:
        write_atomically(config.plot, figures.to_png(growth_figure(growth)))
    return store(growth, config)


def fit_line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """y = offset + slope x, fitted to relative errors, as sizes span decades; "error" is their
    typical size."""
    slope, offset = np.polyfit(x, y, 1, w=1 / np.array(y))
    errors = (offset + slope * np.array(x)) / y - 1
    return {"offset": float(offset), "slope": float(slope),
            "error": float(np.sqrt(np.mean(errors**2)))}


def says(fit: dict[str, float], x: float) -> float:
    """What a fitted line says."""
    return fit["offset"] + fit["slope"] * x


def growth_figure(growth: dict) -> Figure:
    """What was measured against what was counted, with the fitted lines."""
    rows = {(r["resolution"], r["channels"], r["batch"]): r for r in growth["rows"]}
    panels = []
    for title, x_label, y_label, counted, measured, x_unit, y_unit in (
            ("time of a distillation step", "counted work, 10⁹ multiply-accumulates", "seconds",
             "macs", "seconds", 1e9, 1),
            ("memory of a distillation step", "counted: kept by autograd, MB", "measured, MB",
             "counted_memory", "memory", 2**20, 2**20)):
        points = {f"{what} grows": [(rows[size][counted] / x_unit, rows[size][measured] / y_unit)
                                    for size in sizes] for what, sizes in GROWTH.items()}
        line = {"offset": growth[measured]["offset"] / y_unit,
                "slope": growth[measured]["slope"] * x_unit / y_unit}
        panels.append((title, x_label, y_label, points, partial(says, line)))
    return figures.fitted(panels)


def show_growth(growth: dict) -> str:
    """The measurements and the fits as Markdown."""
    lines = ["| resolution | channels | batch | work, 10^9 MACs | s a step | line says "
             "| memory, MB | line says |", "|--:|--:|--:|--:|--:|--:|--:|--:|"]
    time, memory = growth["seconds"], growth["memory"]
    for r in growth["rows"]:
        lines.append(f"| {r['resolution']} | {r['channels']} | {r['batch']} "
                     f"| {r['macs'] / 1e9:.1f} | {r['seconds']:.3f} | {says(time, r['macs']):.3f} "
                     f"| {r['memory'] / 2**20:.0f} "
                     f"| {says(memory, r['counted_memory']) / 2**20:.0f} |")
    return "\n".join([
        *lines, "",
        f"A step takes {time['offset']:.3f} s and one more second for every "
        f"{1e-9 / time['slope']:.0f} x 10^9 multiply-accumulates (typical error "
        f"{time['error']:.0%}); memory is {memory['offset'] / 2**20:.0f} MB and "
        f"{memory['slope']:.2f} times what autograd is counted to keep (typical error "
        f"{memory['error']:.0%})."])


if __name__ == "__main__":
    print(show_growth(measure_growth(tyro.cli(GrowthConfig, prog="python -m tools.growth"))))
