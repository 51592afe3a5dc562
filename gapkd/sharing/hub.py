"""A generator as a folder that can be uploaded to a model hub: weights, config.json, model card, sheet of samples.

    gapkd share student.safetensors --out my-student         or gapkd.save_pretrained(G, "my-student", ...)
    gapkd.load_generator("my-student")                       reads it back

The card is written from what is known and from nothing else: the provenance that the weights carry, what was counted,
and what was measured.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Mapping
from pathlib import Path

from PIL import Image

from gapkd.data.images import png, tile
from gapkd.distillation.pruning import AnyGenerator
from gapkd.files.checkpoints import (
    CONFIG,
    FORMAT,
    WEIGHTS,
    kind_of,
    network_bytes,
    new_folder,
    write_folder,
)
from gapkd.metrics.cost import macs, parameters
from gapkd.metrics.evaluation import draw_sheet
from gapkd.networks.stylegan2 import Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator
from gapkd.sharing.modelcard import Card, Cost, Sheet, licence_fields
from gapkd.sharing.origins import Origin, are_rows, named, public

SHEET_SEED = 0


def save_pretrained(G: AnyGenerator, folder: str | Path, provenance: Mapping | None = None, *, name: str = "",
                    license: str = "", evaluation: Mapping | None = None, teacher: AnyGenerator | None = None,
                    truncation: float = 1.0) -> Path:
    """Write a generator as a new folder: model.safetensors, config.json, README.md (the model card) and samples.png.

    Args:
        folder: is there whole afterwards, or not at all; nothing is overwritten.
        provenance: where the weights come from; `gapkd.sharing.origins.provenance_of` reads it from a network's
        file. What
            belongs to one machine (folders, device) is left out.
        name: the card's title; empty: the folder's name.
        license: "mit", "cc-by-nc-4.0"...; empty: that of the provenance, and if it has none, the card says so.
        evaluation: the record that `gapkd evaluate --out` writes, about this generator; what is not given is not on
            the card.
        teacher: whose cost the card compares with.
        truncation: of the sheet of samples; 1: none.
    Returns: the folder. Raises ValueError for what cannot be written so, OSError when the disk fails.
    """
    folder, name = ready(folder, name, license, truncation)
    if type(G) not in (Generator, AliasFreeGenerator):
        raise ValueError(f"a generator is what can be shared, not a {type(G).__name__}")
    if not all(bool(t.isfinite().all()) for t in G.state_dict().values() if t.is_floating_point()):
        raise ValueError("the generator has weights that are not finite: its training diverged, share an earlier one")
    provenance = public(provenance or {})
    if license:
        provenance["license"] = license
    if evaluation is not None:
        provenance["evaluation"] = _public_evaluation(evaluation)
    G = _still(G)
    weights = network_bytes(G, provenance)
    sheet = Sheet(_sheet_size(G.resolution), SHEET_SEED, truncation, enlarged=max(1, 96 // G.resolution))
    card = Card(name, folder.absolute().name, kind_of(G), G.architecture(), Origin(provenance), sheet,
                _cost(G, len(weights)), _cost(_still(teacher)) if teacher else None)
    return write_folder(folder, {WEIGHTS: weights, CONFIG: _config(G), "samples.png": _draw(G, sheet),
                                 "README.md": card.text().encode()})


def ready(folder: str | Path, name: str, license: str, truncation: float) -> tuple[Path, str]:
    """The folder and the title. Raises ValueError where `save_pretrained` would refuse what it is asked for."""
    folder = new_folder(folder)
    name = (name or folder.absolute().name).strip()
    if not name.isprintable() or not 0 < len(name) <= 96:
        raise ValueError(f"{name[:100]!r} cannot be the name of a network: give one line of at most 96 characters")
    if license:
        licence_fields(license)
    if not math.isfinite(truncation):
        raise ValueError(f"truncation must be a number, 1 for none, not {truncation}")
    return folder, name


def _public_evaluation(record: Mapping) -> dict:
    """A record of `gapkd evaluate` with files by their names."""
    if not are_rows(record.get("rows")):
        raise ValueError("evaluation must be a record as `gapkd evaluate --out` writes it, with the table's rows")
    files = {k: named(str(record[k])) for k in ("generator", "teacher", "data", "features") if record.get(k)}
    return {**record, **files}


def _config(G: AnyGenerator) -> bytes:
    from gapkd import __version__

    lines = ",\n".join(f"    {json.dumps(name)}: {json.dumps(value)}" for name, value in G.architecture().items())
    return (f'{{\n  "library_name": "gapkd",\n  "gapkd_format": {json.dumps(FORMAT)},\n'
            f'  "gapkd_version": {json.dumps(__version__)},\n  "kind": {json.dumps(kind_of(G))},\n'
            f'  "architecture": {{\n{lines}\n  }}\n}}\n').encode()


def _still(G: AnyGenerator) -> AnyGenerator:
    """A copy on the CPU: counting and drawing in training mode would change a StyleGAN3."""
    return copy.deepcopy(G).cpu().eval().requires_grad_(False)


def _cost(G: AnyGenerator, size: int | None = None) -> Cost:
    paper = macs(G, "paper") if kind_of(G) == "stylegan2-generator" else None
    return Cost(parameters(G), macs(G), paper, size)


def _sheet_size(resolution: int) -> int:
    """Images of a sheet: four rows of eight, fewer of large ones."""
    return 32 if resolution <= 256 else 8 if resolution <= 512 else 4


def _draw(G: AnyGenerator, sheet: Sheet) -> bytes:
    """The sheet as PNG."""
    picture = tile(draw_sheet(G, sheet.count, sheet.seed, sheet.truncation), columns=min(8, sheet.count // 2))
    size = picture.width * sheet.enlarged, picture.height * sheet.enlarged
    return png(picture.resize(size, Image.Resampling.NEAREST))
