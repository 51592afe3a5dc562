"""StyleGAN2 networks of other repositories: their names and layouts translated to ours, and back.

    NVIDIA (stylegan2-ada-pytorch, stylegan3)       .pkl, every module pickled with its source text
    rosinality, StyleKD, CAGAN, DCP-GAN             .pt, state dicts under "g_ema", "g", "d"

A network is found by what its tensors are called, its architecture by their shapes, so that pruned networks of any
channel list load too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import count, islice

import torch
from torch import Tensor

from gapkd.files.pickles import Budget, Record
from gapkd.networks.filtered_lrelu import low_pass
from gapkd.networks.layers import fir_kernel
from gapkd.networks.stylegan2 import Generator, MappingNetwork
from gapkd.networks.stylegan3 import AliasFreeSynthesis

State = dict[str, Tensor]
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
DEEPEST = 32  # levels of modules
MOST_PARTS = 2**15  # modules and tensors of one network, several times those of the largest
ROLES = {"generator": ("G_ema", "g_ema", "G", "g", "state_dict", ""), "discriminator": ("D", "d", "")}


class ForeignError(ValueError):
    """The file was read, but what it holds is no network that can be translated."""


@dataclass(frozen=True)
class Found:
    """A network in our terms: one of checkpoints.KINDS, the constructor's arguments, the state dict."""

    kind: str
    architecture: dict
    state: State
    source: str


def find_network(content: object, role: str | None, source: str) -> Found:
    """The "generator" or "discriminator" of what a file holds; None: the generator if there is one, else the other.

    Only the network asked for is translated: a generator loads whatever discriminator lies beside it.

    Args:
        source: what the file is called in messages.
    Raises ForeignError when it is not there, or cannot be translated.
    """
    entries = content if isinstance(content, dict) else {"": content}
    if any(isinstance(value, Tensor) and isinstance(key, str) and "." in key for key, value in entries.items()):
        entries = {"": entries}  # a bare state dict
    for wanted in sorted(ROLES, key=lambda name: name != role):  # the other role is only looked for to name it
        for key in ROLES[wanted]:
            if entries.get(key) is not None and (found := _translate(entries[key], wanted, entries, source)):
                if role in (wanted, None):
                    return found
                raise ForeignError(f"{source} is a file of the kind {found.kind}, but a {role} was asked for")
    held = ", ".join(map(_shown, islice(entries, 8))) or "nothing"
    raise ForeignError(f"{source} was read, but holds no StyleGAN2 network under G_ema, G, D, g_ema, g or d "
                       f"(it holds {held})")


def _shown(value: object) -> str:
    """Something of the file, for a message; never the repr of a container, which may be without end."""
    if isinstance(value, (str, bytes)):
        return repr(value[:30])
    return repr(value)[:30] if isinstance(value, (bool, int, float, type(None))) else f"a {type(value).__name__}"


def _translate(value: object, role: str, entries: dict, source: str) -> Found | None:
    if isinstance(value, Record):
        if value.name != PERSISTENT:
            return None
        module = Module.of(value, source, Budget(MOST_PARTS))
        if role == "generator" and "synthesis" in module.modules:
            return nvidia_generator(module, source)
        if role == "discriminator" and "b4" in module.modules:
            return nvidia_discriminator(module, source)
        return None
    if isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values()):
        state = {k.removeprefix("module."): v for k, v in value.items() if isinstance(k, str) and isinstance(v, Tensor)}
        if role == "generator" and "input.input" in state:
            return rosinality_generator(state, entries.get("latent_avg"), source)
        if role == "discriminator" and "final_conv.0.weight" in state:
            return rosinality_discriminator(state, source)
    return None


def _need(state: State, name: str, source: str, *shape: int | None) -> Tensor:
    """The tensor of that name, checked: None stands for any size but 0, an empty shape for any shape."""
    if name not in state:
        raise ForeignError(f"{source} lacks {name}: it is not a network of the layout that it resembles")
    tensor = state[name]
    fits = len(shape) == tensor.ndim and all(s in (None, n) for s, n in zip(shape, tensor.shape, strict=False))
    if not tensor.numel():  # its other sizes could be anything
        raise ForeignError(f"{name} in {source} is empty, of the shape {tuple(tensor.shape)}")
    if shape and not fits:
        raise ForeignError(f"{name} in {source} has the shape {tuple(tensor.shape)}, not "
                           f"{tuple('any' if s is None else s for s in shape)}")
    return tensor


def _float(state: State, source: str) -> State:
    storages = {value.untyped_storage().data_ptr(): value.untyped_storage().nbytes() for value in state.values()}
    if sum(value.numel() for value in state.values()) > sum(storages.values()):  # each tensor becomes a copy
        raise ForeignError(f"{source} shows the same numbers in many tensors, which would take far more memory than it")
    return {name: value.detach().float().contiguous() for name, value in state.items()}


def _is_low_pass(kernel: Tensor) -> bool:
    """Whether it is [1, 3, 3, 1] x [1, 3, 3, 1] up to a factor."""
    if kernel.shape[-2:] != (4, 4) or kernel.numel() != 16 or not kernel.float().sum():
        return False
    kernel = kernel.float().reshape(4, 4)
    return bool(torch.allclose(kernel / kernel.sum(), fir_kernel()[0, 0], atol=1e-4))


# ------------------------------------------------------------------------------------------- NVIDIA


@dataclass
class Module:
    """A module of an NVIDIA pickle: its attributes, tensors and children; its source text is never looked at."""

    attributes: dict
    modules: dict[str, Module] = field(default_factory=dict)
    tensors: State = field(default_factory=dict)

    @classmethod
    def of(cls, record: object, source: str, budget: Budget, depth: int = 0) -> Module:
        """The module that a record stands for, with all below it.

        Args:
            budget: parts that it may still have: modules may share children, which are then met once per parent.
        """
        meta = record.arguments[0] if isinstance(record, Record) and record.arguments else None
        if depth > DEEPEST or not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            raise ForeignError(f"{source} holds a module that is not laid out as NVIDIA's torch_utils.persistence does")
        state = meta["state"]
        parts = [state.get(key) or {} for key in ("_parameters", "_buffers", "_modules")]
        if not all(isinstance(part, dict) for part in parts):
            raise ForeignError(f"{source} holds a module whose parameters or children are no dict")
        budget.spend(1 + sum(map(len, parts)))
        if not all(isinstance(name, str) and len(name) <= 100 for part in parts for name in part):
            raise ForeignError(f"{source} holds a module whose parameters or children have no names, or endless ones")
        parameters, buffers, children = parts
        return cls(state, {name: cls.of(child, source, budget, depth + 1) for name, child in children.items()
                           if child is not None},
                   {name: value for name, value in (parameters | buffers).items() if isinstance(value, Tensor)})

    def state(self, prefix: str = "") -> State:
        """All tensors by their full names."""
        found = {prefix + name: value for name, value in self.tensors.items()}
        for name, child in self.modules.items():
            found |= child.state(f"{prefix}{name}.")
        return found

    def at(self, path: str) -> Module:
        module = self
        for name in path.split("."):
            module = module.modules.get(name) or Module({})
        return module


def _check_module(module: Module, source: str, path: str = "") -> None:
    """Raise ForeignError for what our layers do otherwise."""
    a, kernel = module.attributes, module.tensors.get("resample_filter")
    if a.get("activation", "lrelu") not in ("lrelu", "linear"):
        raise ForeignError(f"{path or 'the network'} in {source} has the activation {_shown(a['activation'])}: only "
                           "lrelu is known")
    if kernel is not None and not _is_low_pass(kernel):
        raise ForeignError(f"{path} in {source} has another resampling filter than [1, 3, 3, 1]")
    for name, child in module.modules.items():
        _check_module(child, source, f"{path}.{name}".lstrip("."))


def _resolutions(state: State, pattern: str, source: str) -> list[int]:
    """4, 8, ... as named in the state; raises ForeignError for gaps."""
    found = sorted({int(m[1]) for name in state if (m := re.match(pattern, name))})
    if not 2 <= len(found) <= 10 or found != [4 * 2**i for i in range(len(found))]:
        raise ForeignError(f"{source} holds blocks of the sizes {found[:12]}, not 4, 8, 16, ...")
    return found


def _mapping(ours: str, theirs: str, module: Module, state: State, source: str) -> tuple[State, int, int, int]:
    """A mapping network -> (state, z_dim, c_dim, depth)."""
    out, w_dim = {}, None
    for layer in count():
        if f"{theirs}fc{layer}.weight" not in state:
            break
        gain = module.modules.get(f"fc{layer}", Module({})).attributes.get("bias_gain", 0.01)
        if not isinstance(gain, (int, float)) or abs(gain - 0.01) > 1e-9:
            raise ForeignError(f"the mapping network in {source} has the learning-rate multiplier {_shown(gain)}: "
                               "only 0.01 is known")
        for part in ("weight", "bias"):
            out[f"{ours}layers.{layer}.{part}"] = _need(state, f"{theirs}fc{layer}.{part}", source)
        w_dim = _need(state, f"{theirs}fc{layer}.weight", source, None, None).shape[0]
    if w_dim is None:
        raise ForeignError(f"{source} has no mapping network")
    entering, c_dim, embedded = state[f"{theirs}fc0.weight"].shape[1], 0, 0
    if f"{theirs}embed.weight" in state:
        embedded, c_dim = _need(state, f"{theirs}embed.weight", source, w_dim, None).shape
        out |= {f"{ours}embed.{part}": _need(state, f"{theirs}embed.{part}", source) for part in ("weight", "bias")}
    out[f"{ours}w_avg"] = state.get(f"{theirs}w_avg", torch.zeros(w_dim))
    return out, entering - embedded, c_dim, layer


def nvidia_generator(module: Module, source: str) -> Found:
    """`mapping.fc0...`, `synthesis.b4...` -> ours."""
    if "input" in module.modules["synthesis"].modules:
        return nvidia_alias_free(module, source)
    _check_module(module, source)
    state = module.state()
    out, z_dim, c_dim, depth = _mapping("mapping.", "mapping.", module.at("mapping"), state, source)
    w_dim, pairs, clamps = len(out["mapping.w_avg"]), [], set()
    for b, r in enumerate(_resolutions(state, r"synthesis\.b(\d+)\.", source)):
        theirs, ours, block = f"synthesis.b{r}", f"synthesis.blocks.{b}", module.at(f"synthesis.b{r}")
        if block.attributes.get("architecture", "skip") != "skip" or f"{theirs}.torgb.weight" not in state:
            raise ForeignError(f"the generator in {source} has the architecture "
                               f"{_shown(block.attributes.get('architecture'))}: only 'skip' is supported")
        for conv in ("conv0", "conv1") if b else ("conv1",):
            weight = _need(state, f"{theirs}.{conv}.weight", source, None, None, 3, 3)
            out |= {f"{ours}.{conv}.conv.weight": weight,
                    f"{ours}.{conv}.bias": _need(state, f"{theirs}.{conv}.bias", source),
                    f"{ours}.{conv}.noise_strength": state.get(f"{theirs}.{conv}.noise_strength", torch.zeros(())),
                    f"{ours}.{conv}.noise_const": state.get(f"{theirs}.{conv}.noise_const",
                                                            torch.zeros(r, r))[None, None]}
            out |= _affine(f"{ours}.{conv}", f"{theirs}.{conv}.affine", state, source)
            clamps.add(_clamp_of(block.at(conv), source))
        first = weight.shape[0] if not b else state[f"{theirs}.conv0.weight"].shape[0]
        pairs.append([first, weight.shape[0]])
        out[f"{ours}.torgb.conv.weight"] = _need(state, f"{theirs}.torgb.weight", source, 3, None, 1, 1)
        out[f"{ours}.torgb.bias"] = _need(state, f"{theirs}.torgb.bias", source, 3)
        out |= _affine(f"{ours}.torgb", f"{theirs}.torgb.affine", state, source)
    const = _need(state, "synthesis.b4.const", source, None, 4, 4)
    out["synthesis.const"], pairs[0][0] = const[None], len(const)
    architecture = {"resolution": r, "z_dim": z_dim, "w_dim": w_dim, "channels": pairs, "mapping_layers": depth,
                    "c_dim": c_dim} | _clamp(clamps, source)
    return Found("stylegan2-generator", architecture, _float(out, source), "NVIDIA's StyleGAN2")


def _affine(ours: str, theirs: str, state: State, source: str) -> State:
    return {f"{ours}.affine.{part}": _need(state, f"{theirs}.{part}", source) for part in ("weight", "bias")}


def _clamp_of(convolution: Module, source: str) -> float | None:
    clamp = convolution.attributes.get("conv_clamp")
    if type(clamp) not in (int, float, type(None)):
        raise ForeignError(f"a convolution in {source} clamps its output at {_shown(clamp)}, not at a number")
    return clamp


def _clamp(clamps: set[float | None], source: str) -> dict:
    """{"clamp": value} if every convolution clamps its output there, {} if none does."""
    if len(clamps) != 1:
        raise ForeignError(f"the convolutions in {source} clamp their outputs at different values")
    clamp = clamps.pop()
    return {} if clamp is None else {"clamp": float(clamp)}


def nvidia_alias_free(module: Module, source: str) -> Found:
    """StyleGAN3's `synthesis.input...`, `synthesis.L0_36_512...` -> ours."""
    state, layers = module.state(), {}
    out, z_dim, c_dim, depth = _mapping("mapping.", "mapping.", module.at("mapping"), state, source)
    for name in module.modules["synthesis"].modules:
        if match := re.fullmatch(r"L(\d{1,3})_(\d{1,5})_(\d{1,5})", name):
            layers[int(match[1])] = name, int(match[2]), int(match[3])
    if not 3 <= len(layers) <= 64 or sorted(layers) != list(range(len(layers))):
        raise ForeignError(f"{source} holds the layers {sorted(layers)[:12]} of a StyleGAN3 generator, not 0, 1, ...")
    for part in ("weight", "freqs", "phases", "transform", "affine.weight", "affine.bias"):
        out[f"synthesis.input.{part}"] = _need(state, f"synthesis.input.{part}", source)
    clamps = set()
    for n, (name, _, _) in layers.items():
        theirs, ours = f"synthesis.{name}", f"synthesis.layers.{n}"
        out |= {f"{ours}.{part}": _need(state, f"{theirs}.{part}", source) for part in ("weight", "bias")}
        out[f"{ours}.magnitude_ema"] = state.get(f"{theirs}.magnitude_ema", torch.ones(()))
        out |= _affine(ours, f"{theirs}.affine", state, source)
        clamps.add(_clamp_of(module.at(f"synthesis.{name}"), source))
    attributes = module.modules["synthesis"].attributes
    first = module.at(f"synthesis.{layers[0][0]}").tensors.get("down_filter")
    weight = _need(out, "synthesis.layers.0.weight", source, None, None, None, None)
    architecture = {
        "resolution": layers[len(layers) - 1][1], "z_dim": z_dim, "w_dim": len(out["mapping.w_avg"]),
        "channels": [layers[n][2] for n in range(len(layers) - 1)], "kernel": weight.shape[-1],
        "radial": first is not None and first.ndim == 2, "mapping_layers": depth, "c_dim": c_dim,
        "critical": _number(attributes, "num_critical", 2, source),
        "margin": _number(attributes, "margin_size", 10, source),
        "output_scale": float(_number(attributes, "output_scale", 0.25, source))} | _clamp(clamps, source)
    _check_filters(architecture, {n: state.get(f"synthesis.{name}.up_filter") for n, (name, _, _) in layers.items()},
                   source)
    return Found("stylegan3-generator", architecture, _float(out, source), "NVIDIA's StyleGAN3")


def _number(attributes: dict, name: str, default: float, source: str) -> float:
    value = attributes.get(name, default)
    if type(value) not in (int, float) or not 0 <= value <= 1000:
        raise ForeignError(f"{name} of the StyleGAN3 generator in {source} is {_shown(value)}")
    return value


def _check_filters(architecture: dict, filters: dict[int, Tensor | None], source: str) -> None:
    """The cutoffs are not in the file, but the filters made from them are: they must be those that we design."""
    resolution = architecture["resolution"]
    if resolution > 4096 or resolution & (resolution - 1):
        raise ForeignError(f"the StyleGAN3 generator in {source} draws images of {resolution} pixels")
    with torch.device("meta"):
        synthesis = AliasFreeSynthesis(resolution, 1, [1] * len(architecture["channels"]), architecture["kernel"],
                                       architecture["radial"], architecture["critical"], architecture["margin"], 1.0)
    for n, theirs in filters.items():
        ours = low_pass(*synthesis.layers[n].up_design)
        if theirs is not None and (theirs.shape != ours.shape or not torch.allclose(theirs.double(), ours, atol=1e-4)):
            raise ForeignError(f"layer {n} of the StyleGAN3 generator in {source} has other filters than the published "
                               "configurations")


def nvidia_discriminator(module: Module, source: str) -> Found:
    """`b32...`, `b4...` -> ours."""
    _check_module(module, source)
    state, out, clamps = module.state(), {}, set()
    sizes = _resolutions(state, r"b(\d+)\.", source)
    top = sizes[-1]
    if any(f"b{r}.fromrgb.weight" in state for r in sizes[:-1]) or f"b{top}.skip.weight" not in state:
        raise ForeignError(f"the discriminator in {source} is not a residual one ('resnet'): only those are supported")
    for b, r in enumerate(reversed(sizes[1:])):
        for layer in ("conv0.weight", "conv0.bias", "conv1.weight", "conv1.bias", "skip.weight"):
            out[f"blocks.{b}.{layer}"] = _need(state, f"b{r}.{layer}", source)
        clamps.add(_clamp_of(module.at(f"b{r}.conv0"), source))
    out |= {f"from_rgb.{part}": _need(state, f"b{top}.fromrgb.{part}", source) for part in ("weight", "bias")}
    out |= {f"{layer}.{part}": _need(state, f"b4.{layer}.{part}", source)
            for layer in ("conv", "fc", "out") for part in ("weight", "bias")}
    _need(out, "from_rgb.weight", source, None, 3, 1, 1)
    widths = [out[f"blocks.{b}.conv1.weight"].shape[0] for b in range(len(sizes) - 1)][::-1]
    architecture = {"resolution": top, "channels": [*widths, out["from_rgb.weight"].shape[0]],
                    "mbstd_group": _group(module)} | _clamp(clamps, source)
    if "mapping.embed.weight" in state:
        label, _, architecture["c_dim"], depth = _mapping("label.", "mapping.", module.at("mapping"), state, source)
        if depth != 8 or len(label["label.w_avg"]) != widths[0]:
            raise ForeignError(f"the label network of the discriminator in {source} has other sizes than usual")
        out |= label
    return Found("stylegan2-discriminator", architecture, _float(out, source), "NVIDIA's StyleGAN2")


def _group(module: Module) -> int:
    group = module.at("b4.mbstd").attributes.get("group_size")
    return group if type(group) is int and 1 <= group <= 1024 else 4


# ------------------------------------------------------------------------------------------- rosinality


def rosinality_generator(state: State, latent_avg: object, source: str) -> Found:
    """`style.1...`, `conv1...`, `convs.0...`, `to_rgbs.0...` -> ours."""
    for name, kernel in state.items():
        if name.endswith("kernel") and not _is_low_pass(kernel):
            raise ForeignError(f"{name} in {source} is another filter than [1, 3, 3, 1]")
    out = {"synthesis.const": _need(state, "input.input", source, 1, None, 4, 4)}
    for depth in count():
        if f"style.{depth + 1}.weight" not in state:  # their layer 0 is the normalisation of z
            break
        for part in ("weight", "bias"):
            out[f"mapping.layers.{depth}.{part}"] = _need(state, f"style.{depth + 1}.{part}", source)
    if not depth:
        raise ForeignError(f"{source} has no mapping network (style.1.weight)")
    w_dim, z_dim = (_need(state, f"style.{layer}.weight", source, None, None).shape[side]
                    for layer, side in ((depth, 0), (1, 1)))
    convs = ["conv1", *(f"convs.{i}" for i in range(sum(bool(re.fullmatch(r"convs\.\d+\.conv\.weight", name))
                                                        for name in state)))]
    blocks, kernels, channels = (len(convs) + 1) // 2, set(), [state["input.input"].shape[1]]
    if len(convs) != 2 * blocks - 1 or not 2 <= blocks <= 10:
        raise ForeignError(f"{source} has {len(convs)} styled convolutions, not an odd number of at least 3")
    for layer, theirs in enumerate(convs):
        b, second = (layer + 1) // 2, layer % 2 == 0
        ours, r = f"synthesis.blocks.{b}.conv{int(second)}", 4 * 2**b
        weight = _need(state, f"{theirs}.conv.weight", source, 1, None, None, None, None)[0]
        if second and b:
            kernels.add(weight.shape[-1])
        channels.append(weight.shape[0])
        out |= {f"{ours}.conv.weight": weight, f"{ours}.bias": _need(state, f"{theirs}.activate.bias", source),
                f"{ours}.noise_strength": _need(state, f"{theirs}.noise.weight", source, 1).reshape(()),
                f"{ours}.noise_const": state.get(f"noises.noise_{layer}", torch.zeros(1, 1, r, r))}
        out |= _affine(ours, f"{theirs}.conv.modulation", state, source)
        if second:
            rgb, ours = "to_rgb1" if b == 0 else f"to_rgbs.{b - 1}", f"synthesis.blocks.{b}.torgb"
            out[f"{ours}.conv.weight"] = _need(state, f"{rgb}.conv.weight", source, 1, 3, None, 1, 1)[0]
            out[f"{ours}.bias"] = _need(state, f"{rgb}.bias", source, 1, 3, 1, 1).reshape(3)
            out |= _affine(ours, f"{rgb}.conv.modulation", state, source)
    if len(kernels) != 1:
        raise ForeignError(f"the blocks' second convolutions in {source} have kernels of different sizes")
    pairs = [channels[2 * b:2 * b + 2] for b in range(blocks)]
    architecture = {"resolution": 4 * 2**(blocks - 1), "z_dim": z_dim, "w_dim": w_dim, "channels": pairs,
                    "kernel": kernels.pop(), "mapping_layers": depth}
    if isinstance(latent_avg, Tensor) and latent_avg.numel() == w_dim:
        out["mapping.w_avg"] = latent_avg.reshape(w_dim)
        return Found("stylegan2-generator", architecture, _float(out, source), "rosinality's StyleGAN2")
    state = _float(out, source)
    state["mapping.w_avg"] = _mean_w(state, architecture, source)
    return Found("stylegan2-generator", architecture, state, "rosinality's StyleGAN2")


@torch.no_grad()
def _mean_w(state: State, architecture: dict, source: str) -> Tensor:
    """The mean of w over 10,000 z, always the same ones: rosinality's training checkpoints have no latent_avg, and his
    own tools estimate it like this when they truncate."""
    sizes = [architecture[name] for name in ("z_dim", "w_dim", "mapping_layers")]
    if max(sizes[:2]) > 2**16 or sizes[2] > 64:
        raise ForeignError(f"the mapping network in {source} is too large: {sizes[2]} layers, {sizes[0]} to {sizes[1]}")
    with torch.device("meta"):
        mapping = MappingNetwork(*sizes)
    layers = {name.removeprefix("mapping."): value for name, value in state.items() if name.startswith("mapping.")}
    try:
        mapping.load_state_dict(layers | {"w_avg": torch.zeros(sizes[1])}, assign=True)
    except RuntimeError as error:
        raise ForeignError(f"the layers of the mapping network in {source} do not fit each other") from error
    dice = torch.Generator().manual_seed(0)
    return torch.stack([mapping(torch.randn(250, sizes[0], generator=dice)).mean(dim=0) for _ in range(40)]).mean(dim=0)


def rosinality_discriminator(state: State, source: str) -> Found:
    """`convs.0.0.weight`, `convs.1.conv1...`, `final_conv...` -> ours."""
    names = {"from_rgb.weight": "convs.0.0.weight", "from_rgb.bias": "convs.0.1.bias",
             "conv.weight": "final_conv.0.weight", "conv.bias": "final_conv.1.bias",
             "fc.weight": "final_linear.0.weight", "fc.bias": "final_linear.0.bias",
             "out.weight": "final_linear.1.weight", "out.bias": "final_linear.1.bias"}
    for blocks in count():
        theirs = f"convs.{blocks + 1}"
        if f"{theirs}.conv1.0.weight" not in state:
            break
        names |= {f"blocks.{blocks}.{ours}": f"{theirs}.{part}" for ours, part in (
            ("conv0.weight", "conv1.0.weight"), ("conv0.bias", "conv1.1.bias"), ("conv1.weight", "conv2.1.weight"),
            ("conv1.bias", "conv2.2.bias"), ("skip.weight", "skip.1.weight"))}
    out = {ours: _need(state, theirs, source) for ours, theirs in names.items()}
    _need(out, "from_rgb.weight", source, None, 3, 1, 1)
    widths = [_need(out, f"blocks.{b}.conv1.weight", source, None, None, 3, 3).shape[0] for b in range(blocks)][::-1]
    architecture = {"resolution": 4 * 2**blocks, "channels": [*widths, out["from_rgb.weight"].shape[0]]}
    return Found("stylegan2-discriminator", architecture, _float(out, source), "rosinality's StyleGAN2")


def to_rosinality(G: Generator) -> dict:
    """A generator as rosinality's, StyleKD's and CAGAN's tools read it: {"g_ema": state dict, "latent_avg": (w_dim,)}.

    Raises ForeignError for a conditional generator, or one that clamps, which that layout cannot hold.
    """
    if not isinstance(G, Generator):
        raise ForeignError("rosinality's layout is one of StyleGAN2: a StyleGAN3 generator cannot be written in it")
    if G.c_dim or G.clamp:
        raise ForeignError("rosinality's layout has neither classes nor clamped convolutions: this generator cannot be "
                           "written in it")
    ours = {name: value.detach().cpu().clone() for name, value in G.state_dict().items()}
    kernel = fir_kernel(gain=4.0)[0, 0]
    out = {"input.input": ours["synthesis.const"]}
    for layer in range(len(G.mapping.layers)):
        out |= {f"style.{layer + 1}.{part}": ours[f"mapping.layers.{layer}.{part}"] for part in ("weight", "bias")}
    for layer in range(2 * len(G.channels) - 1):
        b, second = (layer + 1) // 2, layer % 2 == 0
        name, theirs = f"synthesis.blocks.{b}.conv{int(second)}", f"convs.{layer - 1}" if layer else "conv1"
        out |= {f"{theirs}.conv.weight": ours[f"{name}.conv.weight"][None],
                f"{theirs}.conv.modulation.weight": ours[f"{name}.affine.weight"],
                f"{theirs}.conv.modulation.bias": ours[f"{name}.affine.bias"],
                f"{theirs}.noise.weight": ours[f"{name}.noise_strength"].reshape(1),
                f"{theirs}.activate.bias": ours[f"{name}.bias"],
                f"noises.noise_{layer}": ours[f"{name}.noise_const"]}
        if not second:
            out[f"{theirs}.conv.blur.kernel"] = kernel.clone()
        else:
            name, rgb = f"synthesis.blocks.{b}.torgb", "to_rgb1" if b == 0 else f"to_rgbs.{b - 1}"
            out |= {f"{rgb}.conv.weight": ours[f"{name}.conv.weight"][None],
                    f"{rgb}.conv.modulation.weight": ours[f"{name}.affine.weight"],
                    f"{rgb}.conv.modulation.bias": ours[f"{name}.affine.bias"],
                    f"{rgb}.bias": ours[f"{name}.bias"].reshape(1, 3, 1, 1)}
            if b:
                out[f"{rgb}.upsample.kernel"] = kernel.clone()
    return {"g_ema": out, "latent_avg": ours["mapping.w_avg"]}
