"""The options of the latent-direction loss in the guide: sums, steps and queue against what they should be by hand."""

from __future__ import annotations

import pytest
import torch
from tiny import distill_config

from gapkd.distillation import losses
from gapkd.distillation.directions import sefa_directions
from gapkd.distillation.distiller import Guide
from gapkd.distillation.students import make_student
from gapkd.files.checkpoints import load_generator
from gapkd.settings import DistillConfig


@pytest.fixture
def networks(teacher_file):
    teacher = load_generator(teacher_file)
    return make_student(teacher, 0.5, seed=1), teacher


def compared(config: DistillConfig, student, teacher, batches: int = 1) -> tuple[Guide, list]:
    """A guide, and for each of some batches: total, losses by name, features of both networks (2N rows a block)."""
    guide, rng, found = Guide(config, teacher), torch.Generator().manual_seed(0), []
    for _ in range(batches):
        ws = torch.randn(config.batch, teacher.num_ws, teacher.w_dim, generator=rng)
        noise, offsets = student.synthesis.draw_noise(config.batch, rng), guide.draw_offsets(config.batch, rng)
        _, total, parts = guide.compare(student, ws, ws, noise, offsets)
        ws, noise = torch.cat([ws, ws + offsets[:, None]]), [torch.cat([m, m]) for m in noise]
        features = [[G.synthesis(ws, noise=noise).features[b] for b in config.ld_blocks] for G in (student, teacher)]
        found.append((total, parts, features))
    return guide, found


def test_the_queue_holds_the_moved_images_of_the_last_batches(tmp_path, teacher_file, fake_distance, networks):
    config = distill_config(tmp_path, teacher_file, ld_queue=2)
    guide, found = compared(config, *networks, batches=4)
    assert len(guide.queue) == 2
    for batch, (_, _, features) in zip(guide.queue, found[2:], strict=True):
        for b in range(len(config.ld_blocks)):
            for kept, whole in zip(batch[b], (features[0][b], features[1][b]), strict=True):
                torch.testing.assert_close(kept, whole[config.batch:])
                assert not kept.requires_grad
                assert kept.untyped_storage().nbytes() == 4 * kept.numel()  # no view of something larger
    earlier = [[(s[config.batch:], t[config.batch:]) for s, t in zip(*features, strict=True)]
               for _, _, features in found[1:3]]
    by_hand = losses.latent_direction_loss(*found[3][2], earlier=earlier)
    torch.testing.assert_close(found[3][1]["ld"], by_hand, rtol=1e-4, atol=1e-6)


def test_a_balanced_loss_pulls_as_strongly_as_asked(tmp_path, teacher_file, fake_distance, networks):
    config = distill_config(tmp_path, teacher_file, ld_weight=0.0, ld_balance=0.25, rgb_weight=2.0)
    student, teacher = networks
    seen = []
    student.synthesis.register_forward_hook(lambda module, args, out: seen.append(out))
    _, ((total, parts, _),) = compared(config, student, teacher)
    weighted = 2 * parts["rgb"] + config.perceptual_weight * parts["perceptual"] + parts["ld_weight"] * parts["ld"]
    torch.testing.assert_close(total, weighted)
    at = [seen[0].features[b] for b in config.ld_blocks]
    rgb, ld = (torch.cat([g.flatten() for g in torch.autograd.grad(loss, at, retain_graph=True)]).norm()
               for loss in (2 * parts["rgb"], parts["ld_weight"] * parts["ld"]))
    torch.testing.assert_close(ld, 0.25 * rgb, rtol=1e-4, atol=0)


def test_steps_follow_the_eigenvalues_where_asked(tmp_path, teacher_file, fake_distance, networks):
    plain, weighted = (Guide(distill_config(tmp_path, teacher_file, ld_eigenvalues=w), networks[1])
                       for w in (False, True))
    assert torch.equal(plain.directions, sefa_directions(networks[1], range(1, 4)))
    assert torch.equal(weighted.directions, sefa_directions(networks[1], range(1, 4), weighted=True))
    assert not torch.equal(plain.directions, weighted.directions)
