"""Metrics of sets of images where the answer is known, and beside slow versions."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from scipy.linalg import sqrtm

import gapkd
from gapkd.data.toyfaces import toy_faces
from gapkd.metrics.agreement import pair_distances, read_factors
from gapkd.metrics.attributes import load_attribute_network
from gapkd.metrics.distribution import (
    collect,
    distribution_metrics,
    frechet_distance,
    kid,
    metric_name,
    path_length,
    precision_recall,
)
from gapkd.metrics.features import distance_for
from gapkd.networks.base import SynthesisOutput


def normal(n: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, width, generator=generator, dtype=torch.float64) * scale + shift


@pytest.mark.parametrize("samples, count", [
    (5000, "5k"), (50_000, "50k"), (1500, "1.5k"), (300, "300"), (1234, "1234"), (1000, "1k")])
def test_names_carry_extractor_and_count(samples, count):
    assert metric_name("fid", extractor="toyfaces", samples=samples) == f"fid_toyfaces_{count}"
    assert set(distribution_metrics(normal(5, 2, 0), normal(6, 2, 1), "x")) == {
        f"{name}_x_6" for name in ("fid", "kid", "precision", "recall", "density", "coverage")}


def test_batches_are_collected_in_order():
    class Colours:
        name = "colours"

        def embed(self, images):
            return images.mean(dim=(2, 3))

    images = torch.rand(250, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    found = collect(Colours(), images)
    assert found.dtype == torch.float64 and torch.equal(found, collect(Colours(), images.split(7)))
    torch.testing.assert_close(found[-1].float(), images[-1].mean(dim=(1, 2)))


def test_frechet_distance_has_its_closed_form():
    x = normal(2000, 6, 0)
    assert frechet_distance(x[:4], x[:4]) < 1e-6  # a singular covariance
    assert frechet_distance(x, x + 0.5) == pytest.approx(6 * 0.25, abs=1e-9)  # |shift|^2


def test_frechet_distance_equals_its_formula_with_scipys_matrix_root():
    a = normal(400, 12, 0) @ normal(12, 12, 5)
    b = normal(300, 12, 1, 1.3, 0.2) @ normal(12, 12, 6)
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.as_tensor(sqrtm((cov_a @ cov_b).numpy())).real
    expected = (a.mean(0) - b.mean(0)).square().sum() + (cov_a + cov_b - 2 * root).trace()
    assert frechet_distance(a, b) == pytest.approx(expected.item(), rel=1e-8)


def test_kid_equals_a_double_loop():
    x, y = normal(9, 4, 0), normal(9, 4, 1)

    def mean(a, b, skip):
        terms = [(float(p @ q) / 4 + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b)
                 if not (skip and i == j)]
        return sum(terms) / len(terms)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert kid(x, y, subsets=3, subset_size=9) == pytest.approx(expected, rel=1e-9)
    many = normal(50, 4, 0)
    assert kid(many, y, seed=1) == kid(many, y, seed=1) != kid(many, y, seed=2)


def test_kid_takes_500_samples_fifty_times():
    parameters = inspect.signature(kid).parameters
    assert (parameters["subset_size"].default, parameters["subsets"].default) == (500, 50)


def test_manifolds_that_are_the_same_narrower_and_wider():
    x = normal(500, 4, 0)
    same = precision_recall(x, x)
    assert (same.precision, same.recall, same.coverage) == (1, 1, 1) and same.density >= 1
    tight = precision_recall(x, normal(500, 4, 1, scale=0.1))
    assert tight.precision > 0.95 and tight.recall < 0.1 and tight.coverage < 0.2
    wide = precision_recall(x, normal(500, 4, 1, scale=4))
    assert wide.precision < 0.2 and wide.recall > 0.95
    named = distribution_metrics(x, normal(500, 4, 1, scale=0.1), "x")
    assert named["precision_x_500"] > 0.95 and named["recall_x_500"] < 0.1


@pytest.mark.parametrize("copies", [1, 45])  # 30 and 1,350 reals: distances come 1,000 rows a time
def test_precision_and_recall_equal_a_slow_version(copies):
    few, fake, k = normal(30, 3, 0), normal(25, 3, 1, 1.4), 3
    real = torch.cat([few + 100 * n for n in range(copies)])      # far apart: only the first meet

    def radius(points, i):
        others = [q for j, q in enumerate(points) if j != i]
        return sorted(math.dist(points[i].tolist(), q.tolist()) for q in others)[k - 1]

    near = [[math.dist(r.tolist(), f.tolist()) for f in fake] for r in few]
    balls = [[near[i][j] <= radius(few, i) for j in range(25)] for i in range(30)]
    recalled = [any(near[i][j] <= radius(fake, j) for j in range(25)) for i in range(30)]
    expected = (sum(any(balls[i][j] for i in range(30)) for j in range(25)) / 25,
                sum(recalled) / 30 / copies,
                sum(map(sum, balls)) / (k * 25), sum(map(any, balls)) / 30 / copies)
    assert tuple(precision_recall(real, fake, k)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("samples, seed", [(20, 2), (100, 2), (100, 3), (1000, 4)])
def test_points_that_are_all_the_same_lie_within_one_another(samples, seed):
    points = normal(1, 64, seed, scale=3).repeat(samples, 1)
    found = precision_recall(points, points)
    assert (found.precision, found.recall, found.coverage) == (1, 1, 1)
    away = precision_recall(points, points + 1e-3)
    assert (away.precision, away.recall) == (0, 0)


def test_unusable_feature_sets_are_refused():
    with pytest.raises(ValueError, match="one width"):
        frechet_distance(normal(10, 3, 0), normal(10, 4, 0))
    with pytest.raises(ValueError, match="at least 4 samples"):
        precision_recall(normal(3, 3, 0), normal(10, 3, 0))
    for bad in (math.nan, math.inf):
        for metric in (frechet_distance, kid, precision_recall):
            with pytest.raises(ValueError, match="some features are not finite"):
                metric(normal(10, 3, 0), normal(10, 3, 0).fill_diagonal_(bad))
    with pytest.raises(ValueError, match="at least 3 samples, not 2"):
        path_length(Linear(), squared, 2)


# -- path length


class Linear(torch.nn.Module):
    """Stands for a generator: z is w, and the image is a matrix times it."""

    resolution, z_dim, w_dim, c_dim, num_ws = 8, 6, 6, 0, 2

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.matrix = torch.nn.Parameter(torch.randn(6, 3 * 64, dtype=torch.float64) * 0.1)

    def mapping(self, z, c=None):
        return z.double()

    def synthesis(self, w):
        image = (w @ self.matrix).view(-1, 3, 8, 8)
        return SynthesisOutput(image, [], [image])


def squared(a, b):
    return (a - b).square().sum(dim=(1, 2, 3))


def test_the_path_length_of_a_linear_generator_is_that_of_its_matrix():
    """A step of epsilon moves the image by epsilon A (w_b - w_a) anywhere: E = 2 |A|^2."""
    G, lengths = Linear(), []
    generator = torch.Generator().manual_seed(7)
    for n in (50, 50):
        w_a, w_b = (torch.randn(n, 6, generator=generator).double() for _ in range(2))
        torch.rand(n, 1, generator=generator)
        lengths.append(((w_b - w_a) @ G.matrix.detach()).square().sum(dim=1))
    # of 100, the 1st and the 99th percentile leave out one at either end
    expected = torch.cat(lengths).sort().values[1:-1].mean().item()
    for batch in (50, 40, 100):
        found = path_length(G, squared, 100, seed=7, batch=batch)
        assert found == pytest.approx(expected, rel=1e-4)
    many = path_length(G, squared, 20_000, batch=5000)
    assert many == pytest.approx(2 * G.matrix.square().sum().item(), rel=0.05)


def test_a_step_of_the_path_is_not_rounded_away(monkeypatch):
    """Convolutions in TF32 have 10 bits of mantissa, a step of epsilon needs 13."""
    seen = []

    def distance(a, b):
        seen.append(torch.backends.cudnn.allow_tf32)
        return squared(a, b)

    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    path_length(Linear(), distance, 4)
    assert seen == [False] and torch.backends.cudnn.allow_tf32


def test_a_path_length_is_measured_in_float32_alone():
    G, distance = gapkd.load_generator("toyfaces32"), distance_for("toyfaces")
    with torch.autocast("cpu", torch.bfloat16):
        rounded = path_length(G, distance, 50)
    assert rounded == path_length(G, distance, 50)
    with pytest.raises(ValueError, match=r"needs float32, not torch.float16, .* G.float\(\)"):
        path_length(G.half(), distance, 50)


def test_pictures_of_0_to_255_are_refused_where_they_are_measured():
    faces, net = toy_faces(4)[0], load_attribute_network()
    bytes_ = (faces + 1) * 127.5
    for measure in (lambda: collect(net, bytes_), lambda: read_factors(net, bytes_),
                    lambda: pair_distances(net, faces, bytes_, None)):
        with pytest.raises(ValueError, match="not values of up to 2.*127.5 - 1 brings 0 to 255"):
            measure()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same_path_length():
    G, distance = gapkd.load_generator("toyfaces32"), distance_for("toyfaces")
    here = path_length(G, distance, 200)
    there = path_length(G.cuda(), distance_for("toyfaces", "cuda"), 200)
    assert there == pytest.approx(here, rel=0.02)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_finds_the_same():
    real, fake = (torch.randn(300, 8, dtype=torch.float64) for _ in range(2))
    there = distribution_metrics(real.cuda(), fake.cuda(), "x")
    assert there == pytest.approx(distribution_metrics(real, fake, "x"), abs=1e-6)
