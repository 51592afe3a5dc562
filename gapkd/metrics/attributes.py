"""The attribute network: what does an image show?

A small convolutional network that plays the part of two large downloads: its feature maps give the
perceptual distance (as VGG in LPIPS), its pooled features FID, KID, precision and recall (as
Inception); and its heads say what a face shows. The embedded one knows toy faces; `gapkd judge`
trains one on the labels of other images.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from gapkd.data.datasets import CHECK_SECONDS, ImageFiles, flip, open_dataset, ordered_indices
from gapkd.data.images import check_range, with_channels
from gapkd.data.toyfaces import CATEGORICAL, CONTINUOUS, face_mask, toy_faces
from gapkd.files.checkpoints import (
    CheckpointError,
    find_checkpoint,
    read_metadata,
    save_network,
)
from gapkd.files.provenance import provenance
from gapkd.files.storage import new_file
from gapkd.networks.base import Network
from gapkd.networks.layers import full_precision
from gapkd.parallel import seeded
from gapkd.progress import bar

HELD_OUT = 50_000_000  # held-out toy faces start here; training stays far below it
Example = tuple[Tensor, Mapping[str, Tensor]]  # images (N, 3, R, R) and their factors, (N,) each


class AttributeNetwork(Network):
    """Four strided convolution blocks, then one linear head for every factor.

    Args:
        categorical: factor -> names of its classes.
        continuous: factor -> (low, high); the network's value for it is (v - low) / (high - low).
        channels: width of each block, a multiple of 8.
        hidden: width of the layer below the heads.
        name: of the images that it was trained on; it goes into the names of metrics.
    Images are (N, 3, R, R) in [-1, 1] with R >= 32; larger ones are averaged down to 32 px first.
    """

    kind = "attribute-network"
    size = 32  # px at which the network looks

    def __init__(self, categorical: Mapping[str, Sequence[str]] = CATEGORICAL,
                 continuous: Mapping[str, Sequence[float]] = CONTINUOUS,
                 channels: Sequence[int] = (32, 64, 128, 192), hidden: int = 256,
                 name: str = "toyfaces"):
        super().__init__()
        if not isinstance(name, str):
            raise ValueError(f"name must be a text, not {repr(name)[:40]}")
        if len(channels) != 4:  # the trunk reads 2x2 px
            raise ValueError(f"an attribute network has four blocks, not {len(channels)}")
        self.name = name
        self.categorical = {factor: tuple(classes) for factor, classes in categorical.items()}
        self.continuous = {factor: (float(a), float(b)) for factor, (a, b) in continuous.items()}
        self.channels, self.hidden = tuple(channels), hidden
        # The first kernel is 4: at stride 2 a 3x3 one would weigh the pixels of a two-pixel eye
        # unequally.
        self.blocks, incoming, kernel = nn.ModuleList(), 3, 4
        for width in channels:
            self.blocks.append(nn.Sequential(
                nn.Conv2d(incoming, width, kernel, stride=2, padding=1),
                nn.GroupNorm(8, width), nn.LeakyReLU(0.2)))
            incoming, kernel = width, 3
        self.trunk = nn.Sequential(nn.Linear(incoming * 4, hidden), nn.LeakyReLU(0.2))
        classes = sum(map(len, self.categorical.values()))
        self.heads = nn.Linear(hidden, classes + len(self.continuous))

    @property
    def device(self) -> torch.device:
        return self.heads.weight.device

    def features(self, images: Tensor) -> list[Tensor]:
        """Output of every block: (N, C_i, r, r) with r = 16, 8, 4, 2."""
        check_range(images)
        known = images.ndim == 4 and images.shape[1] in (1, 3, 4)
        if not known or min(images.shape[2:]) < self.size:
            raise ValueError("the attribute network reads images of shape (N, 3, R, R) with R of "
                             f"at least {self.size}, not {tuple(images.shape)}")
        x = with_channels(images.to(self.heads.weight.dtype))
        if x.shape[2:] != (self.size, self.size):
            x = F.adaptive_avg_pool2d(x, self.size)
        maps = []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def embed(self, images: Tensor) -> Tensor:
        """Spatial means of all blocks side by side, texture first and meaning last: (N, F)."""
        return self.pool(self.features(images))

    def factors(self, images: Tensor) -> dict[str, Tensor]:
        """Factor -> logits (N, classes) if categorical, value (N,), about 0 to 1, if continuous."""
        return self.read(self.features(images))

    def pool(self, maps: list[Tensor]) -> Tensor:
        """`embed` of images whose `features` are known."""
        return torch.cat([m.mean(dim=(2, 3)) for m in maps], dim=1)

    def read(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """`factors` of images whose `features` are known."""
        out = self.heads(self.trunk(maps[-1].flatten(1)))
        sizes = [len(classes) for classes in self.categorical.values()]
        *logits, values = out.split([*sizes, len(self.continuous)], dim=1)
        read = dict(zip(self.categorical, logits, strict=True))
        return read | dict(zip(self.continuous, values.unbind(dim=1), strict=True))


@torch.no_grad()
def head_mask(net: AttributeNetwork, images: Tensor) -> Tensor:
    """Head, hair and ears of toy faces (N, 3, R, R), as CAGAN wants them: (N, 1, R, R) in [0, 1].
    The network reads what the faces show, and the renderer draws the mask of such faces. Raises
    ValueError for a network that reads other factors."""
    if (net.categorical, net.continuous) != (CATEGORICAL, CONTINUOUS):
        raise ValueError("the attribute network was trained on other images than toy faces as they "
                         "are drawn today: train one with `gapkd judge --data toyfaces`")
    with full_precision(images):
        read = net.factors(images)
    factors = {name: read[name].argmax(dim=1) for name in net.categorical}
    for name, (low, high) in net.continuous.items():
        factors[name] = low + (high - low) * read[name].clamp(0, 1)
    return face_mask(factors, images.shape[-1])


# -- files ---------------------------------------------------------------------------------------


def load_attribute_network(path: str | Path = "attributes") -> AttributeNetwork:
    """Load a network, by default the embedded one: eval mode, CPU, no gradients. Raises
    CheckpointError when the file is missing, truncated or of another kind."""
    file = find_checkpoint(path)
    metadata = read_metadata(file)
    if metadata["kind"] != AttributeNetwork.kind:
        raise CheckpointError(f"{file.name} holds a {metadata['kind']}, but an "
                              f"{AttributeNetwork.kind} was asked for")
    try:
        with torch.device("meta"):  # a hostile size costs nothing before the weights confirm it
            net = AttributeNetwork(**metadata["architecture"])
        net.load_state_dict(load_file(file), assign=True)
        if not all(weight.isfinite().all() for weight in net.float().parameters()):
            raise ValueError("some are not finite")
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(f"the weights in {file.name} do not fit the architecture its "
                              f"metadata names ({first}): the file is damaged or was edited"
                              ) from error
    return net.eval().requires_grad_(False)


def reader(name: str, device: str | torch.device = "cpu") -> AttributeNetwork:
    """The embedded network for "toyfaces", else that of a file of `gapkd judge`."""
    return load_attribute_network("attributes" if name == "toyfaces" else name).to(device)


# -- training ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AttributeConfig:
    """Train a feature network on the labels of a dataset (its dataset.json): what the attribute
    network is for toy faces. Then name its file: `--perceptual FILE`, `--features FILE`,
    `--judge FILE`."""

    data: str
    """Folder or zip of images with a dataset.json in StyleGAN's format; or "toyfaces", which the
    embedded network knows."""
    out: str = "runs/judge.safetensors"
    """The file to write."""
    images: int = 256_000
    """Length of the training."""
    batch: int = 64
    """Images a step."""
    held_out: float = 0.1
    """Share of the images that the training does not see; the scores are read on them. (Toy faces
    have no end: 5,000 of them.)"""
    flip: bool = False
    """Mirror labelled images at random: of use where no label knows left from right."""
    seed: int = 0
    """Of weights, order, and of what is held out."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self):
        if self.images < self.batch or self.batch < 1:
            raise ValueError("batch must be at least 1, and images at least that, not "
                             f"{self.batch} and {self.images}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, not {self.held_out}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"seed must lie between 0 and 2^63 - 1, not {self.seed}")
        if self.flip and self.data == "toyfaces":
            raise ValueError("flip is for labelled images, and toy faces are not mirrored: leave "
                             "it out")


def train_attribute_network(config: AttributeConfig) -> dict[str, float]:
    """Train and save an attribute network; returns its `reading_scores` on the images held out.
    Raises ValueError for a file that exists, labels that teach nothing or too few images."""
    new_file(config.out, ".safetensors")
    started = time.perf_counter()
    lessons = _ToyLessons(config) if config.data == "toyfaces" else _LabelLessons(config)
    with seeded(config.seed):
        net = AttributeNetwork(lessons.categorical, lessons.continuous, name=lessons.name)
    steps = config.images // config.batch
    fit_network(net, lessons.batch, steps, config.seed, config.progress)
    scores = reading_scores(net, map(lessons.read, lessons.unseen.split(250)))
    settings = {"command": "judge", "data": lessons.name, "images": steps * config.batch,
                "batch": config.batch, "seed": config.seed, "flip": config.flip,
                "seconds": round(time.perf_counter() - started),
                "held_out": {"images": len(lessons.unseen), "scores": scores}}
    save_network(net, config.out, provenance() | settings)
    return scores


class _ToyLessons:
    """Toy faces know their factors: fresh ones at every step, 5,000 far away are held out."""

    name, categorical, continuous = "toyfaces", CATEGORICAL, CONTINUOUS

    def __init__(self, config: AttributeConfig):
        self.config, self.unseen = config, torch.arange(HELD_OUT, HELD_OUT + 5000)

    def read(self, rows: Tensor) -> Example:
        return toy_faces(rows, AttributeNetwork.size, self.config.seed)

    def batch(self, step: int) -> Example:
        return self.read(torch.arange(step * self.config.batch, (step + 1) * self.config.batch))


class _LabelLessons:
    """Labelled images, some of them held out."""

    def __init__(self, config: AttributeConfig):
        self.config, self.dataset = config, open_dataset(config.data, AttributeNetwork.size)
        self.dataset.check(CHECK_SECONDS)
        self.name, size, path = self.dataset.name, self.dataset.size, self.dataset.path
        classes, truth = factors_of(self.dataset)
        order = ordered_indices(size, 0, size, config.seed)
        kept = round(size * (1 - config.held_out))
        seen, unseen = order[:kept], order[kept:]
        if not len(seen) or not len(unseen):
            raise ValueError(f"{path} holds {size} images, too few to hold {config.held_out:g} "
                             "of them out: add images or change held_out")
        for values in truth.values():
            seen, unseen = lend(seen, unseen, values)
            unseen, seen = lend(unseen, seen, values)
        rare = [name for name, values in truth.items()
                if not (varies(values[seen]) and varies(values[unseen]))]
        if len(rare) == len(truth):
            raise ValueError(f"the labels of {path} are alike but for a single image, so they "
                             "cannot be both learnt and measured: add images whose label differs "
                             "from the others'")
        if rare:
            warnings.warn(f"{', '.join(rare)} of {path} differ in a single image each: they are "
                          "neither learnt nor measured", stacklevel=3)
        if "label" in truth and (alone := int((truth["label"].bincount() == 1).sum())):
            warnings.warn(f"{alone:,} of the {len(classes['label']):,} classes of {path} have a "
                          "single image each, so that they are either learnt or measured: add "
                          "images of them", stacklevel=3)
        self.truth = {name: values for name, values in truth.items() if name not in rare}
        self.categorical = {name: found for name, found in classes.items() if name not in rare}
        self.continuous = {name: (values.min().item(), values.max().item())
                           for name, values in self.truth.items() if name not in classes}
        self.seen, self.unseen = seen, unseen
        self.coins = torch.Generator().manual_seed(config.seed)

    def read(self, rows: Tensor) -> Example:
        factors = {name: values[rows] for name, values in self.truth.items()}
        return self.dataset.load(rows), factors

    def batch(self, step: int) -> Example:
        count, seed = self.config.batch, self.config.seed
        images, factors = self.read(
            self.seen[ordered_indices(len(self.seen), step * count, count, seed)])
        if self.config.flip:
            images = flip(images, torch.rand(count, generator=self.coins))
        return images, factors


def varies(values: Tensor) -> bool:
    return bool(values.min() < values.max())


def lend(giver: Tensor, taker: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
    """Two lists of rows; if all values of the second are alike, with a row of the first that
    differs, where there are two."""
    others = (values[giver] != values[taker[0]]).nonzero()[:, 0]
    if varies(values[taker]) or len(others) < 2:
        return giver, taker
    kept = torch.arange(len(giver)) != others[0]
    return giver[kept], torch.cat([taker, giver[others[:1]]])


def factors_of(dataset: ImageFiles) -> tuple[dict[str, list[str]], dict[str, Tensor]]:
    """The classes of a dataset's categorical factors, and the true values of all factors.

    Whole numbers are the classes of one factor, "label"; if there are two, "label_score" is the
    same between 0 and 1, so that two generators can be compared by degrees. The numbers of a vector
    are continuous factors, one each. Raises ValueError for no labels, or labels that are all alike.
    """
    labels = dataset.labels
    if labels is None:
        raise ValueError(f"{dataset.path} has no labels: a judge needs a dataset.json with one "
                         "label per image")
    if labels.ndim == 1 and varies(labels):
        values, classes = labels.unique(return_inverse=True)
        score = {"label_score": classes.float()} if len(values) == 2 else {}
        return {"label": [str(v) for v in values.tolist()]}, {"label": classes} | score
    columns = labels.double().view(len(labels), -1).unbind(dim=1)
    varying = {f"label_{k}": v for k, v in enumerate(columns) if varies(v)}
    if not varying:
        raise ValueError(f"the labels of {dataset.path} are all alike: there is nothing to learn "
                         "from them")
    return {}, varying


def _roughen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Half of the images a little blurred and noisy: a GAN's imperfect faces are to be read too."""
    n = images.shape[0]
    rough = (torch.rand(n, 1, 1, 1, generator=generator) < 0.5).float()
    mix = 0.5 * rough * torch.rand(n, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    strength = 0.08 * rough * torch.rand(n, 1, 1, 1, generator=generator)
    return images.lerp(blurred, mix) + strength * torch.randn(images.shape, generator=generator)


def factor_loss(net: AttributeNetwork, images: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy of the categorical factors plus 10 x squared error of the normalised continuous
    ones, summed."""
    read = net.factors(images)
    loss = torch.zeros((), device=images.device)
    for name in net.categorical:
        loss = loss + F.cross_entropy(read[name], factors[name])
    for name, (low, high) in net.continuous.items():
        target = (factors[name] - low) / (high - low)  # large numbers need their 64 bits till here
        loss = loss + 10 * F.mse_loss(read[name], target.to(read[name]))
    return loss


def fit_network(net: AttributeNetwork, examples: Callable[[int], Example], steps: int, seed: int,
                progress: bool) -> AttributeNetwork:
    """Train a network to read factors (AdamW, one cycle up to 3e-3), step by step on the examples
    of that step; returns it in eval mode."""
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    total = max(steps, 3)  # the schedule divides by the length of either phase, less 1
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=3e-3, total_steps=total, pct_start=max(0.1, 2 / total))
    shown = bar(range(steps), unit="step", desc="attributes", disable=not progress)
    for step in shown:
        images, factors = examples(step)
        loss = factor_loss(net, _roughen(images, generator), factors)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if step % 100 == 0:
            shown.set_postfix(loss=f"{loss.item():.3f}")
    return net.eval().requires_grad_(False)


@torch.no_grad()
def reading_scores(net: AttributeNetwork, examples: Iterable[Example]) -> dict[str, float]:
    """Accuracy per categorical factor, beside it that of always naming the most frequent class,
    <factor>_majority, and correlation per continuous factor."""
    read, true = [], []
    for images, factors in examples:
        read.append(net.factors(images))
        true.append(factors)
    scores = {}
    for name in [*net.categorical, *net.continuous]:
        value = torch.cat([part[name] for part in read])
        truth = torch.cat([part[name] for part in true])
        if name in net.categorical:
            scores[name] = (value.argmax(dim=1) == truth).double().mean()
            scores[f"{name}_majority"] = truth.bincount().max() / len(truth)
        else:
            pair = torch.stack([value.double(), truth.double()])
            scores[name] = torch.corrcoef(pair)[0, 1].nan_to_num(0.0)  # the same for all images
    return {name: round(score.item(), 4) for name, score in scores.items()}
