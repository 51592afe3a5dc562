"""Figures of the notebooks: image grids, curves, bars against chance, heat maps.

Every function returns a Figure that pyplot does not manage, so a notebook shows it once, as the value of its
cell; nothing is shown behind the caller's back and nothing piles up in memory. All share one look (`style`).
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image
from torch import Tensor

from gapkd.data.images import to_uint8
from gapkd.metrics.distribution import Agreement

INK, FAINT, CHANCE = "#2b2d42", "#c9ccd6", "#9aa0ad"
PALETTE = ("#2f6db3", "#e4772e", "#3a9a78", "#b8436d", "#7a5cb3", "#c79a1e")
DASHES = ("solid", (0, (5, 3)), (0, (2, 1.6)), (0, (6, 1.8, 1, 1.8)))  # of successive lines: gaps show what lies below
MARKERS = ("o", "s", "^", "D", "v", "P", "X")  # one more than colours, so that line 7 looks like none before it
DPI = 96  # pixels per inch of every figure; image grids are laid out in whole pixels
TITLE = {"weight": "bold", "size": 10.5}
CAPTION = {"size": 8, "linespacing": 1.1}
ROW_NAME = {"size": 9.5}
PANEL = {"size": 9.5, "weight": "normal"}
LEAST_LINE = 420  # px that the title above a narrow grid may take before it is broken


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
        "legend.handlelength": 2.8,
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


# -- room for text -------------------------------------------------------------------------------------------


def _fill(string: str, room: float, size: float = 9.5) -> str:
    """Break a text into lines of about `room` px, judged by an average letter of that font size in points."""
    letters = max(10, int(room / (0.62 * size * DPI / 72)))
    return "\n".join(textwrap.fill(line, letters) for line in string.split("\n"))


def _measure(string: str, room: float, **look: object) -> tuple[str, int, int]:
    """The text broken into lines of about `room` px, and its width and height in whole px."""
    string = _fill(string, room, look["size"])
    with matplotlib.rc_context(style()):
        box = _figure(1, 1, layout=None).text(0, 0, string, **look).get_window_extent()
    return string, math.ceil(box.width), math.ceil(box.height)


# -- images --------------------------------------------------------------------------------------------------


def _factor(resolution: int, size: int | None) -> int:
    return max(1, round((size or 64) / resolution))


def make_sheet(images: Tensor, ncols: int, size: int | None = None, gap: int | tuple[int, int] = 2) -> np.ndarray:
    """Images side by side on white, (H, W, 3) uint8. Each is enlarged by a whole factor, pixel by pixel, to
    about `size` px (by default 64); a larger one keeps its size. Between them lie `gap` px, or (down, across)."""
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"pictures must have shape (N, 3, R, R), not {tuple(images.shape)}")
    pixels = to_uint8(images).numpy()
    factor = _factor(pixels.shape[1], size)
    pixels = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    n, height, width, _ = pixels.shape
    rows = math.ceil(n / ncols)
    down, across = gap if isinstance(gap, tuple) else (gap, gap)
    sheet = np.full((rows * (height + down) - down, ncols * (width + across) - across, 3), 255, np.uint8)
    for i, tile in enumerate(pixels):
        y, x = (i // ncols) * (height + down), (i % ncols) * (width + across)
        sheet[y:y + height, x:x + width] = tile
    return sheet


def _paste(sheet: np.ndarray, left: int, top: int, right: int = 0, bottom: int = 0) -> Figure:
    """A figure of exactly the sheet's pixels plus margins."""
    width, height = left + sheet.shape[1] + right, top + sheet.shape[0] + bottom
    with matplotlib.rc_context(style()):
        figure = _figure(width / DPI, height / DPI, layout=None)
        axes = figure.add_axes((left / width, bottom / height, sheet.shape[1] / width, sheet.shape[0] / height))
        axes.imshow(sheet, interpolation="none", aspect="auto")
        axes.axis("off")
    return figure


def _write(figure: Figure, x: float, y: float, string: str, **look: object) -> None:
    """Text at (x, y) px from the upper left corner."""
    with matplotlib.rc_context(style()):
        figure.text(x / figure.bbox.width, 1 - y / figure.bbox.height, string, **look)


def show_grid(
    images: Tensor, ncols: int = 8, title: str = "", titles: Sequence[str] = (), size: int = 64
) -> Figure:
    """A grid of images (N, 3, R, R), each pixel exact.

    Args:
        title: above the whole grid.
        titles: one short caption above every image, or none; "\\n" starts a new line.
        size: edge of a picture on the screen, in px; rounded so that every pixel is enlarged by a whole
            factor.
    """
    if titles and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles do not fit {len(images)} images")
    ncols = min(ncols, len(images))
    tile = images.shape[-1] * _factor(images.shape[-1], size)
    captions = [_measure(caption, max(tile + 14, 64), **CAPTION) for caption in titles]
    widest, tallest = (max((c[side] for c in captions), default=0) for side in (1, 2))
    down, across = (max(18, tallest + 6), max(18, widest + 4 - tile)) if titles else (2, 2)
    sheet = make_sheet(images, ncols, size, (down, across))
    title, title_width, title_height = _measure(title, max(sheet.shape[1], LEAST_LINE), **TITLE)
    above = title_height + 12 if title else 0
    top = above + (tallest + 4 if titles else 0)
    side = max(0, math.ceil((widest - tile) / 2) + 1)  # what a wide caption needs beside the outermost images
    figure = _paste(sheet, side, top, right=max(side, title_width + 4 - side - sheet.shape[1]))
    if title:
        _write(figure, 2, 6, title, va="top", **TITLE)
    for i, (caption, _, _) in enumerate(captions):
        x, y = side + (i % ncols) * (tile + across) + tile / 2, top + (i // ncols) * (tile + down) - 3
        _write(figure, x, y, caption, ha="center", va="bottom", **CAPTION)
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
    images = torch.cat([row[:ncols].cpu() for row in rows.values()])
    tile = images.shape[-1] * _factor(images.shape[-1], size)
    names = [_measure(name, 220, **ROW_NAME) for name in rows]
    widest, tallest = (max(name[side] for name in names) for side in (1, 2))
    over = max(0, math.ceil((tallest - tile) / 2))  # what a tall name needs above and below its row
    down = 2 + 2 * over
    sheet = make_sheet(images, ncols, size, (down, 2))
    left = widest + 14
    title, title_width, title_height = _measure(title, max(sheet.shape[1], LEAST_LINE), **TITLE)
    top = (title_height + 12 if title else 0) + over
    figure = _paste(sheet, left, top, right=max(0, title_width + 4 - sheet.shape[1]), bottom=over)
    for n, (name, _, _) in enumerate(names):
        _write(figure, left - 8, top + n * (tile + down) + tile / 2, name, ha="right", va="center", **ROW_NAME)
    if title:
        _write(figure, left, 6, title, va="top", **TITLE)
    return figure


# -- numbers -------------------------------------------------------------------------------------------------


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str, width: float, height: float, **look: object) -> None:
    """Title and labels of a panel of width x height inches, broken into lines that fit."""
    axes.set_title(_fill(title, width * DPI - 85, look.get("size", 10.5)), **look)
    axes.set_xlabel(_fill(xlabel, width * DPI - 60))
    axes.set_ylabel(_fill(ylabel, height * DPI - 120))


def _headline(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(_fill(title, figure.bbox.width, TITLE["size"]), x=0.01, ha="left", **TITLE)


def _legend(figure: Figure, axes: Axes, most: int) -> None:
    """A legend of the panel's lines below the figure, in as many columns as there is room for, `most` at most."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [_fill(label, figure.bbox.width - 70, 9) for label in labels]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = int(figure.bbox.width / (longest * 0.55 * 9 * DPI / 72 + 55))
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, min(most, columns, len(labels))))


def curves(lines: Mapping[str, tuple[Sequence[float], Sequence]], title: str, xlabel: str, ylabel: str,
           levels: Mapping[str, float] | None = None, width: float = 6.2, height: float = 3.3) -> Figure:
    """Curves with their spread over seeds.

    Args:
        lines: name -> (x, y); y is one curve (X,), or one curve a seed (seeds, X): then the mean is drawn, a
            band of one standard deviation, and its bars, wherever there are two seeds or more. Values that a
            seed lacks are nan and count for nothing.
        levels: name -> height of a dashed line, such as {"chance": 0.37}.
    """
    with matplotlib.rc_context(style()):
        figure = _figure(width, height)
        axes = figure.add_subplot()
        for n, (name, (x, y)) in enumerate(lines.items()):
            y = np.ma.masked_invalid(np.atleast_2d(np.asarray(y, dtype=float)))
            y = y[~np.ma.getmaskarray(y).all(axis=1)]
            mean = y.mean(axis=0).filled(np.nan)
            look = {"color": PALETTE[n % len(PALETTE)], "linestyle": DASHES[n % len(DASHES)],
                    "marker": MARKERS[n % len(MARKERS)]}
            if len(y) > 1:
                spread = y.std(axis=0, ddof=1).filled(np.nan)
                axes.fill_between(x, mean - spread, mean + spread, color=look["color"], alpha=0.15, linewidth=0)
                axes.errorbar(x, mean, spread, capsize=2.5, elinewidth=1, label=f"{name} ({len(y)} seeds)", **look)
            else:
                axes.plot(x, mean, label=name, **look | {"marker": look["marker"] if len(x) < 25 else None})
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
        _finish(axes, title, xlabel, ylabel, width, height)
        shown = len(lines) > 1 or any(np.ndim(y) == 2 for _, y in lines.values())
        if shown:
            _legend(figure, axes, 3)
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
        figure = _figure(width, 1.4 + max(most, 5) * max(0.2, 0.115 * len(agreements)))
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
            name = {"accuracy": "categorical factors", "correlation": "continuous factors"}[kind]
            _finish(axes, name, kind, "", width / len(kinds), width, **PANEL)
        _headline(figure, title)
        _legend(figure, panels[0], 4)
    return figure


def dots(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str = "",
         levels: Mapping[str, float] | None = None, width: float = 8.2) -> Figure:
    """Methods compared: one row a method, one panel a figure, a dot for every seed, and mean and standard deviation.

    Args:
        panels: title of a panel -> name of a method -> its values, one a seed; the same methods in every panel.
        levels: title of a panel -> height of a dashed line in it.
    """
    names = list(next(iter(panels.values())))
    labels = [_fill(name, 0.25 * width * DPI) for name in names]
    lines = [line for label in labels for line in label.split("\n")]
    room = (width - 0.085 * max(map(len, lines)) - 0.2) / len(panels)
    with matplotlib.rc_context(style()):
        figure = _figure(width, 1.3 + 0.27 * max(len(lines), 2))
        row = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (heading, values) in zip(row, panels.items(), strict=True):
            for y, name in enumerate(names):
                seeds = np.asarray(values[name], dtype=float)
                axes.plot(seeds, np.full(len(seeds), y), linestyle="none", marker="o", markersize=4, alpha=0.45,
                          color=PALETTE[0], markeredgewidth=0)
                spread = seeds.std(ddof=1) if len(seeds) > 1 else 0.0
                axes.errorbar(seeds.mean(), y, xerr=spread, marker="|", markersize=9, capsize=2.5, elinewidth=1,
                              linestyle="none", color=INK)
            if heading in (levels or {}):
                axes.axvline(levels[heading], color=CHANCE, linestyle=(0, (4, 3)), linewidth=1.3, zorder=1)
            axes.set_yticks(range(len(names)), labels)
            axes.set_ylim(len(names) - 0.4, -0.6)
            axes.margins(x=0.08)
            _finish(axes, heading, "", "", room + 0.5, width, **PANEL)
        _headline(figure, title)
    return figure


def heatmaps(
    matrices: Mapping[str, Tensor],
    title: str = "",
    xlabel: str = "image j",
    ylabel: str = "image i",
    label: str = "cosine",
    size: float = 2.5,
    centred: bool = False,
) -> Figure:
    """Matrices (N, M) side by side on one colour scale, which the bar at the right explains.

    Args:
        centred: the scale runs equally far to both sides of 0, which is white: for signed values.
    """
    values = {name: m.detach().float().cpu().numpy() for name, m in matrices.items()}
    low, high = min(v.min() for v in values.values()), max(v.max() for v in values.values())
    if centred:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    with matplotlib.rc_context(style()):
        figure = _figure(size * len(values) + 0.9, size + 0.75)
        panels = figure.subplots(1, len(values), squeeze=False, sharey=True)[0]
        for n, (axes, (name, v)) in enumerate(zip(panels, values.items(), strict=True)):
            picture = axes.imshow(v, vmin=low, vmax=high, cmap="RdBu_r" if centred else "viridis", interpolation="none")
            axes.grid(visible=False)
            for axis in (axes.xaxis, axes.yaxis):  # images are counted: no tick between two of them
                axis.set_major_locator(MaxNLocator("auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
            _finish(axes, name, xlabel, ylabel if n == 0 else "", size + 0.6, size + 0.6, **PANEL)
        figure.colorbar(
            picture, ax=panels.tolist(), label=_fill(label, size * DPI), fraction=0.05, pad=0.02
        ).outline.set_visible(False)
        _headline(figure, title)
    return figure


def fitted(panels: Sequence[tuple[str, str, str, Mapping[str, Sequence[tuple[float, float]]],
                                  Callable[[float], float]]]) -> Figure:
    """Measured points and a fitted line, side by side on logarithmic axes.

    Args:
        panels: (title, x label, y label, name -> [(x, y), ...], line y(x)).
    """
    with matplotlib.rc_context(style()):
        figure = _figure(4.2 * len(panels), 3.8)
        row = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, xlabel, ylabel, groups, line) in zip(row, panels, strict=True):
            for n, (name, points) in enumerate(groups.items()):
                x, y = zip(*sorted(points), strict=True)
                axes.plot(x, y, linestyle="none", marker=MARKERS[n], markersize=6, color=PALETTE[n], label=name)
            everything = [x for points in groups.values() for x, _ in points]
            grid = np.geomspace(min(everything), max(everything), 100)
            axes.plot(grid, [line(x) for x in grid], color=CHANCE, label="fitted line", zorder=1)
            axes.set_xscale("log")
            axes.set_yscale("log")
            heights = [y for points in groups.values() for _, y in points]
            for axis, values in ((axes.xaxis, everything), (axes.yaxis, heights)):  # four round numbers each
                ticks = sorted({float(f"{v:.2g}") for v in np.geomspace(min(values), max(values), 4)})
                axis.set_major_locator(FixedLocator(ticks))
                axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
                axis.set_minor_formatter(NullFormatter())
            _finish(axes, title, xlabel, ylabel, 3.6, 3.4)
        _legend(figure, axes, 4)
    return figure


def scatter(
    pairs: Mapping[str, tuple[Tensor, Tensor]],
    title: str = "",
    xlabel: str = "read from the teacher",
    ylabel: str = "read from the student",
    size: float = 2.3,
    shared: bool = False,
) -> Figure:
    """One panel per factor: values (N,) of two networks on the same latents, with their correlation r.
    Agreement lies on the dashed diagonal. shared: all panels reach equally far, for values of one kind."""
    ncols = min(len(pairs), 4)
    rows = math.ceil(len(pairs) / ncols)
    with matplotlib.rc_context(style()):
        figure = _figure(size * ncols + 0.4, size * rows + 0.5)
        panels = figure.subplots(rows, ncols, squeeze=False).flatten()
        points = {name: (np.asarray(x, dtype=float), np.asarray(y, dtype=float)) for name, (x, y) in pairs.items()}
        low, high = (f([f(v) for pair in points.values() for v in pair]) for f in (np.min, np.max))
        reach = [low - 0.05 * (high - low), high + 0.05 * (high - low)]
        for axes, (name, (x, y)) in zip(panels, points.items(), strict=False):
            limits = reach if shared else [min(x.min(), y.min()), max(x.max(), y.max())]
            axes.plot(limits, limits, color=CHANCE, linestyle=(0, (4, 3)), linewidth=1.2, zorder=1)
            axes.scatter(x, y, s=7, alpha=0.5, linewidths=0, color=PALETTE[0])
            r = np.corrcoef(x, y)[0, 1] if x.std() > 0 and y.std() > 0 else 0.0
            axes.set_title(_fill(f"{name.replace('_', ' ')}\nr = {r:.2f}", size * DPI, PANEL["size"]), **PANEL)
            if shared:
                axes.set(xlim=limits, ylim=limits)
            axes.set_aspect("equal", adjustable="box" if shared else "datalim")
        for axes in panels[len(pairs):]:
            axes.axis("off")
        figure.supxlabel(_fill(xlabel, figure.bbox.width), size=9.5)
        figure.supylabel(_fill(ylabel, figure.bbox.height), size=9.5)
        _headline(figure, title)
    return figure
