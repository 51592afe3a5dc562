"""The page: one or two ONNX files, plain files beside them, and any browser draws.

The page asks no server for anything but its own files; it reaches no other host. onnxruntime-web, which runs the
networks there, is taken from a folder or fetched once with npm. What the page does stands in gapkd/page.
"""

from __future__ import annotations

import gzip
import json
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import tyro
from PIL import Image

from gapkd.data.images import png
from gapkd.files.checkpoints import write_atomically
from gapkd.sharing.webruntime import SCRIPT, VERSION, WASM, fetch_runtime, find_runtime, is_known

PAGE = (".html", ".css", ".js")  # endings of the files in gapkd/page
SIZES = ("resolution", "z_dim", "w_dim", "num_ws", "c_dim")
LARGEST = 2**16  # of those sizes
ICON = 64  # px, at least
MADE_BY = "gapkd demo"


class DemoError(ValueError):
    """A page that cannot be written: wrong files, or a folder that holds something else."""


@dataclass(frozen=True)
class DemoConfig:
    """Write a page that draws with a generator, or with student and teacher side by side, in any browser."""

    network: tyro.conf.Positional[str]
    """ONNX file of `gapkd export`: the student, or the only network."""
    teacher: tyro.conf.Positional[str] = ""
    """ONNX file of its teacher; empty: none."""
    out: str = "demo"
    """Folder of the page. A page that this command wrote there before is replaced, nothing else."""
    runtime: str = ""
    """Folder with onnxruntime-web (an installed package, or its dist); empty: fetched once, with npm."""
    seed: int = 0
    """Of the picture that the page opens with."""
    truncation: float = 1.0
    """Of that picture. 1: none; 0: the average image."""


def write_demo(config: DemoConfig) -> Path:
    """Write the page, whole or not at all; returns its folder. Raises ValueError, in one sentence."""
    out = Path(config.out)
    if not 0 <= config.seed < 2**32:
        raise DemoError(f"seed must lie between 0 and 2^32 - 1, not {config.seed}")
    if not 0 <= config.truncation <= 1.2:
        raise DemoError(f"truncation must lie between 0 and 1.2, as on the page, not {config.truncation}")
    check_free(out)
    networks = [open_network(config.network, "student" if config.teacher else "network")]
    if config.teacher:
        networks.append(open_network(config.teacher, "teacher"))
        check_pair(networks, (config.network, config.teacher))
    folder = find_runtime(config.runtime) if config.runtime else fetch_runtime()
    page = files("gapkd.sharing") / "page"
    content = {file.name: file.read_bytes() for file in page.iterdir() if file.name.endswith(PAGE)}
    content[SCRIPT] = (folder / SCRIPT).read_bytes()
    content[f"{WASM}.gz"] = gzip.compress((folder / WASM).read_bytes(), mtime=0)  # a quarter; servers may not compress
    for network in networks:
        z = latent(config.seed, network.facts["z_dim"])[None]
        picture = draw(network, z, config.truncation)[0][0]
        content |= {network.facts["file"]: network.model, network.facts["picture"]: png(Image.fromarray(picture))}
        enlarged = np.kron(picture, np.ones((-(-ICON // len(picture)),) * 2 + (1,), np.uint8))
        content.setdefault("icon.png", png(Image.fromarray(enlarged)))
    record = {"made_by": MADE_BY, "files": sorted([*content, "networks.json"]),
              "start": {"seed": config.seed, "truncation": config.truncation},
              "runtime": f"onnxruntime-web {VERSION if is_known(folder) else 'of another version'}",
              "networks": [network.facts for network in networks]}
    content["networks.json"] = json.dumps(record, allow_nan=False).encode()
    return _write_folder(out, content)


# -- networks ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Network:
    """What the page has of a network: its facts for networks.json, and its ONNX file."""

    facts: dict
    model: bytes


def open_network(path: str | Path, role: str) -> Network:
    """Read an ONNX file of `gapkd export` for the page. Raises DemoError or ExportError, in one sentence."""
    from gapkd.sharing.export import read_onnx_facts

    known = read_onnx_facts(path)
    try:
        sizes = {name: int(known[name]) for name in SIZES}
        if not all(0 <= size <= LARGEST for size in sizes.values()):
            raise ValueError(f"sizes are {sizes}")
        directions = {"names": [str(name) for name in known["directions"]["names"]],
                      "vectors": [[round(float(x), 6) for x in row] for row in known["directions"]["vectors"]],
                      "reach": [round(float(x), 3) for x in known["directions"]["reach"]],
                      "given": bool(known["directions"].get("given"))}
        inputs, name, precision = known["inputs"], str(known["name"]), str(known["precision"])
    except (KeyError, TypeError, ValueError) as error:
        raise DemoError(f"{path} lacks what `gapkd export` notes in its files ({error}): export it again") from error
    if inputs != "z":
        raise DemoError(f"{path} is the synthesis network alone, which draws from ws: export it again with --inputs z")
    widths = {len(row) for row in directions["vectors"]} - {sizes["w_dim"]}
    if widths:
        raise DemoError(f"{path} holds directions of width {widths.pop()}, but its w_dim is {sizes['w_dim']}: export "
                        "it again, with directions of its own W")
    if not len(directions["names"]) == len(directions["vectors"]) == len(directions["reach"]) or not all(
            math.isfinite(x) and x > 0 for x in directions["reach"]) or not np.isfinite(directions["vectors"]).all():
        raise DemoError(f"the directions in {path} are damaged: export it again")
    model = for_the_page(path)
    facts = {"role": role, "name": name, "file": f"{role}.onnx", "picture": f"{role}.png", "bytes": len(model),
             "precision": precision, **sizes, "directions": directions, "about": about(known, sizes, len(model))}
    return Network(facts, model)


def check_pair(networks: Sequence[Network], paths: Sequence[str]) -> None:
    """Raise DemoError unless both networks can be given the same z and the same edits."""
    student, teacher = (network.facts for network in networks)
    for name in ("z_dim", "w_dim", "c_dim"):
        if student[name] != teacher[name]:
            raise DemoError(f"{paths[0]} has {name} {student[name]} and {paths[1]} {teacher[name]}: only networks that "
                            "share them can be given the same z and the same edits")
    if not share_w(networks):
        if student["directions"]["names"] != teacher["directions"]["names"]:
            raise DemoError(f"{paths[0]} and {paths[1]} do not share W, and hold directions of other names: export "
                            "both with directions of the same names, each found in its own W")
    else:  # the same edits for both; those that somebody chose, before SeFa's, which every export has
        ours, theirs = student["directions"], teacher["directions"]
        student["directions"] = theirs if theirs["names"] and (theirs["given"] or not ours["given"]) else ours
        teacher["directions"] = None


def share_w(networks: Sequence[Network], samples: int = 32, least: float = 0.9) -> bool:
    """Whether two networks give every z nearly the same w: the correlation of w, a student's inherited mapping network
    may have been trained further."""
    w = []
    for network in networks:
        ws = draw(network, np.stack([latent(seed, network.facts["z_dim"]) for seed in range(samples)]))[1][:, 0]
        w.append(ws - ws.mean(axis=0))
    return bool((w[0] * w[1]).sum() > least * np.sqrt((w[0] ** 2).sum() * (w[1] ** 2).sum()))


def for_the_page(path: str | Path) -> bytes:
    """The ONNX file as the browser's runtime wants it: it takes no optional inputs, so truncation and offset become
    required, and the noise maps constants."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    wanted = [value for value in graph.input if not value.name.startswith("noise_")]
    del graph.input[:]
    graph.input.extend(wanted)
    required = {value.name for value in wanted}
    kept = [tensor for tensor in graph.initializer if tensor.name not in required]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    del model.metadata_props[:]  # networks.json has them
    return model.SerializeToString()


def about(known: dict, sizes: dict[str, int], size: int) -> list[tuple[str, str]]:
    """(term, text) pairs on what a network is and where it comes from, for the page."""
    from gapkd.sharing.origins import Origin, as_dict, named, numbers

    rows = [("picture", f"{sizes['resolution']} x {sizes['resolution']} px"),
            ("file", f"{size / 1e6:.2f} MB, {known['precision']}"),
            ("latents", f"z {sizes['z_dim']}, w {sizes['w_dim']}, in {sizes['num_ws']} layers"
             + (f", {sizes['c_dim']} classes" if sizes["c_dim"] else ""))]
    check = numbers(known.get("check"))
    if {"latents", "largest"} <= check.keys():
        rows.append(("checked", f"{check['latents']:.0f} latents, at most {check['largest']:.1e} from the original "
                                "(values from -1 to 1)"))
    origin = Origin(as_dict(known.get("provenance")))
    card, settings, stages = origin.made, origin.settings, [origin.made]
    while before := as_dict(stages[-1].get("started_from")):
        stages.append(before)
    images = sum(numbers(stage).get("images", 0) for stage in stages)
    trained = [f"{images:,.0f} images" if images else "", f"{len(stages)} stages" if len(stages) > 1 else "",
               f"recipe {settings['recipe']}" if "recipe" in settings else "",
               f"teacher {named(origin.teacher)}" if origin.teacher else "",
               f"seed {settings['seed']}" if "seed" in settings else ""]
    made = [f"commit {card['commit']}" if "commit" in card else "", str(card.get("date", ""))]
    rows += [(term, ", ".join(filter(None, parts))) for term, parts in (("trained", trained), ("made", made))
             if any(parts)]
    return [*rows, ("sha256", str(known.get("sha256", "unknown"))[:16])]


# -- the picture that is there before the networks are ------------------------------------------------------------


def mulberry32(seed: int, count: int) -> list[float]:
    """Numbers in [0, 1), as gapkd/page/latent.js draws them."""
    found, state, mask = [], seed, 0xFFFFFFFF
    for _ in range(count):
        state = (state + 0x6D2B79F5) & mask
        x = ((state ^ (state >> 15)) * (state | 1)) & mask
        x ^= (x + (((x ^ (x >> 7)) * (x | 61)) & mask)) & mask
        found.append((x ^ (x >> 14)) / 2**32)
    return found


def latent(seed: int, z_dim: int) -> np.ndarray:
    """The z (z_dim,) that belongs to a seed on the page: Box and Muller's normal numbers, in float64."""
    uniform = np.array(mulberry32(seed, z_dim + z_dim % 2)).reshape(-1, 2)
    radius, angle = np.sqrt(-2 * np.log(1 - uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    return np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1).reshape(-1)[:z_dim]


def draw(network: Network, z: np.ndarray, truncation: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Draw z (N, z_dim), of the first class if there are classes, as the page does.

    Returns: (N, R, R, 3) uint8 and ws (N, num_ws, w_dim). Raises DemoError when the network does not draw.
    """
    from gapkd.sharing.export import session

    sizes = network.facts
    feeds = {"z": z, "truncation": np.array([truncation]), "offset": np.zeros((1, sizes["num_ws"], sizes["w_dim"]))}
    if sizes["c_dim"]:
        feeds["c"] = np.eye(1, sizes["c_dim"]).repeat(len(z), 0)
    try:
        images, ws = session(network.model).run(["image", "ws"], {k: v.astype(np.float32) for k, v in feeds.items()})
        return np.rint((images + 1) * 127.5).clip(0, 255).astype(np.uint8).transpose(0, 2, 3, 1), ws
    except Exception as error:  # onnxruntime's own errors share no base class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DemoError(f"the {sizes['role']}'s ONNX file does not draw ({reason}): export it again") from error


# -- the folder --------------------------------------------------------------------------------------------------


def check_free(out: Path) -> None:
    """Raise DemoError unless there is nothing at `out`, an empty folder, or a page that was written before."""
    if out.is_dir():
        there = {path.name for path in out.iterdir()}
        try:
            record = json.loads((out / "networks.json").read_bytes()) if "networks.json" in there else {}
            own = set(record["files"]) if record.get("made_by") == MADE_BY else set()
        except (ValueError, TypeError, KeyError, AttributeError):
            own = set()
        if foreign := sorted(there - own):
            raise DemoError(f"{out} holds {foreign[0]}, which is none of a page's files: choose another out, or move "
                            "it away")
    elif out.exists() or out.is_symlink():
        raise DemoError(f"{out} is no folder: choose another out")


def _write_folder(out: Path, content: dict[str, bytes]) -> Path:
    """Write a folder beside `out`, then put it in the place of the one that was there."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as aside:
            new, former = Path(aside, "new"), Path(aside, "former")
            for name, data in content.items():
                write_atomically(new / name, data)
            check_free(out)  # it took a while
            if out.exists():
                os.replace(out, former)
            try:
                os.replace(new, out)
            except OSError:
                if former.exists():
                    os.replace(former, out)
                raise
    except OSError as error:
        raise DemoError(f"could not write {out} ({error.strerror or error}): free some space, or choose another "
                        "out") from error
    return out
