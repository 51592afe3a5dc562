"""A measuring tape for your own images: an attribute network trained on the labels of a dataset.

The embedded one has only ever seen toy faces. What it is for them, a network trained by `gapkd judge` is for labelled
photographs: the feature space of FID and its kin, the perceptual distance, and the reader whose answers two generators
should agree on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from tqdm.auto import tqdm

from gapkd.data.datasets import ImageFiles, flip, open_dataset, ordered_indices
from gapkd.metrics.features import AttributeNetwork, fit_network, reading_scores, save_attribute_network
from gapkd.training.runs import provenance


@dataclass(frozen=True)
class JudgeConfig:
    """Train a feature network on the labels of a dataset (its dataset.json): what the attribute network is for toy
    faces. Then name its file: `--perceptual FILE`, `--features FILE`, `--judge FILE`."""

    data: str
    """Folder or zip of images with a dataset.json in StyleGAN's format."""
    out: str = "runs/judge.safetensors"
    """The file to write."""
    images: int = 256_000
    """Length of the training."""
    batch: int = 64
    """Images a step."""
    held_out: float = 0.1
    """Share of the images that the training does not see; the scores are read on them."""
    seed: int = 0
    """Of weights, order, and of what is held out."""
    progress: bool = True
    """Show a progress bar."""

    def __post_init__(self):
        if self.images < self.batch or self.batch < 1:
            raise ValueError(f"batch must be at least 1, and images at least that, not {self.batch} and {self.images}")
        if not 0 < self.held_out < 1:
            raise ValueError(f"held_out must lie between 0 and 1, not {self.held_out}")
        if Path(self.out).suffix != ".safetensors":
            raise ValueError(f"{self.out} must end in .safetensors: that is what is written")


def factors_of(dataset: ImageFiles) -> tuple[dict[str, list[str]], dict[str, list[float]], dict[str, Tensor]]:
    """What the labels of a dataset are to an attribute network: categorical factors, continuous ones, true values.

    Whole numbers are the classes of one factor, "label"; if there are two, "label_score" is the same between 0 and 1,
    so that two generators can be compared by degrees. The numbers of a vector are continuous factors, one each.
    Raises ValueError for a dataset without labels, or whose labels are all alike.
    """
    labels = dataset.labels
    if labels is None:
        raise ValueError(f"{dataset.path} has no labels: a judge needs a dataset.json with one label an image")
    if labels.ndim == 2:
        names = [f"label_{k}" for k in range(labels.shape[1])]
        low, high = labels.amin(dim=0).tolist(), labels.amax(dim=0).tolist()
        varying = {name: [low[k], high[k]] for k, name in enumerate(names) if low[k] < high[k]}
        if varying:
            return {}, varying, {name: labels[:, names.index(name)] for name in varying}
    else:
        values, classes = labels.unique(return_inverse=True)
        if len(values) > 1:
            two = len(values) == 2
            return ({"label": [str(v) for v in values.tolist()]}, {"label_score": [0.0, 1.0]} if two else {},
                    {"label": classes} | ({"label_score": classes.float()} if two else {}))
    raise ValueError(f"the labels of {dataset.path} are all alike: there is nothing to learn from them")


def train_judge(config: JudgeConfig) -> dict[str, float]:
    """Train and save a judge; returns its scores on the images held out: accuracy or correlation of every factor, and
    <factor>_majority, the accuracy of always naming the most frequent class. Errors: ValueError (see `factors_of`)."""
    if Path(config.out).exists():
        raise ValueError(f"{config.out} exists already: remove it or choose another out")
    dataset = open_dataset(config.data, AttributeNetwork.size)
    if not isinstance(dataset, ImageFiles):
        raise ValueError("toy faces have a judge already, the embedded attribute network: name a folder or a zip")
    categorical, continuous, truth = factors_of(dataset)
    order = ordered_indices(dataset.size, 0, dataset.size, config.seed)
    kept = round(dataset.size * (1 - config.held_out))
    seen, unseen = order[:kept], order[kept:]
    if not len(seen) or not len(unseen):
        raise ValueError(f"{dataset.path} holds {dataset.size} images, too few to hold {config.held_out:.0%} out")
    coins = torch.Generator().manual_seed(config.seed)

    def examples(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        rows = seen[ordered_indices(len(seen), step * config.batch, config.batch, config.seed)]
        images = flip(dataset.load(rows), torch.rand(config.batch, generator=coins))
        return images, {name: values[rows] for name, values in truth.items()}

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        net = AttributeNetwork(categorical, continuous, name=dataset.name)
    steps = config.images // config.batch
    with tqdm(total=steps, unit="step", desc="judge", leave=False, disable=not config.progress) as bar:
        fit_network(net, examples, steps, config.seed, _advance(bar))
    held_out = ((dataset.load(part), {name: values[part] for name, values in truth.items()})
                for part in unseen.split(250))
    scores = reading_scores(net, held_out)
    for name in categorical:
        counts = truth[name][unseen].bincount()
        scores[f"{name}_majority"] = round((counts.max() / counts.sum()).item(), 4)
    settings: Mapping[str, object] = {
        "command": "judge", "data": dataset.name, "images": steps * config.batch, "batch": config.batch,
        "seed": config.seed, "held_out": {"images": len(unseen), "scores": scores}}
    save_attribute_network(net, config.out, provenance() | settings)
    return scores


def _advance(bar: tqdm) -> Callable[[int, float], None]:
    def show(step: int, loss: float) -> None:
        bar.update(step - bar.n)
        bar.set_postfix(loss=f"{loss:.3f}")

    return show
