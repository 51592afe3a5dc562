"""Losses and latent directions: recorded values, and what the docstrings promise. Whole steps, in
which the adversarial losses and the offsets are written out: test_assembly."""

from __future__ import annotations

import pytest
import torch
from recorded import stylekd_network

from gapkd.distillation import losses
from gapkd.distillation.directions import sefa_directions


@pytest.mark.parametrize("views, name", [(1, "single_view"), (2, "two_view")])
@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_latent_direction_loss_equals_the_recorded_value(stylekd, kind, views, name):
    student, teacher = ([stylekd[f"{network}.block{b}"][:5 * views] for b in (2, 3)]
                        for network in ("student", "teacher"))
    value = losses.latent_direction_loss(student, teacher, kind, views)
    recorded = stylekd[f"latent_direction_loss.{kind}.{name}"]
    torch.testing.assert_close(value, recorded, atol=1e-5, rtol=1e-5)


def test_latent_direction_loss_is_zero_for_equal_relations_and_ignores_width():
    teacher = torch.randn(6, 4, 8, 8)
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    rotated = torch.einsum("oc,nchw->nohw", rotation, teacher)  # other features, the same cosines
    wider = torch.cat([7 * teacher, torch.zeros(6, 9, 8, 8)], dim=1)
    for student in (teacher, rotated, wider):
        assert losses.latent_direction_loss([student], [teacher]).abs() < 1e-6
    assert losses.latent_direction_loss([torch.randn(6, 4, 8, 8)], [teacher]) > 1e-3


def test_relations_are_computed_in_float32_and_those_of_nothing_are_zero():
    rows, columns = torch.randn(2, 3, 4, 8, 8).bfloat16()
    rows[1] = 0
    with torch.autocast("cpu", torch.bfloat16):
        found = losses.relation_matrix(rows, columns)
    exact = losses.relation_matrix(rows.double(), columns.double())
    assert found.dtype == torch.float32 and exact.dtype == torch.float64
    torch.testing.assert_close(found, exact.float(), atol=1e-6, rtol=0)
    assert not found[1].any()


def test_gradient_reaches_the_student_and_never_the_teacher():
    student, teacher = torch.randn(2, 4, 3, 16, 16, requires_grad=True).unbind()
    student.retain_grad(), teacher.retain_grad()
    distance = lambda a, b: (a - b).square().mean(dim=(1, 2, 3))  # noqa: E731
    for loss in (losses.latent_direction_loss([student], [teacher]),
                 losses.rgb_loss([student], [teacher]),
                 losses.perceptual_loss(distance, student, teacher),
                 losses.feature_loss([student], [teacher])):
        student.grad = None
        loss.backward(retain_graph=True)
        assert student.grad.abs().sum() > 0 and teacher.grad is None


def test_rgb_loss_sums_levels_and_looks_inside_the_mask():
    black, white = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    levels = [black[..., :4, :4], black], [white[..., :4, :4], white]
    assert losses.rgb_loss(*levels) == 2
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., ::2] = 1
    assert losses.rgb_loss(*levels, mask) == 1  # half the pixels; half of each pixel


def test_feature_loss_is_the_share_that_is_not_explained():
    truth = [torch.randn(3, 4, 5, 5), torch.randn(3, 2, 9, 9)]
    assert losses.feature_loss(truth, truth) == 0
    nothing = [torch.zeros_like(t) for t in truth]
    assert losses.feature_loss(nothing, truth).item() == pytest.approx(2)
    guesses = [0.5 * truth[0], 2 * truth[1]]
    assert losses.feature_loss(guesses, truth).item() == pytest.approx(0.25 + 1)


def test_moment_loss_counts_standard_deviations():
    mean, std = torch.tensor([1.0, -2.0]), torch.tensor([2.0, 0.5])
    one = torch.tensor([[1.0], [-1.0]])
    assert losses.moment_loss(mean + std * one, mean, std) == 0
    # 1 std too high: mean 1, mean square 1 + 1; twice as wide: mean 0, mean square 4
    assert losses.moment_loss(mean + std * (one + 1), mean, std).item() == pytest.approx(1 + 1)
    assert losses.moment_loss(mean + std * 2 * one, mean, std).item() == pytest.approx(3)
    half = torch.cat([one, 2 * one], dim=1)  # one of two features
    assert losses.moment_loss(mean + std * half, mean, std).item() == pytest.approx(1.5)
    same = torch.zeros(4, 2, requires_grad=True)
    losses.moment_loss(same, torch.zeros(2), torch.zeros(2)).backward()
    assert same.grad.isfinite().all()


def test_sefa_equals_the_recorded_directions_up_to_sign(stylekd):
    teacher = stylekd_network(stylekd, "teacher")
    ours = sefa_directions(teacher, [1, 2, 3]).reshape(3, 5, 48)
    recorded = torch.stack([stylekd[f"sefa_split.block{b}"] for b in (1, 2, 3)])
    signs = (ours * recorded).sum(dim=2, keepdim=True).sign()
    torch.testing.assert_close(ours * signs, recorded, atol=1e-5, rtol=0)


FEATURES, ONE = [torch.zeros(5, 2, 4, 4)], [torch.zeros(1, 2, 4, 4)]


@pytest.mark.parametrize("arguments, message", [
    ((FEATURES, FEATURES), "hold 5 .* the same multiple of 2"),
    ((FEATURES, [FEATURES[0][:4]], "kl", 1), "5 .student. and 4"),
    ((ONE, ONE, "kl", 1), "of one image alone the loss is always 0: give at"),
    (([FEATURES[0][:2]], [FEATURES[0][:2]]), "same multiple of 2, and of one image alone"),
    ((FEATURES, FEATURES, "l2"), 'kind must be "kl" or "mse"'),
    ((FEATURES, FEATURES, "kl", 3), "views 1 or 2, not 'kl' and 3"),
    (([], [], "kl", 1), "same blocks of both, at least one")])
def test_bad_features(arguments, message):
    with pytest.raises(ValueError, match=message):
        losses.latent_direction_loss(*arguments)


def test_bad_levels_and_blocks(networks):
    with pytest.raises(ValueError, match="student has 1 levels, teacher has 0"):
        losses.rgb_loss(FEATURES, [])
    for blocks in ([3], [-1], []):
        with pytest.raises(ValueError, match="blocks must name blocks 0 to 2 of the 16 px"):
            sefa_directions(networks["stylegan2"], blocks)
    with pytest.raises(ValueError, match='"split" or "global", not .both'):
        sefa_directions(networks["stylegan2"], [1], "both")
