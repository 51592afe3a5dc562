"""Is the set of images right? Features -> statistics -> number.

A network turns images into feature vectors (`collect`), a metric turns two sets of vectors into a
number. None of these metrics cares which z made which image. Numbers with different names
(`metric_name`) cannot be compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gapkd.data.images import refuse_bytes
from gapkd.metrics.features import Distance
from gapkd.metrics.sampling import draw_latents
from gapkd.networks.base import StyleGenerator
from gapkd.parallel import exactly

Images = Tensor | Iterable[Tensor]  # (N, 3, R, R), or such batches one after the other


class FeatureNetwork(Protocol):
    """What FID and its kin need."""

    name: str

    def embed(self, images: Tensor) -> Tensor: ...


def metric_name(metric: str, extractor: str, samples: int) -> str:
    """("fid", "toyfaces", 5000) -> "fid_toyfaces_5k"; 1500 samples are "1.5k", 300 are "300"."""
    thousands = samples >= 1000 and samples % 100 == 0
    return f"{metric}_{extractor}_{f'{samples / 1000:g}k' if thousands else samples}"


def in_batches(images: Images) -> Iterator[Tensor]:
    """A tensor cut into batches of 100; an iterable of batches as it is. Raises ValueError for
    images of 0 to 255."""
    for part in images.split(100) if isinstance(images, Tensor) else images:
        refuse_bytes(part)
        yield part


@torch.no_grad()
def collect(network: FeatureNetwork, images: Images) -> Tensor:
    """Feature vectors of all images, (N, F), float64, on the CPU."""
    device = getattr(network, "device", None)
    found = []
    for part in in_batches(images):
        found.append(network.embed(part if device is None else part.to(device)).double().cpu())
    return torch.cat(found)


def _check_pair(a: Tensor, b: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"expected two feature sets (N, F) of one width, not {tuple(a.shape)} and "
                         f"{tuple(b.shape)}")
    if min(len(a), len(b)) < least:
        raise ValueError(f"this metric needs at least {least} samples on either side, not {len(a)} "
                         f"and {len(b)}")
    if not (a.isfinite().all() and b.isfinite().all()):
        raise ValueError("some features are not finite: a network drew images, or read them, in "
                         "nan or infinite numbers")
    return a.double(), b.double()


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two feature sets (N, F) and (M, F), each summarised as a Gaussian; >= 0.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64 (Heusel et al., 2017). The trace
    of (C_a C_b)^(1/2) equals that of (R C_b R)^(1/2) with R = C_a^(1/2), whose eigenvalues are
    real: no general matrix root is needed. Biased upwards for few samples.
    """
    a, b = _check_pair(a, b, least=2)
    cov_a, cov_b = (torch.cov(x.T).reshape(x.shape[1], -1) for x in (a, b))          # (F, F)
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    product = root @ cov_b @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    means = (a.mean(dim=0) - b.mean(dim=0)).square().sum()
    return max((means + cov_a.trace() + cov_b.trace() - 2 * cross).item(), 0.0)


def kid(a: Tensor, b: Tensor, seed: int = 0, subsets: int = 50, subset_size: int = 500) -> float:
    """Kernel distance: unbiased squared MMD with k(x, y) = (x.y / F + 1)^3 (Binkowski et al.,
    2018), mean over random subsets (often 1,000 images each; 500 here). 0 on average for two sets
    from one distribution, so it may come out slightly negative."""
    a, b = _check_pair(a, b, least=2)
    size = min(subset_size, len(a), len(b))
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(subsets):
        x = a[torch.randperm(len(a), generator=generator)[:size]]
        y = b[torch.randperm(len(b), generator=generator)[:size]]
        within = _mean_of_pairs(_cubic(x, x)) + _mean_of_pairs(_cubic(y, y))
        total += (within - 2 * _cubic(x, y).mean()).item()
    return total / subsets


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


def _mean_of_pairs(kernel: Tensor) -> Tensor:
    """Mean of (n, n) without the diagonal, where a point meets itself."""
    return (kernel.sum() - kernel.diagonal().sum()) / (len(kernel) * (len(kernel) - 1))


class Coverage(NamedTuple):
    """How two sets of points overlap; all higher is better.

    precision: share of fakes inside the real manifold (are they real enough?), 0 to 1.
    recall: share of reals inside the fake manifold (is everything made?), 0 to 1.
    density: like precision, but counts in how many real balls a fake lies, over k; may exceed 1.
    coverage: share of real balls that hold a fake, 0 to 1.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def precision_recall(real: Tensor, fake: Tensor, k: int = 3) -> Coverage:
    """Of two feature sets (N, F) and (M, F). A manifold is the union of balls around its points
    that reach to their k-th neighbour (Kynkaanniemi et al., 2019, with k = 3; density and coverage:
    Naeem et al., 2020, where k is 5)."""
    real, fake = _check_pair(real, fake, least=k + 1)
    zero = 1e-6 * max(points.norm(dim=1).max().item() for points in (real, fake))
    real_radius, fake_radius = _radii(real, k, zero), _radii(fake, k, zero)
    balls = real.new_zeros(len(fake))                             # real balls around every fake
    recalled, covered = [], []
    for rows, radius in zip(real.split(1000), real_radius.split(1000), strict=True):
        distance = _distances(rows, fake, zero)                   # (1000, M) at a time
        inside = distance <= radius[:, None]
        balls += inside.sum(dim=0)
        covered.append(inside.any(dim=1))
        recalled.append((distance <= fake_radius).any(dim=1))
    recall, coverage = (torch.cat(found).float().mean().item() for found in (recalled, covered))
    return Coverage((balls > 0).float().mean().item(), recall, balls.mean().item() / k, coverage)


def _distances(a: Tensor, b: Tensor, zero: float) -> Tensor:
    """(N, M) by matrix products, which leave noise where points are the same: what is no larger
    than `zero` is 0."""
    return torch.nn.functional.threshold(torch.cdist(a, b), zero, 0.0)


def _radii(points: Tensor, k: int, zero: float) -> Tensor:
    """Distance of every point to its k-th neighbour, (N,)."""
    found = []
    for rows in points.split(1000):
        distance = _distances(rows, points, zero)
        found.append(distance.kthvalue(k + 1, dim=1).values)  # its own distance 0 comes first
    return torch.cat(found)


def distribution_metrics(real: Tensor, fake: Tensor, extractor: str, seed: int = 0
                         ) -> dict[str, float]:
    """FID, KID and the manifold metrics of feature sets (N, F), named by extractor and number of
    fakes."""
    values = {"fid": frechet_distance(real, fake), "kid": kid(real, fake, seed),
              **precision_recall(real, fake)._asdict()}
    return {metric_name(metric, extractor, len(fake)): value for metric, value in values.items()}


@exactly()
@torch.no_grad()
def path_length(G: StyleGenerator, distance: Distance, samples: int = 5000, seed: int = 0,
                epsilon: float = 1e-4, batch: int = 50) -> float:
    """Perceptual path length in W: how much the image changes for a small step between two latents.

    For w_a, w_b of two z and t uniform in [0, 1]: distance(G(lerp(w_a, w_b, t)), G(lerp(w_a, w_b, t
    + epsilon))) / epsilon^2, mean of what lies between the 1st and the 99th percentile (Karras et
    al., 2019; by LPIPS). The percentiles are interpolated: NVIDIA's code keeps one length more at
    either end. The paper's table cannot be compared: its code leaves the division out, and draws
    fresh noise for either image, which outweighs such a step.
    """
    if torch.finfo(dtype := next(G.parameters()).dtype).bits < 32:
        raise ValueError(f"a path length needs float32, not {dtype}, in which its small steps "
                         "drown: measure G.float()")
    if samples < 3:
        raise ValueError(f"a path length needs at least 3 samples, not {samples}: others lie "
                         "outside the percentiles")
    generator, pairs, found = torch.Generator().manual_seed(seed), [], []
    for start in range(0, samples, 50):  # whatever the batch is, a seed gives the same latents
        n = min(50, samples - start)
        (z_a, c), (z_b, _) = (draw_latents(G, n, generator) for _ in range(2))
        w_a, w_b = G.mapping(z_a, c), G.mapping(z_b, c)
        t = torch.rand(n, 1, generator=generator).to(w_a)
        pairs.append(torch.stack([w_a.lerp(w_b, t), w_a.lerp(w_b, t + epsilon)]))  # (2, n, w_dim)
    for pair in torch.cat(pairs, dim=1).split(batch, dim=1):
        images = G.synthesis(pair.flatten(0, 1)).image
        found.append(distance(*images.chunk(2)).double().cpu() / epsilon**2)
    lengths = torch.cat(found)
    low, high = lengths.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64))
    return lengths[(lengths >= low) & (lengths <= high)].mean().item()
