"""Generators on the bench: draw samples, measure them, put the numbers of several into one table.

Where torchrun started several processes, samples and their features are dealt out, and each gets
all numbers.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable, Mapping
from functools import partial

import torch
from torch import Tensor

from gapkd import parallel
from gapkd.data.datasets import Dataset, class_shares, ordered_indices
from gapkd.metrics import agreement
from gapkd.metrics.attributes import AttributeNetwork
from gapkd.metrics.distribution import (
    FeatureNetwork,
    collect,
    distribution_metrics,
    frechet_distance,
    metric_name,
    path_length,
)
from gapkd.metrics.features import feature_network, perceptual_distance
from gapkd.metrics.projection import project
from gapkd.metrics.sampling import Part, draw_latents, sample_images, share
from gapkd.networks.base import StyleGenerator
from gapkd.parallel import exactly
from gapkd.progress import bar

Row = dict[str, float | str]
FEWEST = 4
"""Images that a set must have at least: with fewer, some figures cannot be computed."""


def _mine() -> Part:
    return parallel.rank(), parallel.count()


def _of_all(found: list) -> list:
    """What all processes have found, in their order."""
    return [item for part in parallel.gather_objects(found) for item in part]


def _features(network: FeatureNetwork, batches: Iterable[Tensor]) -> Tensor:
    """Features of all processes' images."""
    return torch.cat(_of_all([collect(network, images) for images in batches]))


@exactly()
def real_features(network: FeatureNetwork, dataset: Dataset, samples: int, seed: int = 0,
                  start: int = 0) -> Tensor:
    """Features (samples, F) of images `start`, `start` + 1, ... of the dataset's shuffled
    stream."""
    parts = ordered_indices(dataset.size, start, samples, seed).split(100)
    return _features(network, map(dataset.load, share(parts, _mine())))


class FidProbe:
    """A probe for training: of a generator, {"fid_<features>_<samples>": its FID to a dataset}. The
    real side is read once."""

    def __init__(self, dataset: Dataset, features: str, samples: int, device: torch.device):
        if dataset.size is not None:
            samples = min(samples, dataset.size)
        self.network = feature_network(features, device)
        self.dataset, self.samples, self.real, self.features = dataset, samples, None, features

    @torch.no_grad()
    def try_out(self, G: StyleGenerator) -> None:
        """Look at two images of either side, to find out before a training whether the FID can be
        measured. Raises ValueError."""
        try:
            if self.samples < 2:
                raise ValueError(f"{self.dataset.name} holds {self.dataset.size} image, and two "
                                 "are the least")
            collect(self.network, self.dataset.load(torch.arange(2)))
            collect(self.network, next(sample_images(G.eval(), 2, 30_000)))
        except ValueError as error:
            raise ValueError(f"the FID cannot be measured with fid_features={self.features} "
                             f"({error}): choose others, or set fid_every to 0") from error

    @exactly()
    @torch.no_grad()
    def __call__(self, G: StyleGenerator) -> dict[str, float]:
        if self.real is None:
            self.real = real_features(self.network, self.dataset, self.samples)
        fakes = _features(self.network, sample_images(G, self.samples, 30_000, part=_mine(),
                                                      shares=shares_for(G, self.dataset)))
        name = metric_name("fid", self.network.name, self.samples)
        return {name: frechet_distance(self.real, fakes)}


def shares_for(G: StyleGenerator, dataset: Dataset) -> Tensor | None:
    """How frequent the classes are in the images to compare with; None for a network without
    classes, and, with a warning, for data without: then classes are drawn equally often."""
    if not G.c_dim:
        return None
    labels = getattr(dataset, "labels", None)
    if labels is None or labels.ndim != 1:
        if parallel.is_first():
            warnings.warn(f"{dataset.name} names no classes, so the network's {G.c_dim} are drawn "
                          "equally often; distances to these images count that in. Images that it "
                          "was trained on, named with --data, tell how frequent they are",
                          stacklevel=3)
        return None
    return class_shares(dataset, G.c_dim)


def _check_pair(G: StyleGenerator, teacher: StyleGenerator | None) -> None:
    for name in ("z_dim", "c_dim", "resolution", "img_channels") if teacher is not None else ():
        ours, theirs = getattr(G, name), getattr(teacher, name)
        if ours != theirs:
            raise ValueError("generator and teacher cannot be compared z by z: they have "
                             f"{name} {ours} and {theirs}")


@exactly()
@torch.no_grad()
def evaluate_generator(G: StyleGenerator, net: AttributeNetwork, samples: int = 5000, seed: int = 0,
                       teacher: StyleGenerator | None = None, real: Tensor | None = None,
                       batch: int = 100, space: FeatureNetwork | None = None,
                       progress: str = "", shares: Tensor | None = None) -> dict[str, float]:
    """Everything that is measured about a generator, as one flat dict.

    Args:
        teacher: generator to agree with on the same z; gives `agree_<factor>`, their means
            `agree_mean_accuracy` and `agree_mean_correlation`, `l1`, `perceptual` (each with its
            `_chance`), and the Frechet distance to the teacher's images of the same z,
            fid_to_teacher_... (0 for equal networks; of independent z it would begin at the bias of
            two finite samples); of conditional networks, agreement class by class, too.
        real: features of real images (`real_features`); gives fid_..., kid_..., precision_...
        space: the network whose features those are, as `InceptionNetwork()`; `net` by default.
        progress: what a bar is called that is shown meanwhile; empty: none.
        shares: of the classes, as in `draw_latents`.
    """
    _check_pair(G, teacher)
    # the teacher's own row of a table costs one pass, not two
    generators = [G] if teacher is None or teacher is G else [G, teacher]
    features, readings = [[] for _ in generators], [[] for _ in generators]
    distances, previous = [], None
    streams = [sample_images(g, samples, seed, batch, _mine(), shares) for g in generators]
    every = bar(zip(*streams, strict=True), desc=progress, unit="batches", disable=not progress,
                total=len(share(range(math.ceil(samples / batch)), _mine())))
    for parts in every:
        for n, images in enumerate(parts):
            maps = net.features(images)
            vectors = net.pool(maps) if space is None else space.embed(images)
            features[n].append(vectors.double().cpu())
            readings[n].append(agreement.name_classes(net, net.read(maps)))
        if teacher is not None:
            distances.append(agreement.pair_distances(net, parts[0], parts[-1], previous))
            previous = parts[-1][-1:]
    features = [torch.cat(_of_all(side)) for side in features]
    name, result = net.name if space is None else space.name, {}
    if real is not None:  # every point with every other one: seconds on a CPU
        place = net.device if net.device.type == "cuda" else "cpu"
        result |= distribution_metrics(real.to(place), features[0].to(place), name, seed)
    if teacher is not None:
        readings = [agreement.join_readings(_of_all(side)) for side in readings]
        for factor, entry in agreement.compare_readings(readings[0], readings[-1]).items():
            result[f"agree_{factor}"] = entry.value
            result[f"agree_{factor}_chance"] = entry.chance
        if G.c_dim:
            _, labels = draw_latents(G, samples, seed, shares)
            result |= agreement_by_class(readings[0], readings[-1], labels.argmax(dim=1).cpu())
        result |= agreement.mean_distances(_of_all(distances))
        fid = frechet_distance(features[0], features[-1])
        result[metric_name("fid_to_teacher", name, samples)] = fid
    return result


def agreement_by_class(ours: agreement.Reading, theirs: agreement.Reading, labels: Tensor) -> Row:
    """Of two conditional generators whose images are of the classes `labels`, (N,):
    agree_class<k>_mean_accuracy and _mean_correlation of classes with ten images or more."""
    found = {}
    for number in labels.unique().tolist():
        rows = labels == number
        if rows.sum() < 10:
            continue
        parts = ({name: values[rows] for name, values in side.items()} for side in (ours, theirs))
        for factor, entry in agreement.compare_readings(*parts).items():
            if factor.startswith("mean_"):
                found[f"agree_class{number}_{factor}"] = entry.value
    return found


def measure_latent_space(G: StyleGenerator, net: AttributeNetwork, targets: Tensor,
                         samples: int = 2000, steps: int = 100) -> dict[str, float]:
    """How smooth W is and what can be found in W+: ppl_<network>_<samples> (`path_length`), and the
    mean projection_psnr and projection_perceptual of targets (N, 3, R, R) (`project`)."""
    distance = partial(perceptual_distance, net)
    found = [project(G, part, distance, steps) for part in targets.split(16)]
    return {metric_name("ppl", net.name, samples): path_length(G, distance, samples),
            "projection_psnr": torch.cat([f.psnr for f in found]).mean().item(),
            "projection_perceptual": torch.cat([f.perceptual for f in found]).mean().item()}


def evaluation_table(students: Mapping[str, StyleGenerator], net: AttributeNetwork,
                     dataset: Dataset, teacher: StyleGenerator | None, samples: int = 5000,
                     seed: int = 0, space: FeatureNetwork | None = None, progress: bool = False
                     ) -> list[Row]:
    """One row per generator, led by two that give the numbers their scale: real against other real
    images (the best that can be reached with so many samples) and the teacher, if there is one.
    Every row has "name"; metrics that mean nothing in a row are missing from it. `space` as in
    `evaluate_generator`."""
    for G in students.values():
        _check_pair(G, teacher)
    if dataset.size is not None and dataset.size < 2 * samples:
        most = dataset.size // 2
        mend = f"take samples={most} or fewer, or add images"
        if most < FEWEST:
            mend = f"add images, {2 * FEWEST} are the least"
        raise ValueError(f"{dataset.name} holds {dataset.size} images, too few for two sets of "
                         f"{samples}: {mend}")
    extractor = net if space is None else space
    real = real_features(extractor, dataset, samples, seed)
    other = real_features(extractor, dataset, samples, seed, start=samples)
    rows: list[Row] = [{"name": "real", **distribution_metrics(real, other, extractor.name, seed)}]
    measured = {"teacher": teacher} if teacher else {}
    for name, G in [*measured.items(), *students.items()]:
        metrics = evaluate_generator(G, net, samples, seed, teacher, real, space=space,
                                     progress=name if progress else "",
                                     shares=shares_for(G, dataset))
        rows.append({"name": name, **metrics})
    return rows


def format_table(rows: list[Row], columns: list[str] | None = None, digits: int = 3) -> str:
    """Rows as a Markdown table; by default all columns but the per-factor ones, in order of first
    appearance."""
    if columns is None:
        seen = dict.fromkeys(key for row in rows for key in row if key != "name")
        columns = [c for c in seen if not c.startswith("agree_") or c.startswith("agree_mean")]
    lines = ["| | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
    for row in rows:
        cells = [f"{row[c]:.{digits}f}" if c in row else "-" for c in columns]
        lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines)
