"""Networks of other repositories: their names translated to ours, and back.

    NVIDIA (stylegan2-ada-pytorch, stylegan3)       .pkl, every module pickled with its source text
    rosinality, StyleKD, CAGAN, DCP-GAN             .pt, state dicts under "g_ema", "g", "d"

A network is found by what its tensors are called, its architecture by their shapes, so that pruned
networks of any channel list load too. Our network of that architecture then asks for each of its
tensors by the name that the other repository gives it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count, islice

import torch
from torch import Tensor, nn

from gapkd.files.pickles import Budget, Record
from gapkd.networks.families import build
from gapkd.networks.filtered_lrelu import low_pass
from gapkd.networks.layers import fir_kernel
from gapkd.networks.stylegan2 import Generator

State = dict[str, Tensor]
Rules = list[tuple[str, str | Callable[[re.Match], str]]]
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
DEEPEST = 32  # levels of modules
MOST_PARTS = 2**15  # modules and tensors of one network, several times those of the largest
ROLES = {"generator": ("G_ema", "g_ema", "G", "g", "state_dict", ""),
         "discriminator": ("D", "d", "")}
DEFAULTS = {"w_avg": 0.0, "noise_const": 0.0, "noise_strength": 0.0, "magnitude_ema": 1.0}
"""What may be missing, and is then as if it were not there."""
LIMITS = {"resolution": 4096, "mapping_layers": 64, "z_dim": 2**16, "w_dim": 2**16, "c_dim": 2**20,
          "mbstd_group": 2**10, "critical": 1000, "margin": 1000, "output_scale": 1000}

# Our names to theirs, one rule after the other.
NVIDIA: Rules = [
    (r"^(mapping|label)\.layers\.", "mapping.fc"),
    (r"^label\.", "mapping."),
    (r"^synthesis\.const$", "synthesis.b4.const"),
    (r"^synthesis\.blocks\.(\d+)\.", lambda m: f"synthesis.b{4 << int(m[1])}."),
    (r"\.(conv\d|torgb)\.conv\.", r".\1."),
    (r"^(conv|fc|out)\.", r"b4.\1."),
]
ROSINALITY: Rules = [
    (r"^mapping\.layers\.(\d+)", lambda m: f"style.{int(m[1]) + 1}"),  # 0 normalises z
    (r"^mapping\.w_avg$", "latent_avg"),
    (r"^synthesis\.const$", "input.input"),
    (r"^synthesis\.blocks\.0\.torgb\.", "to_rgb1."),
    (r"^synthesis\.blocks\.(\d+)\.torgb\.", lambda m: f"to_rgbs.{int(m[1]) - 1}."),
    (r"^synthesis\.blocks\.0\.conv1\.noise_const$", "noises.noise_0"),
    (r"^synthesis\.blocks\.0\.conv1\.", "conv1."),
    (r"^synthesis\.blocks\.(\d+)\.conv(\d)\.noise_const$",
     lambda m: f"noises.noise_{2 * int(m[1]) - 1 + int(m[2])}"),
    (r"^synthesis\.blocks\.(\d+)\.conv(\d)\.", lambda m: f"convs.{2 * int(m[1]) - 2 + int(m[2])}."),
    (r"\.affine\.", ".conv.modulation."),
    (r"\.noise_strength$", ".noise.weight"),
    (r"^(conv1|convs\.\d+)\.bias$", r"\1.activate.bias"),
]
ROSINALITY_DISCRIMINATOR: Rules = [
    (r"^blocks\.(\d+)\.", lambda m: f"convs.{int(m[1]) + 1}."),
    (r"\.skip\.", ".skip.1."),
    (r"\.conv1\.weight$", ".conv2.1.weight"),  # 0 blurs
    (r"\.conv1\.bias$", ".conv2.2.bias"),
    (r"\.conv0\.", ".conv1."),
    (r"^from_rgb\.", "convs.0."),
    (r"^conv\.", "final_conv."),
    (r"(^convs\.0|\.conv1|^final_conv)\.weight$", r"\1.0.weight"),
    (r"(^convs\.0|\.conv1|^final_conv)\.bias$", r"\1.1.bias"),
    (r"^fc\.", "final_linear.0."),
    (r"^out\.", "final_linear.1."),
]


class ForeignError(ValueError):
    """What was read is no network that can be translated."""


@dataclass(frozen=True)
class Found:
    """A network in our terms: its kind in files, the constructor's arguments, the state dict."""

    kind: str
    architecture: dict
    state: State
    source: str


def find_network(content: object, role: str | None) -> Found:
    """The network that a file's content holds.

    Only the network asked for is translated: a generator loads whatever discriminator lies beside.

    Args:
        role: "generator" or "discriminator", which is looked for first; None: the generator.

    Raises ForeignError when it is not there, or cannot be translated.
    """
    entries = content if isinstance(content, dict) else {"": content}
    if any(isinstance(k, str) and "." in k and isinstance(v, Tensor) for k, v in entries.items()):
        entries = {"": entries}  # a bare state dict
    # the other role too, so that it can be named
    for wanted in sorted(ROLES, key=lambda name: name != role):
        for key in ROLES[wanted]:
            found = _translate(entries.get(key), wanted, entries.get("latent_avg"))
            if found:
                return found
    held = ", ".join(_shown(key) for key in islice(entries, 8)) or "nothing"
    raise ForeignError("it holds no StyleGAN2 network under G_ema, G, D, g_ema, g or d (it holds "
                       f"{held})")


def _translate(value: object, role: str, latent_avg: object) -> Found | None:
    """The network of that role that an entry of a file is, or None."""
    if isinstance(value, Record) and value.name == PERSISTENT:
        modules = Modules()
        modules.add(value, "", Budget(MOST_PARTS))
        if role == "generator" and "synthesis.input" in modules.attributes:
            return nvidia_alias_free(modules)
        if role == "generator" and "synthesis" in modules.attributes:
            return nvidia_generator(modules)
        if role == "discriminator" and "b4" in modules.attributes:
            return nvidia_discriminator(modules)
    if isinstance(value, dict):
        state = {name.removeprefix("module."): tensor for name, tensor in value.items()
                 if isinstance(name, str) and isinstance(tensor, Tensor)}
        if role == "generator" and "input.input" in state:
            return rosinality_generator(state, latent_avg)
        if role == "discriminator" and "final_conv.0.weight" in state:
            return rosinality_discriminator(state)
    return None


def _shown(value: object) -> str:
    """Something of the file, for a message; never the repr of a container: it may have no end."""
    if isinstance(value, (str, bytes)):
        return repr(value[:30])
    if isinstance(value, (bool, int, float, type(None))):
        return repr(value)[:30]
    return f"a {type(value).__name__}"


def outline(kind: str, architecture: dict) -> nn.Module:
    """The network without its numbers: whatever size a file claims, this takes no memory.

    Raises ValueError for sizes that no network has, whatever the constructor raises for others.
    """
    for name, most in LIMITS.items():
        if not 0 <= (architecture.get(name) or 0) <= most:
            raise ValueError(f"{name} is {_shown(architecture[name])}")
    with torch.device("meta"):
        return build(kind, architecture)


def _collect(kind: str, architecture: dict, theirs: State, rules: Rules, source: str) -> Found:
    """Our network's tensors from theirs, by name; their shapes may differ in sizes of one."""
    try:
        network = outline(kind, architecture)
    except ValueError as error:
        raise ForeignError(f"its sizes make no network: {error}") from error
    taken, storages = {}, {}
    for name, wanted in network.state_dict().items():
        their_name, default = _renamed(name, rules), DEFAULTS.get(name.rsplit(".", 1)[-1])
        if their_name not in theirs and default is not None:
            tensor = torch.full(wanted.shape, default)
        else:
            tensor = _need(theirs, their_name)
        if [n for n in tensor.shape if n != 1] != [n for n in wanted.shape if n != 1]:
            raise ForeignError(f"{their_name} has the shape {tuple(tensor.shape)}, not "
                               f"{tuple(wanted.shape)}")
        taken[name] = tensor, wanted.shape
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    if sum(tensor.numel() for tensor, _ in taken.values()) > sum(storages.values()):
        raise ForeignError("it shows the same numbers in many tensors, which would take far more "
                           "memory than it")
    state = {name: tensor.detach().float().reshape(shape).contiguous()
             for name, (tensor, shape) in taken.items()}
    return Found(kind, network.architecture(), state, source)


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _need(state: State, name: str, dimensions: int | None = None) -> Tensor:
    """The tensor of that name, not empty (its other sizes could be anything)."""
    if name not in state:
        raise ForeignError(f"it lacks {name}: it is not a network of the layout that it resembles")
    tensor = state[name]
    if not tensor.numel() or dimensions not in (None, tensor.ndim):
        raise ForeignError(f"{name} has the shape {tuple(tensor.shape)}, which is empty or has not "
                           "as many sizes as usual")
    return tensor


def _mapping_sizes(state: State, layer: str, first: int) -> dict:
    """Sizes of a mapping network whose layers are called `layer` and a number, from `first` on."""
    depth = next(n for n in count() if f"{layer}{first + n}.weight" not in state)
    if not depth:
        raise ForeignError(f"it has no mapping network ({layer}{first}.weight)")
    w_dim = len(_need(state, f"{layer}{first + depth - 1}.weight", 2))
    z_dim, c_dim = _need(state, f"{layer}{first}.weight", 2).shape[1], 0
    if "mapping.embed.weight" in state:  # the embedded label enters beside z
        embedded, c_dim = _need(state, "mapping.embed.weight", 2).shape
        z_dim -= embedded
    return {"z_dim": z_dim, "w_dim": w_dim, "c_dim": c_dim, "mapping_layers": depth}


def _is_low_pass(kernel: Tensor) -> bool:
    """Whether it is [1, 3, 3, 1] x [1, 3, 3, 1] up to a factor."""
    if kernel.shape[-2:] != (4, 4) or kernel.numel() != 16 or not kernel.float().sum():
        return False
    kernel = kernel.float().reshape(4, 4)
    return torch.allclose(kernel / kernel.sum(), fir_kernel()[0, 0], atol=1e-4)


# ---------------------------------------------------------------------------------------- NVIDIA

ACTIVATED = r"(^|\.)(conv[01]?|fromrgb|fc\d*)$"
CLAMPED = r"(^|\.)(conv[01]?|torgb|fromrgb|L\d+_\d+_\d+)$"
LR = "learning-rate multiplier"
FIELDS: dict[str, tuple[tuple[str, tuple], ...]] = {
    "activation": ((ACTIVATED, ("lrelu",)), ("", ("lrelu", "linear"))),
    "act_gain": ((ACTIVATED, (math.sqrt(2),)), (r"\bskip$", (1.0,))),
    "bias_gain": ((r"\bmapping\.fc\d+$", (0.01,)), (r"\b(affine|embed|b4\.\w+)$", (1.0,))),
    "architecture": ((r"^synthesis\.", ("skip",)), (r"^b\d+$", ("resnet",))),
    "num_channels": ((r"\bmbstd$", (1,)),), "use_noise": (("", (True, False)),),
    "bandwidth": (("", (2.0,)),),
    "up": ((r"^synthesis\.b\d+\.conv0$", (2,)), (r"^synthesis\.b\d+\.conv1$", (1,)),
           (r"^b\d+\.", (1,))),
    "down": ((r"^b\d+\.(conv1|skip)$", (2,)), (r"^b\d+\.(conv0?|fromrgb)$", (1,)))}
"""What a field of NVIDIA's modules must be, so that our layers compute the same, by a pattern of the
modules' paths; None of them need be there."""
OF_NO_MATTER = frozenset("""
    training block_resolutions c_dim channels channels_last cmap_dim conv_clamp
    conv_kernel down_factor down_radial down_taps first_layer_idx fp16_channels_last
    fused_modconv_default group_size img_channels img_resolution img_resolution_log2 in_channels
    in_cutoff in_features in_half_width in_sampling_rate in_size is_critically_sampled is_last
    is_torgb layer_names magnitude_ema_beta margin_size num_conv num_critical num_fp16_res
    num_layers num_torgb num_ws out_channels out_cutoff out_features out_half_width
    out_sampling_rate out_size output_scale padding resolution sampling_rate size
    tmp_sampling_rate up_factor up_taps use_fp16 w_avg_beta w_dim weight_gain z_dim""".split())
"""Fields that the tensors' shapes repeat, that matter in training or for speed alone, or that are
read elsewhere here."""


@dataclass
class Modules:
    """The modules of an NVIDIA pickle: their attributes by path, their tensors by full name; their
    source text is never looked at."""

    attributes: dict[str, dict] = field(default_factory=dict)
    state: State = field(default_factory=dict)

    def add(self, record: object, path: str, budget: Budget) -> None:
        """The module that a record stands for, with all below it.

        Args:
            budget: parts that there may be: shared children are met once per parent.
        """
        meta = record.arguments[0] if isinstance(record, Record) and record.arguments else None
        own = meta.get("state") if isinstance(meta, dict) else None
        if path.count(".") > DEEPEST or not isinstance(own, dict):
            raise ForeignError("it holds a module that is not laid out as NVIDIA's "
                               "torch_utils.persistence does")
        parts = [own.get(key) or {} for key in ("_parameters", "_buffers", "_modules")]
        if not all(isinstance(part, dict) for part in parts):
            raise ForeignError("it holds a module whose parameters or children are no dict")
        names = [name for part in parts for name in part]
        budget.spend(1 + len(names))
        if not all(isinstance(name, str) and len(name) <= 100 for name in names):
            raise ForeignError("it holds a module whose parameters or children have no names, or "
                               "endless ones")
        self.attributes[path] = own
        prefix = f"{path}." if path else ""
        for name, value in (parts[0] | parts[1]).items():
            if isinstance(value, Tensor):
                self.state[prefix + name] = value
        for name, child in parts[2].items():
            if child is not None:
                self.add(child, prefix + name, budget)

    def get(self, path: str, name: str, default: object) -> object:
        """An attribute of a module."""
        return self.attributes.get(path, {}).get(name, default)

    def check(self) -> None:
        """Raise ForeignError, with the field's name, for what our layers do otherwise and for what
        no published version has."""
        for path, attributes in self.attributes.items():
            for name, value in attributes.items():
                self.check_field(path or "the network", name, plain(value))
            if attributes.get("use_noise", True) is False:
                self.state.pop(f"{path}.noise_strength", None)  # missing: none
        for name, value in self.state.items():
            if name.endswith("resample_filter") and not _is_low_pass(value):
                raise ForeignError(f"{name} is another resampling filter than [1, 3, 3, 1]")

    def check_field(self, path: str, name: str, value: object) -> None:
        if name.startswith("_"):  # torch's own; the source's arguments, which the fields repeat
            return
        if name not in FIELDS and name not in OF_NO_MATTER:
            raise ForeignError(f"{path} has the field {_shown(name)} ({_shown(value)}), which the "
                               "published versions do not have: it may draw otherwise than they do")
        for where, right in FIELDS.get(name, ()):
            if re.search(where, path) and not any(_same(value, one) for one in right):
                raise ForeignError(f"{path} has the {name.replace('bias_gain', LR)} "
                                   f"{_shown(value)}: only {' or '.join(map(str, right))} is known")

    def sizes(self, pattern: str) -> list[int]:
        """4, 8, ... as the blocks are named; raises ForeignError for gaps."""
        found = sorted({int(m[1]) for name in self.state if (m := re.match(pattern, name))})
        if not 2 <= len(found) <= 10 or found != [4 << i for i in range(len(found))]:
            raise ForeignError(f"it holds blocks of the sizes {found[:12]}, not 4, 8, 16, ...")
        return found

    def clamp(self, pattern: str = CLAMPED) -> dict:
        """{"clamp": value} if every convolution of that name clamps its output there, {} if none
        does."""
        clamps = []
        for path in self.attributes:
            if re.search(pattern, path):
                clamps.append(plain(self.get(path, "conv_clamp", None)))
        for clamp in clamps:
            known = clamp is None or type(clamp) in (int, float) and 0 < clamp < math.inf
            if not known:
                raise ForeignError(f"a convolution's conv_clamp is {_shown(clamp)}, not a number "
                                   "above 0")
        if len(set(clamps)) > 1:
            raise ForeignError("its convolutions clamp their outputs at different values")
        return {"clamp": float(clamps[0])} if clamps and clamps[0] is not None else {}


def plain(value: object) -> object:
    """A number of numpy's as Python's own; anything else as it is."""
    return value


def _same(value: object, right: object) -> bool:
    if isinstance(right, float) and type(value) in (int, float):
        return abs(value - right) < 1e-6
    return type(value) is type(right) and value == right


def nvidia_generator(modules: Modules) -> Found:
    """`mapping.fc0...`, `synthesis.b4...` -> ours."""
    modules.check()
    state, pairs = modules.state, []
    sizes = modules.sizes(r"synthesis\.b(\d+)\.")
    for size in sizes:
        first = "synthesis.b4.const" if size == 4 else f"synthesis.b{size}.conv0.weight"
        second = f"synthesis.b{size}.conv1.weight"
        pairs.append([len(_need(state, first)), len(_need(state, second, 4))])
    architecture = {"resolution": sizes[-1], "channels": pairs, **modules.clamp(),
                    **_mapping_sizes(state, "mapping.fc", 0)}
    return _collect("stylegan2-generator", architecture, state, NVIDIA, "NVIDIA's StyleGAN2")


def nvidia_alias_free(modules: Modules) -> Found:
    """StyleGAN3's `synthesis.input...`, `synthesis.L0_36_512...` -> ours."""
    modules.check()
    state, layers = modules.state, {}
    for path in modules.attributes:
        if match := re.fullmatch(r"synthesis\.L(\d{1,3})_(\d{1,5})_(\d{1,5})", path):
            layers[int(match[1])] = path, int(match[2]), int(match[3])
    if not 3 <= len(layers) <= 64 or sorted(layers) != list(range(len(layers))):
        raise ForeignError(f"it holds the layers {sorted(layers)[:12]} of a StyleGAN3 generator, "
                           "not 0, 1, ...")
    paths, resolutions, widths = zip(*(layers[n] for n in range(len(layers))), strict=True)
    down = state.get(f"{paths[0]}.down_filter")
    numbers = {}
    for name, attribute, default in (("critical", "num_critical", 2), ("margin", "margin_size", 10),
                                     ("output_scale", "output_scale", 0.25)):
        numbers[name] = modules.get("synthesis", attribute, default)
        if type(numbers[name]) not in (int, float):
            raise ForeignError(f"{attribute} of its synthesis network is {_shown(numbers[name])}")
    architecture = {"resolution": resolutions[-1], "channels": list(widths[:-1]), **numbers,
                    "kernel": _need(state, f"{paths[0]}.weight", 4).shape[-1],
                    "radial": down is not None and down.ndim == 2, **modules.clamp(),
                    **_mapping_sizes(state, "mapping.fc", 0)}
    names: Rules = [(r"^synthesis\.layers\.(\d+)", lambda m: paths[int(m[1])])]
    found = _collect("stylegan3-generator", architecture, state, NVIDIA + names,
                     "NVIDIA's StyleGAN3")
    for n, layer in enumerate(outline(found.kind, architecture).synthesis.layers):
        for name, design in (("up_filter", layer.up_design), ("down_filter", layer.down_design)):
            ours, theirs = low_pass(*design), state.get(f"{paths[n]}.{name}")
            if theirs is not None and not (theirs.shape == ours.shape
                                           and torch.allclose(theirs.double(), ours, atol=1e-4)):
                raise ForeignError(f"layer {n} of its synthesis network has other filters than the "
                                   f"published configurations ({name})")
    return found


def nvidia_discriminator(modules: Modules) -> Found:
    """`b32...`, `b4...` -> ours."""
    modules.check()
    state, sizes = modules.state, modules.sizes(r"b(\d+)\.")
    top = sizes[-1]
    if f"b{top}.skip.weight" not in state:
        raise ForeignError("the discriminator is not a residual one ('resnet'): only those are "
                           "supported")
    widths = [len(_need(state, f"b{size}.conv1.weight", 4)) for size in sizes[1:]]
    widths.append(len(_need(state, f"b{top}.fromrgb.weight", 4)))
    group = plain(modules.get("b4.mbstd", "group_size", 4))
    if group is not None and not (type(group) is int and group > 0):
        raise ForeignError(f"b4.mbstd has the group_size {_shown(group)}, not a number above 0")
    clamp, skips = modules.clamp(), modules.clamp(r"^b\d+\.skip$")
    if skips and skips != clamp:
        raise ForeignError("its skip convolutions clamp their outputs at other values than the rest")
    architecture = {"resolution": top, "channels": widths, "mbstd_group": group, **clamp,
                    **({"clamp_skips": True} if skips else {})}
    if "mapping.embed.weight" in state:
        architecture["c_dim"] = _need(state, "mapping.embed.weight", 2).shape[1]
    blocks: Rules = [(r"^from_rgb", f"b{top}.fromrgb"),
                     (r"^blocks\.(\d+)", lambda m: f"b{top >> int(m[1])}")]
    return _collect("stylegan2-discriminator", architecture, state, NVIDIA + blocks,
                    "NVIDIA's StyleGAN2")


# ------------------------------------------------------------------------------------ rosinality


def rosinality_generator(state: State, latent_avg: object) -> Found:
    """`style.1...`, `conv1...`, `convs.0...`, `to_rgbs.0...` -> ours."""
    for name, kernel in state.items():
        if name.endswith("kernel") and not _is_low_pass(kernel):
            raise ForeignError(f"{name} is another filter than [1, 3, 3, 1]")
    sizes = _mapping_sizes(state, "style.", 1)
    number = sum(re.fullmatch(r"convs\.\d+\.conv\.weight", name) is not None for name in state)
    if number % 2 or not 2 <= number <= 18:
        raise ForeignError(f"it has {number + 1} styled convolutions, not an odd number of at "
                           "least 3")
    channels = [_need(state, "input.input", 4).shape[1]]
    kernels = set()
    for name in ("conv1", *(f"convs.{n}" for n in range(number))):
        weight = _need(state, f"{name}.conv.weight", 5)  # (1, O, I, k, k)
        _need(state, f"{name}.noise.weight")
        channels.append(weight.shape[1])
        if name.startswith("convs") and int(name[6:]) % 2:
            kernels.add(weight.shape[-1])
    if len(kernels) != 1:
        raise ForeignError("the blocks' second convolutions have kernels of different sizes")
    pairs = [channels[i:i + 2] for i in range(0, len(channels), 2)]
    architecture = {"resolution": 2 << len(pairs), "channels": pairs, "kernel": kernels.pop(),
                    **sizes}
    if isinstance(latent_avg, Tensor) and latent_avg.numel() == sizes["w_dim"]:
        state = state | {"latent_avg": latent_avg}
    found = _collect("stylegan2-generator", architecture, state, ROSINALITY,
                     "rosinality's StyleGAN2")
    if "latent_avg" not in state:
        found.state["mapping.w_avg"] = _mean_w(found)
    return found


@torch.no_grad()
def _mean_w(found: Found) -> Tensor:
    """The mean of w over 10,000 z, always the same ones: rosinality's training checkpoints have no
    latent_avg, and his own tools estimate it like this when they truncate."""
    mapping = outline(found.kind, found.architecture).mapping
    layers = {name.removeprefix("mapping."): value for name, value in found.state.items()
              if name.startswith("mapping.")}
    mapping.load_state_dict(layers, assign=True)
    dice = torch.Generator().manual_seed(0)
    z = torch.randn(40, 250, mapping.z_dim, generator=dice)
    return torch.stack([mapping(part).mean(dim=0) for part in z]).mean(dim=0)


def rosinality_discriminator(state: State) -> Found:
    """`convs.0.0.weight`, `convs.1.conv1...`, `final_conv...` -> ours."""
    blocks = next(n for n in count() if f"convs.{n + 1}.conv1.0.weight" not in state)
    widths = [len(_need(state, f"convs.{n}.conv2.1.weight", 4)) for n in range(blocks, 0, -1)]
    top = len(_need(state, "convs.0.0.weight", 4))
    return _collect("stylegan2-discriminator",
                    {"resolution": 4 << blocks, "channels": [*widths, top]}, state,
                    ROSINALITY_DISCRIMINATOR, "rosinality's StyleGAN2")


def to_rosinality(G: Generator) -> dict:
    """A generator as rosinality's, StyleKD's and CAGAN's tools read it.

    Returns: {"g_ema": state dict, "latent_avg": (w_dim,)}.

    Raises ForeignError for what that layout cannot hold: another family, a conditional generator,
    or one that clamps.
    """
    if G.kind != Generator.kind:
        raise ForeignError(f"rosinality's layout is one of StyleGAN2: a {G.kind} cannot be written "
                           "in it")
    if G.c_dim or G.clamp:
        raise ForeignError("rosinality's layout has neither classes nor clamped convolutions: this "
                           "generator cannot be written in it")
    out = {}
    for ours, value in G.state_dict().items():
        name, value = _renamed(ours, ROSINALITY), value.detach().cpu().clone()
        if name.endswith("conv.weight"):
            value = value[None]  # (1, O, I, k, k)
        elif name.endswith("noise.weight"):
            value = value.reshape(1)
        elif name.startswith("to_rgb") and value.ndim == 1 and "modulation" not in name:
            value = value.reshape(1, 3, 1, 1)
        out[name] = value
    for block in range(len(G.channels) - 1):
        out[f"convs.{2 * block}.conv.blur.kernel"] = fir_kernel(gain=4.0)[0, 0]
        out[f"to_rgbs.{block}.upsample.kernel"] = fir_kernel(gain=4.0)[0, 0]
    latent_avg = out.pop("latent_avg")
    return {"g_ema": out, "latent_avg": latent_avg}
