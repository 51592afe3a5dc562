"""Which channels stay: scores as recorded and written out, and what a penalty leaves of them."""

from __future__ import annotations

import copy
import inspect

import pytest
import torch
from recorded import stylekd_network

from gapkd.distillation import pruning
from gapkd.distillation.losses import rgb_loss
from gapkd.networks.stylegan2 import Generator

KINDS = pytest.mark.parametrize("kind", ["stylegan2", "stylegan3"])


def test_gradient_scores_are_the_recorded_ones(stylekd):
    G = stylekd_network(stylekd, "teacher").requires_grad_(True)
    scores = pruning.gradient_scores(G, G(stylekd["z"]), stylekd["score.noisy"])
    assert len(scores) == 8
    for layer, score in enumerate(scores):
        torch.testing.assert_close(score, stylekd[f"score.layer{layer}"], rtol=1e-3, atol=1e-4)


def test_salt_and_pepper_is_black_or_white_inside_the_mask():
    images, mask = torch.zeros(2000, 3, 4, 4), torch.zeros(2000, 1, 4, 4)
    mask[..., :2] = 1
    noisy = pruning.salt_and_pepper(images, 0.05, torch.Generator().manual_seed(0), mask)
    assert set(noisy.unique().tolist()) == {-1.0, 0.0, 1.0}
    assert not noisy[..., 2:].any() and torch.equal(noisy[:, 0], noisy[:, 2])
    hit = noisy[:, 0, :, :2]
    assert (hit != 0).float().mean().item() == pytest.approx(0.05, abs=0.01)
    assert hit.sum().abs() < 0.2 * (hit != 0).sum()


@KINDS
def test_magnitude_scores_by_hand(networks, kind):
    for score, readers in zip(pruning.magnitude_scores(networks[kind]), networks[kind].readers(),
                              strict=True):
        weight = readers[0].weight
        by_hand = [weight[:, channel].abs().mean() for channel in range(weight.shape[1])]
        torch.testing.assert_close(score, torch.stack(by_hand))


def images_scores(G, w, target) -> list[torch.Tensor]:
    """Of sum |G(w) - target|, the mean absolute gradient channel by channel."""
    G.zero_grad()
    (G.synthesis(w).image - target).abs().sum().backward()
    return [weight.grad.abs().transpose(0, 1).flatten(1).mean(dim=1)
            for weight in pruning.scored_weights(G)]


@KINDS
def test_content_scores_step_by_step(networks, kind):
    G = copy.deepcopy(networks[kind]).eval().requires_grad_(True)
    content = lambda images: (images.mean(dim=1, keepdim=True) > 0).float()  # noqa: E731
    scores = pruning.content_scores(G, samples=6, batch=4, seed=2, probability=0.3, content=content)
    dice = torch.Generator().manual_seed(2)
    expected = 0
    for n in (4, 2):
        w = G.mapping(torch.randn(n, 12, generator=dice)).detach()
        images = G.synthesis(w).image.detach()
        noisy = pruning.salt_and_pepper(images, 0.3, dice, content(images))
        expected = expected + n / 6 * torch.cat(images_scores(G, w, noisy))
    torch.testing.assert_close(torch.cat(scores), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("score, published", [
    (pruning.content_scores, {"samples": 400, "probability": 0.05}),
    (pruning.diversity_scores, {"directions": 10, "strength": 5.0}),
])
def test_scores_are_taken_as_published(score, published):
    parameters = inspect.signature(score).parameters
    assert {name: parameters[name].default for name in published} == published


@KINDS
def test_diversity_scores_step_by_step(networks, kind, monkeypatch):
    """Directions drawn by the variance that they explain, and the score as a variance."""
    G = copy.deepcopy(networks[kind]).requires_grad_(True)
    drawn, real = [], torch.multinomial

    def watched(weights, *arguments, **options):
        drawn.append((weights, real(weights, *arguments, **options)))
        return drawn[-1][1]

    monkeypatch.setattr(torch, "multinomial", watched)
    scores = pruning.diversity_scores(G, samples=6, directions=4, strength=3.0, seed=2, batch=4)
    dice = torch.Generator().manual_seed(2)
    many = torch.cat([G.mapping(torch.randn(1_000, 12, generator=dice)) for _ in range(10)])
    explained = torch.linalg.eigvalsh(torch.cov(many.detach().T)).flip(0)
    torch.testing.assert_close(drawn[0][0] / drawn[0][0].sum(), explained / explained.sum(),
                               rtol=1e-3, atol=1e-6)
    assert explained[0] > 3 * explained[-1]  # else it would not show how they are drawn
    axes = torch.linalg.svd((many - many.mean(dim=0)).detach(), full_matrices=False).Vh
    expected = 0
    for n, (weights, chosen) in zip((4, 2), drawn, strict=True):
        w = G.mapping(torch.randn(n, 12, generator=dice)).detach()
        real(weights, 4, replacement=True, generator=dice)  # moves the dice on
        moved = [G.synthesis(w + 3.0 * axis).image.detach() for axis in axes[chosen]]
        rows = torch.stack([torch.cat(images_scores(G, w, target)) for target in moved])
        expected = expected + 4 * rows.var(dim=0, unbiased=False)
    torch.testing.assert_close(torch.cat(scores), expected, rtol=1e-3, atol=1e-6)
    with pytest.raises(ValueError, match="directions must be at least 2, not 1"):
        pruning.diversity_scores(G, directions=1)


@pytest.mark.parametrize("score", [pruning.content_scores, pruning.diversity_scores,
                                   lambda G, samples: pruning.slim(G, samples)[1]])
def test_scores_are_the_same_where_gradients_are_off(networks, score):
    usual = score(networks["stylegan2"], samples=2)
    with torch.inference_mode():
        assert all(map(torch.equal, score(networks["stylegan2"], samples=2), usual))


def test_classes_take_turns():
    G = Generator(8, 4, 4, 4, mapping_layers=1, c_dim=3)
    ws = torch.cat(list(pruning.draw_ws(G, 5, 2, torch.Generator().manual_seed(0))))
    dice = torch.Generator().manual_seed(0)
    z = torch.cat([torch.randn(n, 4, generator=dice) for n in (2, 2, 1)])
    torch.testing.assert_close(ws, G.mapping(z, torch.eye(3)[[0, 1, 2, 0, 1]]).detach())
    assert not ws.requires_grad


# ------------------------------------------------------------------------------------- slimming


@KINDS
def test_slimming_shrinks_scales_and_folds_them_in(networks, kind, monkeypatch):
    teacher = networks[kind]
    before = copy.deepcopy(teacher.state_dict())
    G, scores = pruning.slim(teacher, images=8, batch=8, penalty=0.3, lr=1e-9, scale_lr=0.1)
    # A copy draws the same images: in the first step only the penalty moves the scales.
    for score in scores:
        torch.testing.assert_close(score, torch.full_like(score, 1 - 0.1 * 0.3), rtol=0, atol=1e-4)
    w = torch.randn(3, 12)
    for ours, scale, theirs in zip(G.readers(), scores, teacher.readers(), strict=True):
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a.affine(w), b.affine(w) * scale)
    ruins = "slimming with penalty={} ruins a whole layer of this network: choose another synthesis"
    with pytest.raises(ValueError, match=ruins.format(1000)):
        pruning.slim(teacher, images=8, batch=8, penalty=1000.0)
    with monkeypatch.context() as patch, pytest.raises(ValueError, match=ruins.format(0.01)):
        patch.setattr(pruning, "rgb_loss", lambda *both: rgb_loss(*both) * float("nan"))
        pruning.slim(teacher, images=8, batch=8, penalty=0.01)
    assert all(map(torch.equal, before.values(), teacher.state_dict().values()))
    assert not any(p.requires_grad for p in G.parameters())
    assert not any(module._forward_pre_hooks for module in G.modules())
    # Adam's first step with a gradient, its second one: lr / sqrt(0.01 / (1 - 0.99^2)).
    G, _ = pruning.slim(teacher, images=16, batch=8, lr=0.02)
    moved = (pruning.scored_weights(G)[-1] - pruning.scored_weights(teacher)[-1]).abs()
    torch.testing.assert_close(moved, torch.full_like(moved, 0.02 * 1.99**0.5), rtol=0.01, atol=0)


@KINDS
def test_a_scale_below_0_counts_by_its_magnitude(networks, kind):
    G, scores = pruning.slim(networks[kind], images=24, batch=8, lr=1e-9, scale_lr=20.0)
    readers = zip(G.readers(), networks[kind].readers(), strict=True)
    scales = torch.cat([ours[0].affine.bias / theirs[0].affine.bias for ours, theirs in readers])
    assert scales.min() < -0.1
    torch.testing.assert_close(torch.cat(scores), scales.abs())


def test_the_images_hold_on_to_the_channels_that_they_need():
    """Half of the channels that enter the last layers are read by nothing: their scales go."""
    torch.manual_seed(3)
    G = Generator(8, 8, 8, 16, mapping_layers=2).eval()
    with torch.no_grad():
        for readers in G.readers()[-2:]:
            for layer in readers:
                layer.weight[:, ::2] = 0
    _, scores = pruning.slim(G, images=3200, batch=16, penalty=0.01, scale_lr=0.5, lr=1e-4)
    for score in scores[-2:]:
        assert score[::2].max() < 0.5 * score[1::2].min()
