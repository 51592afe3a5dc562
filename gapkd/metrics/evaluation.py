"""Generators on the bench: draw samples, measure them, put the figures of several into one table.

Where torchrun started several processes, samples and their features are dealt out, and each gets all figures.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from gapkd import parallel
from gapkd.data.datasets import Dataset, ordered_indices
from gapkd.distillation.pruning import AnyGenerator
from gapkd.metrics.distribution import (
    FeatureNetwork,
    Reading,
    SameZ,
    collect,
    compare_readings,
    distribution_metrics,
    frechet_distance,
    join_readings,
    metric_name,
    name_classes,
    path_length,
)
from gapkd.metrics.features import AttributeNetwork, InceptionNetwork, perceptual_distance, reader
from gapkd.metrics.projection import project
from gapkd.networks.stylegan2 import Generator, Noise

Row = dict[str, float | str]
T = TypeVar("T")


def draw_latents(G: Generator, samples: int, seed: int) -> tuple[Tensor, Tensor | None]:
    """z (samples, z_dim), and one-hot labels (samples, c_dim) or None, on the CPU: the same for every batch
    size."""
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(samples, G.z_dim, generator=generator)
    if not G.c_dim:
        return z, None
    return z, torch.eye(G.c_dim)[torch.randint(G.c_dim, (samples,), generator=generator)]


@torch.no_grad()
def sample_images(G: Generator, samples: int, seed: int, batch: int = 100, noise: Noise = "const",
                  truncation: float = 1.0, part: tuple[int, int] = (0, 1)) -> Iterator[Tensor]:
    """Batches of images (n, 3, R, R) in [-1, 1], clamped, on the generator's device; `samples` of them in
    all.

    Args:
        part: (i, n) gives the i-th of n runs of batches, what process i of n has to do.
    """
    device = next(G.parameters()).device
    z, c = draw_latents(G, samples, seed)
    for start in _own(range(0, samples, batch), part):
        rows = slice(start, start + batch)
        noise_generator = torch.Generator(device).manual_seed(seed + 1 + start)
        labels = None if c is None else c[rows].to(device)
        images = G(z[rows].to(device), labels, truncation=truncation, noise=noise, generator=noise_generator)
        yield images.clamp(-1, 1)


@torch.no_grad()
def draw_sheet(G: Generator, count: int, seed: int, truncation: float = 1.0, label: int = -1) -> Tensor:
    """Images (count, 3, R, R) for the eye, about [-1, 1], on the CPU; noise maps as stored.

    Args:
        label: class of a conditional network's images; -1: all classes in turn.
    """
    device = next(G.parameters()).device
    z = torch.randn(count, G.z_dim, generator=torch.Generator().manual_seed(seed))
    labels = torch.arange(count) % G.c_dim if G.c_dim and label < 0 else torch.full((count,), label)
    c = torch.eye(G.c_dim)[labels] if G.c_dim else None
    batch = max(1, min(64, 2**19 // G.resolution**2))  # the larger the images, the fewer at a time
    return torch.cat([G(z[rows].to(device), c if c is None else c[rows].to(device), truncation=truncation).cpu()
                      for rows in torch.arange(count).split(batch)])


def _own(items: Sequence[T], part: tuple[int, int]) -> Sequence[T]:
    number, of = part
    return items[len(items) * number // of:len(items) * (number + 1) // of]


def _mine() -> tuple[int, int]:
    return parallel.rank(), parallel.count()


def real_features(network: FeatureNetwork, dataset: Dataset, samples: int, seed: int = 0,
                  start: int = 0) -> Tensor:
    """Features (samples, F) of images `start`, `start` + 1, ... of the dataset's shuffled stream."""
    indices = ordered_indices(dataset.size, start, samples, seed)
    own = _own(indices.split(100), _mine())
    found = collect(network, map(dataset.load, own)) if own else torch.empty(0)
    return torch.cat([f for f in parallel.gather_objects(found) if len(f)])


class FidProbe:
    """A probe for training: the FID of a generator to a dataset, images and features dealt out over the processes.

    Returns, when called with a generator, {"fid_<features>_<samples>": value}. The real side is read once.
    """

    def __init__(self, dataset: Dataset, features: str, samples: int, device: torch.device):
        if dataset.size is not None:
            samples = min(samples, dataset.size)
        self.network = InceptionNetwork(device) if features == "inception" else reader(features, device)
        self.dataset, self.samples, self.real = dataset, samples, None

    @torch.no_grad()
    def __call__(self, G: Generator) -> dict[str, float]:
        if self.real is None:
            self.real = real_features(self.network, self.dataset, self.samples)
        own = [self.network.embed(images).double().cpu() for images in sample_images(G, self.samples, 30_000,
                                                                                    part=_mine())]
        fakes = torch.cat([f for part in parallel.gather_objects(own) for f in part])
        return {metric_name("fid", self.network.name, self.samples): frechet_distance(self.real, fakes)}


def _check_pair(G: Generator, teacher: Generator | None) -> None:
    if teacher is not None and (teacher.z_dim, teacher.resolution) != (G.z_dim, G.resolution):
        raise ValueError("generator and teacher cannot be compared z by z: "
                         f"z_dim {G.z_dim} and {teacher.z_dim}, "
                         f"resolution {G.resolution} and {teacher.resolution}")


@torch.no_grad()
def evaluate_generator(G: Generator, net: AttributeNetwork, samples: int = 5000, seed: int = 0,
                       teacher: Generator | None = None, real: Tensor | None = None, batch: int = 100,
                       noise: Noise = "const", truncation: float = 1.0,
                       space: FeatureNetwork | None = None) -> dict[str, float]:
    """Everything that is measured about a generator, as one flat dict.

    Args:
        real: features of real images (`real_features`); gives fid_..., kid_..., precision_..., recall_....
        space: the network whose features those are, for example `InceptionNetwork()`; `net` by default.
        teacher: generator to agree with on the same z; gives `agree_<factor>` and `agree_<factor>_chance`,
            their means `agree_mean_accuracy` and `agree_mean_correlation`, `l1`, `perceptual` (each with its
            `_chance`), and the Frechet distance to the teacher's images of the same z, fid_to_teacher_... (0 for equal
            networks; of independent z it would begin at the bias of two finite samples).
        noise: "const" by default: with fresh noise an image would not even agree with itself.
    """
    _check_pair(G, teacher)
    features: list[list[Tensor]] = [[], []]
    readings: list[list[Reading]] = [[], []]
    distances = SameZ(net)
    generators = [G] if teacher is None or teacher is G else [G, teacher]
    streams = [sample_images(g, samples, seed, batch, noise, truncation, _mine()) for g in generators]
    for parts in zip(*streams, strict=True):
        parts = parts * 2 if teacher is G else parts  # the teacher's own row of a table costs one pass, not two
        for n, images in enumerate(parts):
            maps = net.features(images)
            vectors = net.pool(maps) if space is None else space.embed(images)
            features[n].append(vectors.double().cpu())
            readings[n].append(name_classes(net, net.read(maps)))
        if teacher is not None:
            distances.add(*parts)
    features, readings = ([[x for part in parallel.gather_objects(side) for x in part] for side in both]
                          for both in (features, readings))
    result: dict[str, float] = {}
    extractor = net.name if space is None else space.name
    if real is not None:
        result |= distribution_metrics(real, torch.cat(features[0]), extractor, seed)
    if teacher is not None:
        for name, entry in compare_readings(*map(join_readings, readings)).items():
            result[f"agree_{name}"], result[f"agree_{name}_chance"] = entry.value, entry.chance
        result |= distances.result(parallel.gather_objects(distances.totals))
        result[metric_name("fid_to_teacher", extractor, samples)] = frechet_distance(*map(torch.cat, features))
    return result


def measure_latent_space(G: AnyGenerator, net: AttributeNetwork, targets: Tensor, samples: int = 2000, steps: int = 100,
                         seed: int = 0) -> dict[str, float]:
    """How smooth W is and what can be found in W+: ppl_<network>_<samples>
    (`gapkd.metrics.distribution.path_length`), and the mean
    projection_psnr and projection_perceptual of given images.

    Args:
        targets: (N, 3, R, R), the images to project. steps: of Adam, noise maps left alone.
    """
    distance = partial(perceptual_distance, net)
    found = [project(G, part, distance, steps) for part in targets.split(16)]
    return {metric_name("ppl", net.name, samples): path_length(G, distance, samples, seed),
            "projection_psnr": torch.cat([f.psnr for f in found]).mean().item(),
            "projection_perceptual": torch.cat([f.perceptual for f in found]).mean().item()}


def evaluation_table(students: Mapping[str, Generator], net: AttributeNetwork, dataset: Dataset,
                     teacher: Generator | None, samples: int = 5000, seed: int = 0, batch: int = 100,
                     noise: Noise = "const", space: FeatureNetwork | None = None) -> list[Row]:
    """One row per generator, led by two that give the figures their scale: real against other real images
    (the best that can be reached with so many samples) and the teacher, if there is one. Every row has "name";
    figures that mean nothing in a row are missing from it. `space` as in `evaluate_generator`."""
    for G in students.values():
        _check_pair(G, teacher)
    if dataset.size is not None and dataset.size < 2 * samples:
        raise ValueError(f"{dataset.name} holds {dataset.size} images, too few for two sets of {samples}: "
                         f"take samples={dataset.size // 2} or fewer")
    extractor = net if space is None else space
    real = real_features(extractor, dataset, samples, seed)
    other = real_features(extractor, dataset, samples, seed, start=samples)
    rows: list[Row] = [{"name": "real", **distribution_metrics(real, other, extractor.name, seed)}]
    for name, G in [*([("teacher", teacher)] if teacher else []), *students.items()]:
        figures = evaluate_generator(G, net, samples, seed, teacher, real, batch, noise, space=space)
        rows.append({"name": name, **figures})
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
