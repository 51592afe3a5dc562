"""The relativistic objective, and rates that fall."""

from __future__ import annotations

import math

import pytest
import torch
from tiny import config

from gapkd.distillation import losses
from gapkd.networks.stylegan2 import Discriminator
from gapkd.training.loop import fresh_generator
from gapkd.training.trainer import Trainer


def trainer(tmp_path, **changes) -> Trainer:
    settings = config(tmp_path / "run", **changes)
    torch.manual_seed(0)
    return Trainer(settings, fresh_generator(settings), Discriminator(8, 8))


def test_relativistic_loss_looks_at_pairs():
    real, fake = torch.tensor([[1.0], [0.0]]), torch.tensor([[3.0], [0.0]])
    expected = (math.log(1 + math.exp(2.0)) + math.log(2.0)) / 2
    assert losses.relativistic_loss(real, fake).item() == pytest.approx(expected, rel=1e-6)
    assert losses.relativistic_loss(fake, real).item() == pytest.approx(expected - 1.0, rel=1e-6)


def test_relativistic_training_penalises_both_kinds_of_images(tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(losses, "r1_penalty", lambda logits, images: seen.append(images.detach()) or logits.sum() * 0)
    run = trainer(tmp_path, adversarial="relativistic", flip=False)
    reals = run.real_batch()
    run.r1_step(reals)
    assert len(seen) == 2 and torch.equal(seen[0], reals) and not torch.equal(seen[1], reals)
    seen.clear()
    trainer(tmp_path, flip=False).r1_step(reals)
    assert len(seen) == 1


def test_the_generator_is_compared_with_the_real_images(tmp_path):
    """Logits that real images raise by a constant make the generator's loss larger by about that much."""
    losses_g = []
    for shift in (0.0, 5.0):
        run = trainer(tmp_path, adversarial="relativistic", flip=False, lr=1e-9)
        reals, plain = run.real_batch(), run.D.forward
        run.D.forward = lambda images, plain=plain, reals=reals, shift=shift: (
            plain(images) + (shift if images is reals else 0.0))
        run.generator_step(reals)
        losses_g.append(run.take_notes()["gan"])
    assert losses_g[1] - losses_g[0] > 3


def test_rates_fall_along_half_a_cosine(tmp_path):
    run = trainer(tmp_path, images=32, lr=0.01, lr_end=0.1)
    rates = []
    for _ in range(8):
        run.train_step()
        rates.append(run.opt_d.param_groups[0]["lr"] / (4 / 5))  # lazy regularisation every 4 steps
    expected = [0.01 * (0.1 + 0.9 * (1 + math.cos(math.pi * step / 8)) / 2) for step in range(8)]
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))
