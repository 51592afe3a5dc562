"""ONNX files that look like those of `gapkd export` and cost nothing: a matrix from ws to image."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from onnx import TensorProto, helper, numpy_helper, save

SIZES = {"resolution": 8, "z_dim": 6, "w_dim": 6, "num_ws": 4, "c_dim": 0}


def write(path: Path, seed: int = 0, names: tuple[str, ...] = ("smile", "hair_style: long"),
          mapping: int = 0, given: bool = False, **changes) -> Path:
    """Write such a file.

    Args:
        seed: of the image's matrix and of the directions.
        mapping: of the matrix from z to w; equal ones share W.
        changes: sizes, or whatever else is noted in the file.
    """
    dice = np.random.default_rng(seed)
    r, z_dim, w_dim, num_ws, c_dim = (changes.get(name, size) for name, size in SIZES.items())
    vectors = dice.normal(size=(len(names), w_dim))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    facts = {**SIZES, "precision": "float32", "name": path.stem, "sha256": "ab" * 32,
             "check": {"latents": 100, "largest": 3e-6, "mean": 2e-7},
             "provenance": {"images": 1000, "commit": "abc", "date": "2026-01-01",
                            "settings": {"seed": 0}},
             "directions": {"names": list(names), "vectors": vectors.tolist(),
                            "reach": [3.0] * len(names), "given": given}}
    to_w = np.random.default_rng(mapping + 99).normal(size=(z_dim + c_dim, w_dim)) / z_dim**0.5
    to_image = dice.normal(size=(num_ws * w_dim, 3 * r * r)) / (num_ws * w_dim)**0.5
    weights = {"to_w": to_w, "to_image": to_image, "truncation": np.ones(1),
               "offset": np.zeros((1, num_ws, w_dim))}
    shapes = {"one": [1], "flat": [-1, num_ws * w_dim], "planes": [-1, 3, r, r]}
    first = ("Concat", "z c", "zc", {"axis": 1}) if c_dim else ("Identity", "z", "zc", {})
    steps = [first, ("MatMul", "zc to_w", "w", {}), ("Mul", "w truncation", "near", {}),
             ("Unsqueeze", "near one", "rows", {}), ("Add", "rows offset", "ws", {}),
             ("Reshape", "ws flat", "flat_ws", {}), ("MatMul", "flat_ws to_image", "values", {}),
             ("Reshape", "values planes", "plain", {}), ("Tanh", "plain", "image", {})]
    nodes = [helper.make_node(kind, inputs.split(), [output], **more)
             for kind, inputs, output, more in steps]
    inputs = {"z": ["batch", z_dim]} | ({"c": ["batch", c_dim]} if c_dim else {}) | {
        "truncation": [1], "offset": ["offset_batch", num_ws, w_dim]}
    outputs = {"image": ["batch", 3, r, r], "ws": ["batch", num_ws, w_dim]}
    described = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)
                  for name, shape in values.items()] for values in (inputs, outputs)]
    kept = [numpy_helper.from_array(v.astype(np.float32), k) for k, v in weights.items()]
    kept += [numpy_helper.from_array(np.array(v), k) for k, v in shapes.items()]
    graph = helper.make_graph(nodes, "handmade", *described, kept)
    model = helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", 18)])
    helper.set_model_props(model, {"gapkd": json.dumps(facts | changes)})
    save(model, path)
    return path
