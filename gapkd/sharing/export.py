"""Export: a generator as one ONNX file, or as a torch.export program, for places where there is no PyTorch.

The file draws by itself: mapping, truncation, a step along directions, synthesis. Before it is written, it has drawn
the same images as the generator itself.
"""

from __future__ import annotations

import importlib.util
import io
import itertools
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
import tyro
from torch import Tensor, nn

from gapkd.distillation.pruning import AnyGenerator
from gapkd.files.checkpoints import load_generator, read_metadata, sha256, write_atomically
from gapkd.metrics.editing import Directions, load_directions, sefa
from gapkd.sharing.origins import named, provenance_of, public

if TYPE_CHECKING:
    import onnx
    import onnxruntime

Precision = Literal["float32", "float16", "int8"]
GREY = 2 / 255  # one grey level on the screen; images reach from -1 to 1
# By how much images may differ from the generator's, anywhere and on average. float32 is the same arithmetic in another
# order; the others are judged by the mean.
LIMITS = {"float32": (1e-4, 1e-4), "float16": (np.inf, GREY), "int8": (np.inf, 2 * GREY)}
SMALLEST = 256  # numbers: smaller tensors stay as they are, biases above all


class ExportError(ValueError):
    """An export that does not draw what its generator draws, or that cannot be made."""


@dataclass(frozen=True)
class ExportConfig:
    """Write a generator as an ONNX file (onnxruntime, browsers) or as a torch.export program, and check it."""

    generator: tyro.conf.Positional[str]
    """Its file, or the name of an embedded one."""
    onnx: str = ""
    """ONNX file to write; an existing one is not overwritten."""
    program: str = ""
    """torch.export program (.pt2) to write; an existing one is not overwritten."""
    precision: Precision = "float32"
    """Of the ONNX file. float16: weights and convolutions; int8: weights alone, one scale an output channel."""
    inputs: Literal["z", "ws"] = "z"
    """What the file is fed with: latents z (with truncation and offset), or ws, the synthesis network alone."""
    directions: str = ""
    """File of `gapkd directions`, kept in the ONNX file for sliders; empty: the generator's own SeFa directions."""
    latents: int = 100
    """How many latents the check draws."""
    seed: int = 0
    """Of those latents."""


@dataclass(frozen=True)
class Export:
    """What was written, and what the check found: the largest and the mean difference of the images, whose values reach
    from -1 to 1, over a number of latents."""

    path: Path
    size: int
    largest: float
    mean: float
    latents: int

    def __str__(self) -> str:
        return (f"{self.path} ({self.size / 1e6:.2f} MB): {self.latents} images, drawn in batches of 1 to 16, differ "
                f"from the generator's own by at most {self.largest:.1e}, on average by {self.mean:.1e} "
                f"({self.mean / GREY:.2g} grey levels of 255)")


def export(config: ExportConfig) -> list[Export]:
    """Write what `config` asks for, once all of it has passed its check. Raises ExportError when one fails."""
    wanted = {"onnx": config.onnx, "program": config.program}
    for field, ending in (("onnx", ".onnx"), ("program", ".pt2")):
        path = Path(wanted[field])
        if wanted[field] and path.suffix != ending:
            raise ExportError(f"{field}={path} must end in {ending}")
        if wanted[field] and path.exists():
            raise ExportError(f"{path} exists already: remove it or choose another {field}")
    if not any(wanted.values()):
        raise ExportError("say what to write: --onnx FILE.onnx, --program FILE.pt2, or both")
    if config.latents < 1 or config.seed < 0:
        raise ExportError(f"latents must be at least 1 and seed at least 0, not {config.latents} and {config.seed}")
    if config.program and config.precision != "float32":
        raise ExportError(f"precision={config.precision} is for ONNX files: export the program without it")
    G = load_generator(config.generator)
    drawing, done = Drawing(G, config.inputs), []
    if config.onnx:
        directions = load_directions(config.directions) if config.directions else sefa(G)
        if directions.vectors.shape[1] != G.w_dim:
            raise ExportError(f"{config.directions} holds directions of width {directions.vectors.shape[1]}, but "
                              f"{config.generator} has w_dim {G.w_dim}")
        if not directions.belong_to(G):
            warnings.warn(f"the directions in {config.directions} were found in another W than that of "
                          f"{config.generator}, where they mean nothing: find them with `gapkd directions "
                          f"{config.generator}`", stacklevel=2)
        content = to_onnx(G, config.inputs, config.precision)
        found = _judge(config, drawing, drawn_by(content))
        check = {"latents": config.latents, "largest": found[0], "mean": found[1]}
        done.append((config.onnx, with_facts(content, describe(config, G, directions) | {"check": check}), found))
    if config.program:
        program, file = to_program(G, config.inputs), io.BytesIO()
        torch.export.save(program, file)
        module = torch.export.load(io.BytesIO(file.getvalue())).module()

        def draw(given: dict[str, Tensor]) -> Tensor:
            return module(*drawing.complete(given))[0]

        done.append((config.program, file.getvalue(), _judge(config, drawing, draw)))
    return [Export(write_atomically(path, content), len(content), *found, config.latents)
            for path, content, found in done]


def _judge(config: ExportConfig, drawing: Drawing, draw: Callable[[dict[str, Tensor]], Tensor]) -> tuple[float, float]:
    found, limits = compare(draw, drawing, config.latents, config.seed), LIMITS[config.precision]
    if not all(value <= limit for value, limit in zip(found, limits, strict=True)):
        allowed = f"on average {limits[1]:.1e}" + (f", anywhere {limits[0]:.0e}" if np.isfinite(limits[0]) else "")
        raise ExportError(f"{config.precision} does not hold for {config.generator}: images differ by {found[1]:.1e} "
                          f"on average and by up to {found[0]:.1e} (allowed: {allowed}); nothing is written"
                          + ("" if config.precision == "float32" else ": take --precision float32"))
    return found


def describe(config: ExportConfig, G: AnyGenerator, directions: Directions) -> dict:
    """What goes into an ONNX file beside the network, as JSON can hold it."""
    return {"kind": read_metadata(config.generator)["kind"], "architecture": G.architecture(),
            "resolution": G.resolution, "z_dim": G.z_dim, "w_dim": G.w_dim, "num_ws": G.num_ws, "c_dim": G.c_dim,
            "inputs": config.inputs, "precision": config.precision,
            "name": named(config.generator).removesuffix(".safetensors"), "sha256": sha256(config.generator),
            "directions": {"names": list(directions.names), "vectors": directions.vectors.tolist(),
                           "reach": directions.reach.tolist(), "given": bool(config.directions)},
            "provenance": public(provenance_of(config.generator))}


class Drawing(nn.Module):
    """A generator as a function of tensors alone, which is what can be exported.

    Shape: z (N, z_dim), labels c (N, c_dim) for a conditional network, truncation (1,), offset (N, num_ws, w_dim),
        which is added to ws after truncation, noise maps (N, 1, r, r); or ws (N, num_ws, w_dim) and noise maps
        -> image (N, 3, R, R), about [-1, 1], not clamped, and, if fed with z, the ws (N, num_ws, w_dim) that drew it.
    """

    def __init__(self, G: AnyGenerator, inputs: str = "z", half: bool = False):
        super().__init__()
        self.G, self.inputs, self.half = G, inputs, half

    def names(self) -> list[str]:
        """Names of the inputs, in order."""
        first = ["ws"] if self.inputs == "ws" else ["z", *(["c"] if self.G.c_dim else []), "truncation", "offset"]
        return first + [f"noise_{i}" for i in range(len(self.maps()))]

    def maps(self) -> list[Tensor]:
        """The stored noise maps, (1, 1, r, r) each."""
        return [conv.noise_const for conv in self.G.synthesis.convs if hasattr(conv, "noise_const")]

    def defaults(self) -> dict[str, Tensor]:
        """What the optional inputs are when they are not given."""
        noise = {f"noise_{i}": m.detach().clone() for i, m in enumerate(self.maps())}
        if self.inputs == "ws":
            return noise
        return {"truncation": torch.ones(1), "offset": torch.zeros(1, self.G.num_ws, self.G.w_dim)} | noise

    def example(self, n: int, seed: int = 0, optional: bool = True) -> dict[str, Tensor]:
        """Inputs for n images: latents, and, if `optional`, a truncation, an offset and fresh noise too."""
        G, dice = self.G, torch.Generator().manual_seed(seed)
        z = torch.randn(n, G.z_dim, generator=dice)
        c = torch.eye(G.c_dim)[torch.arange(n) % G.c_dim] if G.c_dim else None
        if self.inputs == "ws":
            with torch.no_grad():
                found = {"ws": G.mapping(z, c)[:, None].repeat(1, G.num_ws, 1)}
        else:
            found = {"z": z} | ({} if c is None else {"c": c})
        if optional:
            if self.inputs == "z":
                found |= {"truncation": torch.tensor([0.7]),
                          "offset": 0.3 * torch.randn(n, G.num_ws, G.w_dim, generator=dice)}
            found |= {f"noise_{i}": torch.randn(n, *m.shape[1:], generator=dice) for i, m in enumerate(self.maps())}
        return found

    def complete(self, given: dict[str, Tensor]) -> list[Tensor]:
        """All inputs, in order, the missing ones as they are by default."""
        n = next(iter(given.values())).shape[0]
        defaults = {k: v if k == "truncation" else v.expand(n, *v.shape[1:]) for k, v in self.defaults().items()}
        return [(defaults | given)[name] for name in self.names()]

    def forward(self, first: Tensor, *rest: Tensor) -> tuple[Tensor, ...]:
        rest = list(rest)
        if self.inputs == "ws":
            ws = first
        else:
            w = self.G.mapping(first, rest.pop(0) if self.G.c_dim else None)
            truncation, offset = rest.pop(0), rest.pop(0)
            w = self.G.mapping.w_avg + truncation * (w - self.G.mapping.w_avg)
            ws = w[:, None] + offset
        with torch.autocast("cpu", torch.float16, enabled=self.half):
            image = self.G.synthesis(ws, noise=rest).image
        return (image,) if self.inputs == "ws" else (image, ws)


def to_program(G: AnyGenerator, inputs: str = "z", half: bool = False) -> torch.export.ExportedProgram:
    """The generator as a torch.export program with a free batch size. Arguments as in `Drawing`, by place."""
    drawing = Drawing(G, inputs, half).eval()
    example = drawing.example(3)
    batch = torch.export.Dim("batch", min=1, max=4096)
    free = [None if name == "truncation" else {0: batch} for name in drawing.names()]
    with torch.no_grad():
        return torch.export.export(drawing, tuple(example[name] for name in drawing.names()),
                                   dynamic_shapes=(free[0], tuple(free[1:])), strict=False)


def to_onnx(G: AnyGenerator, inputs: str = "z", precision: str = "float32") -> bytes:
    """The generator as the content of an ONNX file. See `ExportConfig`."""
    require("onnx", "onnxscript")
    import onnx

    drawing = Drawing(G, inputs)
    program = to_program(G, inputs, half=precision == "float16")
    with _quiet():
        outputs = ["image"] if inputs == "ws" else ["image", "ws"]
        model = torch.onnx.export(program, input_names=drawing.names(), output_names=outputs, dynamo=True,
                                  external_data=False, verbose=False).model_proto
    for part in (model.graph, *model.graph.node):  # where in PyTorch's code each came from: a fifth of the file
        del part.metadata_props[:]
        part.doc_string = ""
    keep_small(model, precision)
    make_optional(model, {name: default.numpy() for name, default in drawing.defaults().items()})
    model.producer_name, model.producer_version = "gapkd", ""
    onnx.checker.check_model(model)
    del model.metadata_props[:]
    return model.SerializeToString()


def with_facts(content: bytes, facts: dict) -> bytes:
    """The same ONNX file with those facts as its metadata."""
    import onnx

    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, {"gapkd": json.dumps(facts)})
    return model.SerializeToString()


def drawn_by(content: bytes) -> Callable[[dict[str, Tensor]], Tensor]:
    """A function that draws images with an ONNX file: inputs by name -> (N, 3, R, R)."""
    opened = session(content)
    return lambda given: torch.from_numpy(opened.run(["image"], {k: v.numpy() for k, v in given.items()})[0])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporter says about itself and about torchvision."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def make_optional(model: onnx.ModelProto, defaults: dict[str, np.ndarray]) -> None:
    """Give inputs of an ONNX model a default value, whose batch is 1, in place."""
    from onnx import numpy_helper

    for value in model.graph.input:
        if value.name in defaults and value.name != "truncation":
            value.type.tensor_type.shape.dim[0].dim_param = f"{value.name}_batch"
    del model.graph.value_info[:]  # shapes within, which held as long as all batches were one
    required = next(value.name for value in model.graph.input if value.name not in defaults)
    for node in model.graph.node:  # how many images there are to be is a question to the input that is always there
        if node.op_type == "Shape" and node.input[0] in defaults:
            node.input[0] = required
    for name, default in defaults.items():
        model.graph.initializer.append(numpy_helper.from_array(default, name))


def keep_small(model: onnx.ModelProto, precision: str) -> None:
    """Store the weights of an ONNX model as float16, or as int8 with one scale an output channel, in place.

    The nodes get them back as float32, but for those that ask for float16: what is computed stays what it was.
    """
    from onnx import TensorProto, helper, numpy_helper

    graph, first = model.graph, []
    readers = {name: node for node in graph.node for name in node.input}
    if precision == "float32":
        return
    for tensor in list(graph.initializer):
        values = numpy_helper.to_array(tensor)
        if tensor.data_type != TensorProto.FLOAT or values.size < SMALLEST:
            continue
        name, stored = tensor.name, f"{tensor.name}_{precision}"
        graph.initializer.remove(tensor)
        if precision == "float16":
            graph.initializer.append(numpy_helper.from_array(values.astype(np.float16), stored))
            first.append(helper.make_node("Cast", [stored], [name], to=TensorProto.FLOAT))
            continue
        axis = output_axis(readers[name], values)
        others = tuple(i for i in range(values.ndim) if i != axis)
        scale = np.maximum(np.abs(values).max(axis=others), 1e-12).astype(np.float32) / 127
        shape = [-1 if i == axis else 1 for i in range(values.ndim)]
        whole = np.clip(np.rint(values / scale.reshape(shape)), -127, 127).astype(np.int8)
        graph.initializer.append(numpy_helper.from_array(whole, stored))
        graph.initializer.append(numpy_helper.from_array(scale, f"{name}_scale"))
        first.append(helper.make_node("DequantizeLinear", [stored, f"{name}_scale"], [name], axis=axis))
    nodes = [*first, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def output_axis(reader: onnx.NodeProto, weight: np.ndarray) -> int:
    """The axis of a weight that tells the output channels of the node that reads it apart."""
    if reader.op_type == "ConvTranspose":
        return 1
    if reader.op_type == "MatMul":
        return weight.ndim - 1
    if reader.op_type == "Gemm":
        return 0 if any(a.name == "transB" and a.i for a in reader.attribute) else 1
    return 0


def read_onnx_facts(path: str | Path) -> dict:
    """What `gapkd export` has noted in an ONNX file: sizes, inputs, precision, directions, check, provenance.

    Raises ExportError when the file is none, or none of ours.
    """
    require("onnx")
    import onnx

    path = Path(path)
    if not path.is_file():
        raise ExportError(f"there is no file {path}: write one with `gapkd export GENERATOR --onnx {path}`")
    try:
        model = onnx.load(path, load_external_data=False)
        return json.loads({p.key: p.value for p in model.metadata_props}["gapkd"])
    except Exception as error:  # protobuf's own errors share no base class
        raise ExportError(f"{path} is no ONNX file of `gapkd export`: write it anew with that command") from error


def require(*packages: str) -> None:
    """Raise ExportError unless those packages of the extra `export` are installed."""
    missing = [name for name in packages if importlib.util.find_spec(name) is None]
    if missing:
        raise ExportError(f"{' and '.join(missing)} {'are' if len(missing) > 1 else 'is'} missing: pip install "
                          "'gapkd[export]' (in a clone: pip install -e '.[export]')")


def session(content: bytes | str | Path, threads: int | None = None) -> onnxruntime.InferenceSession:
    """An ONNX file, opened by onnxruntime on the CPU, with torch's number of threads unless another is given."""
    require("onnxruntime")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    source = content if isinstance(content, bytes) else str(content)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@torch.no_grad()
def compare(draw: Callable[[dict[str, Tensor]], Tensor], drawing: Drawing, latents: int, seed: int
            ) -> tuple[float, float]:
    """Largest and mean difference of images from the generator's own: batches of 1 to 16, with the optional inputs and
    without."""
    largest, total, count = 0.0, 0.0, 0
    for number in itertools.count():
        n = min((1, 2, 7, 16)[min(number, 3)], latents - count)
        if n <= 0:
            return largest, total / count
        given = drawing.example(n, seed + number, optional=number % 2 == 1)
        difference = (drawing(*drawing.complete(given))[0] - draw(given)).abs()
        largest, total, count = max(largest, difference.max().item()), total + n * difference.mean().item(), count + n
