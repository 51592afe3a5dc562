"""StyleGAN2 networks of other repositories: their names and layouts translated to ours, and back.

    NVIDIA (stylegan2-ada-pytorch, stylegan3)       .pkl, every module pickled with its source text
    rosinality, StyleKD, CAGAN, DCP-GAN             .pt, state dicts under "g_ema", "g", "d"

A network is found by what its tensors are called, its architecture by their shapes, so that pruned networks of any
channel list load too.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from itertools import count

import torch
from torch import Tensor

from gapkd.layers import fir_kernel
from gapkd.pickles import Record
from gapkd.stylegan2 import Generator
from gapkd.stylegan3 import AliasFreeSynthesis, low_pass

State = dict[str, Tensor]
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
DEEPEST = 32  # levels of modules


class ForeignError(ValueError):
    """The file was read, but what it holds is no network that can be translated."""


@dataclass(frozen=True)
class Found:
    """A network in our terms: one of checkpoints.KINDS, the constructor's arguments, the state dict."""

    kind: str
    architecture: dict
    state: State
    source: str


def find_networks(content: object, source: str) -> dict[str, Found]:
    """Generator and discriminator, under "generator" and "discriminator", of what a file holds; either may be missing.

    Args:
        source: what the file is called in messages.
    Raises ForeignError when there is neither.
    """
    networks: dict[str, Found] = {}
    entries = content if isinstance(content, dict) else {"": content}
    if any(isinstance(value, Tensor) and "." in str(key) for key, value in entries.items()):
        entries = {"": entries}  # a bare state dict
    for role, keys in (("generator", ("G_ema", "g_ema", "G", "g", "state_dict", "")),
                       ("discriminator", ("D", "d", ""))):
        for key in keys:
            if entries.get(key) is not None and (found := _translate(entries[key], role, entries, source)):
                networks[role] = found
                break
    if not networks:
        held = ", ".join(map(repr, [str(k)[:30] for k in entries][:8])) or "nothing"
        raise ForeignError(f"{source} was read, but holds no StyleGAN2 network under G_ema, G, D, g_ema, g or d "
                           f"(it holds {held})")
    return networks


def _translate(value: object, role: str, entries: dict, source: str) -> Found | None:
    if isinstance(value, Record):
        if value.name != PERSISTENT:
            return None
        module = Module.of(value, source)
        if role == "generator" and "synthesis" in module.modules:
            return nvidia_generator(module, source)
        if role == "discriminator" and "b4" in module.modules:
            return nvidia_discriminator(module, source)
        return None
    if isinstance(value, dict) and any(isinstance(v, Tensor) for v in value.values()):
        state = {str(k).removeprefix("module."): v for k, v in value.items() if isinstance(v, Tensor)}
        if role == "generator" and "input.input" in state:
            return rosinality_generator(state, entries.get("latent_avg"), source)
        if role == "discriminator" and "final_conv.0.weight" in state:
            return rosinality_discriminator(state, source)
    return None


def _need(state: State, name: str, source: str, *shape: int | None) -> Tensor:
    """The tensor of that name, checked: None stands for any size, an empty shape for any shape."""
    if name not in state:
        raise ForeignError(f"{source} lacks {name}: it is not a network of the layout that it resembles")
    tensor = state[name]
    fits = len(shape) == tensor.ndim and all(s in (None, n) for s, n in zip(shape, tensor.shape, strict=False))
    if shape and not fits:
        raise ForeignError(f"{name} in {source} has the shape {tuple(tensor.shape)}, not "
                           f"{tuple('any' if s is None else s for s in shape)}")
    return tensor


def _float(state: State) -> State:
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
    """A module of an NVIDIA pickle: its class, tensors and children; its source text is never looked at."""

    class_name: str
    attributes: dict
    modules: dict[str, Module] = field(default_factory=dict)
    tensors: State = field(default_factory=dict)

    @classmethod
    def of(cls, record: object, source: str, depth: int = 0) -> Module:
        meta = record.arguments[0] if isinstance(record, Record) and record.arguments else None
        if depth > DEEPEST or not isinstance(meta, dict) or not isinstance(meta.get("state"), dict):
            raise ForeignError(f"{source} holds a module that is not laid out as NVIDIA's torch_utils.persistence does")
        state = meta["state"]
        parts = {key: state.get(key) or {} for key in ("_parameters", "_buffers", "_modules")}
        if not all(isinstance(part, dict) for part in parts.values()):
            raise ForeignError(f"{source} holds a module whose parameters or children are no dict")
        module = cls(str(meta.get("class_name")), {k: v for k, v in state.items() if k not in parts})
        module.tensors = {str(k): v for key in ("_parameters", "_buffers") for k, v in parts[key].items()
                          if isinstance(v, Tensor)}
        module.modules = {str(name): cls.of(child, source, depth + 1) for name, child in parts["_modules"].items()
                          if child is not None}
        return module

    def state(self, prefix: str = "") -> State:
        """All tensors by their full names."""
        found = {prefix + name: value for name, value in self.tensors.items()}
        for name, child in self.modules.items():
            found |= child.state(f"{prefix}{name}.")
        return found

    def at(self, path: str) -> Module:
        module = self
        for name in path.split("."):
            module = module.modules.get(name) or Module("", {})
        return module


def _check_module(module: Module, source: str, path: str = "") -> None:
    """Raise ForeignError for what our layers do otherwise."""
    a, kernel = module.attributes, module.tensors.get("resample_filter")
    if a.get("activation", "lrelu") not in ("lrelu", "linear"):
        raise ForeignError(f"{path or 'the network'} in {source} has the activation {a['activation']!r}: only lrelu is "
                           "known")
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
        gain = module.modules.get(f"fc{layer}", Module("", {})).attributes.get("bias_gain", 0.01)
        if not isinstance(gain, (int, float)) or abs(gain - 0.01) > 1e-9:
            raise ForeignError(f"the mapping network in {source} has the learning-rate multiplier {gain}: only 0.01 is "
                               "known")
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
                               f"{block.attributes.get('architecture')!r}: only 'skip' is supported")
        for conv in ("conv0", "conv1") if b else ("conv1",):
            weight = _need(state, f"{theirs}.{conv}.weight", source, None, None, 3, 3)
            out |= {f"{ours}.{conv}.conv.weight": weight,
                    f"{ours}.{conv}.bias": _need(state, f"{theirs}.{conv}.bias", source),
                    f"{ours}.{conv}.noise_strength": state.get(f"{theirs}.{conv}.noise_strength", torch.zeros(())),
                    f"{ours}.{conv}.noise_const": state.get(f"{theirs}.{conv}.noise_const",
                                                            torch.zeros(r, r))[None, None]}
            out |= _affine(f"{ours}.{conv}", f"{theirs}.{conv}.affine", state, source)
            clamps.add(block.at(conv).attributes.get("conv_clamp"))
        first = weight.shape[0] if not b else state[f"{theirs}.conv0.weight"].shape[0]
        pairs.append([first, weight.shape[0]])
        out[f"{ours}.torgb.conv.weight"] = _need(state, f"{theirs}.torgb.weight", source, 3, None, 1, 1)
        out[f"{ours}.torgb.bias"] = _need(state, f"{theirs}.torgb.bias", source, 3)
        out |= _affine(f"{ours}.torgb", f"{theirs}.torgb.affine", state, source)
    const = _need(state, "synthesis.b4.const", source, None, 4, 4)
    out["synthesis.const"], pairs[0][0] = const[None], len(const)
    architecture = {"resolution": r, "z_dim": z_dim, "w_dim": w_dim, "channels": pairs, "mapping_layers": depth,
                    "c_dim": c_dim} | _clamp(clamps, source)
    return Found("stylegan2-generator", architecture, _float(out), "NVIDIA's StyleGAN2")


def _affine(ours: str, theirs: str, state: State, source: str) -> State:
    return {f"{ours}.affine.{part}": _need(state, f"{theirs}.{part}", source) for part in ("weight", "bias")}


def _clamp(clamps: set, source: str) -> dict:
    """{"clamp": value} if every convolution clamps its output there, {} if none does."""
    if len(clamps) != 1 or not isinstance(clamp := next(iter(clamps)), (int, float, type(None))):
        raise ForeignError(f"the convolutions in {source} clamp their outputs at different values")
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
        clamps.add(module.at(f"synthesis.{name}").attributes.get("conv_clamp"))
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
    return Found("stylegan3-generator", architecture, _float(out), "NVIDIA's StyleGAN3")


def _number(attributes: dict, name: str, default: float, source: str) -> float:
    value = attributes.get(name, default)
    if type(value) not in (int, float) or not 0 <= value <= 1000:
        raise ForeignError(f"{name} of the StyleGAN3 generator in {source} is {str(value)[:40]}")
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
        clamps.add(module.at(f"b{r}.conv0").attributes.get("conv_clamp"))
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
    return Found("stylegan2-discriminator", architecture, _float(out), "NVIDIA's StyleGAN2")


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
    average = latent_avg if isinstance(latent_avg, Tensor) and latent_avg.numel() == w_dim else torch.zeros(w_dim)
    out["mapping.w_avg"] = average.reshape(w_dim)
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
    return Found("stylegan2-generator", architecture, _float(out), "rosinality's StyleGAN2")


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
    return Found("stylegan2-discriminator", architecture, _float(out), "rosinality's StyleGAN2")


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
