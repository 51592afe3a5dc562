"""One HTML page about a run: how far it is, its curves, its samples over time, its settings. Works while it trains."""

from __future__ import annotations

import base64
import html
import json
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Annotated

import tyro

from gapkd.files.checkpoints import write_atomically
from gapkd.settings import DistillConfig, RunConfig, TrainConfig
from gapkd.viewing import figures

CONFIGS: dict[str, type[RunConfig]] = {"teacher": TrainConfig, "distill": DistillConfig}
PANELS = {
    "Losses": ("loss_g", "loss_d", "gan"), "Logits of the discriminator": ("real_logit", "fake_logit"),
    "Comparison with the teacher": ("rgb", "perceptual", "l1"), "Latent-direction loss": ("ld",),
    "Regularisers": ("r1", "path"), "Path length": ("path_length",),
    "Agreement with the teacher": ("agree_mean_accuracy", "agree_mean_correlation"),
}
"""Curves that belong together; whatever else a log holds gets a panel of its own."""
MOST_GRIDS = 12

STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1240px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin-top: 2rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; vertical-align: top; }
td { border-top: 1px solid #8884; } code { font-size: .92em; } .changed { font-weight: 600; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; } figure { margin: 0; flex: 0 1 auto; }
.curves figure { width: calc(50% - .5rem); min-width: min(480px, 100%); }
img { max-width: 100%; border-radius: 4px; background: white; } figcaption { font-size: .85em; opacity: .8; }
.grids img { image-rendering: pixelated; width: 320px; }
"""


@dataclass(frozen=True)
class ReportConfig:
    """Write one HTML page about a run: curves, samples over time, settings. It may still be training."""

    run: Annotated[str, tyro.conf.Positional]
    """Folder of the run."""
    out: str = ""
    """HTML file; empty: report.html in the run's folder."""


def write_report(config: ReportConfig) -> Path:
    """Returns the path of the page. Raises ValueError when the folder holds no run."""
    folder = Path(config.run)
    about, log = _read(folder)
    page = _page(folder, about, log)
    return write_atomically(config.out or folder / "report.html", page.encode())


def _read(folder: Path) -> tuple[dict, list[dict]]:
    try:
        about = json.loads((folder / "settings.json").read_text())
        kind, settings = about["kind"], about["settings"]
        CONFIGS[kind]
        dict(settings)["images"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{folder} holds no run of gapkd (settings.json is missing or not readable): name the folder "
                         "that `gapkd teacher` or `gapkd distill` wrote") from error
    log = []
    if (folder / "log.jsonl").exists():
        for line in (folder / "log.jsonl").read_text().splitlines():
            try:
                log.append(json.loads(line))
            except ValueError:  # the line that is being written
                break
    return about, log


def _page(folder: Path, about: dict, log: list[dict]) -> str:
    name, settings, origin = folder.resolve().name, about["settings"], about.get("provenance", {})
    parts = [f"<h1>{html.escape(name)}</h1>", f"<p>{html.escape(_status(folder, about, log))}</p>"]
    if panels := list(_panels(log)):
        parts += ["<h2>Curves</h2>", '<div class="row curves">']
        parts += [_image(figures.to_png(figure), title, "") for title, figure in panels]
        parts.append("</div>")
    if grids := _thin(sorted((folder / "grids").glob("*.png")), MOST_GRIDS):
        parts += ["<h2>Samples, always of the same latents</h2>", '<div class="row grids">']
        parts += [_image(file.read_bytes(), f"samples after {int(file.stem):,} images", f"{int(file.stem):,} images")
                  for file in grids]
        parts.append("</div>")
    defaults = {f.name: list(f.default) if isinstance(f.default, tuple) else f.default
                for f in fields(CONFIGS[about["kind"]]) if f.default is not MISSING}
    parts += ["<h2>Settings</h2>", "<p>Bold: other than the default.</p>",
              _table([(key, value, value != defaults.get(key)) for key, value in settings.items()])]
    if origin:
        parts += ["<h2>Where and when</h2>", _table([(key, value, False) for key, value in origin.items()])]
    return (f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(name)}</title>'
            f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>'
            f'<body>{"".join(parts)}</body></html>\n')


def _status(folder: Path, about: dict, log: list[dict]) -> str:
    kind, target = about["kind"], about["settings"]["images"]
    if not log:
        return f"{kind} run, nothing logged yet"
    images, seconds = log[-1]["images"], log[-1]["seconds"]
    state = "finished" if (folder / "generator.safetensors").exists() and images >= target else "not finished"
    speed = f", {images / seconds:.0f} images/s" if seconds else ""
    text = f"{kind} run, {state}: {images:,} of {target:,} images in {_duration(seconds)}{speed}"
    fids = [(key, record) for record in log for key in record if key.startswith("fid_")]
    if fids:
        key, best = min(fids, key=lambda pair: pair[1][pair[0]])
        text += f"; lowest {key} {best[key]:.3f} at {best['images']:,} images"
    return text


def _duration(seconds: float) -> str:
    minutes, hours = int(seconds // 60) % 60, int(seconds // 3600)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {int(seconds) % 60:02d} s"


def _panels(log: list[dict]):
    """(title, figure) of every group of curves that the log holds."""
    numbers = {key for record in log for key, value in record.items()
               if isinstance(value, (int, float)) and key not in ("images", "seconds") and not key.endswith("_chance")}
    grouped = {name for group in PANELS.values() for name in group}
    groups = PANELS | {name: (name,) for name in sorted(numbers - grouped)}
    for title, names in groups.items():
        lines = {name: tuple(zip(*[(r["images"], r[name]) for r in log if name in r], strict=True))
                 for name in names if name in numbers}
        if lines:
            yield title, figures.curves(lines, title, "images", "")


def _thin(files: Sequence[Path], most: int) -> list[Path]:
    """At most so many, evenly spread, the first and the last among them."""
    if len(files) <= most:
        return list(files)
    return [files[round(i * (len(files) - 1) / (most - 1))] for i in range(most)]


def _image(png: bytes, alternative: str, caption: str) -> str:
    data = base64.b64encode(png).decode()
    return (f'<figure><img alt="{html.escape(alternative)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>")


def _table(rows: Sequence[tuple[str, object, bool]]) -> str:
    def row(name: str, value: object, changed: bool) -> str:
        look = ' class="changed"' if changed else ""
        return f"<tr{look}><td><code>{html.escape(name)}</code></td><td>{html.escape(str(value))}</td></tr>"

    return f'<table>{"".join(row(*r) for r in rows)}</table>'
