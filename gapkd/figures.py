"""Figures of the notebooks: image grids, curves, bars against chance, heat maps.

Every function returns a Figure that pyplot does not manage, so a notebook shows it once, as the value of its
cell; nothing is shown behind the caller's back and nothing piles up in memory. All share one look (`style`).
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from gapkd.images import to_uint8
from gapkd.metrics import Agreement

INK, FAINT, CHANCE = "#2b2d42", "#c9ccd6", "#9aa0ad"
PALETTE = ("#2f6db3", "#e4772e", "#3a9a78", "#b8436d", "#7a5cb3", "#c79a1e")
DPI = 96  # pixels per inch of every figure; image grids are laid out in whole pixels


def style() -> dict[str, object]:
    """The look of all figures, as matplotlib settings; `matplotlib.rcParams.update(style())` gives it to your
    own."""
    return {
        "figure.dpi": DPI, "savefig.dpi": DPI, "figure.facecolor": "white", "font.size": 9.5,
        "font.family": "DejaVu Sans", "text.color": INK, "axes.edgecolor": CHANCE, "axes.labelcolor": INK,
        "axes.titlesize": 10.5, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8,
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.axisbelow": True,
        "grid.color": "#eceef2", "grid.linewidth": 0.9, "xtick.color": INK, "ytick.color": INK,
        "xtick.major.size": 0, "ytick.major.size": 0, "legend.frameon": False, "legend.fontsize": 9,
        "lines.linewidth": 1.8, "lines.markersize": 4, "axes.prop_cycle": cycler(color=PALETTE),
    }


def _figure(width: float, height: float, layout: str | None = "constrained") -> Figure:
    """A figure of width x height inches outside pyplot: notebooks draw it through its own PNG canvas."""
    figure = NotebookFigure(figsize=(width, height), dpi=DPI, layout=layout)
    FigureCanvasAgg(figure)
    return figure


class NotebookFigure(Figure):
    """IPython only knows how to draw pyplot's figures after `%matplotlib inline`; this one brings the method
    along."""

    def _repr_png_(self) -> bytes:
        return to_png(self)


def to_png(figure: Figure) -> bytes:
    """The figure as a PNG file of 256 colours, a third of the usual size: notebooks are stored with their figures.
    To keep all colours, use `figure.savefig(path)`."""
    full, small = io.BytesIO(), io.BytesIO()
    figure.savefig(full, format="png")
    picture = Image.open(full).convert("RGB")
    picture.quantize(256, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).save(small, format="png", optimize=True)
    return small.getvalue()


# -- images --------------------------------------------------------------------------------------------------


def make_sheet(images: Tensor, ncols: int, size: int | None = None, gap: int = 2) -> np.ndarray:
    """Images side by side on white, (H, W, 3) uint8. Each is enlarged by a whole factor, pixel by pixel, to
    about `size` px (by default 64); a larger one keeps its size."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"pictures must have shape (N, 3, R, R), not {tuple(images.shape)}")
    pixels = to_uint8(images).numpy()
    factor = max(1, round((size or 64) / pixels.shape[1]))
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    n, height, width, _ = pixels.shape
    rows = math.ceil(n / ncols)
    sheet = np.full((rows * (height + gap) - gap, ncols * (width + gap) - gap, 3), 255, np.uint8)
    for i, tile in enumerate(pixels):
        y, x = (i // ncols) * (height + gap), (i % ncols) * (width + gap)
        sheet[y:y + height, x:x + width] = tile
    return sheet


def _paste(sheet: np.ndarray, left: int = 0, top: int = 0, least_width: int = 0) -> tuple[Figure, int]:
    """A figure of exactly the sheet's pixels plus margins, and its height in pixels."""
    height, width = sheet.shape[0] + top, max(sheet.shape[1] + left, least_width)
    with matplotlib.rc_context(style()):
        figure = _figure(width / DPI, height / DPI, layout=None)
        axes = figure.add_axes((left / width, 0, sheet.shape[1] / width, sheet.shape[0] / height))
        axes.imshow(sheet, interpolation="none", aspect="auto")
        axes.axis("off")
    return figure, height


def show_grid(
    images: Tensor, ncols: int = 8, title: str = "", titles: Sequence[str] = (), size: int = 64
) -> Figure:
    """A grid of images (N, 3, R, R), each pixel exact.

    Args:
        title: above the whole grid.
        titles: one short caption above every image, or none.
        size: edge of a picture on the screen, in px; rounded so that every pixel is enlarged by a whole
            factor.
    """
    if titles and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles do not fit {len(images)} images")
    ncols = min(ncols, len(images))
    gap = 18 if titles else 2
    sheet = make_sheet(images, ncols, size, gap)
    top = (26 if title else 0) + (16 if titles else 0)
    figure, height = _paste(sheet, top=top, least_width=7 * len(title) + 4)
    with matplotlib.rc_context(style()):
        if title:
            figure.text(
                2 / (figure.get_figwidth() * DPI), 1 - 6 / height, title, va="top", weight="bold", size=10.5
            )
        tile = (sheet.shape[1] + gap) / ncols - gap
        rows = math.ceil(len(images) / ncols)
        tall = (sheet.shape[0] + gap) / rows
        for i, caption in enumerate(titles):
            x = (i % ncols) * (tile + gap) + tile / 2
            y = top + (i // ncols) * tall - 3
            figure.text(
                x / (figure.get_figwidth() * DPI), 1 - y / height, caption, ha="center", va="bottom", size=8
            )
    return figure


def compare_rows(rows: Mapping[str, Tensor], title: str = "", ncols: int = 10, size: int = 64) -> Figure:
    """One row of images per entry, its name at the left; column i shows what every network makes of latent i.

    Args:
        rows: name -> images (N, 3, R, R), all of one resolution; the first `ncols` are shown.
    """
    if len({tuple(images.shape[1:]) for images in rows.values()}) != 1:
        shapes = {name: tuple(images.shape) for name, images in rows.items()}
        raise ValueError(f"rows must hold images of one resolution, not {shapes}")
    ncols = min(ncols, *(len(images) for images in rows.values()), 10**6)
    sheet = make_sheet(torch.cat([images[:ncols].cpu() for images in rows.values()]), ncols, size)
    left = 14 + max(max(map(len, name.split("\n"))) for name in rows) * 7
    top = 26 if title else 0
    figure, height = _paste(sheet, left=left, top=top, least_width=left + 8 * len(title))
    pitch = (sheet.shape[0] + 2) / len(rows)
    with matplotlib.rc_context(style()):
        width = figure.get_figwidth() * DPI
        for n, name in enumerate(rows):
            figure.text(
                (left - 8) / width,
                1 - (top + (n + 0.5) * pitch - 1) / height,
                name,
                ha="right",
                va="center",
                size=9.5,
            )
        if title:
            figure.text(left / width, 1 - 6 / height, title, va="top", weight="bold", size=10.5)
    return figure


# -- numbers -------------------------------------------------------------------------------------------------


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str) -> None:
    axes.set_title(title)
    axes.set_xlabel(xlabel)
    axes.set_ylabel(ylabel)


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence]], title: str, xlabel: str, ylabel: str,
           levels: Mapping[str, float] | None = None, width: float = 6.2, height: float = 3.3) -> Figure:
    """Curves with their spread over seeds.

    Args:
        lines: name -> (x, y); y is one curve (X,), or one curve a seed (seeds, X): then the mean is drawn, a
            band of one standard deviation, and its bars.
        levels: name -> height of a dashed line, such as {"chance": 0.37}.
    """
    with matplotlib.rc_context(style()):
        figure = _figure(width, height)
        axes = figure.add_subplot()
        for n, (name, (x, y)) in enumerate(lines.items()):
            y = np.asarray(y, dtype=float)
            colour = PALETTE[n % len(PALETTE)]
            mean = y if y.ndim == 1 else y.mean(axis=0)
            if y.ndim == 2 and len(y) > 1:
                spread = y.std(axis=0, ddof=1)
                axes.fill_between(x, mean - spread, mean + spread, color=colour, alpha=0.15, linewidth=0)
                axes.errorbar(x, mean, spread, color=colour, marker="o", capsize=2.5, elinewidth=1,
                              label=f"{name} ({len(y)} seeds)")
            else:
                axes.plot(x, mean, color=colour, marker="o" if len(x) < 25 else None, label=name)
        for name, level in (levels or {}).items():
            axes.axhline(level, color=CHANCE, linestyle=(0, (4, 3)), linewidth=1.3, zorder=1)
            axes.annotate(
                name,
                (1, level),
                xycoords=("axes fraction", "data"),
                ha="left",
                va="center",
                size=8.5,
                color="#6c7280",
                xytext=(4, 0),
                textcoords="offset points",
            )
        axes.margins(x=0.03)
        _finish(axes, title, xlabel, ylabel)
        if len(lines) > 1 or any(np.ndim(y) == 2 for _, y in lines.values()):
            figure.legend(loc="outside lower center", ncols=min(len(lines), 3))
    return figure


def _names(keys: Sequence[str]) -> list[str]:
    return [key.replace("_", " ") for key in keys]


def bars_with_chance(
    agreements: Mapping[str, Mapping[str, Agreement]],
    title: str = "Do they show the same face?",
    width: float = 7.2,
) -> Figure:
    """Agreement per factor as horizontal bars, a black tick where chance lies; accuracies left, correlations
    right.

    Args:
        agreements: name of a network -> its `semantic_agreement` with the teacher.
    """
    first = next(iter(agreements.values()))
    kinds = [kind for kind in ("accuracy", "correlation") if any(e.kind == kind for e in first.values())]
    sides = {
        kind: sorted((f for f, e in first.items() if e.kind == kind), key=lambda f: f.startswith("mean_"))
        for kind in kinds
    }
    most = max(map(len, sides.values()))
    bar = 0.8 / len(agreements)
    with matplotlib.rc_context(style()):
        figure = _figure(width, 1.2 + most * max(0.2, 0.115 * len(agreements)) + 0.2)
        panels = figure.subplots(1, len(kinds), squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            factors = sides[kind]
            for n, (name, agreement) in enumerate(agreements.items()):
                y = np.arange(len(factors)) + (n - (len(agreements) - 1) / 2) * bar
                axes.barh(y, [agreement[f].value for f in factors], height=bar * 0.92, label=name,
                          color=PALETTE[n % len(PALETTE)])
                axes.scatter(
                    [agreement[f].chance for f in factors],
                    y,
                    marker="|",
                    s=340 * bar,
                    linewidths=1.6,
                    color=INK,
                    zorder=3,
                    label="chance" if n == len(agreements) - 1 else None,
                )
            axes.set_yticks(range(len(factors)), _names(factors))
            for tick, factor in zip(axes.get_yticklabels(), factors, strict=True):
                tick.set_weight("bold" if factor.startswith("mean_") else "normal")
            axes.set_ylim(len(factors) - 0.4, -0.6)
            low = min(0.0, *(a[f].value for a in agreements.values() for f in factors))
            axes.set_xlim(low * 1.05, 1.0)
            axes.grid(axis="y", visible=False)
            _finish(axes, "", kind, "")
            axes.set_title({"accuracy": "categorical factors", "correlation": "continuous factors"}[kind],
                           weight="normal", size=9.5)
        figure.suptitle(title, x=0.01, ha="left", weight="bold", size=10.5)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4))
    return figure


def heatmaps(
    matrices: Mapping[str, Tensor],
    title: str = "",
    xlabel: str = "image j",
    ylabel: str = "image i",
    label: str = "cosine",
    size: float = 2.5,
) -> Figure:
    """Matrices (N, M) side by side on one colour scale, which the bar at the right explains."""
    values = {name: m.detach().float().cpu().numpy() for name, m in matrices.items()}
    low, high = min(v.min() for v in values.values()), max(v.max() for v in values.values())
    with matplotlib.rc_context(style()):
        figure = _figure(size * len(values) + 0.9, size + 0.75)
        panels = figure.subplots(1, len(values), squeeze=False, sharey=True)[0]
        for n, (axes, (name, v)) in enumerate(zip(panels, values.items(), strict=True)):
            picture = axes.imshow(v, vmin=low, vmax=high, cmap="viridis", interpolation="none")
            axes.grid(visible=False)
            _finish(axes, "", xlabel, ylabel if n == 0 else "")
            axes.set_title(name, weight="normal", size=9.5)
        figure.colorbar(
            picture, ax=panels.tolist(), label=label, fraction=0.05, pad=0.02
        ).outline.set_visible(False)
        if title:
            figure.suptitle(title, x=0.01, ha="left", weight="bold", size=10.5)
    return figure


def scatter(
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    title: str = "",
    xlabel: str = "read from the teacher",
    ylabel: str = "read from the student",
    size: float = 2.3,
) -> Figure:
    """One panel per factor: values (N,) of two networks on the same latents, with their correlation r.
    Agreement lies on the dashed diagonal."""
    ncols = min(len(pairs), 4)
    rows = math.ceil(len(pairs) / ncols)
    with matplotlib.rc_context(style()):
        figure = _figure(size * ncols + 0.4, size * rows + 0.5)
        panels = figure.subplots(rows, ncols, squeeze=False).flatten()
        for axes, (name, (x, y)) in zip(panels, pairs.items(), strict=False):
            x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
            limits = [min(x.min(), y.min()), max(x.max(), y.max())]
            axes.plot(limits, limits, color=CHANCE, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
            axes.scatter(x, y, s=7, alpha=0.5, linewidths=0, color=PALETTE[0])
            r = np.corrcoef(x, y)[0, 1] if x.std() > 0 and y.std() > 0 else 0.0
            axes.set_title(f"{name.replace('_', ' ')}   r = {r:.2f}", weight="normal", size=9.5)
            axes.set_aspect("equal", adjustable="datalim")
        for axes in panels[len(pairs):]:
            axes.axis("off")
        figure.supxlabel(xlabel, size=9.5)
        figure.supylabel(ylabel, size=9.5)
        if title:
            figure.suptitle(title, x=0.01, ha="left", weight="bold", size=10.5)
    return figure
