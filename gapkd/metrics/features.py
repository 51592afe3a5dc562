"""How different do two images look? The perceptual distance, and the networks of the papers.

Every feature network has `name`, which goes into the names of metrics, and `embed(images) -> (N,
F)`: the attribute network (gapkd.metrics.attributes), and Inception where its weights are there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gapkd.data.images import with_channels
from gapkd.files.checkpoints import load_discriminator, read_metadata
from gapkd.metrics.attributes import KIND, reader

Distance = Callable[[Tensor, Tensor], Tensor]  # images (N, 3, R, R) twice -> (N,)


class MissingExtraError(ValueError):
    """An optional library, or the weights it would download, is not there."""


def perceptual_distance(net: nn.Module, a: Tensor, b: Tensor) -> Tensor:
    """How different two batches of images look to a network: (N, 3, R, R) twice -> (N,), 0 for
    equal images.

    As LPIPS (Zhang et al., CVPR 2018): features scaled to unit length over the channels, squared
    difference, summed over channels, averaged over space. LPIPS then weighs the channels by what
    people said; nobody was asked about toy faces, so here all weights are 1 and the blocks are
    averaged. Range [0, 4]. Gradients flow into both images.

    Args:
        net: an attribute network or a discriminator: its `features` are the outputs of its blocks.
    """
    if a.shape != b.shape:
        raise ValueError("perceptual distance compares images of one shape, not "
                         f"{tuple(a.shape)} and {tuple(b.shape)}")
    channels = getattr(net, "img_channels", 3)
    ours, theirs = (net.features(with_channels(images, channels)) for images in (a, b))
    total = torch.zeros(a.shape[0], device=a.device)
    for x, y in zip(ours, theirs, strict=True):                    # (N, C_i, r_i, r_i)
        x = F.normalize(x.float(), dim=1, eps=1e-6)
        y = F.normalize(y.float(), dim=1, eps=1e-6)
        total = total + (x - y).square().sum(dim=1).mean(dim=(1, 2))
    return total / len(ours)


def distance_for(name: str, device: str | torch.device = "cpu") -> Distance:
    """The perceptual distance of that name, as of `DistillConfig.perceptual`.

    Returns: a function of (N, 3, R, R) twice -> (N,).
    """
    if name == "lpips":
        return lpips_distance(device)
    if name == "toyfaces" or read_metadata(name)["kind"] == KIND:
        network = reader(name)
    else:
        network = load_discriminator(name)
    return partial(perceptual_distance, network.to(device))


class InceptionNetwork:
    """Inception-v3 pool features (N, 2048) as in published FIDs, through torch-fidelity (extra
    `metrics`).

    Args:
        device: where to run.
        weights: local copy of torch-fidelity's weights; by default it downloads them (91 MB).
    Raises MissingExtraError when the library or the weights are not there.
    """

    name = "inception"
    num_features = 2048

    def __init__(self, device: str | torch.device = "cpu", weights: str | Path | None = None):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # RuntimeError: torchvision does not fit torch
            raise MissingExtraError('Inception features need the extra "metrics": '
                                    'pip install "gapkd[metrics]"') from error
        path = None if weights is None else str(weights)
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"], feature_extractor_weights_path=path).to(device)
        except (OSError, RuntimeError) as error:
            raise MissingExtraError("the Inception weights (pt_inception-2015-12-05) are neither "
                                    "at hand nor could they be downloaded: pass weights=path to "
                                    "a local copy") from error
        self.device = torch.device(device)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, R, R) in [-1, 1] -> (N, 2048), quantised to 8 bits first as published FIDs are."""
        pixels = with_channels(images.to(self.device)).add(1).mul(127.5).round().clamp(0, 255)
        return self.network(pixels.to(torch.uint8))[0]


def lpips_distance(device: str | torch.device = "cpu") -> Distance:
    """LPIPS with the VGG-16 backbone, through the lpips library (extra `metrics`).

    Images are (N, 3, R, R) in [-1, 1]; above 256 px they are averaged down to 256 first, as the
    paper does. Raises MissingExtraError when the library or the weights are not there.
    """
    try:
        import lpips
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError('LPIPS needs the extra "metrics": '
                                'pip install "gapkd[metrics]"') from error
    try:
        network = lpips.LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)
    except (OSError, RuntimeError) as error:
        raise MissingExtraError("the VGG-16 weights (vgg16-397923af.pth) are neither in torch's "
                                "cache nor could they be downloaded: put the file into "
                                "~/.cache/torch/hub/checkpoints") from error

    def distance(a: Tensor, b: Tensor) -> Tensor:
        a, b = with_channels(a), with_channels(b)
        if a.shape[-1] > 256:
            a, b = F.adaptive_avg_pool2d(a, 256), F.adaptive_avg_pool2d(b, 256)
        return network(a, b).flatten()

    return distance
