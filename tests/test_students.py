"""Students: channel rule, what is inherited bit for bit, pruning."""

from __future__ import annotations

import pytest
import torch

from gapkd.distillation.pruning import magnitude_scores
from gapkd.distillation.students import kept_channels, make_student
from gapkd.networks.stylegan2 import Generator


@pytest.fixture(scope="module")
def teacher():
    torch.manual_seed(0)
    G = Generator(16, 12, 12, [(10, 12), (14, 10), (8, 6)], mapping_layers=2)
    with torch.no_grad():
        for p in G.parameters():
            p.add_(0.1 * torch.randn_like(p))
        G.mapping.w_avg.normal_()
    return G.eval()


@pytest.mark.parametrize("channels, kept", [(512, 154), (256, 77), (128, 39), (64, 20), (32, 10)])
def test_channel_rule_of_the_paper(channels, kept):
    assert kept_channels(channels, 0.3) == kept


def test_keep_one_keeps_all_and_little_keeps_one():
    assert kept_channels(64, 1.0) == 64 and kept_channels(3, 1e-6) >= 1


def test_mapping_is_inherited_bit_for_bit(teacher):
    z = torch.randn(4, 12)
    for mode, trainable in (("inherit", True), ("inherit-frozen", False)):
        student = make_student(teacher, mapping=mode)
        assert all(torch.equal(a, b) for a, b in zip(student.mapping.state_dict().values(),
                                                     teacher.mapping.state_dict().values(), strict=True))
        assert torch.equal(student.mapping(z), teacher.mapping(z))
        assert all(p.requires_grad == trainable for p in student.mapping.parameters())
        next(iter(student.mapping.layers)).weight.data.zero_()  # the student's copy is its own
        assert teacher.mapping.layers[0].weight.abs().sum() > 0
    assert not torch.allclose(make_student(teacher, mapping="random").mapping(z), teacher.mapping(z))


def test_widths_kernel_and_shared_noise(teacher):
    student = make_student(teacher, keep=0.5, kernel=1)
    assert student.channels == [(5, 6), (7, 5), (4, 3)]
    assert student.synthesis.blocks[1].conv1.conv.weight.shape[-1] == 1
    for a, b in zip(student.synthesis.convs, teacher.synthesis.convs, strict=True):
        assert torch.equal(a.noise_const, b.noise_const)


def test_seed_decides_and_the_callers_random_state_is_left_alone(teacher):
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = make_student(teacher, seed=1), make_student(teacher, seed=1), make_student(teacher, seed=2)
    assert torch.equal(torch.rand(1), expected)
    assert torch.equal(a.synthesis.const, b.synthesis.const) and not torch.equal(a.synthesis.const, c.synthesis.const)


def test_pruning_nothing_gives_the_teacher(teacher):
    student = make_student(teacher, keep=1.0, synthesis="pruned").eval()
    z = torch.randn(3, 12)
    torch.testing.assert_close(student(z), teacher(z))


def test_pruning_keeps_the_channels_that_matter(teacher):
    """A teacher with dead channels: the student without them draws the same images."""
    dead = Generator(**teacher.architecture())
    dead.load_state_dict(teacher.state_dict())
    readers = [*dead.synthesis.convs]
    with torch.no_grad():
        for conv in readers:
            conv.conv.weight[:, 1::2] = 0
        for block in dead.synthesis.blocks:
            block.torgb.conv.weight[:, 1::2] = 0
    student = make_student(dead, keep=0.5, synthesis="pruned").eval()
    assert student.channels == [(5, 6), (7, 5), (4, 3)]
    z = torch.randn(3, 12)
    ws = dead.mapping(z)
    for ours, theirs in zip(student.synthesis(ws).features, dead.synthesis(ws).features, strict=True):
        torch.testing.assert_close(ours, theirs[:, ::2], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(student(z), dead(z), atol=1e-4, rtol=1e-3)


def test_magnitude_scores_by_hand(teacher):
    scores = magnitude_scores(teacher)
    assert [len(s) for s in scores] == [10, 12, 14, 10, 8, 6]
    conv = teacher.synthesis.convs[1].conv.weight
    assert scores[1][3].item() == pytest.approx(conv[:, 3].abs().mean().item())


@pytest.mark.parametrize("arguments, message", [
    ({"keep": 0}, r"keep must lie in \(0, 1\]"), ({"keep": 1.2}, "keep"),
    ({"mapping": "copy"}, "mapping must be one of"),
    ({"synthesis": "cagan"}, "synthesis must be one of"), ({"synthesis": "pruned", "kernel": 1}, "kernel must be")])
def test_bad_arguments(teacher, arguments, message):
    with pytest.raises(ValueError, match=message):
        make_student(teacher, **arguments)
