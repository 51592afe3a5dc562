"""Export: a generator as one ONNX file, for places where there is no PyTorch, or as a torch.export
program, for those where there is no gapkd.

The file draws by itself: mapping, truncation, a step along directions, synthesis. Before it is
written, it has drawn the same images as the generator itself.
"""

from __future__ import annotations

import copy
import importlib.util
import io
import itertools
import json
import logging
import os
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from gapkd import __version__
from gapkd.files.checkpoints import load_generator, sha256
from gapkd.files.storage import check_place, write_atomically
from gapkd.metrics.editing import Directions, load_directions, sefa
from gapkd.networks.base import StyleGenerator
from gapkd.settings import as_word
from gapkd.sharing.origins import named, provenance_of, public

if TYPE_CHECKING:
    import onnx
    import onnxruntime

GREY = 2 / 255  # one grey level on the screen; images reach from -1 to 1
# By how much images may differ from the generator's, anywhere and on average. float32 is the same
# arithmetic in another order; the others are judged by the mean.
LIMITS = {"float32": (1e-4, 1e-4), "float16": (np.inf, GREY), "int8": (np.inf, 2 * GREY)}
SMALLEST = 256  # numbers: smaller tensors stay as they are, biases above all

TENSORS = {
    "z": "latents, standard normal", "c": "labels, one-hot",
    "truncation": "1: none, as without it; 0: the average image",
    "offset": "added to ws after truncation, one for all images or one an image; else 0",
    "image": "values about [-1, 1], not clamped", "ws": "the w of every layer, which drew it"}
"""What goes into an ONNX file and comes out of it; the noise maps are constants in it."""

Draw = Callable[[dict[str, Tensor]], Tensor]
"""Inputs of `Drawing` by name, in order -> images (N, 3, R, R)."""


class ExportError(ValueError):
    """An export that does not draw what its generator draws, or that cannot be made."""


@dataclass(frozen=True)
class ExportConfig:
    """Write a generator as an ONNX file (onnxruntime, browsers) or as a torch.export program, and
    check it."""

    generator: tyro.conf.Positional[str]
    """A run's folder, a file of any format, a hub's name, or an embedded network's."""
    onnx: str = ""
    """ONNX file to write; an existing one is not overwritten."""
    program: str = ""
    """torch.export program (.pt2) to write; an existing one is not overwritten. Loaded, its
    module() draws, by position: image, ws = draw(z, truncation, offset) of (N, z_dim), (1,),
    (N, num_ws, w_dim)."""
    precision: Literal["float32", "float16", "int8"] = "float32"
    """Of the ONNX file. float16: weights and convolutions; int8: weights alone, one scale an output
    channel."""
    directions: str = ""
    """File of `gapkd directions`, kept in the ONNX file for sliders; empty: the generator's own
    SeFa directions."""
    latents: int = 100
    """How many latents the check draws."""


@dataclass(frozen=True)
class Export:
    """What was written, and what the check found: the largest and the mean difference of the
    images, whose values reach from -1 to 1, over a number of latents."""

    path: Path
    size: int
    largest: float
    mean: float
    latents: int

    def __str__(self) -> str:
        return (f"{self.path} ({self.size / 1e6:.2f} MB): {self.latents} images, drawn in batches "
                f"of 1 to 16, differ from the generator's own by at most {self.largest:.1e}, on "
                f"average by {self.mean:.1e} ({self.mean / GREY:.2g} grey levels of 255)")


def export(config: ExportConfig) -> list[Export]:
    """Write what `config` asks for, once all of it has passed its check.

    Raises: ExportError for bad settings, and when a file does not draw what it should.
    """
    _check(config)
    G = load_generator(config.generator)
    contents = {}
    if config.onnx:
        directions = _directions(config, G)
        content = to_onnx(G, config.precision)
        found = _judge(config, G, drawn_by(content))
        check = {"latents": config.latents, "largest": found[0], "mean": found[1]}
        facts = describe(config, G, directions) | {"check": check}
        contents[config.onnx] = with_facts(content, facts), found
    if config.program:
        file = io.BytesIO()
        torch.export.save(to_program(G), file)
        found = _judge(config, G, drawn_by_program(file.getvalue()))
        contents[config.program] = file.getvalue(), found
    return [Export(write_atomically(path, content), len(content), *found, config.latents)
            for path, (content, found) in contents.items()]


def _check(config: ExportConfig) -> None:
    if not (config.onnx or config.program):
        raise ExportError("say what to write: --onnx FILE.onnx, --program FILE.pt2, or both")
    if config.latents < 1:
        raise ExportError(f"latents must be at least 1, not {config.latents}")
    if config.program and config.precision != "float32":
        raise ExportError(f"precision={config.precision} is for ONNX files: export the program "
                          "without it")
    if config.directions and not config.onnx:
        raise ExportError(f"directions={config.directions} is for ONNX files, which hold them: "
                          "export the program without it")
    for field, ending in (("onnx", ".onnx"), ("program", ".pt2")):
        if path := getattr(config, field):
            if Path(path).suffix != ending:
                raise ExportError(f"{field}={path} must end in {ending}")
            if os.path.lexists(path):
                raise ExportError(f"{path} exists already: remove it or choose another {field}")
            check_place(path)
    if config.onnx:
        require()


def _directions(config: ExportConfig, G: StyleGenerator) -> Directions:
    """Those that go into the ONNX file, for sliders."""
    directions = load_directions(config.directions) if config.directions else sefa(G)
    if directions.vectors.shape[1] != G.w_dim:
        raise ExportError(f"{config.directions} holds directions of width "
                          f"{directions.vectors.shape[1]}, but {config.generator} has w_dim "
                          f"{G.w_dim}")
    if not directions.belong_to(G):
        warnings.warn(f"the directions in {config.directions} were found in another W than that of "
                      f"{config.generator}, where they mean nothing: find them with `gapkd "
                      f"directions {as_word(config.generator)} --out FILE`", stacklevel=3)
    return directions


def _judge(config: ExportConfig, G: StyleGenerator, draw: Draw) -> tuple[float, float]:
    """The largest and the mean difference, where they are small enough."""
    largest, mean = compare(draw, Drawing(G), config.latents)
    most, most_on_average = LIMITS[config.precision]
    if not (largest <= most and mean <= most_on_average):
        anywhere = f", anywhere {most:.0e}" if np.isfinite(most) else ""
        mend = "" if config.precision == "float32" else ": take --precision float32"
        raise ExportError(f"{config.precision} does not hold for {config.generator}: images differ "
                          f"by {mean:.1e} on average and by up to {largest:.1e} (allowed: on "
                          f"average {most_on_average:.1e}{anywhere}); nothing is written{mend}")
    return largest, mean


def describe(config: ExportConfig, G: StyleGenerator, directions: Directions) -> dict:
    """What goes into an ONNX file beside the network, as JSON can hold it."""
    return {"kind": G.kind, "architecture": G.architecture(), "resolution": G.resolution,
            "z_dim": G.z_dim, "w_dim": G.w_dim, "num_ws": G.num_ws, "c_dim": G.c_dim,
            "precision": config.precision, "sha256": sha256(config.generator),
            "name": named(config.generator).removesuffix(".safetensors"),
            "directions": {"names": list(directions.names), "reach": directions.reach.tolist(),
                           "vectors": directions.vectors.tolist(),
                           "given": bool(config.directions)},
            "provenance": public(provenance_of(config.generator))}


class Drawing(nn.Module):
    """A generator as a function of tensors alone, which is what can be exported.

    Args:
        half: run the synthesis network's convolutions in float16.
    Shape: z (N, z_dim), truncation (1,), offset (N, num_ws, w_dim), which is added to ws after
        truncation, labels c (N, c_dim) for a conditional network -> image (N, 3, R, R), about
        [-1, 1], not clamped, and the ws (N, num_ws, w_dim) that drew it, with the stored noise.
    """

    def __init__(self, G: StyleGenerator, half: bool = False):
        super().__init__()
        self.G, self.half = G, half

    def example(self, n: int, seed: int = 0) -> dict[str, Tensor]:
        """Inputs for n images by name, in order."""
        G, dice = self.G, torch.Generator().manual_seed(seed)
        found = {"z": torch.randn(n, G.z_dim, generator=dice),
                 "truncation": 0.5 + 0.5 * torch.rand(1, generator=dice),
                 "offset": 0.3 * torch.randn(n, G.num_ws, G.w_dim, generator=dice)}
        if G.c_dim:
            found["c"] = torch.eye(G.c_dim)[torch.arange(n) % G.c_dim]
        return found

    def forward(self, z: Tensor, truncation: Tensor, offset: Tensor, c: Tensor | None = None
                ) -> tuple[Tensor, Tensor]:
        w_avg = self.G.mapping.w_avg
        w = w_avg + truncation * (self.G.mapping(z, c) - w_avg)  # (N, w_dim)
        ws = w[:, None] + offset  # (N, num_ws, w_dim)
        with torch.autocast("cpu", torch.float16, enabled=self.half):
            return self.G.synthesis(ws).image, ws


def to_program(G: StyleGenerator, half: bool = False) -> torch.export.ExportedProgram:
    """The generator as a torch.export program of any batch, called as `Drawing` is. The noise maps
    are constants in it."""
    drawing = Drawing(copy.deepcopy(G), half).eval()  # the caller's may be in training
    example, batch = drawing.example(3), torch.export.Dim("batch", min=1, max=4096)
    free = {name: None if name == "truncation" else {0: batch} for name in example}
    with torch.no_grad():
        return torch.export.export(drawing, tuple(example.values()), dynamic_shapes=free,
                                   strict=False)


def to_onnx(G: StyleGenerator, precision: str = "float32") -> bytes:
    """The generator as the content of an ONNX file: inputs and outputs of `Drawing`, by name."""
    require()
    import onnx

    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # silent about torchvision
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        program = to_program(G, half=precision == "float16")
        model = torch.onnx.export(program, input_names=list(Drawing(G).example(1)),
                                  output_names=["image", "ws"], dynamo=True, external_data=False,
                                  verbose=False).model_proto
    for part in (model.graph, *model.graph.node):  # where in PyTorch's code each came from
        del part.metadata_props[:]
        part.doc_string = ""
    for value in (*model.graph.input, *model.graph.output):
        value.doc_string = TENSORS[value.name]
        first = value.type.tensor_type.shape.dim[0]
        if first.dim_param:  # which torch calls s21 or so; of offsets: one for all, or one an image
            first.dim_param = "offset_batch" if value.name == "offset" else "batch"
    if precision != "float32":
        keep_small(model, precision)
    del model.graph.value_info[:]  # shapes within, which held as long as all batches were one
    defaults = {"truncation": np.ones(1, np.float32),
                "offset": np.zeros((1, G.num_ws, G.w_dim), np.float32)}
    for name, value in defaults.items():
        model.graph.initializer.append(onnx.numpy_helper.from_array(value, name))
    model.producer_name, model.producer_version = "gapkd", __version__
    model.graph.name = G.kind
    model.doc_string = (f"A generator of {G.resolution} x {G.resolution} px, {precision}: image of "
                        "the latents z. Its metadata `gapkd` holds directions and origin, as JSON.")
    onnx.checker.check_model(model)
    del model.metadata_props[:]
    return model.SerializeToString()


def with_facts(content: bytes, facts: dict) -> bytes:
    """The same ONNX file with those facts as its metadata."""
    import onnx

    model = onnx.load_from_string(content)
    onnx.helper.set_model_props(model, {"gapkd": json.dumps(facts)})
    return model.SerializeToString()


def keep_small(model: onnx.ModelProto, precision: str) -> None:
    """Store the weights of an ONNX model as float16, or as int8 with one scale an output channel,
    in place.

    The nodes get them back as float32, but for those that ask for float16: what is computed stays
    what it was.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph, first = model.graph, []
    readers = {name: node for node in graph.node for name in node.input}
    for tensor in list(graph.initializer):
        values, name = numpy_helper.to_array(tensor), tensor.name
        if tensor.data_type != TensorProto.FLOAT or values.size < SMALLEST:
            continue
        graph.initializer.remove(tensor)
        stored = f"{name}_{precision}"
        if precision == "float16":
            small = values.astype(np.float16)
            first.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT,
                                          name=f"{name}_as_float32"))
        else:
            axis = output_axis(readers[name], values.ndim)
            others = tuple(i for i in range(values.ndim) if i != axis)
            largest = np.abs(values).max(axis=others, keepdims=True)
            scale = np.maximum(largest, 1e-12).astype(np.float32) / 127
            small = np.clip(np.rint(values / scale), -127, 127).astype(np.int8)
            scales = numpy_helper.from_array(scale.reshape(-1), f"{name}_scale")
            graph.initializer.append(scales)
            first.append(helper.make_node("DequantizeLinear", [stored, scales.name], [name],
                                          axis=axis, name=f"{name}_as_float32"))
        graph.initializer.append(numpy_helper.from_array(small, stored))
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def output_axis(reader: onnx.NodeProto, ndim: int) -> int:
    """The axis of a weight that tells the output channels of the node that reads it apart."""
    attributes = {attribute.name: attribute.i for attribute in reader.attribute}
    if reader.op_type == "ConvTranspose":  # (I, O / groups, k, k)
        return 1 if attributes.get("group", 1) == 1 else 0
    if reader.op_type == "MatMul":
        return ndim - 1
    if reader.op_type == "Gemm":
        return 0 if attributes.get("transB") else 1
    return 0


def read_onnx_facts(path: str | Path) -> dict:
    """What `gapkd export` has noted in an ONNX file: sizes, precision, directions, check,
    provenance. Raises ExportError when the file is none, or none of ours."""
    require()
    import onnx

    path = Path(path)
    if not path.is_file():
        raise ExportError(f"there is no file {path}: write one with `gapkd export GENERATOR --onnx "
                          f"{path}`")
    try:
        model = onnx.load(path, load_external_data=False)
        return json.loads({p.key: p.value for p in model.metadata_props}["gapkd"])
    except Exception as error:  # protobuf's own errors share no base class
        raise ExportError(f"{path} is no ONNX file of `gapkd export`: write it anew with that "
                          "command") from error


def require() -> None:
    """Raise ExportError unless the packages of the extra `export` are installed."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime")
               if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"missing: {', '.join(missing)}; pip install 'gapkd[export]' (in a "
                          "clone: pip install -e '.[export]')")


def session(content: bytes | str | Path, threads: int | None = None
            ) -> onnxruntime.InferenceSession:
    """An ONNX file, opened by onnxruntime on the CPU; threads: as many as torch has."""
    require()
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = content if isinstance(content, bytes) else str(content)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


def drawn_by(content: bytes) -> Draw:
    """A function that draws images with an ONNX file."""
    opened = session(content)

    def draw(given: dict[str, Tensor]) -> Tensor:
        arrays = {name: value.numpy() for name, value in given.items()}
        return torch.from_numpy(opened.run(["image"], arrays)[0])

    return draw


def drawn_by_program(content: bytes) -> Draw:
    """A function that draws images with a torch.export program."""
    module = torch.export.load(io.BytesIO(content)).module()
    return lambda given: module(*given.values())[0]


@torch.no_grad()
def compare(draw: Draw, drawing: Drawing, latents: int) -> tuple[float, float]:
    """Largest and mean difference of images from the generator's own, in batches of 1 to 16."""
    largest, total, count = 0.0, 0.0, 0
    for n in itertools.chain((1, 2, 7), itertools.repeat(16)):
        n = min(n, latents - count)
        if not n:
            return largest, total / count
        given = drawing.example(n, seed=count)
        difference = (drawing(**given)[0] - draw(given)).abs()
        largest = max(largest, difference.max().item())
        total, count = total + n * difference.mean().item(), count + n
