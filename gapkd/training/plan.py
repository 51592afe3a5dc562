"""What a distillation will cost: multiply-accumulates, memory, hours, before it is started.

Work and memory are counted, not guessed: the networks are built on PyTorch's meta device, where
shapes are computed and nothing else. How fast a machine works through that is one number, given or
taken from a run that somebody published.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from gapkd.files.checkpoints import WEIGHTS, CheckpointError, find_checkpoint, read_metadata
from gapkd.metrics.attributes import AttributeNetwork
from gapkd.metrics.cost import macs
from gapkd.networks.stylegan2 import Discriminator, Generator, config_f_channels

CAGAN_HOURS, CAGAN_GPUS, STEPS, BATCH = 131, 2, 450_000, 16
"""The published time of CAGAN's retraining of a 256 px student on V100s, and the length of the
paper's runs."""
PEAKS = {"t4": 8.1, "v100": 15.7, "a100": 19.5, "h100": 67.0}
"""float32 peaks in 10^12 FLOP a second, from NVIDIA's data sheets; a multiply-accumulate is two."""


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
            raise ValueError(f"batch={self.batch} cannot be shared by {self.gpus} GPUs: choose a "
                             "multiple")
        if not 0 < self.keep <= 1 or not self.rate >= 0:
            raise ValueError("keep must lie in (0, 1] and rate must not be negative, not "
                             f"{self.keep}, {self.rate}")


# --------------------------------------------------------------------------------------- counting


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
    """A teacher of that architecture and a student with `keep` of its channels.

    Args:
        d_channels: of the discriminator's blocks, 4x4 first; by default the teacher's.
    """
    with torch.device("meta"):
        teacher = Generator(**architecture)
        student = Generator(**Generator.student_of(teacher, keep, teacher.kernel))
        D = Discriminator(teacher.resolution, d_channels or [pair[1] for pair in teacher.channels],
                          img_channels=teacher.img_channels)
        looks = vgg() if perceptual == "lpips" else nn.Sequential(*AttributeNetwork().blocks)
    largest = 256 if perceptual == "lpips" else AttributeNetwork.size
    looked_at = min(teacher.resolution, largest)
    return Networks(teacher, student, D, looks.requires_grad_(False), looked_at)


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
    channels = getattr(network, "img_channels", 3)
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(1, channels, resolution, resolution, device="meta"))
    return counter.get_total_flops() // 2


def step_macs(n: Networks, views: int = 2, r1_every: int = 16, path_every: int = 0) -> float:
    """Multiply-accumulates of a training step, per image.

    A backward pass costs twice its forward pass (gradients of inputs and of weights), once where
    the weights stay.
    """
    student, teacher, D = macs(n.student), macs(n.teacher), image_macs(n.D, n.D.resolution)
    d_step = student + 2 * 3 * D  # D forward and back, on a real and a drawn image
    # Every view; D and the perceptual network, forward and back to the image; the teacher's image.
    g_step = views * (3 * student + teacher) + 2 * D + 3 * image_macs(n.perceptual, n.looked_at)
    # A gradient is differentiated: forward, back to the image, and three times that through both.
    r1 = 5 * D / r1_every if r1_every else 0.0
    path = 0.5 * 6 * student / path_every if path_every else 0.0  # on half a batch
    return d_step + g_step + r1 + path


def weights_memory(n: Networks) -> int:
    """Bytes that stay for the whole run: weights, gradients, Adam's two moments and the weight
    average; the teacher; the perceptual network."""
    student, D, teacher, perceptual = (sum(p.numel() for p in network.parameters())
                                       for network in (n.student, n.D, n.teacher, n.perceptual))
    return 4 * (5 * student + 4 * D + teacher + perceptual)


def activation_memory(n: Networks, views: int = 2) -> int:
    """Bytes that autograd keeps for one image in the larger of the two steps (float32)."""
    w = torch.empty(views, n.student.num_ws, n.student.w_dim, device="meta")
    shape = 1, n.D.img_channels, n.D.resolution, n.D.resolution
    image = torch.empty(shape, device="meta", requires_grad=True)
    small = torch.empty(1, 3, n.looked_at, n.looked_at, device="meta", requires_grad=True)
    student, critic = saved_bytes(n.student.synthesis, w), saved_bytes(n.D, image)
    # In the generator's step D is only a way back to the image.
    way_back = saved_bytes(copy.deepcopy(n.D).requires_grad_(False), image)
    return max(student + way_back + saved_bytes(n.perceptual, small), 2 * critic)


def saved_bytes(network: nn.Module, x: Tensor) -> int:
    """Bytes of the tensors that autograd keeps of a forward pass; what is kept twice counts once,
    weights not at all."""
    own = {p.untyped_storage()._cdata for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage._cdata not in own:
            kept[storage._cdata] = storage.nbytes()
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        held = network(x)  # noqa: F841 (alive while storages are told apart by address)
    return sum(kept.values())


# --------------------------------------------------------------------------------------- the plan


def architecture_of(name: str) -> dict:
    """Of a file, an embedded network, or configuration f of the size that the name ends in. Raises
    ValueError for anything else."""
    try:
        metadata = read_metadata(find_checkpoint(name))
        if metadata["kind"] != "stylegan2-generator":
            raise ValueError(f"{name} holds a {metadata['kind']}: plans are made for StyleGAN2 "
                             "generators")
        return metadata["architecture"]
    except CheckpointError as error:
        if Path(name, WEIGHTS).exists():  # a shared network, and something is wrong with it
            raise
        size = re.fullmatch(r"[A-Za-z-]*?(\d+)", name)
        resolution = int(size[1]) if size else 0
        if resolution not in (32, 64, 128, 256, 512, 1024, 2048):
            raise ValueError(f"{name} is neither a gapkd file nor an embedded network, nor does it "
                             "end in a power of two from 32 to 2048, as ffhq256 does") from error
        return {"resolution": resolution, "z_dim": 512, "w_dim": 512,
                "channels": config_f_channels(resolution)}


def published_rate() -> tuple[float, float]:
    """(10^12 MACs a second and GPU, share of the V100's float32 peak) of CAGAN's retraining: one
    view (no latent-direction loss), LPIPS, path-length regularisation in every fourth step."""
    n = networks_for(architecture_of("ffhq256"), 0.3)
    work = step_macs(n, views=1, path_every=4) * STEPS * BATCH
    rate = work / (CAGAN_HOURS * 3600 * CAGAN_GPUS) / 1e12
    return rate, 2 * rate / PEAKS["v100"]


def make_plan(config: PlanConfig) -> list[tuple[str, str]]:
    """(what, figure) rows."""
    n = networks_for(architecture_of(config.teacher), config.keep, perceptual=config.perceptual)
    rate, share = published_rate()
    here = config.rate or share * PEAKS[config.gpu] / 2
    per_image, steps = step_macs(n), -(-config.images // config.batch)
    hours = per_image * steps * config.batch / (here * 1e12 * config.gpus) / 3600
    memory = weights_memory(n) + activation_memory(n) * config.batch // config.gpus
    speed = f"{share:.0%} of the float32 peak, as in CAGAN's published run"
    return [
        ("teacher, forward", f"{macs(n.teacher) / 1e9:.2f} G MACs an image"),
        ("student, forward", f"{macs(n.student) / 1e9:.2f} G MACs an image"),
        ("training step",
         f"{per_image * config.batch / 1e12:.2f} T MACs for {config.batch} images"),
        ("run", f"{steps:,} steps, {config.images:,} images"),
        ("memory a GPU, float32",
         f"{memory / 2**30:.1f} GiB: {weights_memory(n) / 2**30:.1f} for weights and optimisers, "
         f"the rest for {config.batch // config.gpus} images"),
        ("speed of one GPU",
         f"{here:.2f} T MACs/s ({config.gpu}; {'as given' if config.rate else speed})"),
        (f"time on {config.gpus}",
         f"{hours:.0f} hours" if hours >= 10 else f"{hours * 60:.0f} minutes"),
        ("is that plausible?",
         f"CAGAN's retraining, published as {CAGAN_HOURS} hours on {CAGAN_GPUS} V100s, comes out "
         f"as {rate:.2f} T MACs/s a GPU, {share:.0%} of the float32 peak"),
    ]
