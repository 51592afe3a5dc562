"""Networks that look at images: the attribute network, and LPIPS and Inception when their weights are there.

The attribute network is a small convolutional network trained on toy faces to read their factors. It plays
the part that two large downloads play elsewhere: its feature maps give the perceptual distance (as VGG does
in LPIPS), its pooled features give FID, KID and precision/recall (as Inception does), and its heads say what
a face shows.

Every feature network here has `name`, which goes into the names of metrics, and `embed(images) -> (N, F)`.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from gapkd.data.toyfaces import CATEGORICAL, CONTINUOUS, face_mask, toy_faces
from gapkd.files.checkpoints import CheckpointError, find_checkpoint, read_metadata, write_atomically
from gapkd.networks.layers import full_precision
from gapkd.networks.stylegan2 import Discriminator
from gapkd.training import runs

KIND = "attribute-network"
HELD_OUT = 50_000_000  # held-out faces start at this index; training stays far below it


class MissingExtraError(ValueError):
    """An optional library, or the weights it would download, is not there."""


def _block(in_channels: int, out_channels: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(in_channels, out_channels, kernel, stride=2, padding=(kernel - 1) // 2),
                         nn.GroupNorm(8, out_channels), nn.LeakyReLU(0.2))


class AttributeNetwork(nn.Module):
    """Reads the factors of faces: four strided convolution blocks, then one linear head for every factor.

    Args:
        categorical: factor -> names of its classes.
        continuous: factor -> (low, high) in the renderer's units; the network's value for it is (v - low) /
            (high - low).
        channels: width of every block, each a multiple of 8.
        hidden: width of the layer below the heads.
        name: of the images that it was trained on; it goes into the names of metrics.
    Images are (N, 3, R, R) in [-1, 1] with R >= 32; larger ones are averaged down to 32 px first.
    """

    size = 32  # px at which the network looks

    def __init__(self, categorical: Mapping[str, Sequence[str]] = CATEGORICAL,
                 continuous: Mapping[str, Sequence[float]] = CONTINUOUS,
                 channels: Sequence[int] = (32, 64, 128, 192), hidden: int = 256, name: str = "toyfaces"):
        super().__init__()
        self.name = name
        self.categorical = {name: tuple(classes) for name, classes in categorical.items()}
        self.continuous = {name: (float(low), float(high)) for name, (low, high) in continuous.items()}
        self.channels, self.hidden = tuple(channels), hidden
        self.num_features = sum(channels)
        widths = (3, *channels)
        # The first kernel is 4: at stride 2 a 3x3 one would weigh the pixels of a two-pixel eye unequally.
        self.blocks = nn.ModuleList(_block(i, o, 4 if n == 0 else 3)
                                    for n, (i, o) in enumerate(zip(widths, channels, strict=False)))
        self.trunk = nn.Sequential(nn.Linear(channels[-1] * 4, hidden), nn.LeakyReLU(0.2))
        self.heads = nn.Linear(hidden, sum(map(len, self.categorical.values())) + len(self.continuous))

    def architecture(self) -> dict:
        """The constructor's arguments, as JSON can hold them."""
        return {"categorical": {name: list(classes) for name, classes in self.categorical.items()},
                "continuous": {name: list(limits) for name, limits in self.continuous.items()},
                "channels": list(self.channels), "hidden": self.hidden, "name": self.name}

    @property
    def device(self) -> torch.device:
        return self.heads.weight.device

    def features(self, images: Tensor) -> list[Tensor]:
        """Output of every block: (N, C_i, r, r) with r = 16, 8, 4, 2."""
        if images.ndim != 4 or images.shape[1] != 3 or min(images.shape[2:]) < self.size:
            raise ValueError(
                f"the attribute network reads images of shape (N, 3, R, R) with R of at least {self.size}, "
                f"not {tuple(images.shape)}"
            )
        if images.shape[-1] != self.size or images.shape[-2] != self.size:
            images = F.adaptive_avg_pool2d(images, self.size)
        maps, x = [], images
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        return maps

    def embed(self, images: Tensor) -> Tensor:
        """Spatial means of all blocks side by side, texture first and meaning last: (N, num_features)."""
        return self.pool(self.features(images))

    def factors(self, images: Tensor) -> dict[str, Tensor]:
        """Factor -> logits (N, classes) if categorical, value (N,) if continuous (0 is its low end, 1 its
        high end)."""
        return self.read(self.features(images))

    def pool(self, maps: list[Tensor]) -> Tensor:
        """`embed` of images whose `features` are known."""
        return torch.cat([m.mean(dim=(2, 3)) for m in maps], dim=1)

    def read(self, maps: list[Tensor]) -> dict[str, Tensor]:
        """`factors` of images whose `features` are known."""
        out = self.heads(self.trunk(maps[-1].flatten(1)))
        sizes = [len(classes) for classes in self.categorical.values()] + [1] * len(self.continuous)
        parts = dict(zip([*self.categorical, *self.continuous], out.split(sizes, dim=1), strict=True))
        return {name: part if name in self.categorical else part[:, 0] for name, part in parts.items()}


def perceptual_distance(net: AttributeNetwork | Discriminator, a: Tensor, b: Tensor) -> Tensor:
    """How different two batches of images look to the network: (N, 3, R, R) twice -> (N,), 0 for equal
    images.

    As LPIPS (Zhang et al., CVPR 2018): features scaled to unit length over the channels, squared difference,
    summed over channels, averaged over space. LPIPS then weighs the channels by what people said; nobody was
    asked about toy faces, so here all weights are 1 and the blocks are averaged. Range [0, 4]. Gradients flow
    into both images.
    """
    if a.shape != b.shape:
        raise ValueError(
            f"perceptual distance compares images of one shape, not {tuple(a.shape)} and {tuple(b.shape)}"
        )
    total = torch.zeros(a.shape[0], device=a.device)
    for x, y in zip(net.features(a), net.features(b), strict=True):
        x, y = F.normalize(x.float(), dim=1, eps=1e-6), F.normalize(y.float(), dim=1, eps=1e-6)
        total = total + (x - y).square().sum(dim=1).mean(dim=(1, 2))
    return total / len(net.blocks)


# -- training ------------------------------------------------------------------------------------------------


def _roughen(images: Tensor, generator: torch.Generator) -> Tensor:
    """Blur half of the images a little and add noise to them, so that a GAN's imperfect faces are read too."""
    n = images.shape[0]
    rough = (torch.rand(n, 1, 1, 1, generator=generator) < 0.5).float()
    mix = 0.5 * rough * torch.rand(n, 1, 1, 1, generator=generator)
    blurred = F.avg_pool2d(F.pad(images, (1, 1, 1, 1), mode="reflect"), 3, stride=1)
    strength = 0.08 * rough * torch.rand(n, 1, 1, 1, generator=generator)
    return images.lerp(blurred, mix) + strength * torch.randn(images.shape, generator=generator)


def factor_loss(net: AttributeNetwork, images: Tensor, factors: Mapping[str, Tensor]) -> Tensor:
    """Cross-entropy summed over the categorical factors plus 10 x squared error over the normalised
    continuous ones."""
    read = net.factors(images)
    loss = torch.zeros((), device=images.device)
    for name in net.categorical:
        loss = loss + F.cross_entropy(read[name], factors[name])
    for name, (low, high) in net.continuous.items():
        loss = loss + 10 * F.mse_loss(read[name], (factors[name] - low) / (high - low))
    return loss


def train_attribute_network(seed: int = 0, steps: int = 4000, batch: int = 64, resolution: int = 32,
                            log: Callable[[int, float], None] | None = None) -> AttributeNetwork:
    """Train on `steps` x `batch` fresh toy faces (Adam, one cycle up to 3e-3), on the CPU; returns it in eval
    mode.

    `log(step, loss)` is called every 100 steps.
    """
    if steps < 1 or batch < 1:
        raise ValueError(f"steps and batch must be at least 1, not {steps} and {batch}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = AttributeNetwork()

    def examples(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return toy_faces(torch.arange(step * batch, (step + 1) * batch), resolution, seed)

    return fit_network(net, examples, steps, seed, log)


def fit_network(net: AttributeNetwork, examples: Callable[[int], tuple[Tensor, Mapping[str, Tensor]]], steps: int,
                seed: int, log: Callable[[int, float], None] | None = None) -> AttributeNetwork:
    """Train a network to read factors (Adam, one cycle up to 3e-3); returns it in eval mode.

    Args:
        examples: step -> images (N, 3, R, R) and their factors.
        log: called with step and loss every 100 steps.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, max_lr=3e-3, total_steps=max(steps, 2), pct_start=0.1
    )
    for step in range(steps):
        images, factors = examples(step)
        loss = factor_loss(net, _roughen(images, generator), factors)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if log is not None and step % 100 == 0:
            log(step, loss.item())
    return net.eval().requires_grad_(False)


def held_out_scores(
    net: AttributeNetwork, samples: int = 5000, resolution: int = 32, seed: int = 0
) -> dict[str, float]:
    """Accuracy per categorical factor and correlation per continuous one, on faces that training has not
    seen."""
    check_factors(net)
    parts = torch.arange(HELD_OUT, HELD_OUT + samples).split(250)
    return reading_scores(net, (toy_faces(part, resolution, seed) for part in parts))


@torch.no_grad()
def reading_scores(net: AttributeNetwork, examples: Iterable[tuple[Tensor, Mapping[str, Tensor]]]) -> dict[str, float]:
    """Accuracy per categorical factor and correlation per continuous one, on batches of images and their factors."""
    read: dict[str, list[Tensor]] = {name: [] for name in [*net.categorical, *net.continuous]}
    true: dict[str, list[Tensor]] = {name: [] for name in read}
    for images, factors in examples:
        for name, value in net.factors(images).items():
            read[name].append(value)
            true[name].append(factors[name])
    scores = {}
    for name in read:
        value, truth = torch.cat(read[name]), torch.cat(true[name])
        if name in net.categorical:
            scores[name] = round((value.argmax(dim=1) == truth).float().mean().item(), 4)
        else:
            r = torch.corrcoef(torch.stack([value.double(), truth.double()]))[0, 1].item()
            scores[name] = round(r, 4)
    return scores


def check_factors(net: AttributeNetwork) -> None:
    """Raise ValueError unless the network reads the factors (classes, limits) that the renderer draws
    today."""
    today = {**{name: tuple(classes) for name, classes in CATEGORICAL.items()},
             **{name: (float(low), float(high)) for name, (low, high) in CONTINUOUS.items()}}
    learnt = {**net.categorical, **net.continuous}
    changed = sorted(name for name in today.keys() | learnt.keys() if today.get(name) != learnt.get(name))
    if changed:
        raise ValueError(
            f"the attribute network was trained on other toy faces: {', '.join(changed)} changed since; "
            "train it again with train_attribute_network"
        )


# -- files ---------------------------------------------------------------------------------------------------


def save_attribute_network(
    net: AttributeNetwork, path: str | Path, provenance: Mapping[str, object] | None = None
) -> Path:
    """Write weights and architecture to one safetensors file; `provenance` (training settings, scores)
    travels along."""
    tensors = {name: value.detach().cpu().clone().contiguous() for name, value in net.state_dict().items()}
    metadata = {"gapkd": "1", "kind": KIND, "architecture": json.dumps(net.architecture()),
                "provenance": json.dumps(dict(provenance or {}))}
    return write_atomically(path, to_bytes(tensors, metadata))


def load_attribute_network(path: str | Path = "attributes") -> AttributeNetwork:
    """Load a network, by default the embedded one: eval mode, CPU, no gradients.

    The factors come from the file, so an old file still loads when the renderer has learnt new ones. Its
    provenance: `gapkd.files.checkpoints.read_metadata("attributes")`. Raises CheckpointError when the file is
    missing, truncated or of another kind.
    """
    file = find_checkpoint(path)
    metadata = read_metadata(file)
    if metadata["kind"] != KIND:
        raise CheckpointError(f"{file.name} holds a {metadata['kind']}, but an {KIND} was asked for")
    try:
        with torch.device("meta"):  # a hostile size costs nothing before the weights confirm it
            net = AttributeNetwork(**metadata["architecture"])
        net.load_state_dict(load_file(file), assign=True)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise CheckpointError(
            f"the weights in {file.name} do not fit the architecture its metadata names ({first}): "
            "the file is damaged or was edited"
        ) from error
    return net.eval().requires_grad_(False)


def make_attribute_file(path: str | Path, seed: int = 0, steps: int = 4000,
                        batch: int = 64) -> dict[str, float]:
    """Train an attribute network, save it with settings and held-out scores; returns the scores at 32 px."""
    def show(step: int, loss: float) -> None:
        print(f"step {step} of {steps}: loss {loss:.3f}", flush=True)

    started = time.perf_counter()
    net = train_attribute_network(seed, steps, batch, log=show)
    seconds = round(time.perf_counter() - started)
    scores = {f"scores_{size}px": held_out_scores(net, 5000, size, seed) for size in (32, 64)}
    command = f"gapkd.metrics.features.make_attribute_file({Path(path).name!r}, {seed}, {steps}, {batch})"
    settings = {"command": command, "seed": seed, "steps": steps, "batch": batch, "seconds": seconds,
                "held_out": {"faces": 5000, **scores}}
    save_attribute_network(net, path, runs.provenance() | settings)
    return scores["scores_32px"]


def reader(name: str, device: str | torch.device = "cpu") -> AttributeNetwork:
    """The network that reads factors: the embedded one for "toyfaces", else that of a file (`gapkd judge`)."""
    return load_attribute_network("attributes" if name == "toyfaces" else name).to(device)


@torch.no_grad()
def head_mask(net: AttributeNetwork, images: Tensor) -> Tensor:
    """The content of toy faces, as CAGAN wants it: head, hair and ears, (N, 1, R, R) in [0, 1], of images
    (N, 3, R, R).

    The network reads what the faces show, and the renderer draws the mask of such faces.
    """
    check_factors(net)
    factors = {}
    with full_precision(images):
        read = net.factors(images.float())
    for name, value in read.items():
        if name in net.categorical:
            factors[name] = value.argmax(dim=1)
        else:
            low, high = net.continuous[name]
            factors[name] = low + (high - low) * value.clamp(0, 1)
    return face_mask(factors, images.shape[-1])


# -- the networks of the papers, when there is a network connection ------------------------------------------


class InceptionNetwork:
    """Inception-v3 pool features (N, 2048) as in published FID figures, through torch-fidelity (extra
    `metrics`).

    Args:
        device: where to run.
        weights: local copy of torch-fidelity's weights file; by default the library downloads it (91 MB).
    Raises MissingExtraError when the library or the weights are not there.
    """

    name = "inception"
    num_features = 2048

    def __init__(self, device: str | torch.device = "cpu", weights: str | Path | None = None):
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except (ImportError, RuntimeError) as error:  # RuntimeError: a torchvision that does not fit torch
            raise MissingExtraError(
                'Inception features need the extra "metrics": pip install -e ".[metrics]"'
            ) from error
        try:
            self.network = FeatureExtractorInceptionV3(
                "inception-v3-compat", ["2048"],
                feature_extractor_weights_path=None if weights is None else str(weights)).to(device)
        except (OSError, RuntimeError) as error:
            raise MissingExtraError(
                "the Inception weights (pt_inception-2015-12-05) are neither at hand nor could they "
                "be downloaded: pass weights=path to a local copy"
            ) from error
        self.device = torch.device(device)

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """(N, 3, R, R) in [-1, 1] -> (N, 2048), quantised to 8 bits first as published figures are."""
        pixels = images.to(self.device).add(1).mul(127.5).round().clamp(0, 255).to(torch.uint8)
        return self.network(pixels)[0]


def lpips_distance(device: str | torch.device = "cpu") -> Callable[[Tensor, Tensor], Tensor]:
    """LPIPS with the VGG-16 backbone, through the lpips library (extra `metrics`): a function (a, b) -> (N,).

    Images are (N, 3, R, R) in [-1, 1]; above 256 px they are averaged down to 256 first, as the paper does.
    Raises MissingExtraError when the library or the weights are not there.
    """
    try:
        import lpips
    except (ImportError, RuntimeError) as error:
        raise MissingExtraError('LPIPS needs the extra "metrics": pip install -e ".[metrics]"') from error
    try:
        network = lpips.LPIPS(net="vgg", verbose=False).to(device).eval().requires_grad_(False)
    except (OSError, RuntimeError) as error:
        raise MissingExtraError(
            "the VGG-16 weights (vgg16-397923af.pth) are neither in torch's cache nor could they "
            "be downloaded: put the file into ~/.cache/torch/hub/checkpoints"
        ) from error

    def distance(a: Tensor, b: Tensor) -> Tensor:
        if a.shape[-1] > 256:
            a, b = F.adaptive_avg_pool2d(a, 256), F.adaptive_avg_pool2d(b, 256)
        return network(a, b).flatten()

    return distance
