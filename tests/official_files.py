"""Files in the layouts of other repositories, made of any weights: what a reader brings, without
the download."""

from __future__ import annotations

import io
import pickle
import re
import sys
from collections import OrderedDict
from contextlib import contextmanager
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from gapkd.networks.base import StyleGenerator
from gapkd.networks.stylegan2 import Discriminator

TRACE = "GAPKD_SOURCE_WAS_RUN"  # what the source text below would set in os.environ
SOURCE = f"import os\nos.environ[{TRACE!r}] = 'the source text was executed'\n"
BUFFERS = ("resample_filter", "noise_const", "w_avg", "magnitude_ema", "up_filter", "down_filter",
           "freqs", "phases", "transform")


def _reconstruct_persistent_obj(meta):
    raise AssertionError("nobody should call this")


class EasyDict(dict):
    __module__ = "dnnlib.util"


_reconstruct_persistent_obj.__module__ = "torch_utils.persistence"


@contextmanager
def official_modules():
    """NVIDIA's modules can be imported, which is needed to write what refers to them."""
    modules = {name: ModuleType(name)
               for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")}
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    modules["dnnlib.util"].EasyDict = EasyDict
    sys.modules.update(modules)
    try:
        yield
    finally:
        for name in modules:
            del sys.modules[name]


class _Persistent:
    """A module as torch_utils.persistence pickles it."""

    def __init__(self, class_name: str, state: dict):
        self.meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": class_name,
                     "state": state}

    def __reduce__(self):
        return _reconstruct_persistent_obj, (self.meta,)


def _fields(path: str, weight: Tensor) -> dict:
    """What NVIDIA's classes remember of a layer; a modulated convolution has no gain."""
    layer = path.rpartition(".")[2]
    slow = "mapping.fc" in path
    fields = {"bias_gain": 0.01 if slow else 1.0} if weight.ndim == 2 else {}
    if weight.ndim == 4 and not layer.startswith("L"):
        fields["padding"] = weight.shape[-1] // 2
    if layer != "torgb":
        active = re.fullmatch(r"conv\d?|fromrgb|fc\d*", layer)
        fields["activation"] = "lrelu" if active else "linear"
    if layer == "torgb" or "synthesis." not in path or layer == "affine":
        gain = (0.01 if slow else 1) / np.sqrt(weight[0].numel())
        fields["weight_gain"] = np.float64(gain)
    return fields


def _module(class_name: str, state: dict[str, Tensor], attributes: dict[str, dict],
            path: str = "") -> _Persistent:
    own = {name: value for name, value in state.items() if "." not in name}
    children: dict[str, dict] = {}
    for name, value in state.items():
        if "." in name:
            child, _, rest = name.partition(".")
            children.setdefault(child, {})[rest] = value
    for pattern in attributes:  # modules without tensors, such as the minibatch statistic
        parent, _, child = pattern.rpartition(".")
        if parent == path and child != "*":
            children.setdefault(child, {})
    parameters = {k: torch.nn.Parameter(v) for k, v in own.items() if k not in BUFFERS}
    extras = _fields(path, own["weight"]) if "weight" in own else {}
    return _Persistent(class_name, {
        "training": False, "_parameters": OrderedDict(parameters),
        "_buffers": OrderedDict((k, v) for k, v in own.items() if k in BUFFERS),
        "_non_persistent_buffers_set": set(), "_backward_hooks": OrderedDict(),
        "_modules": OrderedDict(
            (name, _module("Layer", part, attributes, f"{path}.{name}".lstrip(".")))
            for name, part in children.items()),
        "_init_args": (), "_init_kwargs": EasyDict(conv_clamp=256, nested=EasyDict(a=1)),
        **extras, **attributes.get("*", {}), **attributes.get(path, {})})


def nvidia_pickle(G: dict[str, Tensor] | None, D: dict[str, Tensor] | None = None,
                  protocol: int = 4, attributes: dict[str, dict] | None = None,
                  beside: dict | None = None) -> bytes:
    """{"G", "D", "G_ema", ...} with networks of these state dicts (NVIDIA's names).

    Args:
        attributes: module path -> attributes of that module; "*" for all of them.
        beside: further entries of the file.
    """
    network = G and _module("Generator", G, attributes or {})
    critic = D and _module("Discriminator", D, attributes or {})
    training = EasyDict(class_name="training.dataset.ImageFolderDataset", size=np.int64(7))
    with official_modules():
        return pickle.dumps({"G": network, "D": critic, "G_ema": network, "augment_pipe": None,
                             "training_set_kwargs": training, **(beside or {})},
                            protocol=protocol)


def shared_modules(depth: int) -> bytes:
    """Modules of two children each, one and the same: 2**depth for who follows them all."""
    module = None
    for _ in range(depth):
        module = _Persistent("Layer", {"_modules": {"synthesis": module, "mapping": module}})
    with official_modules():
        return pickle.dumps({"G_ema": module})


def named_like_nvidia(network: StyleGenerator | Discriminator) -> dict[str, Tensor]:
    """Our state dict under NVIDIA's names, for networks of which no recording exists."""
    out = {}
    for name, value in network.state_dict().items():
        name = name.replace("label.", "mapping.").replace("mapping.layers.", "mapping.fc")
        name = name.replace("from_rgb", f"b{network.resolution}.fromrgb")
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[:2] = [f"b{network.resolution >> int(parts[1])}"]
        if parts[:2] == ["synthesis", "blocks"]:
            parts[1:3] = [f"b{4 << int(parts[2])}"]
        if parts[:2] == ["synthesis", "layers"]:
            plan = network.synthesis.layers[int(parts[2])].plan
            parts[1:3] = [f"L{parts[2]}_{plan.out_size}_{plan.out_channels}"]
        if parts[0] in ("conv", "fc", "out"):
            parts = ["b4", *parts]
        name = re.sub(r"\.(conv0|conv1|torgb)\.conv\.", r".\1.", ".".join(parts))
        if name == "synthesis.const":
            name, value = "synthesis.b4.const", value[0]
        out[name] = value[0, 0] if name.endswith("noise_const") else value
    return out


def torch_bytes(content: object, with_zip: bool = True, **more: object) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=with_zip, **more)
    return buffer.getvalue()
