"""Students: the channel rule, what is inherited bit for bit, which channels stay."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tiny import equal

from gapkd.data.toyfaces import toy_faces
from gapkd.distillation import pruning, students
from gapkd.distillation.students import SYNTHESES, make_student
from gapkd.files.checkpoints import load_generator
from gapkd.metrics.cost import macs
from gapkd.metrics.sampling import draw_latents, sample_images
from gapkd.networks.base import kept_channels
from gapkd.networks.stylegan2 import Discriminator, Generator

KINDS = pytest.mark.parametrize("kind", ["stylegan2", "stylegan3"])


@pytest.mark.parametrize("channels, keep, kept", [
    (512, 0.3, 154), (256, 0.3, 77), (128, 0.3, 39), (64, 0.3, 20), (32, 0.3, 10),  # the paper's
    (10, 0.3, 3), (10, 0.9, 9), (64, 1.0, 64), (3, 1e-6, 1), (64, 1e-9, 1)])
def test_channel_rule(channels, keep, kept):
    assert kept_channels(channels, keep) == kept


@KINDS
def test_mapping_is_inherited_bit_for_bit(networks, kind):
    teacher = networks[kind]
    for mode, trained in (("inherit", True), ("inherit-frozen", False)):
        student = make_student(teacher, mapping=mode)
        assert equal(student.mapping, teacher.mapping)
        assert not any(part.training for part in student.modules())
        assert all(p.requires_grad == trained for p in student.mapping.parameters())
        assert all(p.requires_grad for p in student.synthesis.parameters())
        student.mapping.layers[0].weight.data.zero_()  # the student's copy is its own
        assert teacher.mapping.layers[0].weight.any()
    fresh = make_student(teacher, mapping="random").mapping
    assert not torch.equal(fresh.layers[0].weight, teacher.mapping.layers[0].weight)


def test_widths_kernel_and_shared_noise(networks):
    teacher = networks["stylegan2"]
    student = make_student(teacher, keep=0.5, kernel=1)
    assert student.channels == [(5, 6), (7, 5), (4, 3)]
    assert student.feature_widths() == [6, 5, 3]
    assert [c.weight.shape[-1] for c in student.synthesis.convs] == [3, 3, 1, 3, 1]
    for a, b in zip(student.synthesis.convs, teacher.synthesis.convs, strict=True):
        assert torch.equal(a.noise_const, b.noise_const)
    alias_free = make_student(networks["stylegan3"], keep=0.5)
    assert alias_free.channels == alias_free.feature_widths() == [5, 6, 4, 3]


def test_seed_decides_and_the_callers_random_state_is_left_alone(networks):
    before = torch.get_rng_state()
    a, b, c = (make_student(networks["stylegan2"], seed=seed) for seed in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert equal(a, b) and not torch.equal(a.synthesis.const, c.synthesis.const)


def test_numbers_of_numpy_are_seeds(networks):
    T = networks["stylegan2"]
    for draw in (lambda n: make_student(T, 0.5, seed=n).synthesis.const,
                 lambda n: draw_latents(T, 2, n)[0],
                 lambda n: toy_faces(torch.arange(2), resolution=8, seed=n)[0]):
        assert torch.equal(draw(np.int64(3)), draw(3)) and not torch.equal(draw(3), draw(4))


@KINDS
def test_looking_at_a_student_does_not_change_it(networks, kind):
    student = make_student(networks[kind])
    before = copy.deepcopy(student)
    macs(student)
    first, second = (next(sample_images(student, 4, seed=1)) for _ in range(2))
    assert torch.equal(first, second) and equal(student, before)


@pytest.mark.parametrize("synthesis", ["random", "slimmed"])
def test_a_teacher_without_noise_has_students_without(synthesis):
    teacher = Generator(8, 8, 8, 8, mapping_layers=1)
    teacher.silence()
    assert make_student(teacher, 0.5, synthesis=synthesis, slimming_images=64).silent


@KINDS
def test_a_pruned_student_draws_what_a_teacher_with_dead_channels_draws(networks, kind):
    dead = copy.deepcopy(networks[kind])
    for readers in dead.readers():
        for layer in readers:
            layer.weight[:, 1::2] = 0
    if kind == "stylegan3":
        dead.synthesis.input.weight[:, 1::2] = 0
    student = make_student(dead, keep=0.5, synthesis="pruned").eval()
    ws = dead.mapping(torch.randn(3, 12))
    ours, theirs = student.synthesis(ws), dead.synthesis(ws)
    for a, b in zip(ours.features, theirs.features, strict=True):
        torch.testing.assert_close(a, b[:, ::2], atol=1e-4, rtol=1e-3)
    torch.testing.assert_close(ours.image, theirs.image, atol=1e-4, rtol=1e-3)


@KINDS
@pytest.mark.parametrize("name", [*pruning.SCORES, "slimmed"])
def test_the_channels_of_highest_score_stay(networks, kind, name, monkeypatch):
    teacher = networks[kind]
    asked = []

    def rising(G, **options):
        asked.append(options)
        return [torch.arange(w.shape[1]).float() for w in pruning.scored_weights(G)]

    def slim(G, images, **options):
        return G, rising(G, images=images, **options)

    monkeypatch.setitem(pruning.SCORES, name, rising)
    monkeypatch.setattr("gapkd.distillation.students.slim", slim)
    student = make_student(teacher, 0.5, synthesis=name, seed=3, content=abs, slimming_images=7,
                           progress=True)
    options = {"pruned": {}, "pruned-content": {"content": abs, "progress": True},
               "pruned-diversity": {"progress": True},
               "slimmed": {"images": 7, "seed": 3, "progress": True}}
    assert asked == [options[name]] and name in SYNTHESES
    ours, theirs = pruning.scored_weights(student)[1], pruning.scored_weights(teacher)[1]
    assert torch.equal(ours, theirs[-ours.shape[0]:, -ours.shape[1]:])


@pytest.mark.parametrize("arguments, message", [
    ({"keep": 0}, r"keep must lie in \(0, 1\], not 0"), ({"keep": 1.2}, "keep must lie in"),
    ({"mapping": "copy"}, "mapping must be one of inherit, inherit-frozen, random, not 'copy'"),
    ({"synthesis": "cagan"}, "synthesis must be one of random, pruned, .*, not 'cagan'"),
    ({"seed": 2**70}, "seed must be below 2.63"),
    ({"teacher": "toyfaces32"}, "teacher must be a generator, not a str: gapkd.load_generator"),
    ({"teacher": Discriminator(8, 2)}, "teacher must be a generator, not a Discriminator"),
    ({"kind": "vit"}, "kind must be one of same.*, not 'vit'"),
    ({"synthesis": "pruned", "kernel": 1}, "kernel must be the teacher's 3, not 1")])
def test_bad_arguments(networks, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_student(**{"teacher": networks["stylegan2"]} | arguments)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("synthesis", ["pruned-diversity", "pruned-content", "slimmed"])
def test_gradients_that_are_off_outside_are_on_within(teacher_file, mode, synthesis):
    with mode():
        teacher = load_generator(teacher_file)
        student = make_student(teacher, synthesis=synthesis, slimming_images=16)
    for network in (teacher.requires_grad_(True), student):  # both can be trained
        network(torch.randn(2, network.z_dim)).sum().backward()


def test_a_student_of_another_family_copies_no_weights(networks, monkeypatch):
    monkeypatch.setitem(students.STUDENT_KINDS, "other", Generator)
    with pytest.raises(ValueError, match='copies weights, .* choose synthesis="random", or kind'):
        make_student(networks["stylegan3"], kind="other", synthesis="pruned")
    with pytest.raises(ValueError, match="has its teacher's kernel 3"):
        make_student(networks["stylegan3"], kernel=1)
