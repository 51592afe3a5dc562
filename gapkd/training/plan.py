"""What a distillation will cost: multiply-accumulates, memory, hours, before it is started.

Work and memory are counted, not guessed: the networks are built on PyTorch's meta device, where
shapes are computed and nothing else. How fast a machine works through that is one number, measured
(`measure_growth`) or taken from a run that somebody published.
"""

from __future__ import annotations

import copy
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from gapkd.benchmark import alternate, peak_memory, prepare, step_seconds
from gapkd.distillation.students import kept_channels
from gapkd.files.checkpoints import (
    WEIGHTS,
    CheckpointError,
    find_checkpoint,
    read_metadata,
    write_atomically,
)
from gapkd.metrics.cost import macs
from gapkd.metrics.features import AttributeNetwork
from gapkd.networks.stylegan2 import Discriminator, Generator, config_f_channels
from gapkd.settings import shareable, widths
from gapkd.training.runs import provenance
from gapkd.training.trainer import choose_device
from gapkd.viewing import figures

CAGAN_HOURS, CAGAN_GPUS, STEPS, BATCH = 131, 2, 450_000, 16
"""The published time of CAGAN's retraining of a 256 px student on V100s, and the length of the
paper's runs."""
PEAKS = {"t4": 8.1, "v100": 15.7, "a100": 19.5, "h100": 67.0}
"""float32 peaks in 10^12 FLOP a second, from NVIDIA's data sheets (two FLOPs a
multiply-accumulate)."""


@dataclass(frozen=True)
class PlanConfig:
    """What distilling a teacher costs: MACs a step, memory a GPU, hours. Nothing is trained."""

    teacher: str = "ffhq256"
    """File or embedded name, or a size of StyleGAN2's configuration f: ffhq256, ffhq1024, 512..."""
    keep: float = 0.3
    """Fraction of the channels that the student keeps."""
    batch: int = BATCH
    """Images a step, all GPUs together. Paper: 16."""
    images: int = STEPS * BATCH
    """Length of the run. Paper: 450,000 steps of 16."""
    gpus: int = 4
    """How many."""
    gpu: Literal["t4", "v100", "a100", "h100"] = "v100"
    """Which: its float32 peak is looked up."""
    rate: float = 0.0
    """10^12 MACs a second that one of them really does; 0: the share of the peak of CAGAN's
    published run."""
    perceptual: Literal["lpips", "toyfaces"] = "lpips"
    """Perceptual loss."""

    def __post_init__(self):
        for name in ("batch", "images", "gpus"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.batch % self.gpus:
            raise ValueError(f"batch={self.batch} cannot be shared by {self.gpus} GPUs: choose a multiple")
        if not 0 < self.keep <= 1 or self.rate < 0:
            raise ValueError(f"keep must lie in (0, 1] and rate must not be negative, not {self.keep}, {self.rate}")


# ----------------------------------------------------------------------------------------- counting


@dataclass(frozen=True)
class Networks:
    """All that a distillation step runs, on the meta device."""

    teacher: Generator
    student: Generator
    D: Discriminator
    perceptual: nn.Module
    looked_at: int
    """Pixels a side of the images that the perceptual network is given."""


def networks_for(architecture: dict, keep: float, d_channels: Sequence[int] | None = None,
                 perceptual: str = "lpips") -> Networks:
    """Teacher of that architecture, student with `keep` of its channels, discriminator (by default
    as wide)."""
    with torch.device("meta"):
        teacher = Generator(**architecture)
        pairs = [[kept_channels(c, keep) for c in pair] for pair in teacher.channels]
        student = Generator(**architecture | {"channels": pairs})
        D = Discriminator(teacher.resolution, d_channels or [pair[1] for pair in teacher.channels])
        looks = vgg() if perceptual == "lpips" else nn.Sequential(*AttributeNetwork().blocks)
    largest = 256 if perceptual == "lpips" else AttributeNetwork.size
    return Networks(teacher, student, D, looks.requires_grad_(False), min(teacher.resolution, largest))


def count(run: Callable[[Tensor], object], x: Tensor) -> int:
    """Multiply-accumulates of a call."""
    with FlopCounterMode(display=False) as counter:
        run(x)
    return counter.get_total_flops() // 2


def vgg() -> nn.Sequential:
    """VGG-16's convolutions, the backbone of LPIPS."""
    layers, incoming = [], 3
    for stage, (width, depth) in enumerate(((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))):
        layers += [nn.MaxPool2d(2)] if stage else []
        for _ in range(depth):
            layers += [nn.Conv2d(incoming, width, 3, padding=1), nn.ReLU()]
            incoming = width
    return nn.Sequential(*layers)


def image_macs(network: nn.Module, resolution: int) -> int:
    """Multiply-accumulates of a network on the meta device for one image."""
    return count(network, torch.empty(1, 3, resolution, resolution, device="meta"))


def step_macs(n: Networks, views: int = 2, r1_every: int = 16, path_every: int = 0) -> float:
    """Multiply-accumulates of a training step, per image.

    A backward pass costs twice its forward pass (gradients of inputs and of weights), once where
    the weights stay. Discriminator step: student forward, D forward and back on a real and a fake
    image. Generator step: student forward and back and teacher forward on every view, D and the
    perceptual network forward and back to the image, the latter forward on the teacher's image too.
    R1 differentiates a gradient: forward, back to the image, and three times as much to go back
    through both.
    """
    student, teacher, D = macs(n.student), macs(n.teacher), image_macs(n.D, n.D.resolution)
    d_step = student + 2 * 3 * D
    g_step = views * (3 * student + teacher) + 2 * D + 3 * image_macs(n.perceptual, n.looked_at)
    r1 = 5 * D / r1_every if r1_every else 0.0
    path = 0.5 * 6 * student / path_every if path_every else 0.0  # on half a batch
    return d_step + g_step + r1 + path


def weights_memory(n: Networks) -> int:
    """Bytes that stay for the whole run: weights, gradients, Adam's two moments and the weight
    average; the teacher; the perceptual network."""
    student, D, teacher, judge = (sum(p.numel() for p in network.parameters())
                                  for network in (n.student, n.D, n.teacher, n.perceptual))
    return 4 * (5 * student + 4 * D + teacher + judge)


def activation_memory(n: Networks, views: int = 2) -> int:
    """Bytes that autograd keeps for one image in the larger of the two steps (float32)."""
    w = torch.empty(views, n.student.num_ws, n.student.w_dim, device="meta")
    image = torch.empty(1, 3, n.D.resolution, n.D.resolution, device="meta", requires_grad=True)
    small = torch.empty(1, 3, n.looked_at, n.looked_at, device="meta", requires_grad=True)
    student, critic = saved_bytes(n.student.synthesis, w), saved_bytes(n.D, image)
    # Only a way back to the image
    judge = saved_bytes(copy.deepcopy(n.D).requires_grad_(False), image)
    return max(student + judge + saved_bytes(n.perceptual, small), 2 * critic)


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes of the tensors that autograd keeps of a forward pass; weights and what is kept twice
    count once."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        held = network(x)  # noqa: F841 (alive while storages are told apart by their addresses)
    return sum(kept.values())


# ----------------------------------------------------------------------------------------- the plan


def architecture_of(name: str) -> dict:
    """Of a file, an embedded network, or configuration f of the size that the name ends in.

    Raises ValueError for anything else.
    """
    try:
        metadata = read_metadata(find_checkpoint(name))
        if metadata["kind"] != "stylegan2-generator":
            raise ValueError(f"{name} holds a {metadata['kind']}: plans are made for StyleGAN2 generators")
        return metadata["architecture"]
    except CheckpointError as error:
        if Path(name, WEIGHTS).exists():  # a shared network, and something is wrong with it
            raise
        size = re.fullmatch(r"[A-Za-z-]*?(\d+)", name)
        resolution = int(size[1]) if size else 0
        if not (resolution and 32 <= resolution <= 2048 and resolution & (resolution - 1) == 0):
            raise ValueError(f"{name} is neither a gapkd file nor an embedded network, nor does it end in a power of "
                             "two from 32 to 2048, as ffhq256 does") from error
        return {"resolution": resolution, "z_dim": 512, "w_dim": 512, "channels": config_f_channels(resolution)}


def published_rate() -> tuple[float, float]:
    """(10^12 MACs a second and GPU, share of the V100's float32 peak) at which CAGAN's retraining
    ran.

    Its step is that of `step_macs` with one view (it has no latent-direction loss), LPIPS, and
    path-length regularisation in every fourth step.
    """
    n = networks_for(architecture_of("ffhq256"), 0.3)
    rate = step_macs(n, views=1, path_every=4) * STEPS * BATCH / (CAGAN_HOURS * 3600 * CAGAN_GPUS) / 1e12
    return rate, 2 * rate / PEAKS["v100"]


def make_plan(config: PlanConfig) -> list[tuple[str, str]]:
    """(what, figure) rows."""
    n = networks_for(architecture_of(config.teacher), config.keep, perceptual=config.perceptual)
    rate, share = published_rate()
    here = config.rate or share * PEAKS[config.gpu] / 2
    per_image, steps = step_macs(n), -(-config.images // config.batch)
    hours = per_image * steps * config.batch / (here * 1e12 * config.gpus) / 3600
    memory = weights_memory(n) + activation_memory(n) * config.batch // config.gpus
    speed = "as given" if config.rate else f"{share:.0%} of the float32 peak, as in CAGAN's published run"
    return [
        ("teacher, forward", f"{macs(n.teacher) / 1e9:.2f} G MACs an image"),
        ("student, forward", f"{macs(n.student) / 1e9:.2f} G MACs an image"),
        ("training step", f"{per_image * config.batch / 1e12:.2f} T MACs for {config.batch} images"),
        ("run", f"{steps:,} steps, {config.images:,} images"),
        ("memory a GPU, float32", f"{memory / 2**30:.1f} GiB: {weights_memory(n) / 2**30:.1f} for weights and "
                                  f"optimisers, the rest for {config.batch // config.gpus} images"),
        ("speed of one GPU", f"{here:.2f} T MACs/s ({config.gpu}; {speed})"),
        (f"time on {config.gpus}", f"{hours:.0f} hours" if hours >= 10 else f"{hours * 60:.0f} minutes"),
        ("is that plausible?", f"CAGAN's retraining, published as {CAGAN_HOURS} hours on {CAGAN_GPUS} V100s, comes out "
                               f"as {rate:.2f} T MACs/s a GPU, {share:.0%} of the float32 peak"),
    ]


# ------------------------------------------------------------------------------------------- growth


GROWTH = {"resolution": ((32, 64, 16), (64, 64, 16), (128, 64, 16)),
          "channels": ((32, 16, 16), (32, 32, 16), (32, 64, 16), (32, 128, 16)),
          "batch": ((32, 64, 4), (32, 64, 8), (32, 64, 16), (32, 64, 32))}
"""(resolution, channels, batch) of the teacher whose distillation step is measured: one of them
grows at a time."""


@dataclass(frozen=True)
class GrowthConfig:
    """Measure how time and memory of a distillation step grow with resolution, channels and
    batch."""

    repeats: int = 5
    """Timed steps of each size."""
    device: str = "auto"
    """"auto", "cpu", "cuda", "cuda:1"..."""
    out: str = "runs/growth.json"
    """JSON file for the measurements and the fitted lines, with commit and hardware; empty:
    none."""
    plot: str = "runs/growth.png"
    """Picture of them; empty: none."""


def measure_growth(config: GrowthConfig) -> dict:
    """{"rows", "seconds", "memory"}: what was measured, and the fitted lines (see `fit_line`)."""
    device = choose_device(config.device)
    rows = []
    for resolution, channels, batch in sorted({size for sizes in GROWTH.values() for size in sizes}):
        n = networks_for({"resolution": resolution, "z_dim": 128, "w_dim": 128, "channels": channels}, 0.3,
                         widths((channels,), resolution), "toyfaces")
        runs = prepare("distillation", resolution, batch, device, channels=channels)
        (times,) = alternate([runs], device, config.repeats)
        memory = peak_memory(prepare, device, "distillation", resolution, batch, device, False, channels)
        rows.append({"resolution": resolution, "channels": channels, "batch": batch, "seconds": step_seconds(times),
                     "memory": memory, "macs": step_macs(n) * batch, "counted_memory": activation_memory(n) * batch})
    growth = {"rows": rows, "seconds": fit_line([r["macs"] for r in rows], [r["seconds"] for r in rows]),
              "memory": fit_line([r["counted_memory"] for r in rows], [r["memory"] for r in rows]),
              "settings": shareable(asdict(config)), **provenance()}
    if config.out:
        write_atomically(config.out, json.dumps(growth, indent=1).encode())
    if config.plot:
        write_atomically(config.plot, figures.to_png(growth_figure(growth)))
    return growth


def growth_figure(growth: dict) -> Figure:
    """What was measured against what was counted, with the fitted lines."""
    def points(x: str, y: str, x_unit: float, y_unit: float) -> dict[str, list[tuple[float, float]]]:
        rows = {(r["resolution"], r["channels"], r["batch"]): r for r in growth["rows"]}
        return {f"{what} grows": [(rows[size][x] / x_unit, rows[size][y] / y_unit) for size in sizes]
                for what, sizes in GROWTH.items()}

    def line(fit: dict[str, float], x_unit: float, y_unit: float) -> Callable[[float], float]:
        return lambda x: (fit["offset"] + fit["slope"] * x * x_unit) / y_unit

    return figures.fitted([
        ("time of a distillation step", "counted work, 10⁹ multiply-accumulates", "seconds",
         points("macs", "seconds", 1e9, 1), line(growth["seconds"], 1e9, 1)),
        ("memory of a distillation step", "counted: kept by autograd, MB", "measured, MB",
         points("counted_memory", "memory", 2**20, 2**20), line(growth["memory"], 2**20, 2**20))])


def show_growth(growth: dict) -> str:
    """The measurements and the fits as Markdown."""
    lines = ["| resolution | channels | batch | work, 10^9 MACs | s a step | line says | memory, MB | line says |",
             "|--:|--:|--:|--:|--:|--:|--:|--:|"]
    time, memory = growth["seconds"], growth["memory"]
    for r in growth["rows"]:
        lines.append(
            f"| {r['resolution']} | {r['channels']} | {r['batch']} | {r['macs'] / 1e9:.1f} | {r['seconds']:.3f} | "
            f"{time['offset'] + time['slope'] * r['macs']:.3f} | {r['memory'] / 2**20:.0f} | "
            f"{(memory['offset'] + memory['slope'] * r['counted_memory']) / 2**20:.0f} |")
    return "\n".join([
        *lines, "",
        f"A step takes {time['offset']:.3f} s and one more second for every {1e-9 / time['slope']:.0f} x 10^9 "
        f"multiply-accumulates (typical error {time['error']:.0%}); memory is {memory['offset'] / 2**20:.0f} MB and "
        f"{memory['slope']:.2f} times what autograd is counted to keep (typical error {memory['error']:.0%})."])


def fit_line(x: Sequence[float], y: Sequence[float]) -> dict[str, float]:
    """y = offset + slope x, fitted to relative errors (sizes span decades); "error" is their
    typical size."""
    xs, ys = torch.tensor(x, dtype=torch.float64), torch.tensor(y, dtype=torch.float64)
    design = torch.stack([1 / ys, xs / ys], dim=1)
    offset, slope = torch.linalg.lstsq(design, torch.ones(len(ys), 1, dtype=torch.float64)).solution[:, 0].tolist()
    error = ((offset + slope * xs) / ys - 1).square().mean().sqrt().item()
    return {"offset": offset, "slope": slope, "error": error}
