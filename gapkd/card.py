"""The embedded files and their card: what lies in data/, where it came from, and how good it is.

`gapkd embed` takes a finished teacher run over into data/, measured; the card and the checksums are written from the
files' own metadata, so that no figure in them is typed.
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch

from gapkd.chapters import ROOT
from gapkd.data.datasets import open_dataset
from gapkd.data.images import save_png
from gapkd.files.checkpoints import load_discriminator, load_generator, read_metadata, save_network, write_atomically
from gapkd.metrics.evaluation import evaluation_table, sample_images
from gapkd.metrics.features import load_attribute_network
from gapkd.settings import DistillConfig, TrainConfig, command_line, shareable

DATA = ROOT / "data"
CARD_HEAD = """\
# What lies here

Everything that lets the chapters run offline. All weights are safetensors files, made by this repository's own
commands on rendered toy faces (no photographs, no downloads), under the repository's MIT licence. `SHA256SUMS` lists
their checksums (`cd data && sha256sum -c SHA256SUMS`). This page is written by `gapkd embed` from the files' metadata.

`results/` holds what was measured, with settings, seeds, commit, hardware and date. By `gapkd study`:
`longer_runs.json` (behind the chapters), `short_runs.json` (chapter 4's own training), `stylegan3_runs.json` (chapter
5) and `photographs.json` (the README says of what). By `gapkd sweep`, one line a run: `table.jsonl`, with the faces of
all methods in `table/`, `sizes.jsonl`, `direction.jsonl` and `screening.jsonl` (chapter 6). By `gapkd benchmark`:
`benchmark.json` and `stylegan3_speed.json`. By `gapkd growth`: `growth.json`, and `growth.png`. `story.png`, the
README's picture, comes from the longer runs; `demo.png` is a screenshot of the page that `gapkd demo` writes.
"""

@dataclass(frozen=True)
class EmbedConfig:
    """Take a finished run's network over into data/, with its metrics, a sample sheet, checksums and card."""

    run: str = ""
    """Folder of a finished `gapkd teacher` or `gapkd distill` run; empty: only write checksums and card anew."""
    name: str = "toyfaces32"
    """Name of the embedded network."""
    samples: int = 5000
    """Images a set in the evaluation."""
    seed: int = 0
    """Of the evaluation's latents and real images."""


def embed(config: EmbedConfig) -> None:
    """Measure and copy a teacher and its discriminator, or a student."""
    if config.run:
        folder = Path(config.run)
        G = load_generator(folder / "generator.safetensors")
        provenance = read_metadata(folder / "generator.safetensors")["provenance"]
        dataset = open_dataset("toyfaces", G.resolution, seed=12_345)
        taught = provenance["settings"].get("teacher")
        teacher, students = (load_generator(taught), {"student": G}) if taught else (G, {})
        rows = evaluation_table(students, load_attribute_network(), dataset, teacher, config.samples, config.seed)
        keep = ("fid", "kid", "precision", "recall", "agree_mean_correlation", "agree_mean_accuracy")
        left = ("chance",) if taught else ("chance", "to_teacher", "agree")
        provenance["metrics"] = {row["name"]: {k: round(v, 4) for k, v in row.items() if k.startswith(keep)
                                               and not any(part in k for part in left)} for row in rows}
        card = provenance
        while card:  # the run and what it started from
            card["settings"] = shareable(card["settings"])
            card = card.get("started_from")
        save_network(G, DATA / f"{config.name}.safetensors", provenance)
        if not taught:
            D = load_discriminator(folder / "discriminator.safetensors")
            save_network(D, DATA / f"{config.name}_discriminator.safetensors", {"trained with": config.name})
        save_png(torch.cat(list(sample_images(G, 64, seed=1))), DATA / f"{config.name}.png", columns=16)
    write_card()


def write_card(folder: Path = DATA) -> None:
    """Write SHA256SUMS and README.md of a data folder from the files in it."""
    files = sorted(folder.glob("*.safetensors"))
    sums = "".join(f"{hashlib.sha256(f.read_bytes()).hexdigest()}  {f.name}\n" for f in files)
    write_atomically(folder / "SHA256SUMS", sums.encode())
    page = io.StringIO(CARD_HEAD)
    page.seek(0, io.SEEK_END)
    for file in files:
        page.write(f"\n## {file.name}\n\n{file.stat().st_size / 1e6:.1f} MB. {_describe(file)}")
    write_atomically(folder / "README.md", page.getvalue().encode())


def _describe(file: Path) -> str:
    metadata = read_metadata(file)
    card, kind = metadata["provenance"], metadata["kind"]
    known = ("commit", "seed", "hardware", "threads", "torch", "date")
    origin = ", ".join(f"{k} {card[k]}" for k in known if k in card)
    if kind in ("stylegan2-generator", "stylegan3-generator"):
        stages = [card, *_ancestors(card)]
        images, seconds = (sum(stage[key] for stage in stages) for key in ("images", "seconds"))
        name = "StyleGAN2" if kind == "stylegan2-generator" else "StyleGAN3"
        taught = card["settings"].get("teacher")
        lines = [f"A {name} generator, {f'distilled from {taught}, ' if taught else ''}{images:,} images in "
                 f"{seconds / 3600:.1f} hours" + (f", in {len(stages)} stages" if len(stages) > 1 else "") + ".\n"]
        lines += stage_lines(card)
        lines.append(f"- origin: seed {card['settings']['seed']}, {origin}")
        lines += [f"- {name}: " + ", ".join(f"{k} {v:.3f}" for k, v in figures.items())
                  for name, figures in card["metrics"].items()]
        return "\n".join([*lines, f"\n![Sixty-four samples without truncation]({file.stem}.png)", ""])
    if kind == "stylegan2-discriminator":
        return f"The discriminator that was trained with {card['trained with']}, for runs that start from it.\n"
    scores = card["held_out"]
    role = ("The attribute network: reads the factors of toy faces; perceptual distance and feature space of FID.\n"
            if file.stem == "attributes" else
            "A second attribute network, which no student was trained with: a judge beside the first in chapter 6.\n")
    lines = [role,
             f"- command: `{card['command']}`, {card['seconds'] / 60:.0f} minutes", f"- origin: {origin}"]
    lines += [f"- {scores['faces']} held-out faces at {size}: "
              + ", ".join(f"{k.replace('_', ' ')} {v:.3f}" for k, v in scores[f"scores_{size}"].items())
              for size in ("32px", "64px")]
    return "\n".join([*lines, ""])


def stage_lines(card: dict) -> list[str]:
    """A network's training as a Markdown list, one line a run: the oldest first, the order in which to run them."""
    taught, lines = card["settings"].get("teacher"), []
    command = partial(command_line, *(("gapkd distill", DistillConfig) if taught else ("gapkd teacher", TrainConfig)))
    for n, stage in enumerate(reversed([card, *_ancestors(card)]), 1):
        settings = stage["settings"] | {"images": stage["images"]}  # a stage may have been stopped early
        settings |= {"start_from": f"runs/stage{n - 1}"} if n > 1 else {}
        lines.append(f"- stage {n}: `{command(settings)} --out runs/stage{n}`, "
                     f"{stage['seconds'] / 3600:.1f} hours, commit {stage['commit']}, {stage['hardware']}")
    return lines


def _ancestors(card: dict) -> list[dict]:
    """The provenance of every run that this one started from, the nearest first."""
    found = []
    while card := card.get("started_from"):
        found.append(card)
    return found


def check_sums(folder: Path = DATA) -> list[str]:
    """Names of files in SHA256SUMS that are missing or differ; empty when all is well."""
    wrong = []
    for line in (folder / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ", 1)
        file = folder / name
        if not file.is_file() or hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            wrong.append(name)
    return wrong
