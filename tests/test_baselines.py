"""What the paper is compared with: feature regression, content masks, GAN Slimming, a discriminator's features."""

from __future__ import annotations

import pytest
import torch
from tiny import distill_config, equal

from gapkd.data.toyfaces import face_mask, toy_faces
from gapkd.distillation import losses
from gapkd.distillation.distiller import Guide, make_regressors
from gapkd.distillation.pruning import slim, weights
from gapkd.distillation.students import make_student
from gapkd.files.checkpoints import CheckpointError, load_discriminator, load_generator, save_network
from gapkd.metrics.attributes import head_mask, load_attribute_network
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.training.loop import distill
from gapkd.training.trainer import Trainer


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return {"2": Generator(16, 12, 12, [(10, 12), (14, 10), (8, 6)], mapping_layers=2).eval(),
            "3": AliasFreeGenerator(32, 12, 12, [10, 12, 8, 6], mapping_layers=2, margin=2).eval()}


@pytest.fixture
def discriminator_file(tmp_path):
    torch.manual_seed(1)
    save_network(Discriminator(32, 4), tmp_path / "d.safetensors")
    return tmp_path / "d.safetensors"


# ---------------------------------------------------------------------------------------------- feature regression


def test_feature_loss_is_the_share_that_is_not_explained():
    truth = [torch.randn(3, 4, 5, 5), torch.randn(3, 2, 9, 9)]
    assert losses.feature_loss(truth, truth) == 0
    assert losses.feature_loss([torch.zeros_like(t) for t in truth], truth).item() == pytest.approx(2)
    by_hand = ((truth[0] * 0.5 - truth[0]) ** 2).sum() / (truth[0] ** 2).sum()
    assert losses.feature_loss([truth[0] * 0.5], truth[:1]).item() == pytest.approx(by_hand.item())


@pytest.mark.parametrize("kind", "23")
def test_regressors_fit_both_networks(networks, kind):
    teacher = networks[kind]
    student = make_student(teacher, keep=0.5)
    w = torch.randn(2, 12)
    for regress, b in zip(make_regressors(student, teacher, (1, 2), 0), (1, 2), strict=True):
        assert regress(student.synthesis(w).features[b]).shape == teacher.synthesis(w).features[b].shape


def test_regression_is_learnt_with_the_student_and_resumes_exactly(tmp_path, teacher_file, fake_distance):
    changes = {"feature_weight": 3.0, "ld_weight": 0.0, "gan_weight": 0.0, "log_every": 4, "lr": 0.01}
    whole = distill(distill_config(tmp_path / "whole", teacher_file, images=160, **changes))
    found = [record["feature"] for record in whole.log]
    assert found[-1] < 0.8 * found[0]
    distill(distill_config(tmp_path / "half", teacher_file, images=80, **changes))
    resumed = distill(distill_config(tmp_path / "half", teacher_file, images=160, resume=True, **changes))
    assert equal(whole.generator, resumed.generator)


def test_regressors_move(tmp_path, teacher_file, fake_distance):
    config, teacher = distill_config(tmp_path, teacher_file, feature_weight=1.0), load_generator(teacher_file)
    with pytest.raises(ValueError, match="feature_weight needs the student"):
        Guide(config, teacher)
    student = make_student(teacher)
    trainer = Trainer(config, student, Discriminator(32, 4), Guide(config, teacher, student=student))
    before = [p.clone() for p in trainer.guide.regressors.parameters()]
    trainer.train_step()
    assert not any(map(torch.equal, before, trainer.guide.regressors.parameters()))


# ---------------------------------------------------------------------------------------------- content


def test_head_masks_are_those_of_the_renderer():
    images, factors = toy_faces(torch.arange(60_000_000, 60_000_200))
    truth, found = face_mask(factors) > 0.5, head_mask(load_attribute_network(), images) > 0.5
    overlap = (truth & found).sum(dim=(1, 2, 3)) / (truth | found).sum(dim=(1, 2, 3))
    assert overlap.mean() > 0.98 and overlap.min() > 0.9
    blind = (truth.float().mean(dim=0) > 0.5).expand_as(truth)  # what one mask for all faces would reach
    assert ((truth & blind).sum() / (truth | blind).sum()) < 0.9


def test_content_is_the_mask_of_losses_and_scores(tmp_path, teacher_file, fake_distance, monkeypatch):
    seen = []

    def mask(net, images):
        seen.append(tuple(images.shape))
        return torch.zeros_like(images[:, :1])

    monkeypatch.setattr("gapkd.training.loop.head_mask", mask)
    settings = distill_config(tmp_path / "r", teacher_file, images=8, content="toyfaces", synthesis="pruned-content")
    log = distill(settings).log
    assert seen[:25] == [(16, 3, 32, 32)] * 25 and seen[25:] == [(4, 3, 32, 32)] * 2  # 400 for the scores, two steps
    assert log[-1]["rgb"] == 0


# ---------------------------------------------------------------------------------------------- slimming


@pytest.mark.parametrize("kind", "23")
def test_every_channel_is_scaled_wherever_it_is_looked_at(networks, kind):
    G = networks[kind]
    groups = G.readers()
    widths = [[len(layer.affine.bias) for layer in group] for group in groups]
    assert [w[0] for w in widths] == [w.shape[1] for w in weights(G)] and all(len(set(w)) == 1 for w in widths)
    styled = [m for m in G.synthesis.modules() if hasattr(m, "affine") and m is not getattr(G.synthesis, "input", None)]
    assert {id(layer) for group in groups for layer in group} == {id(m) for m in styled}


@pytest.mark.parametrize("kind", "23")
def test_slimming_shrinks_scales_and_folds_them_in(networks, kind):
    teacher = networks[kind]
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    G, scores = slim(teacher, images=8, batch=8, penalty=0.3, lr=1e-9, scale_lr=0.1)
    # A copy draws the same images: in the first step nothing but the penalty moves the scales.
    assert all(torch.allclose(s, torch.full_like(s, 1 - 0.1 * 0.3), atol=1e-4) for s in scores)
    style = torch.randn(3, 12)
    for group, scale, old in zip(G.readers(), scores, teacher.readers(), strict=True):
        for ours, theirs in zip(group, old, strict=True):
            torch.testing.assert_close(ours.affine(style), theirs.affine(style) * scale)
    with pytest.raises(ValueError, match="penalty=1000.0 switches a whole layer off"):
        slim(teacher, images=8, batch=8, penalty=1000.0)
    assert all(map(torch.equal, before.values(), teacher.state_dict().values()))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_images_hold_on_to_the_channels_that_they_need(seed):
    """Half of the channels that enter the last layers are read by nothing: their scales go, the others' stay."""
    torch.manual_seed(3)
    G = Generator(8, 8, 8, 16, mapping_layers=2).eval()
    with torch.no_grad():
        for layer in (G.synthesis.convs[-1].conv, *(block.torgb.conv for block in G.synthesis.blocks)):
            layer.weight[:, ::2] = 0
    _, scores = slim(G, images=3200, batch=16, penalty=0.01, scale_lr=0.5, lr=1e-4, seed=seed)
    for score in scores[-2:]:
        assert score[::2].max() < 0.5 * score[1::2].min()


def test_slimming_counts_towards_the_budget(tmp_path, teacher_file, fake_distance):
    settings = distill_config(tmp_path / "r", teacher_file, images=24, synthesis="slimmed", slimming_images=16)
    result = distill(settings)
    assert [record["images"] for record in result.log] == [24]
    again = distill_config(tmp_path / "r", teacher_file, images=32, synthesis="slimmed", slimming_images=16,
                           resume=True)
    assert [record["images"] for record in distill(again).log] == [24, 32]
    with pytest.raises(ValueError, match="slimming_images must lie between 0 and images=16, not 16"):
        distill_config(tmp_path, teacher_file, synthesis="slimmed", slimming_images=16)


# ---------------------------------------------------------------------------------------------- a discriminator


def test_a_discriminators_features_are_what_it_goes_on_from():
    torch.manual_seed(0)
    D, images = Discriminator(32, [4, 6, 8, 10]), torch.randn(4, 3, 32, 32)
    maps = D.features(images)
    assert [tuple(m.shape[1:]) for m in maps] == [(8, 16, 16), (6, 8, 8), (4, 4, 4)]
    x = D.from_rgb(images)
    for block, found in zip(D.blocks, maps, strict=True):
        x = block(x)
        torch.testing.assert_close(found, x)


def test_the_distance_of_a_discriminator_stays_as_it_was(tmp_path, teacher_file, discriminator_file):
    a, b = torch.randn(2, 3, 3, 32, 32).unbind()
    file = str(discriminator_file)
    config = distill_config(tmp_path, teacher_file, perceptual=file, discriminator=file)
    teacher, D = load_generator(teacher_file), load_discriminator(file).requires_grad_(True)
    student = make_student(teacher)
    trainer = Trainer(config, student, D, Guide(config, teacher, student=student))
    distance, start = trainer.guide.distance, [p.clone() for p in D.parameters()]
    before = distance(a, b)
    assert distance(a, a).abs().max() < 1e-6 and before.min() > 0
    trainer.train_step()
    assert not all(map(torch.equal, start, trainer.D.parameters()))  # the one that judges real and fake learns
    torch.testing.assert_close(distance(a, b), before)               # the one that compares does not
    assert distill(distill_config(tmp_path / "r", teacher_file, images=8, perceptual=file)).log[-1]["perceptual"] > 0
    with pytest.raises(CheckpointError, match="a discriminator was asked for"):
        distill(distill_config(tmp_path / "s", teacher_file, perceptual=str(teacher_file)))


@pytest.mark.parametrize("changes, message", [
    ({"feature_weight": 1.0, "feature_blocks": (9,)}, "feature_blocks must name blocks 1 to 3"),
    ({"feature_weight": -1.0}, "feature_weight must not be negative"),
    ({"feature_weight": 1.0, "feature_blocks": ()}, "feature_blocks must name at least one block"),
    ({"content": "photos"}, "content must be one of '', 'toyfaces'")])
def test_bad_settings(tmp_path, teacher_file, fake_distance, changes, message):
    with pytest.raises(ValueError, match=message):
        distill(distill_config(tmp_path / "r", teacher_file, **changes))
