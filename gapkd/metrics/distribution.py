"""Metrics: features -> statistics -> number.

A network turns images into feature vectors (`collect`), a metric turns two sets of vectors into a number. So
FID with the attribute network and FID with Inception are one function; the extractor and the number of
samples are part of a figure's name (`metric_name`): figures with different names cannot be compared.

Two questions are asked here. *Is the set of images right?* Frechet distance, kernel distance, precision and
recall answer it and do not care which z made which image. *Is it the same image?* `semantic_agreement` and
`same_z_distance` compare two generators z by z, each with the level that unrelated images would reach beside
it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from gapkd.distillation.pruning import AnyGenerator
from gapkd.metrics.features import AttributeNetwork, perceptual_distance

Images = Tensor | Iterable[Tensor]  # (N, 3, R, R), or such batches one after the other


class FeatureNetwork(Protocol):
    """What FID and its kin need: AttributeNetwork and InceptionNetwork have it."""

    name: str

    def embed(self, images: Tensor) -> Tensor: ...


def metric_name(metric: str, extractor: str, samples: int) -> str:
    """("fid", "toyfaces", 5000) -> "fid_toyfaces_5k"; 1500 samples are "1.5k", 300 are "300"."""
    count = f"{samples / 1000:g}k" if samples >= 1000 and samples % 100 == 0 else str(samples)
    return f"{metric}_{extractor}_{count}"


def in_batches(images: Images, batch: int = 100) -> Iterator[Tensor]:
    """A tensor cut into batches; an iterable of batches as it is."""
    yield from images.split(batch) if isinstance(images, Tensor) else images


@torch.no_grad()
def collect(network: FeatureNetwork, images: Images) -> Tensor:
    """Feature vectors of all images, (N, F), float64, on the CPU; the images may lie on any device."""
    device = getattr(network, "device", None)
    return torch.cat([network.embed(part if device is None else part.to(device)).double().cpu()
                      for part in in_batches(images)])


# -- is the set of images right? -----------------------------------------------------------------------------


def _check_pair(a: Tensor, b: Tensor, least: int) -> tuple[Tensor, Tensor]:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(
            f"expected two feature sets (N, F) of one width, not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    if min(len(a), len(b)) < least:
        raise ValueError(
            f"this metric needs at least {least} samples on either side, not {len(a)} and {len(b)}"
        )
    return a.double(), b.double()


def _root(matrix: Tensor) -> Tensor:
    """Square root of a symmetric positive semi-definite matrix (F, F)."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Frechet distance of two feature sets (N, F) and (M, F), each summarised as a Gaussian; >= 0, lower is
    better.

    |m_a - m_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)), in float64 (Heusel et al., 2017). The trace of (C_a
    C_b)^(1/2) equals that of (R C_b R)^(1/2) with R = C_a^(1/2), whose eigenvalues are real: no general
    matrix root is needed. Biased upwards for few samples, so only figures from equal sample counts can be
    compared.
    """
    a, b = _check_pair(a, b, least=2)
    cov_a, cov_b = torch.cov(a.T).reshape(a.shape[1], -1), torch.cov(b.T).reshape(b.shape[1], -1)
    root = _root(cov_a)
    product = root @ cov_b @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp(min=0).sqrt().sum()
    distance = (a.mean(dim=0) - b.mean(dim=0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(distance.item(), 0.0)


def kid(a: Tensor, b: Tensor, seed: int = 0, subsets: int = 50, subset_size: int = 500) -> float:
    """Kernel distance: unbiased squared MMD with k(x, y) = (x.y / F + 1)^3 (Binkowski et al., 2018).

    Mean over `subsets` random subsets of `subset_size` (at most all samples) drawn with `seed`. 0 on average
    for two sets from one distribution, so it may come out slightly negative.
    """
    a, b = _check_pair(a, b, least=2)
    size = min(subset_size, len(a), len(b))
    generator = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(subsets):
        x = a[torch.randperm(len(a), generator=generator)[:size]]
        y = b[torch.randperm(len(b), generator=generator)[:size]]
        within = sum(k.sum() - k.diagonal().sum() for k in (_cubic(x, x), _cubic(y, y))) / (size * (size - 1))
        total += (within - 2 * _cubic(x, y).mean()).item()
    return total / subsets


def _cubic(x: Tensor, y: Tensor) -> Tensor:
    return (x @ y.T / x.shape[1] + 1) ** 3


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
    """Manifold metrics of two feature sets (N, F) and (M, F).

    A manifold is the union of balls around its points that reach to their k-th neighbour. Precision and
    recall: Kynkaanniemi et al., 2019; density and coverage: Naeem et al., 2020.
    """
    real, fake = _check_pair(real, fake, least=k + 1)
    real_radius, fake_radius = _radii(real, k), _radii(fake, k)
    balls = torch.zeros(len(fake))                                     # real balls around every fake
    recalled = torch.zeros(len(real), dtype=torch.bool)
    covered = torch.zeros(len(real), dtype=torch.bool)
    for start in range(0, len(real), 1000):  # by rows: (1000, M) distances at a time
        rows = slice(start, start + 1000)
        distance = torch.cdist(real[rows], fake)
        inside = distance <= real_radius[rows, None]
        balls += inside.sum(dim=0)
        covered[rows] = inside.any(dim=1)
        recalled[rows] = (distance <= fake_radius).any(dim=1)
    return Coverage((balls > 0).float().mean().item(), recalled.float().mean().item(),
                    balls.mean().item() / k, covered.float().mean().item())


def _radii(points: Tensor, k: int) -> Tensor:
    """Distance of every point to its k-th neighbour, (N,); its own distance 0 comes first, hence k + 1."""
    return torch.cat([torch.cdist(rows, points).kthvalue(k + 1, dim=1).values for rows in points.split(1000)])


def distribution_metrics(real: Tensor, fake: Tensor, extractor: str, seed: int = 0) -> dict[str, float]:
    """FID, KID and the manifold metrics of feature sets (N, F), named by extractor and number of fakes."""
    values = {"fid": frechet_distance(real, fake), "kid": kid(real, fake, seed),
              **precision_recall(real, fake)._asdict()}
    return {metric_name(metric, extractor, len(fake)): value for metric, value in values.items()}


# -- is the latent space smooth? -----------------------------------------------------------------------------


@torch.no_grad()
def path_length(G: AnyGenerator, distance: Callable[[Tensor, Tensor], Tensor], samples: int = 5000, seed: int = 0,
                epsilon: float = 1e-4, batch: int = 50) -> float:
    """Perceptual path length in W, the full path: how much the image changes for a small step between two latents.

    For w_a, w_b of two z and t uniform in [0, 1]: distance(G(lerp(w_a, w_b, t)), G(lerp(w_a, w_b, t + epsilon))) /
    epsilon^2, mean of what lies between the 1st and the 99th percentile (Karras et al., 2019). The published table of
    the paper leaves the division by epsilon^2 out.

    Args:
        distance: images (N, 3, R, R) twice -> (N,), LPIPS for published figures.
    """
    device = next(G.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    found = []
    for start in range(0, samples, batch):
        n = min(batch, samples - start)
        c = None
        if G.c_dim:
            c = torch.eye(G.c_dim)[torch.randint(G.c_dim, (n,), generator=generator)].to(device)
        w_a, w_b = (G.mapping(torch.randn(n, G.z_dim, generator=generator).to(device), c) for _ in range(2))
        t = torch.rand(n, 1, generator=generator).to(w_a)
        images = G.synthesis(torch.cat([w_a.lerp(w_b, t), w_a.lerp(w_b, t + epsilon)])).image
        found.append(distance(*images.chunk(2)).double().cpu() / epsilon**2)
    lengths = torch.cat(found)
    low, high = lengths.quantile(torch.tensor([0.01, 0.99], dtype=torch.float64))
    return lengths[(lengths >= low) & (lengths <= high)].mean().item()


# -- is it the same image? -----------------------------------------------------------------------------------


class Agreement(NamedTuple):
    """kind: "accuracy" or "correlation"; value: what was measured; chance: what unrelated images would
    reach."""

    kind: str
    value: float
    chance: float


Reading = dict[str, Tensor]  # factor -> class numbers (N,) int64, or values (N,) float32


@torch.no_grad()
def read_factors(net: AttributeNetwork, images: Images) -> Reading:
    """What the network sees in every image: class numbers (N,) of categorical factors, values (N,) of
    continuous ones."""
    return join_readings([name_classes(net, net.factors(part)) for part in in_batches(images)])


def name_classes(net: AttributeNetwork, factors: dict[str, Tensor]) -> Reading:
    """What `factors` gives, but the likeliest class (N,) instead of logits (N, C); on the CPU."""
    return {name: (value.argmax(dim=1) if name in net.categorical else value.float()).cpu()
            for name, value in factors.items()}


def join_readings(readings: list[Reading]) -> Reading:
    """Readings of consecutive batches as one."""
    return {name: torch.cat([reading[name] for reading in readings]) for name in readings[0]}


def semantic_agreement(net: AttributeNetwork, images_a: Images, images_b: Images) -> dict[str, Agreement]:
    """Do images i of both sets show the same face? One entry per factor, then `mean_accuracy` and
    `mean_correlation`.

    Categorical: share of pairs read as the same class; chance is that of independent draws, sum_c p_a(c)
        p_b(c).
    Continuous: Pearson correlation; chance is 0. A factor that never changes correlates with nothing: it gets
        0.
    """
    return compare_readings(read_factors(net, images_a), read_factors(net, images_b))


def compare_readings(a: Reading, b: Reading) -> dict[str, Agreement]:
    """`semantic_agreement` of two sets of images that have been read."""
    agreement = {}
    for name, left in a.items():
        right = b[name]
        if left.shape != right.shape:
            raise ValueError(f"agreement compares equally many images, not {len(left)} and {len(right)}")
        if left.is_floating_point():
            agreement[name] = Agreement("correlation", _correlation(left, right), 0.0)
        else:
            classes = int(max(left.max(), right.max())) + 1
            shares = [torch.bincount(x, minlength=classes).double() / len(x) for x in (left, right)]
            agreement[name] = Agreement("accuracy", (left == right).double().mean().item(),
                                        (shares[0] @ shares[1]).item())
    for kind in ("accuracy", "correlation"):
        rows = [entry for entry in agreement.values() if entry.kind == kind]
        if rows:
            agreement[f"mean_{kind}"] = Agreement(kind, sum(r.value for r in rows) / len(rows),
                                                  sum(r.chance for r in rows) / len(rows))
    return agreement


def _correlation(a: Tensor, b: Tensor) -> float:
    a, b = a.double() - a.double().mean(), b.double() - b.double().mean()
    scale = (a.square().sum() * b.square().sum()).sqrt().item()
    return (a @ b).item() / scale if scale > 1e-12 else 0.0


class SameZ:
    """`same_z_distance` of images that come in batches: `add` them, ask for the `result`."""

    def __init__(self, net: AttributeNetwork):
        self.net, self.previous = net, None
        self.totals = {name + suffix: 0.0 for name in ("l1", "perceptual", "pairs") for suffix in ("", "_chance")}

    def add(self, a: Tensor, b: Tensor) -> None:
        if a.shape != b.shape:
            raise ValueError(
                f"a distance needs images of one shape, not {tuple(a.shape)} and {tuple(b.shape)}"
            )
        a, b = a.clamp(-1, 1), b.clamp(-1, 1)
        shifted = b[:-1] if self.previous is None else torch.cat([self.previous, b[:-1]])
        partners = a[len(a) - len(shifted):]
        self._sum("", a, b)
        if len(shifted):
            self._sum("_chance", partners, shifted)
        self.previous = b[-1:]

    def _sum(self, suffix: str, a: Tensor, b: Tensor) -> None:
        self.totals["l1" + suffix] += (a - b).abs().mean(dim=(1, 2, 3)).double().sum().item()
        self.totals["perceptual" + suffix] += perceptual_distance(self.net, a, b).double().sum().item()
        self.totals["pairs" + suffix] += len(a)

    def result(self, parts: Sequence[dict[str, float]] = ()) -> dict[str, float]:
        """Args: parts: the `totals` of several such objects that share the work; by default its own."""
        totals = {name: sum(part[name] for part in parts or [self.totals]) for name in self.totals}
        if totals["pairs_chance"] < 1:
            raise ValueError("same-z distances need at least 2 pairs of images")
        return {name: totals[name] / totals["pairs_chance" if name.endswith("_chance") else "pairs"]
                for name in ("l1", "l1_chance", "perceptual", "perceptual_chance")}


@torch.no_grad()
def same_z_distance(images_a: Images, images_b: Images, net: AttributeNetwork) -> dict[str, float]:
    """Mean distance of images i of both sets: `l1` (range [0, 2], images clamped to [-1, 1]) and
    `perceptual`.

    `l1_chance`, `perceptual_chance`: the same between a_i and b_(i-1), pairs that share nothing when the
    samples are independent. A ratio of 1 says that the same z means nothing.
    """
    distances = SameZ(net)
    for a, b in zip(in_batches(images_a), in_batches(images_b), strict=True):
        distances.add(a, b)
    return distances.result()
