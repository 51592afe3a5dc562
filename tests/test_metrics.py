"""Metrics on toy distributions whose answer is known, and against torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch

from gapkd.metrics.distribution import (
    Agreement,
    compare_readings,
    frechet_distance,
    kid,
    metric_name,
    precision_recall,
    same_z_distance,
    semantic_agreement,
)
from gapkd.metrics.features import AttributeNetwork


def normal(n: int, width: int, seed: int, scale: float = 1.0, shift: float = 0.0) -> torch.Tensor:
    return (
        torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * scale
        + shift
    )


def tiny_network() -> AttributeNetwork:
    torch.manual_seed(0)
    net = AttributeNetwork(
        {"hat": ("none", "cap", "crown"), "glasses": ("no", "yes")},
        {"yaw": (-1, 1), "size": (0, 1)},
        channels=(8, 8, 8, 8),
        hidden=16,
    )
    return net.eval().requires_grad_(False)


def pictures(n: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    coarse = (
        torch.rand(n, 3, 4, 4, generator=generator) * 2 - 1
    )  # blobs: the network sees differences in them
    return torch.nn.functional.interpolate(coarse, size=32, mode="nearest")


def test_names_carry_extractor_and_count():
    assert metric_name("fid", extractor="toyfaces", samples=5000) == "fid_toyfaces_5k"
    assert metric_name("kid", "inception", 50000) == "kid_inception_50k"
    assert metric_name("fid", "toyfaces", 1500) == "fid_toyfaces_1.5k"
    assert metric_name("fid", "toyfaces", 300) == "fid_toyfaces_300"
    assert metric_name("fid", "toyfaces", 1234) == "fid_toyfaces_1234"


# -- Frechet distance and KID ---


def test_frechet_distance_of_a_set_to_itself_is_zero():
    x = normal(300, 20, 0)
    assert frechet_distance(x, x) < 1e-9
    assert frechet_distance(x[:10], x[:10]) < 1e-6  # a singular covariance


def test_frechet_distance_has_its_closed_form():
    x = normal(2000, 6, 0)
    assert frechet_distance(x, x + 0.5) == pytest.approx(6 * 0.25, abs=1e-9)  # |shift|^2
    assert frechet_distance(x, 3 * (x - x.mean(0)) + x.mean(0)) == pytest.approx(
        4 * torch.cov(x.T).trace().item()
    )
    a, b = normal(100_000, 3, 1), normal(100_000, 3, 2, scale=2, shift=1)  # tr((2 - 1)^2 I) + 3
    assert frechet_distance(a, b) == pytest.approx(6, rel=0.02)


def test_frechet_distance_equals_torchmetrics_and_scipy():
    from scipy.linalg import sqrtm

    torchmetrics = pytest.importorskip("torchmetrics.image.fid")
    a = normal(400, 12, 0) @ normal(12, 12, 5)
    b = normal(300, 12, 1, 1.3, 0.2) @ normal(12, 12, 6)
    cov_a, cov_b = torch.cov(a.T), torch.cov(b.T)
    root = torch.as_tensor(sqrtm((cov_a @ cov_b).numpy())).real
    expected = ((a.mean(0) - b.mean(0)).square().sum() + (cov_a + cov_b - 2 * root).trace()).item()
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-8)

    class Identity(torch.nn.Module):
        num_features = 12

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(1)

    metric = torchmetrics.FrechetInceptionDistance(feature=Identity(), input_img_size=(3, 2, 2))
    metric.set_dtype(torch.float64)
    metric.update(a.reshape(-1, 3, 2, 2), real=True)
    metric.update(b.reshape(-1, 3, 2, 2), real=False)
    assert frechet_distance(a, b) == pytest.approx(metric.compute().item(), rel=1e-6)


def test_kid_is_unbiased_and_sees_differences():
    same = [
        kid(normal(300, 8, 2 * s), normal(300, 8, 2 * s + 1), seed=s, subsets=5, subset_size=200)
        for s in range(20)
    ]
    spread = torch.tensor(same).std().item()
    assert abs(sum(same) / 20) < 3 * spread / math.sqrt(20)
    assert kid(normal(300, 8, 0), normal(300, 8, 1, shift=0.5)) > 5 * spread


def test_kid_equals_a_double_loop():
    x, y = normal(9, 4, 0), normal(9, 4, 1)

    def mean(a, b, skip):
        terms = [
            (float(p @ q) / 4 + 1) ** 3
            for i, p in enumerate(a)
            for j, q in enumerate(b)
            if not (skip and i == j)
        ]
        return sum(terms) / len(terms)

    expected = mean(x, x, True) + mean(y, y, True) - 2 * mean(x, y, False)
    assert kid(x, y, subsets=3, subset_size=9) == pytest.approx(expected, rel=1e-9)
    assert (
        kid(normal(50, 4, 0), y, seed=1)
        == kid(normal(50, 4, 0), y, seed=1)
        != kid(normal(50, 4, 0), y, seed=2)
    )


# -- precision and recall ---


def test_the_same_set_is_precise_and_complete():
    x = normal(200, 4, 0)
    result = precision_recall(x, x)
    assert (result.precision, result.recall, result.coverage) == (1, 1, 1) and result.density >= 1


def test_a_tight_cluster_is_precise_and_incomplete():
    result = precision_recall(normal(500, 4, 0), normal(500, 4, 1, scale=0.1))
    assert result.precision > 0.95 and result.recall < 0.1 and result.coverage < 0.2


def test_a_wide_cloud_is_imprecise_and_complete():
    result = precision_recall(normal(500, 4, 0), normal(500, 4, 1, scale=4))
    assert result.precision < 0.2 and result.recall > 0.95


def test_precision_and_recall_equal_a_slow_version():
    real, fake, k = normal(30, 3, 0), normal(25, 3, 1, 1.4), 3

    def radius(points, i):
        return sorted(math.dist(points[i].tolist(), q.tolist()) for j, q in enumerate(points) if j != i)[
            k - 1
        ]

    near = [[math.dist(r.tolist(), f.tolist()) for f in fake] for r in real]
    balls = [[near[i][j] <= radius(real, i) for j in range(25)] for i in range(30)]
    expected = (sum(any(balls[i][j] for i in range(30)) for j in range(25)) / 25,
                sum(any(near[i][j] <= radius(fake, j) for j in range(25)) for i in range(30)) / 30,
                sum(map(sum, balls)) / (k * 25), sum(map(any, balls)) / 30)
    assert tuple(precision_recall(real, fake, k)) == pytest.approx(expected, abs=1e-6)


def test_unusable_feature_sets_are_refused():
    with pytest.raises(ValueError, match="one width"):
        frechet_distance(normal(10, 3, 0), normal(10, 4, 0))
    with pytest.raises(ValueError, match="at least 4 samples"):
        precision_recall(normal(3, 3, 0), normal(10, 3, 0))


# -- agreement ---


def test_identical_images_agree_completely():
    net, images = tiny_network(), pictures(60, 0)
    agreement = semantic_agreement(net, images, images)
    assert set(agreement) == {"hat", "glasses", "yaw", "size", "mean_accuracy", "mean_correlation"}
    assert all(entry.value == pytest.approx(1) for entry in agreement.values())
    distance = same_z_distance(images, images, net)
    assert (
        distance["l1"] == distance["perceptual"] == 0
        and distance["l1_chance"] > 0.1 < distance["perceptual_chance"] * 10
    )


def test_unrelated_images_agree_as_chance_says():
    a = {"hat": torch.randint(3, (20_000,), generator=torch.Generator().manual_seed(0)) // 2,  # 2/3 and 1/3
         "yaw": normal(20_000, 1, 1)[:, 0]}
    b = {
        "hat": torch.randint(3, (20_000,), generator=torch.Generator().manual_seed(2)) // 2,
        "yaw": normal(20_000, 1, 3)[:, 0],
    }
    result = compare_readings(a, b)
    assert result["hat"].kind == "accuracy" and result["yaw"].kind == "correlation"
    assert result["hat"].chance == pytest.approx(5 / 9, abs=0.01)
    assert result["hat"].value == pytest.approx(result["hat"].chance, abs=0.015)
    assert result["yaw"].chance == 0 and abs(result["yaw"].value) < 0.03
    net = tiny_network()
    distance = same_z_distance(pictures(300, 0), pictures(300, 1), net)
    assert distance["l1"] == pytest.approx(distance["l1_chance"], rel=0.05)
    assert distance["perceptual"] == pytest.approx(distance["perceptual_chance"], rel=0.1)


def test_a_factor_that_never_changes_correlates_with_nothing():
    constant = {"yaw": torch.full((10,), 0.3)}
    assert compare_readings(constant, constant)["yaw"] == Agreement("correlation", 0.0, 0.0)


def test_chance_pairs_are_neighbours():
    net, a, b = tiny_network(), pictures(7, 0), pictures(7, 1)
    expected = (a[1:] - b[:-1]).abs().mean().item()
    assert same_z_distance(a, b, net)["l1_chance"] == pytest.approx(expected, rel=1e-6)
    assert same_z_distance(a.split(1), b.split(1), net)["l1_chance"] == pytest.approx(expected, rel=1e-6)


def test_unequal_sets_are_refused():
    net = tiny_network()
    with pytest.raises(ValueError, match="equally many images"):
        semantic_agreement(net, pictures(4, 0), pictures(5, 0))
    with pytest.raises(ValueError):
        same_z_distance(pictures(4, 0), pictures(5, 0), net)
