"""ONNX files that look like those of `gapkd export` and cost nothing: a matrix from ws to the image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

SIZES = {"resolution": 8, "z_dim": 6, "w_dim": 6, "num_ws": 4, "c_dim": 0}


def write(path: Path, seed: int = 0, names: tuple[str, ...] = ("smile", "hair_style: long"), mapping: int = 0,
          given: bool = False, **changes) -> Path:
    """seed: of the image's matrix and of the directions; mapping: of the matrix from z to w, equal ones share W.

    changes: sizes, or whatever else is noted in the file.
    """
    facts = {"kind": "stylegan2-generator", "architecture": {}, **SIZES, "inputs": "z", "precision": "float32",
             "name": path.stem, "sha256": "ab" * 32, "check": {"latents": 100, "largest": 3e-6, "mean": 2e-7},
             "provenance": {"images": 1000, "commit": "abc", "date": "2026-01-01", "settings": {"seed": 0}}}
    dice = np.random.default_rng(seed)
    sizes = {k: changes.get(k, v) for k, v in SIZES.items()}
    r, z_dim, w_dim, num_ws, c_dim = sizes.values()
    vectors = dice.normal(size=(len(names), w_dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    facts["directions"] = {"names": list(names), "vectors": vectors.tolist(), "reach": [3.0] * len(names),
                           "given": given}
    weights = {"to_w": np.random.default_rng(mapping + 99).normal(size=(z_dim + c_dim, w_dim)) / z_dim**0.5,
               "to_image": dice.normal(size=(num_ws * w_dim, 3 * r * r)) / (num_ws * w_dim)**0.5,
               "noise_0": np.zeros((1, 1, r, r)), "truncation": np.ones(1), "offset": np.zeros((1, num_ws, w_dim))}
    shapes = {"one": np.array([1]), "flat": np.array([-1, num_ws * w_dim]), "planes": np.array([-1, 3, r, r])}
    nodes = [helper.make_node("Concat", ["z", "c"], ["zc"], axis=1) if c_dim
             else helper.make_node("Identity", ["z"], ["zc"]),
             helper.make_node("MatMul", ["zc", "to_w"], ["w"]), helper.make_node("Mul", ["w", "truncation"], ["near"]),
             helper.make_node("Unsqueeze", ["near", "one"], ["rows"]),
             helper.make_node("Add", ["rows", "offset"], ["ws"]),
             helper.make_node("Reshape", ["ws", "flat"], ["flat_ws"]),
             helper.make_node("MatMul", ["flat_ws", "to_image"], ["values"]),
             helper.make_node("Reshape", ["values", "planes"], ["plain"]),
             helper.make_node("Add", ["plain", "noise_0"], ["noisy"]), helper.make_node("Tanh", ["noisy"], ["image"])]
    inputs = {"z": ["batch", z_dim]} | ({"c": ["batch", c_dim]} if c_dim else {}) | {
        "truncation": [1], "offset": ["offset_batch", num_ws, w_dim], "noise_0": ["noise_batch", 1, r, r]}
    outputs = {"image": ["batch", 3, r, r], "ws": ["batch", num_ws, w_dim]}
    described = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in values.items()]
                 for values in (inputs, outputs)]
    kept = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    kept += [numpy_helper.from_array(v, k) for k, v in shapes.items()]
    model = helper.make_model(helper.make_graph(nodes, "handmade", *described, kept), ir_version=8,
                              opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, {"gapkd": json.dumps(facts | changes)})
    save(model, path)
    return path
