"""The embedded files and their card: what lies in data/, where it came from, and how good it is.

    python -m tools.data_card --run runs/my-teacher --name toyfaces32

takes a finished run's network over into data/, measured. The card and the checksums are written
from data_card.md and the files' own metadata, so that no figure in them is typed; without --run,
they alone are written.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
import tyro

from gapkd.data.datasets import open_dataset
from gapkd.data.images import save_png
from gapkd.files.checkpoints import (
    load_discriminator,
    load_generator,
    read_metadata,
    save_network,
    sha256,
)
from gapkd.files.storage import write_atomically
from gapkd.metrics.agreement import factor_coverage, read_factors
from gapkd.metrics.attributes import load_attribute_network
from gapkd.metrics.evaluation import evaluation_table
from gapkd.metrics.sampling import SHEET, sample_images
from gapkd.sharing.origins import command_of, public, runs_of
from tools.readme import ROOT

DATA = ROOT / "data"
FAMILIES = {"stylegan2-generator": "StyleGAN2", "stylegan3-generator": "StyleGAN3",
            "mobile-generator": "MobileStyleGAN"}
ROLES = {
    "attributes": "The attribute network: reads the factors of toy faces; perceptual distance and "
                  "feature space of FID.",
    "second_judge": "A second attribute network, which no student was trained with: a judge beside "
                    "the first in chapter 6.",
}
FIGURES = ("fid", "kid", "precision", "recall", "agree_mean_correlation", "agree_mean_accuracy")
"""What the card says of a network; of a teacher, which agrees with itself, without the last two."""


@dataclass(frozen=True)
class EmbedConfig:
    """Take a finished run's network over into data/: metrics, sample sheet, checksums, card."""

    run: str = ""
    """Folder of a finished run; empty: only write checksums and card anew."""
    name: str = "toyfaces32"
    """Name of the embedded network."""
    samples: int = 5000
    """Images a set in the evaluation."""
    discriminator: bool = True
    """Take a teacher's discriminator over, too."""
    half: bool = False
    """Store the weights as float16: half the size, images equal to about a grey level."""
    shown: int = 64
    """Faces on its sheet."""


def embed(config: EmbedConfig, folder: Path = DATA) -> None:
    """Measure and copy a teacher and its discriminator, or a student; write card and checksums."""
    if config.run:
        run = Path(config.run)
        G = load_generator(run / "generator.safetensors")
        if config.half:
            G = G.half().float()  # measured is what is stored
        provenance = read_metadata(run / "generator.safetensors")["provenance"]
        teacher = provenance["settings"].get("teacher")
        provenance = public(provenance)
        provenance["metrics"] = measure(G, teacher, config.samples)
        if not teacher:
            provenance["coverage"] = coverage(G, config.samples)
        file = folder / f"{config.name}.safetensors"
        save_network(G.half() if config.half else G, file, provenance)
        G = load_generator(file)
        if config.discriminator and not teacher:
            D = load_discriminator(run / "discriminator.safetensors")
            stored = folder / f"{config.name}_discriminator.safetensors"
            save_network(D.half() if config.half else D, stored, {"trained with": config.name})
        sheet = torch.cat(list(sample_images(G, config.shown, SHEET)))
        save_png(sheet, folder / f"{config.name}.png", columns=16)
    write_card(folder)


def measure(G: torch.nn.Module, teacher: str | None, samples: int) -> dict[str, dict]:
    """{"real", "teacher" and, of a student, "student": figures for the card}."""
    dataset = open_dataset("toyfaces", G.resolution, seed=12_345)
    students, reference = ({"student": G}, load_generator(teacher)) if teacher else ({}, G)
    rows = evaluation_table(students, load_attribute_network(), dataset, reference, samples)
    left_out = ("chance",) if teacher else ("chance", "to_teacher", "agree")
    found = {}
    for row in rows:
        found[row["name"]] = {
            name: round(value, 4) for name, value in row.items()
            if name.startswith(FIGURES) and not any(part in name for part in left_out)}
    return found


def coverage(G: torch.nn.Module, samples: int) -> dict:
    """How far a teacher's faces show every class and the whole range of every factor, beside
    rendered faces that are read in the same way."""
    net = load_attribute_network()
    with torch.no_grad():
        drawn = read_factors(net, sample_images(G, samples, seed=0))
        faces = open_dataset("toyfaces", G.resolution, seed=12_345)
        real = read_factors(net, (faces.load(part) for part in torch.arange(samples).split(100)))
    found = factor_coverage(drawn, real)
    shares = {name: {label: [round(entry["share"], 3), round(entry["true"], 3)]
                     for label, entry in classes.items()}
              for name, classes in found["shares"].items()}
    spread = {name: round(value, 2) for name, value in found["spread"].items()}
    cells = sum(entry["cells"] for entry in found["missing"].values())
    return {"shares": shares, "spread": spread, "missing_cells": found["missing_cells"],
            "cells": cells}


def coverage_lines(found: dict) -> list[str]:
    """The same as lines of the card."""
    shares = []
    for name, classes in found["shares"].items():
        listed = ", ".join(f"{label} {share:.2f} ({true:.2f})"
                           for label, (share, true) in classes.items())
        shares.append(f"{name.replace('_', ' ')}: {listed}")
    spread = ", ".join(f"{name.replace('_', ' ')} {value:.2f}"
                       for name, value in found["spread"].items())
    return [f"- share of every class (of rendered faces): {'; '.join(shares)}",
            f"- spread over that of rendered faces: {spread}",
            f"- pairs of classes that never occur: {found['missing_cells']} of {found['cells']}"]


def write_card(folder: Path = DATA) -> None:
    """Write SHA256SUMS and README.md of a data folder from the files in it."""
    files = sorted(folder.glob("*.safetensors"))
    sums = "".join(f"{sha256(file)}  {file.name}\n" for file in files)
    write_atomically(folder / "SHA256SUMS", sums.encode())
    parts = [(ROOT / "tools" / "data_card.md").read_text(encoding="utf-8")]
    for file in files:
        text = "\n".join(describe(file))
        parts.append(f"## {file.name}\n\n{file.stat().st_size / 1e6:.1f} MB. {text}\n")
    write_atomically(folder / "README.md", "\n".join(parts).encode())


def describe(file: Path) -> list[str]:
    """Lines of the card about a file."""
    metadata = read_metadata(file)
    card, kind = metadata["provenance"], metadata["kind"]
    if kind == "stylegan2-discriminator":
        return [f"The discriminator that was trained with {card['trained with']}, for runs that "
                "start from it."]
    known = ("commit", "seed", "hardware", "threads", "torch", "date")
    origin = ", ".join(f"{name} {card[name]}" for name in known if name in card)
    if kind not in FAMILIES:
        trained_on = metadata["architecture"].get("name", "toyfaces")
        role = ROLES.get(file.stem, f"An attribute network, which was trained on {trained_on}.")
        command, held_out = card["command"], card["held_out"]
        if command == "judge":  # the embedded networks were made before there was that command
            options = [f"--{name} {card[name]}" for name in ("data", "images", "batch", "seed")]
            command = " ".join(["gapkd judge", *options, *["--flip"] * card["flip"]])
            shown = {f"{held_out['images']} held-out images": held_out["scores"]}
        else:
            shown = {f"{held_out['faces']} held-out faces at {size}": held_out[f"scores_{size}"]
                     for size in ("32px", "64px")}
        lines = [role, "", f"- command: `{command}`, {card['seconds'] / 60:.0f} minutes",
                 f"- origin: {origin}"]
        for what, scores in shown.items():
            listed = [f"{name.replace('_', ' ')} {value:.3f}" for name, value in scores.items()]
            lines.append(f"- {what}: {', '.join(listed)}")
        return lines
    runs, teacher = runs_of(card)[0], card["settings"].get("teacher")
    hours = sum(run["seconds"] for run in runs) / 3600
    made = f"distilled from {teacher}, " if teacher else ""
    made += f"{sum(run['images'] for run in runs):,} images in {hours:.1f} hours"
    made += f", in {len(runs)} stages" if len(runs) > 1 else ""
    lines = [f"A {FAMILIES[kind]} generator, {made}.", ""]
    for n, run in enumerate(runs, 1):  # in the order in which to run them
        lines.append(f"- stage {n}: `{command_of(run, n)}`, {run['seconds'] / 3600:.1f} hours, "
                     f"commit {run['commit']}, {run['hardware']}")
    lines.append(f"- origin: seed {card['settings']['seed']}, {origin}")
    for name, figures in card["metrics"].items():
        lines.append(f"- {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items()))
    if "coverage" in card:
        lines += coverage_lines(card["coverage"])
    return [*lines, "", f"![Samples without truncation]({file.stem}.png)"]


if __name__ == "__main__":
    embed(tyro.cli(EmbedConfig, prog="python -m tools.data_card"))
    print("data/SHA256SUMS and data/README.md are written")
