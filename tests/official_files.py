"""Files in the layouts of other repositories, made of any weights: what a reader brings, without the download."""

from __future__ import annotations

import io
import pickle
import sys
from collections import OrderedDict
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from gapkd.networks.stylegan2 import Discriminator, Generator

TRACE = "trace"  # the environment variable that the source text below would set if it were executed
SOURCE = f"import os\nos.environ[{TRACE!r}] = 'the source text was executed'\n"


class _Stub(ModuleType):
    """Stands in for NVIDIA's modules while a file is written."""


def _official_modules() -> dict[str, ModuleType]:
    def _reconstruct_persistent_obj(meta):
        raise AssertionError("nobody should call this")

    class EasyDict(dict):
        __module__, __qualname__ = "dnnlib.util", "EasyDict"

    _reconstruct_persistent_obj.__module__ = "torch_utils.persistence"
    _reconstruct_persistent_obj.__qualname__ = "_reconstruct_persistent_obj"
    modules = {name: _Stub(name) for name in ("torch_utils", "torch_utils.persistence", "dnnlib", "dnnlib.util")}
    modules["torch_utils.persistence"]._reconstruct_persistent_obj = _reconstruct_persistent_obj
    modules["dnnlib.util"].EasyDict = EasyDict
    return modules


class _Persistent:
    """A module as torch_utils.persistence pickles it."""

    def __init__(self, class_name: str, state: dict):
        self.class_name, self.state = class_name, state

    def __reduce__(self):
        meta = {"type": "class", "version": 6, "module_src": SOURCE, "class_name": self.class_name,
                "state": self.state}
        return sys.modules["torch_utils.persistence"]._reconstruct_persistent_obj, (meta,)


BUFFERS = ("resample_filter", "noise_const", "w_avg", "magnitude_ema", "up_filter", "down_filter", "freqs", "phases",
           "transform")


def _module(class_name: str, state: dict[str, Tensor], attributes: dict[str, dict], path: str = "") -> _Persistent:
    own = {name: value for name, value in state.items() if "." not in name}
    children: dict[str, dict] = {}
    for name, value in state.items():
        if "." in name:
            child, _, rest = name.partition(".")
            children.setdefault(child, {})[rest] = value
    for pattern in attributes:  # modules without tensors, such as the minibatch statistic
        parent, _, child = pattern.rpartition(".")
        if parent == path and child not in children and not child.startswith("*"):
            children[child] = {}
    easy = sys.modules["dnnlib.util"].EasyDict
    parameters = OrderedDict((k, torch.nn.Parameter(v)) for k, v in own.items() if k not in BUFFERS)
    extras = {"activation": "lrelu", "weight_gain": np.float64(0.125)}
    extras |= attributes.get("*", {}) | attributes.get(path, {})
    if path.startswith("mapping.fc"):
        extras["bias_gain"] = extras.get("bias_gain", 0.01)
    return _Persistent(class_name, {
        "training": False, "_parameters": parameters,
        "_buffers": OrderedDict((k, v) for k, v in own.items() if k in BUFFERS),
        "_non_persistent_buffers_set": set(), "_backward_hooks": OrderedDict(),
        "_modules": OrderedDict((name, _module("Layer", part, attributes, f"{path}.{name}".lstrip(".")))
                                for name, part in children.items()),
        "_init_args": (), "_init_kwargs": easy(conv_clamp=256, nested=easy(a=1)), **extras})


def nvidia_pickle(G: dict[str, Tensor] | None, D: dict[str, Tensor] | None = None, protocol: int = 4,
                  attributes: dict[str, dict] | None = None) -> bytes:
    """{"G", "D", "G_ema", ...} with networks of these state dicts (NVIDIA's names).

    Args:
        attributes: module path -> attributes of that module; "*" for all of them.
    """
    modules, attributes = _official_modules(), attributes or {}
    sys.modules.update(modules)
    try:
        network = G and _module("Generator", G, attributes)
        critic = D and _module("Discriminator", D, attributes)
        training = modules["dnnlib.util"].EasyDict(class_name="training.dataset.ImageFolderDataset", size=np.int64(7))
        return pickle.dumps({"G": network, "D": critic, "G_ema": network, "training_set_kwargs": training,
                             "augment_pipe": None}, protocol=protocol)
    finally:
        for name in modules:
            del sys.modules[name]


def shared_modules(depth: int) -> bytes:
    """Modules of two children each, which are one and the same: 2**depth modules for who follows them all."""
    modules = _official_modules()
    sys.modules.update(modules)
    try:
        module = None
        for _ in range(depth):
            module = _Persistent("Layer", {"_modules": {"synthesis": module, "mapping": module}})
        return pickle.dumps({"G_ema": module})
    finally:
        for name in modules:
            del sys.modules[name]


def named_like_nvidia(network: Generator | Discriminator) -> dict[str, torch.Tensor]:
    """Our state dict under NVIDIA's names, for networks of which no recording exists."""
    ours, out = network.state_dict(), {}
    for name, value in ours.items():
        name = name.replace("mapping.layers.", "mapping.fc").replace("label.layers.", "mapping.fc")
        name = name.replace("label.", "mapping.").replace("from_rgb", f"b{network.resolution}.fromrgb")
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[:2] = [f"b{network.resolution >> int(parts[1])}"]
        if parts[:2] == ["synthesis", "blocks"]:
            parts[1:3] = [f"b{4 << int(parts[2])}"]
        if parts[0] in ("conv", "fc", "out"):
            parts = ["b4", *parts]
        name = ".".join(parts).replace(".conv0.conv.", ".conv0.").replace(".conv1.conv.", ".conv1.")
        name = name.replace("torgb.conv.", "torgb.")
        if name == "synthesis.const":
            name, value = "synthesis.b4.const", value[0]
        out[name] = value[0, 0] if name.endswith("noise_const") else value
    return out


def torch_bytes(content: object, with_zip: bool = True) -> bytes:
    """What torch.save writes."""
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=with_zip)
    return buffer.getvalue()
