"""Channel scores: equal to the recorded ones, by hand on a tiny network, and what a student keeps of them."""

from __future__ import annotations

import copy

import pytest
import torch
from recorded import arrays, stylekd_network

from gapkd.distillation import pruning
from gapkd.distillation.students import SYNTHESES, make_student
from gapkd.networks.stylegan2 import Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {"2": Generator(16, 12, 12, [(10, 12), (14, 10), (8, 6)], mapping_layers=2).eval(),
            "3": AliasFreeGenerator(32, 12, 12, [10, 12, 8, 6], mapping_layers=2, margin=2).eval()}


def test_gradient_scores_are_the_recorded_ones():
    data = arrays("stylekd")
    G = stylekd_network(data, "teacher").requires_grad_(True)
    scores = pruning.gradient_scores(G, G(data["z"]), data["score.noisy"])
    assert len(scores) == 8
    for layer, score in enumerate(scores):
        torch.testing.assert_close(score, data[f"score.layer{layer}"], rtol=1e-3, atol=1e-4)


def test_salt_and_pepper_is_black_or_white_inside_the_mask():
    images, mask = torch.zeros(2000, 3, 4, 4), torch.zeros(2000, 1, 4, 4)
    mask[..., :2] = 1
    noisy = pruning.salt_and_pepper(images, 0.05, torch.Generator().manual_seed(0), mask)
    assert set(noisy.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert not noisy[..., 2:].any() and torch.equal(noisy[:, 0], noisy[:, 2])
    hit = noisy[:, 0, :, :2]
    assert (hit != 0).float().mean().item() == pytest.approx(0.05, abs=0.01)
    assert hit.sum().abs() < 0.2 * (hit != 0).sum()


@pytest.mark.parametrize("kind", "23")
@pytest.mark.parametrize("name", pruning.SCORES)
def test_scores_fit_the_layers_and_come_again(networks, kind, name):
    G = networks[kind]
    score = pruning.SCORES[name]
    arguments = {} if name == "pruned" else {"samples": 6, "batch": 4}
    arguments |= {"directions": 3} if name == "pruned-diversity" else {}
    scores = score(G, **arguments)
    assert [len(s) for s in scores] == [w.shape[1] for w in pruning.weights(G)]
    assert all(bool(s.isfinite().all()) and bool((s >= 0).all()) and bool(s.any()) for s in scores)
    assert all(map(torch.equal, scores, score(G, **arguments)))
    if name != "pruned":
        assert not all(map(torch.equal, scores, score(G, **arguments, seed=1)))
    assert all(p.grad is None for p in G.parameters())


def test_a_channel_that_is_always_silent_scores_nothing(networks):
    G = copy.deepcopy(networks["2"])
    with torch.no_grad():
        pruning.weights(G)[-2][3] = 0  # nothing is written to channel 3 of the last convolution ...
        G.synthesis.convs[-1].bias[3] = 0
        G.synthesis.convs[-1].noise_strength.zero_()
        pruning.weights(G)[-1][:, 3] = 0  # ... and toRGB does not read it
    assert pruning.magnitude_scores(G)[-1][3] == 0
    for score in (pruning.content_scores, pruning.diversity_scores):
        assert score(G, samples=4, batch=4)[-1][3] == 0


def test_content_scores_look_only_at_the_content(networks):
    def nowhere(images):
        return torch.zeros(len(images), 1, *images.shape[2:])

    scores = pruning.content_scores(networks["2"], samples=4, batch=4, content=nowhere)
    assert all(not s.any() for s in scores)


def test_diversity_is_the_squared_deviation_over_directions(networks, monkeypatch):
    fake = iter([[torch.tensor([float(v)])] for v in (1, 2, 6)] * 2)
    monkeypatch.setattr(pruning, "gradient_scores", lambda *_: next(fake))
    monkeypatch.setattr(pruning, "weights", lambda G: [torch.zeros(1, 1, 1, 1)])
    (score,) = pruning.diversity_scores(networks["2"], samples=8, directions=3, batch=4)
    assert score.item() == pytest.approx(2 * (4 + 1 + 9))
    with pytest.raises(ValueError, match="directions must be at least 2"):
        pruning.diversity_scores(networks["2"], directions=1)


def test_diversity_scores_step_by_step(networks, monkeypatch):
    """Directions drawn by the variance that they explain, and the score written out with backward() and variances."""
    G, drawn, real = copy.deepcopy(networks["2"]).requires_grad_(True), [], torch.multinomial

    def watched(weights, *arguments, **options):
        drawn.append((weights, real(weights, *arguments, **options)))
        return drawn[-1][1]

    monkeypatch.setattr(torch, "multinomial", watched)
    scores = pruning.diversity_scores(G, samples=6, directions=4, strength=3.0, seed=2, batch=4)
    dice = torch.Generator().manual_seed(2)
    many = torch.cat(list(pruning.draw_ws(G, 10_000, 1_000, dice))).detach()
    explained = torch.linalg.eigvalsh(torch.cov(many.T)).flip(0)
    torch.testing.assert_close(drawn[0][0] / drawn[0][0].sum(), explained / explained.sum(), rtol=1e-3, atol=1e-6)
    assert explained[0] > 3 * explained[-1], "axes that explain alike would not show how they are drawn"
    axes = torch.linalg.svd(many - many.mean(dim=0), full_matrices=False).Vh
    expected = [torch.zeros_like(score) for score in scores]
    for start, (_, chosen) in zip((0, 4), drawn, strict=True):
        w = next(pruning.draw_ws(G, min(4, 6 - start), 4, dice))
        real(explained.clamp(min=0), 4, replacement=True, generator=dice)  # moves the dice on as the drawing did
        rows = []
        for axis in axes[chosen]:
            G.zero_grad()
            target = G.synthesis(w + 3.0 * axis).image.detach()
            (G.synthesis(w).image - target).abs().sum().backward()
            rows.append([torch.stack([weight.grad[:, c].abs().mean() for c in range(weight.shape[1])])
                         for weight in pruning.weights(G)])
        for total, found in zip(expected, zip(*rows, strict=True), strict=True):
            total += 4 * torch.stack(found).var(dim=0, unbiased=False)
    for score, by_hand in zip(scores, expected, strict=True):
        torch.testing.assert_close(score, by_hand, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("kind", "23")
@pytest.mark.parametrize("name", pruning.SCORES)
def test_a_student_starts_from_the_channels_of_highest_score(networks, kind, name, monkeypatch):
    G = networks[kind]
    rising = lambda G, **options: [torch.arange(w.shape[1]).float() for w in pruning.weights(G)]  # noqa: E731
    monkeypatch.setitem(pruning.SCORES, name, rising)
    student = make_student(G, keep=0.5, synthesis=name)
    ours, theirs = pruning.weights(student), pruning.weights(G)
    width = ours[1].shape[1]
    assert torch.equal(ours[1], theirs[1][-ours[1].shape[0]:][:, -width:])  # the last channels score highest
    assert {"random", *pruning.SCORES, "slimmed"} == set(SYNTHESES)
