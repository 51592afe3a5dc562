"""Is it the same image? Two generators compared z by z, beside the level that unrelated images
would reach; and do toy faces, whose true factors are known, show everything?"""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from gapkd.data.images import refuse_bytes
from gapkd.data.toyfaces import CATEGORICAL, CONTINUOUS
from gapkd.metrics.attributes import AttributeNetwork
from gapkd.metrics.distribution import Images, in_batches
from gapkd.metrics.features import perceptual_distance
from gapkd.metrics.sampling import sample_images
from gapkd.networks.base import StyleGenerator

Reading = dict[str, Tensor]  # factor -> class numbers (N,) int64, or values (N,) float32


class Agreement(NamedTuple):
    """kind: "accuracy" or "correlation"; value: what was measured; chance: what unrelated images
    would reach."""

    kind: str
    value: float
    chance: float


@torch.no_grad()
def read_factors(net: AttributeNetwork, images: Images) -> Reading:
    """What the network sees in every image, on the CPU: class numbers (N,) of categorical factors,
    values (N,) of continuous ones."""
    return join_readings([name_classes(net, net.factors(part)) for part in in_batches(images)])


def name_classes(net: AttributeNetwork, factors: dict[str, Tensor]) -> Reading:
    """What `net.factors` gives, on the CPU; the likeliest class (N,) instead of logits (N, C)."""
    read = {name: factors[name].argmax(dim=1).cpu() for name in net.categorical}
    return read | {name: factors[name].float().cpu() for name in net.continuous}


def join_readings(readings: list[Reading]) -> Reading:
    """Readings of consecutive batches as one."""
    return {name: torch.cat([reading[name] for reading in readings]) for name in readings[0]}


def semantic_agreement(net: AttributeNetwork, images_a: Images, images_b: Images
                       ) -> dict[str, Agreement]:
    """Do images i of both sets show the same face? One entry per factor, then `mean_accuracy` and
    `mean_correlation`.

    Categorical: share of pairs read as the same class; chance is that of independent draws, sum_c
    p_a(c) p_b(c). Continuous: Pearson correlation; chance is 0. A factor that never changes
    correlates with nothing: it gets 0.
    """
    return compare_readings(read_factors(net, images_a), read_factors(net, images_b))


def compare_readings(a: Reading, b: Reading) -> dict[str, Agreement]:
    """`semantic_agreement` of two sets of images that have been read."""
    agreement = {}
    for name, left in a.items():
        right = b[name]
        if left.shape != right.shape:
            raise ValueError(f"agreement compares equally many images, not {len(left)} and "
                             f"{len(right)}")
        if left.is_floating_point():
            if not (left.isfinite().all() and right.isfinite().all()):
                raise ValueError(f"{name} was read in nan or infinite numbers: look at the images")
            agreement[name] = Agreement("correlation", _correlation(left, right), 0.0)
        else:
            classes = int(max(left.max(), right.max())) + 1
            chance = (_shares(left, classes) @ _shares(right, classes)).item()
            value = (left == right).double().mean().item()
            agreement[name] = Agreement("accuracy", value, chance)
    for kind in ("accuracy", "correlation"):
        rows = [entry for entry in agreement.values() if entry.kind == kind]
        if rows:
            value, chance = (sum(row[k] for row in rows) / len(rows) for k in (1, 2))
            agreement[f"mean_{kind}"] = Agreement(kind, value, chance)
    return agreement


def _shares(classes: Tensor, count: int) -> Tensor:
    return torch.bincount(classes, minlength=count).double() / len(classes)


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    scale = (a.square().sum() * b.square().sum()).sqrt().item()
    return (a @ b).item() / scale if scale > 1e-12 else 0.0


def pair_distances(net: AttributeNetwork, a: Tensor, b: Tensor, previous: Tensor | None
                   ) -> dict[str, Tensor]:
    """`same_z_distance` of every pair of a batch, (N,), on the CPU. `previous` is the last of `b`
    in the batch before, (1, 3, R, R); of the first batch None, and one `_chance` less."""
    if a.shape != b.shape:
        raise ValueError(f"a distance needs images of one shape, not {tuple(a.shape)} and "
                         f"{tuple(b.shape)}")
    refuse_bytes(a)
    refuse_bytes(b)
    before = b[:-1] if previous is None else torch.cat([previous, b[:-1]])
    found = {}
    for name, x, y in (("", a, b), ("_chance", a[len(a) - len(before):], before)):
        x, y = x.clamp(-1, 1), y.clamp(-1, 1)
        found[f"l1{name}"] = (x - y).abs().mean(dim=(1, 2, 3)).double().cpu()
        found[f"perceptual{name}"] = perceptual_distance(net, x, y).double().cpu()
    return found


def mean_distances(found: list[dict[str, Tensor]]) -> dict[str, float]:
    """Of what `pair_distances` has found, in one process or in several."""
    pairs = join_readings(found)
    if not len(pairs["l1_chance"]):
        raise ValueError("same-z distances need at least 2 pairs of images")
    return {name: distances.mean().item() for name, distances in pairs.items()}


@torch.no_grad()
def same_z_distance(images_a: Images, images_b: Images, net: AttributeNetwork) -> dict[str, float]:
    """Mean distance of images i of both sets: `l1` (range [0, 2], images clamped to [-1, 1]) and
    `perceptual`; with `_chance` the same between a_i and b_(i-1), which share nothing when the
    samples are independent. A ratio of 1 says that the same z means nothing."""
    found, previous = [], None
    for a, b in zip(in_batches(images_a), in_batches(images_b), strict=True):
        found.append(pair_distances(net, a, b, previous))
        previous = b[-1:]
    return mean_distances(found)


def agreement_probe(teacher: StyleGenerator, net: AttributeNetwork, samples: int = 1000,
                    seed: int = 10_000) -> Callable[[StyleGenerator], dict[str, float]]:
    """A probe for `distill`: a function of a generator that gives its distance to the teacher (l1,
    perceptual) and agreement with it (agree_mean_accuracy, agree_mean_correlation) on fixed latents
    and constant noise, and the chance level of each as l1_chance and so on."""
    reference = torch.cat(list(sample_images(teacher, samples, seed)))
    theirs = read_factors(net, reference)

    def probe(G: StyleGenerator) -> dict[str, float]:
        images = torch.cat([part.to(reference.device) for part in sample_images(G, samples, seed)])
        numbers = same_z_distance(images, reference, net)
        agreement = compare_readings(read_factors(net, images), theirs)
        for name in agreement.keys() & {"mean_accuracy", "mean_correlation"}:
            numbers[f"agree_{name}"] = agreement[name].value
            numbers[f"agree_{name}_chance"] = agreement[name].chance
        return numbers

    return probe


# -- does a set of toy faces show everything? ----------------------------------------------------


def factor_coverage(reading: Reading, truth: Reading) -> dict:
    """The factors of generated toy faces beside the truth; JSON can hold it.

    Args:
        reading: of generated faces (`read_factors`).
        truth: of rendered ones, so that what the network misreads is the same on both sides.
    Returns:
        shares: categorical factor -> class -> {"share", "true"}.
        spread: continuous factor -> its standard deviation over the true one.
        missing: "hair_style, beard" -> {"missing", "cells"}: joint classes that never occur here,
            of those that occur in the truth. missing_cells: of all pairs together.
    """
    shares = {}
    for name, classes in CATEGORICAL.items():
        ours, true = (_shares(x[name], len(classes)).tolist() for x in (reading, truth))
        shares[name] = {label: {"share": ours[i], "true": true[i]}
                        for i, label in enumerate(classes)}
    spread = {name: (reading[name].std() / truth[name].std()).item() for name in CONTINUOUS}
    missing = {}
    for a, b in combinations(CATEGORICAL, 2):
        width = len(CATEGORICAL[b])
        seen, possible = ((x[a] * width + x[b]).unique() for x in (reading, truth))
        absent = (~torch.isin(possible, seen)).sum().item()
        missing[f"{a}, {b}"] = {"missing": absent, "cells": len(possible)}
    return {"shares": shares, "spread": spread, "missing": missing,
            "missing_cells": sum(entry["missing"] for entry in missing.values())}
