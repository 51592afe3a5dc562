"""The distiller: which losses it computes, of which images and features. Their sum within a step:
test_assembly; across processes: test_parallel."""

from __future__ import annotations

import copy

import pytest
import torch
from tiny import distill_config

from gapkd.distillation import losses
from gapkd.distillation.distiller import Distiller, Moments, make_regressors
from gapkd.distillation.students import make_student
from gapkd.files.checkpoints import CheckpointError
from gapkd.networks.base import SynthesisOutput
from gapkd.networks.stylegan2 import Discriminator
from gapkd.settings import DistillConfig
from gapkd.training.trainer import Trainer


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a - b).square().mean(dim=(1, 2, 3))


def drawn(teacher, student, views: int) -> tuple[SynthesisOutput, SynthesisOutput]:
    """What both make of 3 latents, or of two views of them."""
    w = torch.randn(3 * views, teacher.w_dim)
    return student.synthesis(w), teacher.synthesis(w)


@pytest.mark.parametrize("changes, names, views", [
    ({}, {"rgb", "perceptual", "ld"}, 2), ({"ld_offsets": "none"}, {"rgb", "perceptual", "ld"}, 1),
    ({"rgb_weight": 0.0}, {"perceptual", "ld"}, 2), ({"ld_weight": 0.0}, {"rgb", "perceptual"}, 1),
    ({"perceptual_weight": 0.0, "ld_weight": 0.0}, {"rgb"}, 1),
    ({"rgb_weight": 0.0, "perceptual_weight": 0.0, "ld_weight": 0.0}, set(), 1)])
@pytest.mark.parametrize("kind", ["stylegan2", "stylegan3"])
def test_a_loss_without_weight_is_not_computed(networks, kind, changes, names, views):
    teacher = networks[kind]
    student = make_student(teacher, 0.5)
    settings = DistillConfig(**{"ld_blocks": (1, 2)} | changes)
    distiller = Distiller(copy.deepcopy(teacher).train().requires_grad_(True), distance, settings)
    assert not distiller.teacher.training
    assert not any(p.requires_grad for p in distiller.teacher.parameters())
    found = distiller(*drawn(teacher, student, views))
    assert found.keys() == names and distiller.compares == bool(names)
    weighted = [getattr(settings, f"{name}_weight") * loss for name, loss in found.items()]
    assert distiller.total(found) == sum(weighted)
    offsets = distiller.draw_offsets(5, torch.Generator())
    assert (offsets is None) == (views == 1) and (views == 1 or offsets.shape == (5, 12))
    assert "perceptual" not in Distiller(teacher, None, settings)(*drawn(teacher, student, views))


@pytest.mark.parametrize("kind", ["stylegan2", "stylegan3"])
def test_features_are_regressed_from_the_first_view(networks, kind):
    teacher = networks[kind]
    student = make_student(teacher, 0.5)
    before = torch.get_rng_state()
    regressors = make_regressors(student, teacher, (1, 2), seed=4)
    assert torch.equal(torch.get_rng_state(), before)
    again, other = (make_regressors(student, teacher, (1, 2), seed) for seed in (4, 5))
    assert torch.equal(regressors[0].weight, again[0].weight) and regressors[0].bias.any()
    assert not torch.equal(regressors[0].weight, other[0].weight)
    settings = DistillConfig(feature_weight=1.0, ld_blocks=(1, 2))
    ours, theirs = drawn(teacher, student, views=2)
    found = Distiller(teacher, None, settings, None, regressors)(ours, theirs)
    guesses = [regressors[b - 1](ours.features[b][:3]) for b in (1, 2)]
    expected = losses.feature_loss(guesses, [theirs.features[b][:3] for b in (1, 2)])
    torch.testing.assert_close(found["feature"], expected)


def test_the_first_view_is_matched_with_very_many_images_of_the_teacher(networks):
    teacher = networks["stylegan2"]
    ours, theirs = drawn(teacher, make_student(teacher, 0.5), views=2)
    batches = torch.randn(50, 3, 32, 32).split(20)
    moments = Moments(lambda images: images.mean(dim=(2, 3)), batches)
    features = torch.cat(batches).mean(dim=(2, 3))
    torch.testing.assert_close(moments.mean, features.mean(dim=0))
    torch.testing.assert_close(moments.std, features.std(dim=0))
    settings = DistillConfig(moment_weight=20.0, rgb_weight=0.0, ld_blocks=(1, 2))
    distiller = Distiller(teacher, None, settings, moments=moments)
    found = distiller(ours, theirs)
    expected = losses.moment_loss(ours.image[:3].mean(dim=(2, 3)), moments.mean, moments.std)
    torch.testing.assert_close(found["moment"], expected)
    torch.testing.assert_close(distiller.total(found), 20 * expected + 30 * found["ld"])


def test_regressors_learn_with_the_student(networks, tmp_path):
    teacher = networks["stylegan2"]
    student = make_student(teacher, 0.5)
    settings = distill_config(tmp_path, "teacher", feature_weight=1.0, ld_blocks=(1, 2),
                              lr=1e-3, path_weight=0.0)
    regressors = make_regressors(student, teacher, (1, 2), seed=0)
    before = [p.clone() for p in regressors.parameters()]
    distiller = Distiller(teacher, None, settings, None, regressors)
    trainer = Trainer(settings, student, Discriminator(16, 4), distiller)
    trainer.train_step()
    for was, p in zip(before, regressors.parameters(), strict=True):
        # Adam's first step has the length of the learning rate.
        torch.testing.assert_close((p - was).abs(), torch.full_like(p, 1e-3), rtol=1e-2, atol=1e-5)
    state = trainer.state()
    del state["regressors"]
    with pytest.raises(CheckpointError, match="does not hold the networks"):
        trainer.load_state(state)


def test_older_states_name_no_regressors_where_there_are_none(networks, tmp_path):
    settings = distill_config(tmp_path, "teacher", gan_weight=1.0)
    trainer = Trainer(settings, make_student(networks["stylegan2"], 0.5), Discriminator(16, 4))
    state = trainer.state()
    del state["regressors"]
    trainer.load_state(state)


@pytest.mark.parametrize("blocks", [(2, 3), (0, 1)])
def test_what_the_teacher_does_not_have(networks, blocks):
    teacher = networks["stylegan2"]
    with pytest.raises(ValueError, match="ld_blocks must name blocks 1 to 2 of the 16 px"):
        Distiller(teacher, None, DistillConfig(ld_blocks=blocks))
    with pytest.raises(ValueError, match="ld_blocks must name blocks 1 to 2"):
        make_regressors(teacher, teacher, blocks, 0)
    with pytest.raises(ValueError, match="feature_weight needs regressors"):
        Distiller(teacher, None, DistillConfig(feature_weight=1.0, ld_weight=0.0))
    with pytest.raises(ValueError, match="moment_weight needs moments"):
        Distiller(teacher, None, DistillConfig(moment_weight=1.0, ld_weight=0.0))
    distiller = Distiller(teacher, None, DistillConfig(ld_weight=0.0))
    ours, theirs = drawn(teacher, networks["stylegan3"], views=1)
    with pytest.raises(ValueError, match="(3, 3, 32, 32).*make the student with make_student"):
        distiller(ours, theirs)


def test_no_gradient_reaches_what_makes_the_mask(networks):
    teacher = networks["stylegan2"]
    look = torch.nn.Conv2d(3, 1, 1)
    distiller = Distiller(teacher, None, DistillConfig(ld_weight=0.0), look)
    ours, theirs = drawn(teacher, make_student(teacher), views=1)
    distiller.total(distiller(ours, theirs)).backward()
    assert look.weight.grad is None
