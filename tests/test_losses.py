"""The losses against recorded values, an independent double loop, and their promised behaviour."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from recorded import STYLEKD, arrays, stylekd_network

from gapkd.distillation import losses
from gapkd.distillation.directions import draw_offsets, sefa_directions


@pytest.fixture(scope="module")
def stylekd():
    return arrays("stylekd")


@pytest.mark.parametrize("views", [1, 2])
@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_latent_direction_loss_equals_the_recorded_value(stylekd, kind, views):
    rows = 10 if views == 2 else 5
    student, teacher = ([stylekd[f"{net}.block{b}"][:rows] for b in (2, 3)] for net in ("student", "teacher"))
    value = losses.latent_direction_loss(student, teacher, kind=kind, views=views)
    recorded = stylekd[f"latent_direction_loss.{kind}.{'two' if views == 2 else 'single'}_view"]
    torch.testing.assert_close(value, recorded, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_latent_direction_loss_from_our_own_networks(stylekd):
    features = {}
    for name in STYLEKD:
        G = stylekd_network(stylekd, name)
        w = G.mapping(stylekd["z"])
        features[name] = G.synthesis(torch.cat([w, w + stylekd["offsets"][:, 0]])).features[2:4]
    value = losses.latent_direction_loss(features["student"], features["teacher"])
    torch.testing.assert_close(value, stylekd["latent_direction_loss.kl.two_view"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_latent_direction_loss_equals_a_double_loop(kind):
    torch.manual_seed(0)
    n = 4
    student = [torch.randn(2 * n, 3, 4, 4, dtype=torch.float64), torch.randn(2 * n, 2, 8, 8, dtype=torch.float64)]
    teacher = [torch.randn(2 * n, 7, 4, 4, dtype=torch.float64), torch.randn(2 * n, 5, 8, 8, dtype=torch.float64)]
    total = 0.0
    for s, t in zip(student, teacher, strict=True):
        cos = [[[float(a[i].flatten() @ a[n + j].flatten()) / float(a[i].norm() * a[n + j].norm()) for j in range(n)]
                for i in range(n)] for a in (s, t)]
        for i in range(n):
            if kind == "mse":
                total += sum((cos[0][i][j] - cos[1][i][j]) ** 2 for j in range(n)) / n**2
                continue
            p, q = ([math.exp(c) / sum(map(math.exp, row)) for c in row] for row in (cos[1][i], cos[0][i]))
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / n
    value = losses.latent_direction_loss(student, teacher, kind=kind)
    assert value.item() == pytest.approx(total, rel=1e-12)


def test_latent_direction_loss_is_zero_for_equal_relations_and_ignores_width():
    teacher = [torch.randn(6, 4, 8, 8)]
    rotation = torch.linalg.qr(torch.randn(4, 4))[0]
    rotated = [torch.einsum("oc,nchw->nohw", rotation, teacher[0])]  # other features, the same cosines
    wider = [torch.cat([teacher[0], torch.zeros(6, 9, 8, 8)], dim=1)]
    for student in (teacher, rotated, wider):
        assert losses.latent_direction_loss(student, teacher).abs() < 1e-6
    assert losses.latent_direction_loss([torch.randn(6, 4, 8, 8)], teacher) > 1e-3


def test_a_queue_adds_columns_that_no_gradient_reaches():
    student, teacher = torch.randn(6, 3, 4, 4, requires_grad=True), torch.randn(6, 5, 4, 4)
    earlier = [[(torch.randn(n, 3, 4, 4, requires_grad=True), torch.randn(n, 5, 4, 4))] for n in (1, 3)]
    value = losses.latent_direction_loss([student], [teacher], earlier=earlier)
    cosines = [F.normalize(now[:3].flatten(1), dim=1)
               @ F.normalize(torch.cat([now[3:], *(batch[0][net] for batch in earlier)]).flatten(1), dim=1).t()
               for net, now in enumerate((student, teacher))]
    by_hand = F.kl_div(cosines[0].log_softmax(1), cosines[1].softmax(1), reduction="sum") / 3
    torch.testing.assert_close(value, by_hand)
    assert cosines[0].shape == (3, 7) and not torch.isclose(value, losses.latent_direction_loss([student], [teacher]))
    value.backward()
    assert student.grad.abs().sum() > 0 and earlier[0][0][0].grad is None


def test_balance_makes_two_losses_pull_alike():
    first, second = torch.randn(4, 3, requires_grad=True), torch.randn(5, requires_grad=True)
    reference, loss = first.sin().sum() + second.square().sum(), 1e-3 * (first * first).sum() * second.norm()

    def pull(x):
        return torch.cat([g.flatten() for g in torch.autograd.grad(x, (first, second), retain_graph=True)]).norm()

    factor = losses.balance(loss, reference, (first, second))
    assert not factor.requires_grad
    torch.testing.assert_close(pull(factor * loss), pull(reference))
    assert losses.balance(1e-30 * loss, reference, (first, second)) == 1e4  # bounded


def test_balance_of_small_gradients_in_float16():
    full = torch.randn(8, 64, 64)
    factors = {}
    for dtype in (torch.float32, torch.float16):
        x = full.to(dtype).requires_grad_()
        loss, reference = 5e-4 * x.float().sin().mean(), 1e-4 * x.float().square().mean()
        factors[dtype] = losses.balance(loss, reference, [x]).item()
    assert (torch.autograd.grad(loss, x)[0] == 0).all()  # what float16 does with such gradients
    assert factors[torch.float16] == pytest.approx(factors[torch.float32], rel=0.01)


def test_gradient_reaches_the_student_and_never_the_teacher():
    student, teacher = torch.randn(4, 3, 16, 16, requires_grad=True), torch.randn(4, 3, 16, 16, requires_grad=True)
    total = (losses.latent_direction_loss([student], [teacher]) + losses.rgb_loss(student, teacher)
             + losses.perceptual_loss(lambda a, b: (a - b).square().mean(dim=(1, 2, 3)), student, teacher))
    total.backward()
    assert student.grad.abs().sum() > 0 and teacher.grad is None


def test_rgb_loss_levels_and_mask():
    a, b = torch.zeros(2, 3, 8, 8), torch.ones(2, 3, 8, 8)
    assert losses.rgb_loss(a, b) == 1
    small = F.interpolate(a, size=4), F.interpolate(b, size=4)
    assert losses.rgb_loss([small[0], a], [small[1], b]) == 2
    mask = torch.zeros(2, 1, 8, 8)
    mask[..., :4] = 1
    assert losses.rgb_loss([small[0], a], [small[1], b], mask) == 1  # half the pixels, on both levels
    with pytest.raises(ValueError, match="levels"):
        losses.rgb_loss([a], [b, b])


def test_adversarial_losses_by_hand():
    real, fake = torch.tensor([[2.0], [0.0]]), torch.tensor([[-1.0], [1.0]])
    softplus = lambda x: math.log1p(math.exp(x))  # noqa: E731
    assert losses.discriminator_loss(real, fake).item() == pytest.approx(
        (softplus(-2) + softplus(0) + softplus(-1) + softplus(1)) / 2)
    assert losses.generator_loss(fake).item() == pytest.approx((softplus(1) + softplus(-1)) / 2)


def test_r1_of_a_linear_discriminator_is_its_squared_weight():
    weight = torch.randn(3, 8, 8)
    images = torch.randn(5, 3, 8, 8, requires_grad=True)
    penalty = losses.r1_penalty((images * weight).sum(dim=(1, 2, 3))[:, None], images)
    torch.testing.assert_close(penalty, weight.square().sum())


def test_path_length_of_a_linear_map():
    ws = torch.randn(4, 6, 5, requires_grad=True)
    basis = torch.randn(6 * 5, 3 * 8 * 8)
    images = (ws.flatten(1) @ basis).reshape(4, 3, 8, 8)
    noise = torch.randn(4, 3, 8, 8)
    expected = (noise.flatten(1) / 8 @ basis.t()).reshape(4, 6, 5).square().sum(2).mean(1).sqrt()
    torch.testing.assert_close(losses.path_lengths(images, ws, noise), expected)
    torch.testing.assert_close(losses.path_penalty(expected, 1.0), (expected - 1).square().mean())


def test_sefa_equals_the_recorded_directions_up_to_sign(stylekd):
    teacher = stylekd_network(stylekd, "teacher")
    ours = sefa_directions(teacher, [1, 2, 3], "split").reshape(3, 5, 48)
    for b in (1, 2, 3):
        recorded = stylekd[f"sefa_split.block{b}"]
        signs = (ours[b - 1] * recorded).sum(dim=1, keepdim=True).sign()
        torch.testing.assert_close(ours[b - 1] * signs, recorded, atol=1e-5, rtol=0)


def test_sefa_directions_are_the_ones_the_affines_amplify_most(stylekd):
    teacher = stylekd_network(stylekd, "teacher")
    directions = sefa_directions(teacher, [1, 2], "global")
    assert directions.shape == (10, 48)
    torch.testing.assert_close(directions @ directions.t(), torch.eye(10), atol=1e-5, rtol=0)
    rows = torch.cat([F.normalize(c.affine.weight, dim=1) for b in (1, 2) for c in teacher.synthesis.blocks[b].convs])
    gains = (rows @ directions.t()).norm(dim=0)
    assert torch.all(gains[:-1] >= gains[1:])  # largest first
    others = F.normalize(torch.randn(1000, 48), dim=1)
    assert gains[0] >= (rows @ others.t()).norm(dim=0).max()
    with pytest.raises(ValueError, match="blocks 0 to 3"):
        sefa_directions(teacher, [4])
    with pytest.raises(ValueError, match="split"):
        sefa_directions(teacher, [1], "both")


@pytest.mark.parametrize("mode", ["split", "global"])
def test_weighted_directions_are_as_long_as_the_affines_amplify_them(stylekd, mode):
    teacher = stylekd_network(stylekd, "teacher")
    plain, weighted = (sefa_directions(teacher, [1, 2], mode, weighted=w) for w in (False, True))
    rows = [torch.cat([F.normalize(c.affine.weight, dim=1) for c in teacher.synthesis.blocks[b].convs]) for b in (1, 2)]
    if mode == "global":
        gains = (torch.cat(rows) @ plain.t()).square().mean(dim=0).sqrt()
    else:
        gains = torch.cat([(r @ d.t()).square().mean(dim=0).sqrt() for r, d in zip(rows, plain.chunk(2), strict=True)])
    lengths = gains / gains.square().mean().sqrt()
    torch.testing.assert_close(weighted, plain * lengths[:, None], atol=1e-5, rtol=1e-5)
    assert lengths.max() > 1.1 * lengths.min()


def test_offsets_follow_the_directions_and_the_strength():
    directions = torch.eye(8)[:3]
    seed = lambda: torch.Generator().manual_seed(0)  # noqa: E731
    offsets = draw_offsets(20_000, 8, 2.0, seed(), directions)
    assert ((offsets != 0).sum(dim=1) == 1).all() and (offsets[:, 3:] == 0).all()
    lengths = offsets.sum(dim=1)
    assert abs(lengths.std().item() - 2.0) < 0.05 and abs(lengths.mean().item()) < 0.05
    free = draw_offsets(20_000, 8, 2.0, seed())
    assert abs(free.norm(dim=1).square().mean().sqrt().item() - 2.0) < 0.05
    assert torch.equal(free, draw_offsets(20_000, 8, 2.0, seed()))


def test_bad_arguments():
    a = [torch.randn(5, 2, 4, 4)]
    with pytest.raises(ValueError, match="multiple of 2"):
        losses.latent_direction_loss(a, a)
    with pytest.raises(ValueError, match="kind"):
        losses.latent_direction_loss(a, a, kind="l2")
    with pytest.raises(ValueError, match="same blocks"):
        losses.latent_direction_loss(a, [], views=1)
