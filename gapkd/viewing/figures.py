"""Figures of the notebooks: image grids, curves, bars against chance, heat maps.

Every function returns a Figure that pyplot does not manage, so a notebook shows it once, as the
value of its cell; nothing is shown behind the caller's back and nothing piles up in memory.
"""

from __future__ import annotations

import io
import math
import textwrap
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from itertools import cycle, pairwise

import matplotlib
import numpy as np
import torch
from cycler import cycler
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from matplotlib.text import Annotation
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullFormatter
from PIL import Image
from torch import Tensor

from gapkd.data.images import tile
from gapkd.metrics.agreement import Agreement

INK, CHANCE = "#2b2d42", "#9aa0ad"
PALETTE = ("#2f6db3", "#e4772e", "#3a9a78", "#b8436d", "#7a5cb3", "#c79a1e")
# Of successive lines: one sees through the gaps what lies below.
DASHES = ("solid", (0, (5, 3)), (0, (2, 1.6)), (0, (6, 1.8, 1, 1.8)))
# One more than there are colours, so that line 7 looks like none before it.
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
LEVEL = {"color": CHANCE, "linestyle": (0, (4, 3)), "linewidth": 1.3, "zorder": 1}
DPI = 96  # pixels per inch of every figure; image grids are laid out in whole pixels
LEAST_LINE = 420  # px that the title above a narrow grid may take before it is broken

TITLE = {"weight": "bold", "size": 10.5}
CAPTION = {"size": 8, "linespacing": 1.1}
ROW_NAME = {"size": 9.5}
PANEL = {"size": 9.5, "weight": "normal"}

styled = matplotlib.rc_context({  # the look of all figures
    "figure.dpi": DPI, "savefig.dpi": DPI, "figure.facecolor": "white",
    "font.size": 9.5, "font.family": "DejaVu Sans", "text.color": INK,
    "axes.edgecolor": CHANCE, "axes.labelcolor": INK, "axes.titlesize": 10.5,
    "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.titlepad": 8,
    "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "axes.axisbelow": True, "grid.color": "#eceef2", "grid.linewidth": 0.9,
    "xtick.color": INK, "ytick.color": INK, "xtick.major.size": 0, "ytick.major.size": 0,
    "legend.frameon": False, "legend.fontsize": 9, "legend.handlelength": 2.8,
    "lines.linewidth": 1.8, "lines.markersize": 4, "axes.prop_cycle": cycler(color=PALETTE),
})


class NotebookFigure(Figure):
    """A figure outside pyplot, of width x height inches, that brings along how notebooks show it
    (with `sharpness` pixels for one on the page) and `alt`, what it shows in words."""

    def __init__(self, width: float, height: float, layout: str | None = "constrained",
                 sharpness: float = 1.5):
        super().__init__(figsize=(width, height), dpi=DPI, layout=layout)
        self.sharpness, self.alt = sharpness, ""
        FigureCanvasAgg(self)

    def _repr_png_(self) -> tuple[bytes, dict[str, int | str]]:
        size = {"width": round(self.bbox.width), "height": round(self.bbox.height)}
        return to_png(self, self.sharpness), size | {"alt": self.alt}


def to_png(figure: Figure, sharpness: float = 1) -> bytes:
    """The figure as a PNG file, with `sharpness` times its pixels on every side."""
    drawn, small = io.BytesIO(), io.BytesIO()
    figure.savefig(drawn, format="png", dpi=DPI * sharpness)
    with Image.open(drawn) as picture:  # all colours, but nothing is transparent
        picture.convert("RGB").save(small, format="png", optimize=True)
    return small.getvalue()


def _words(*sentences: str, values: Mapping[str, Mapping[str, float]] | None = None) -> str:
    """An alternative text of at most 300 characters: sentences, then names and their numbers."""
    every = [*sentences, *(f"{name}: {_numbers(found)}" for name, found in (values or {}).items())]
    whole = " ".join(f"{sentence.rstrip('.')}." for sentence in every if sentence)
    return textwrap.shorten(whole, 300, placeholder=" ...")


def _numbers(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in values.items())


# ------------------------------------------------------------------------------- room for text


def _fill(string: str, room: float, size: float = 9.5) -> str:
    """A text in lines of about `room` px, judged by an average letter of that size in points."""
    letters = max(10, int(room / (0.62 * size * DPI / 72)))
    return "\n".join(textwrap.fill(line, letters) for line in string.split("\n"))


def _measure(string: str, room: float, **look: object) -> tuple[str, int, int]:
    """The text broken into lines of about `room` px, and its width and height in whole px."""
    string = _fill(string, room, look["size"])
    figure = NotebookFigure(1, 1, layout=None)
    box = figure.text(0, 0, string, **look).get_window_extent()
    return string, math.ceil(box.width), math.ceil(box.height)


def _largest(measured: Sequence[tuple[str, int, int]]) -> tuple[int, int]:
    """The greatest width and height among measured texts; 0 where there is none."""
    _, widths, heights = zip(("", 0, 0), *measured, strict=True)
    return max(widths), max(heights)


# ------------------------------------------------------------------------------- images


def _factor(resolution: int, size: int) -> int:
    return max(1, round(size / resolution))


def make_sheet(images: Tensor, ncols: int, size: int = 64,
               gap: tuple[int, int] = (2, 2)) -> np.ndarray:
    """Images (N, 3, R, R) side by side on white, as (H, W, 3) uint8.

    Args:
        ncols: images a row.
        size: each is enlarged by a whole factor, pixel by pixel, to about that many px; a larger
            one keeps its size.
        gap: px between them, (down, across).
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3, 4):
        raise ValueError(f"pictures must have shape (N, 3, R, R), not {tuple(images.shape)}")
    return np.array(tile(images, ncols, gap, _factor(images.shape[-1], size)))


@styled
def _grid(images: Tensor, ncols: int, size: int, title: str, captions: Sequence[str] = (),
          names: Sequence[str] = ()) -> Figure:
    """Images (N, 3, R, R), each pixel exact, with a caption above each (or above each of the first
    row), and names left of the rows. All lengths are px, all heights count from the upper edge."""
    count = f"{len(images)} images, {ncols} a row" if len(images) > 1 else "One image"
    about = f"Rows of {ncols} images" if names else count
    alt = _words(title, ": ".join([about, ", ".join(names or captions)]).rstrip(": "),
                 f"Above them: {', '.join(captions)}" if names and captions else "")
    edge = images.shape[-1] * _factor(images.shape[-1], size)
    captions = [_measure(caption, max(edge + 14, 64), **CAPTION) for caption in captions]
    names = [_measure(name, 220, **ROW_NAME) for name in names]
    (caption_width, caption_height), (name_width, name_height) = _largest(captions), _largest(names)

    over = max(0, math.ceil((name_height - edge) / 2))  # what a tall name needs beyond its row
    down, across = 2 + 2 * over, 2
    if captions:
        across = max(2 if names else 18, caption_width + 4 - edge)
    if len(captions) > ncols:
        down = max(down, 18, caption_height + 6)
    sheet = make_sheet(images, ncols, size, (down, across))
    height, width = sheet.shape[:2]

    title, title_width, title_height = _measure(title, max(width, LEAST_LINE), **TITLE)
    top = over + (title_height + 12 if title else 0) + (caption_height + 4 if captions else 0)
    side = max(0, math.ceil((caption_width - edge) / 2) + 1)  # what an outermost caption needs
    left = name_width + 14 if names else side
    title_left = left if names else 2
    whole_width = max(left + width + side, title_left + title_width + 4)
    whole_height = top + height + over

    figure = NotebookFigure(whole_width / DPI, whole_height / DPI, layout=None, sharpness=1)
    figure.alt, bottom = alt, over / whole_height
    axes = figure.add_axes((left / whole_width, bottom, width / whole_width, height / whole_height))
    axes.imshow(sheet, interpolation="none", aspect="auto")
    axes.axis("off")

    def write(x: float, y: float, text: str, **look: object) -> None:
        figure.text(x / whole_width, 1 - y / whole_height, text, **look)

    if title:
        write(title_left, 6, title, va="top", **TITLE)
    for i, (caption, _, _) in enumerate(captions):
        row, column = divmod(i, ncols)
        x, y = left + column * (edge + across) + edge / 2, top + row * (edge + down) - 3
        write(x, y, caption, ha="center", va="bottom", **CAPTION)
    for row, (name, _, _) in enumerate(names):
        y = top + row * (edge + down) + edge / 2
        write(left - 8, y, name, ha="right", va="center", **ROW_NAME)
    return figure


def show_grid(images: Tensor, ncols: int = 8, title: str = "", titles: Sequence[str] = (),
              size: int = 64) -> Figure:
    """A grid of images (N, 3, R, R), each pixel exact.

    Args:
        titles: one short caption above every image, or none; "\\n" starts a new line.
        size: edge of a picture on the screen, in px; rounded so that every pixel is enlarged by a
            whole factor.
    """
    if titles and len(titles) != len(images):
        raise ValueError(f"{len(titles)} titles do not fit {len(images)} images")
    return _grid(images, min(ncols, len(images)), size, title, captions=titles)


def compare_rows(rows: Mapping[str, Tensor], title: str = "", ncols: int = 10,
                 size: int = 64, titles: Sequence[str] = ()) -> Figure:
    """One row of images per entry; column i shows what every network makes of latent i.

    Args:
        rows: name -> images (N, 3, R, R), all of one resolution; the first `ncols` are shown.
        titles: one short caption above every column, or above every image, or none.
    """
    if len({tuple(images.shape[1:]) for images in rows.values()}) != 1:
        shapes = {name: tuple(images.shape) for name, images in rows.items()}
        raise ValueError(f"rows must hold images of one resolution, not {shapes}")
    ncols = min(ncols, *(len(images) for images in rows.values()))
    images = torch.cat([row[:ncols].cpu() for row in rows.values()])
    if titles and len(titles) not in (ncols, len(images)):
        raise ValueError(f"{len(titles)} titles fit neither {ncols} columns nor {len(images)} "
                         "images")
    return _grid(images, ncols, size, title, captions=titles, names=list(rows))


# ------------------------------------------------------------------------------- numbers


def _panels(width: float, height: float, columns: int = 1, **shared: bool
            ) -> tuple[Figure, np.ndarray]:
    """A figure of width x height inches, and its axes side by side."""
    figure = NotebookFigure(width, height)
    return figure, figure.subplots(1, columns, squeeze=False, **shared).flatten()


def _finish(axes: Axes, title: str, xlabel: str, ylabel: str, width: float, height: float,
            **look: object) -> None:
    """Title and labels of a panel of width x height inches, broken into lines that fit."""
    axes.set_title(_fill(title, width * DPI - 85, look.get("size", 10.5)), **look)
    axes.set_xlabel(_fill(xlabel, width * DPI - 60))
    axes.set_ylabel(_fill(ylabel, height * DPI - 120))


def _headline(figure: Figure, title: str) -> None:
    if title:
        figure.suptitle(_fill(title, figure.bbox.width, TITLE["size"]), x=0.01, ha="left", **TITLE)


def _legend(figure: Figure, axes: Axes, most: int) -> None:
    """The panel's legend below the figure, in as many columns as have room, at most `most`."""
    handles, labels = axes.get_legend_handles_labels()
    labels = [_fill(label, figure.bbox.width - 70, 9) for label in labels]
    longest = max(len(line) for label in labels for line in label.split("\n"))
    columns = int(figure.bbox.width / (longest * 0.55 * 9 * DPI / 72 + 55))
    columns = max(1, min(most, columns, len(labels)))
    figure.legend(handles, labels, loc="outside lower center", ncols=columns)


@styled
def curves(lines: Mapping[str, tuple[Sequence[float], Sequence]], title: str, xlabel: str,
           ylabel: str, levels: Mapping[str, float] | None = None, width: float = 6.2,
           height: float = 3.3, labels: str = "legend") -> Figure:
    """Curves with their spread over seeds.

    Args:
        lines: name -> (x, y); y is one curve (X,), or one curve a seed (seeds, X): then the mean is
            drawn, a band of one standard deviation, and its bars, wherever there are two seeds or
            more. Values that a seed lacks are nan and count for nothing.
        levels: name -> height of a dashed line, such as {"chance": 0.37}.
        labels: "legend", below; or "ends": each line's name at its right end, for up to four lines.
    """
    if labels not in ("legend", "ends") or labels == "ends" and len(lines) > 4:
        raise ValueError(f'labels are "legend" or, for up to four lines, "ends", not {labels!r}')
    figure, (axes,) = _panels(width, height)
    ends, last = [], {}
    for n, (name, (x, y)) in enumerate(lines.items()):
        y = np.ma.masked_invalid(np.atleast_2d(np.asarray(y, dtype=float)))  # (seeds, X)
        y = y[~np.ma.getmaskarray(y).all(axis=1)]
        mean = y.mean(axis=0).filled(np.nan)
        last[name] = mean[np.isfinite(mean)][-1] if np.isfinite(mean).any() else np.nan
        several = len(y) > 1
        look = {"label": f"{name} ({len(y)} seeds)" if several else name,
                "color": PALETTE[n % len(PALETTE)], "linestyle": DASHES[n % len(DASHES)],
                "marker": MARKERS[n % len(MARKERS)] if several or len(x) < 25 else None}
        if several:
            spread = y.std(axis=0, ddof=1).filled(np.nan)
            axes.fill_between(x, mean - spread, mean + spread, color=look["color"], alpha=0.15,
                              linewidth=0)
            axes.errorbar(x, mean, spread, capsize=2.5, elinewidth=1, **look)
        else:
            axes.plot(x, mean, **look)
        if labels == "ends" and np.isfinite(last[name]):
            text = _fill(look["label"], 0.25 * width * DPI, 8.5)
            ends.append(_at_right(axes, text, last[name], look["color"]))
    ends += _level_lines(axes, levels)
    axes.margins(x=0.03)
    if axes.get_xlim()[1] >= 10_000:
        axes.xaxis.set_major_formatter(lambda at, _: f"{at / 1000:g}k" if at else "0")
    _finish(axes, title, xlabel, ylabel, width, height)
    if labels == "ends":
        _move_apart(figure, axes, ends)
    elif len(lines) > 1 or any(np.ndim(y) == 2 for _, y in lines.values()):
        _legend(figure, axes, 3)
    figure.alt = _words(title, f"Curves of {ylabel} over {xlabel}, which end at {_numbers(last)}",
                        f"Dashed lines: {_numbers(levels)}" if levels else "")
    return figure


def _at_right(axes: Axes, text: str, y: float, colour: str) -> Annotation:
    """A name at the right of the panel, at the height of what it names."""
    return axes.annotate(text, (1, y), xycoords=("axes fraction", "data"), va="center", size=8.5,
                         color=colour, xytext=(4, 0), textcoords="offset points")


def _level_lines(axes: Axes, levels: Mapping[str, float] | None) -> list[Annotation]:
    """Dashed lines at some heights, and their names."""
    for level in (levels or {}).values():
        axes.axhline(level, **LEVEL)
    return [_at_right(axes, name, level, "#6c7280") for name, level in (levels or {}).items()]


def _move_apart(figure: Figure, axes: Axes, notes: Sequence[Annotation]) -> None:
    """Moves notes beside a panel up and down until none covers another."""
    figure.draw_without_rendering()  # now everything has its place
    panel = axes.get_window_extent()
    boxes = [note.get_window_extent() for note in notes]
    wanted = np.array([(box.y0 + box.y1) / 2 for box in boxes])
    heights = np.array([box.height + 2 for box in boxes])
    places, order = wanted.copy(), np.argsort(wanted, kind="stable")
    for _ in range(200):
        places = np.clip(places, panel.y0 + heights / 2, panel.y1 - heights / 2)
        for pair in map(list, pairwise(order)):
            lack = heights[pair].mean() - np.diff(places[pair])[0]
            places[pair] += max(0, lack) / 2 * np.array([-1, 1])
    for note, shift in zip(notes, (places - wanted) * 72 / DPI, strict=True):
        note.xyann = (4, shift)


def _side_by_side(groups: Mapping[str, Mapping], step: float
                  ) -> Iterator[tuple[str, Mapping, str, float]]:
    """Name, values, colour of each group, and how far beside the middle of a row it stands."""
    for n, (name, values) in enumerate(groups.items()):
        yield name, values, PALETTE[n % len(PALETTE)], (n - (len(groups) - 1) / 2) * step


def _name_rows(axes: Axes, names: Sequence[str]) -> None:
    """Rows from the top down, instead of numbers from below."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)


def _in_words(factor: str) -> str:
    """A key of `semantic_agreement` as the chapters call it."""
    return factor.replace("mean_accuracy", "same class, mean").replace("_", " ")


@styled
def bars_with_chance(agreements: Mapping[str, Mapping[str, Agreement]],
                     title: str = "Do they show the same face?") -> Figure:
    """Agreement per factor as horizontal bars, a black tick where chance lies; shares of the same
    class left, correlations right.

    Args:
        agreements: name of a network -> its `semantic_agreement` with the teacher.
    """
    first = next(iter(agreements.values()))
    factors = sorted(first, key=lambda name: name.startswith("mean_"))  # the means at the end
    kinds = sorted({found.kind for found in first.values()})
    sides = {kind: [name for name in factors if first[name].kind == kind] for kind in kinds}
    rows = max(5, *map(len, sides.values()))
    bar, width = 0.8 / len(agreements), 7.2
    height = 1.4 + rows * max(0.2, 0.115 * len(agreements))
    figure, panels = _panels(width, height, len(sides))
    for axes, (kind, factors) in zip(panels, sides.items(), strict=True):
        for name, agreement, colour, beside in _side_by_side(agreements, bar):
            found = [agreement[factor] for factor in factors]
            y = np.arange(len(factors)) + beside
            axes.barh(y, [a.value for a in found], 0.92 * bar, label=name, color=colour)
            axes.scatter([a.chance for a in found], y, marker="|", s=340 * bar, linewidths=1.6,
                         color=INK, zorder=3)
        axes.collections[-1].set_label("chance")
        _name_rows(axes, [_in_words(factor) for factor in factors])
        for tick, factor in zip(axes.get_yticklabels(), factors, strict=True):
            tick.set_weight("bold" if factor.startswith("mean_") else "normal")
        lowest = min(a[factor].value for a in agreements.values() for factor in factors)
        axes.set_xlim(min(0.0, lowest) * 1.05, 1.0)
        axes.grid(axis="y", visible=False)
        heading, label = {
            "accuracy": ("categorical factors", "share of faces with the same class"),
            "correlation": ("continuous factors", "correlation")}[kind]
        _finish(axes, heading, label, "", width / len(sides), width, **PANEL)
    _headline(figure, title)
    _legend(figure, panels[0], 4)
    means = [factor for factor in first if factor.startswith("mean_")] or list(first)
    values = {name: {_in_words(factor): found[factor].value for factor in means}
              for name, found in agreements.items()}
    figure.alt = _words(title, "Bars per factor, beside chance", values=values)
    return figure


@styled
def grouped_bars(values: Mapping[str, Mapping[str, float]], title: str, ylabel: str,
                 levels: Mapping[str, float] | None = None, width: float = 6.2,
                 height: float = 3.3, decimals: int | None = None) -> Figure:
    """Bars, a group per category and in it a bar per series, each with its number where there is
    room; upright, or lying where there are more than eight categories.

    Args:
        values: series -> category -> number; a series need not have every category.
        levels: name -> height of a dashed line, such as {"chance": 0.37}; of lying bars, the legend
            names the lines.
        decimals: of every number at a bar; None: each has two digits that count.
    """
    categories = list(dict.fromkeys(name for series in values.values() for name in series))
    lying = len(categories) > 8
    if lying:
        height = 1.4 + len(categories) * max(0.22, 0.115 * len(values))
    figure, (axes,) = _panels(width, height)
    draw, line = (axes.barh, axes.axvline) if lying else (axes.bar, axes.axhline)
    bar = 0.8 / len(values)
    for name, series, colour, beside in _side_by_side(values, bar):
        at = [categories.index(category) + beside for category in series]
        drawn = draw(at, list(series.values()), 0.92 * bar, label=name, color=colour)
        if len(values) * len(categories) <= 0.3 * width * DPI / 9:
            form = "{:.2g}" if decimals is None else f"{{:.{decimals}f}}"
            axes.bar_label(drawn, fmt=form, padding=2, size=8.5,  # legible on a dashed line
                           path_effects=[withStroke(linewidth=2.5, foreground="white")])
    if lying:
        for name, level in (levels or {}).items():
            line(level, label=f"{name}: {level:.3g}", **LEVEL)
        _name_rows(axes, categories)
    else:
        _level_lines(axes, levels)
        names = [_fill(name, 0.8 * width * DPI / len(categories)) for name in categories]
        axes.set_xticks(range(len(categories)), names)
    axes.grid(axis="y" if lying else "x", visible=False)
    axes.margins(**{"x" if lying else "y": 0.12})
    line(0, color=CHANCE, linewidth=1)
    _finish(axes, title, ylabel if lying else "", "" if lying else ylabel, width, height)
    if len(values) > 1 or lying and levels:
        _legend(figure, axes, 4)
    figure.alt = _words(title, f"Bars of {ylabel}",
                        f"Dashed lines: {_numbers(levels)}" if levels else "", values=values)
    return figure


@styled
def dots(panels: Mapping[str, Mapping[str, Sequence[float]]], title: str = "",
         levels: Mapping[str, float] | None = None,
         colours: Mapping[str, str] | None = None) -> Figure:
    """Methods compared: one row a method, one panel a number, a dot for every seed, and mean and
    standard deviation.

    Args:
        panels: title of a panel -> name of a method -> its values, one a seed; the same methods in
            every panel.
        levels: title of a panel -> where a dashed line stands in it.
        colours: name of a method -> its family: each has a colour, which a legend explains.
    """
    width, names = 8.2, list(next(iter(panels.values())))
    if missing := [name for name in names if colours and name not in colours]:
        raise ValueError(f"colours has no family for {', '.join(missing)}: give every method one")
    families = list(dict.fromkeys(colours[name] for name in names)) if colours else [""]
    look = {"linestyle": "none", "marker": "o", "markersize": 6 if colours else 4,
            "markeredgewidth": 0, "alpha": 0.7 if colours else 0.45}
    labels = [_fill(name, 0.25 * width * DPI) for name in names]
    lines = [line for label in labels for line in label.split("\n")]
    room = (width - 0.085 * max(map(len, lines)) - 0.2) / len(panels)
    height = 1.3 + 0.27 * max(len(lines), 2) + (0.3 if colours else 0)
    figure, row = _panels(width, height, len(panels), sharey=True)
    for axes, (heading, values) in zip(row, panels.items(), strict=True):
        for y, name in enumerate(names):
            seeds = np.asarray(values[name], dtype=float)
            family = families.index(colours[name]) if colours else 0
            axes.plot(seeds, np.full(len(seeds), y), color=PALETTE[family % len(PALETTE)], **look)
            spread = seeds.std(ddof=1) if len(seeds) > 1 else 0.0
            axes.errorbar(seeds.mean(), y, xerr=spread, marker="|", markersize=9, capsize=2.5,
                          elinewidth=1, linestyle="none", color=INK)
        if heading in (levels or {}):
            axes.axvline(levels[heading], **LEVEL)
        _name_rows(axes, labels)
        axes.margins(x=0.08)
        _finish(axes, heading, "", "", room + 0.5, width, **PANEL)
    _headline(figure, title)
    if colours:
        for n, family in enumerate(families):
            row[0].plot([], [], color=PALETTE[n % len(PALETTE)], label=family, **look)
        _legend(figure, row[0], 4)
    means = {heading: {name: np.mean(seeds) for name, seeds in values.items()}
             for heading, values in panels.items()}
    figure.alt = _words(title, "A dot per seed; the means", values=means)
    return figure


@styled
def intervals(groups: Mapping[str, Mapping[str, tuple[float, float, float]]], title: str = "",
              xlabel: str = "difference", significant: Mapping[str, Collection[str]] | None = None
              ) -> Figure:
    """Differences and their intervals, one row each; the dashed line is no difference.

    Args:
        groups: what is compared -> row -> (mean, low, high); nan bounds: a point alone. Rows that a
            group lacks stay empty.
        significant: what is compared -> rows whose marker is filled, all others being hollow; None:
            all are filled.
    """
    width, step = 6.6, 0.7 / len(groups)
    rows = list(dict.fromkeys(row for group in groups.values() for row in group))
    labels = [_fill(row, 0.3 * width * DPI) for row in rows]
    most = max(label.count("\n") + 1 for label in labels)
    height = 1.5 + len(rows) * max(0.24 * most, 0.17 * len(groups), 0.26)
    figure, (axes,) = _panels(width, height)
    axes.axvline(0, **LEVEL)
    for (name, group, colour, beside), marker in zip(_side_by_side(groups, step), cycle(MARKERS)):
        y = [rows.index(row) + beside for row in group]
        mean, low, high = np.array(list(group.values()), dtype=float).reshape(-1, 3).T
        axes.errorbar(mean, y, xerr=np.nan_to_num([mean - low, high - mean]), linestyle="none",
                      marker=marker, markersize=5, capsize=2.5, elinewidth=1.3, color=colour,
                      label=name)
        if significant is not None:
            hollow = np.array([row not in significant[name] for row in group])
            axes.plot(mean[hollow], np.array(y)[hollow], linestyle="none", marker=marker,
                      markersize=5, color=colour, markerfacecolor=axes.get_facecolor(), zorder=4)
    _name_rows(axes, labels)
    axes.grid(axis="y", visible=False)
    _finish(axes, "", xlabel, "", 0.7 * width, height)
    _headline(figure, title)
    if len(groups) > 1:
        _legend(figure, axes, 3)
    filled = {name: () for name in groups} | dict(significant or {})
    means = {name: {f"{row} (filled)" if row in filled[name] else row: ends[0]
                    for row, ends in group.items()} for name, group in groups.items()}
    figure.alt = _words(title, f"{xlabel}, with intervals", values=means)
    return figure


@styled
def heatmaps(matrices: Mapping[str, Tensor], title: str = "", xlabel: str = "image j",
             ylabel: str = "image i", label: str = "cosine", centred: bool = False,
             row_images: Tensor | None = None, column_images: Tensor | None = None,
             marks: Sequence[tuple[int, int]] = ()) -> Figure:
    """Matrices (N, M) side by side on one colour scale, which the bar at the right explains.

    Args:
        centred: the scale runs equally far to both sides of 0, which is white: for signed values.
        row_images, column_images: (N, 3, R, R) and (M, 3, R, R), the images that rows and columns
            stand for; they are shown between the cells and their numbers.
        marks: (row, column) of the cells that get a frame.
    """
    values = {name: matrix.detach().float().cpu().numpy() for name, matrix in matrices.items()}
    low, high = min(v.min() for v in values.values()), max(v.max() for v in values.values())
    if centred:
        low, high = -max(abs(low), abs(high)), max(abs(low), abs(high))
    colours = "RdBu_r" if centred else "viridis"
    size = 2.5  # of a matrix, in inches
    room = 0.0 if column_images is None else size / 3  # for a strip of faces and the text below
    figure, panels = _panels(size * len(values) + 0.9, size + 0.75 + room, len(values), sharey=True)
    for n, (axes, (name, v)) in enumerate(zip(panels, values.items(), strict=True)):
        picture = axes.imshow(v, vmin=low, vmax=high, cmap=colours, interpolation="none")
        axes.grid(visible=False)
        axes.set_anchor("S")  # what square cells leave empty is above them: _shrink takes it away
        for axis, count in ((axes.xaxis, v.shape[1]), (axes.yaxis, v.shape[0])):
            axis.set_major_locator(_counted(count))
        for i, j in marks:
            axes.add_patch(Rectangle((j - 0.5, i - 0.5), 1, 1, fill=False, color=INK, linewidth=1.6,
                                     path_effects=[withStroke(linewidth=3.6, foreground="white")]))
        below = axes if column_images is None else _faces(axes, column_images, "columns", v)
        beside = axes if row_images is None or n else _faces(axes, row_images, "rows", v)
        _finish(axes, name, "", "", size + 0.6, size + 0.6, **PANEL)
        below.set_xlabel(_fill(xlabel, size * DPI))
        beside.set_ylabel(_fill(ylabel, (size - 0.6) * DPI) if n == 0 else "")
    bar = figure.colorbar(picture, cax=panels[-1].inset_axes((1.05, 0, 0.07, 1)),
                          label=_fill(label, size * DPI))
    bar.outline.set_visible(False)
    _headline(figure, title)
    _shrink(figure, panels)
    figure.alt = _words(title, f"Heat maps of {label}, {ylabel} against {xlabel}", *(
        f"{name}: from {v.min():.3g} to {v.max():.3g}" for name, v in values.items()))
    return figure


def _counted(count: int) -> FixedLocator | MaxNLocator:
    """Where `count` images have their numbers: all of a few, never between two of them."""
    if count <= 10:
        return FixedLocator(range(count))
    return MaxNLocator("auto", integer=True, min_n_ticks=1, steps=[1, 2, 5, 10])


def _shrink(figure: Figure, panels: Sequence[Axes]) -> None:
    """Takes away the height that square cells leave empty above and below the panels."""
    figure.draw_without_rendering()  # now everything has its place
    tall = max(axes.get_tightbbox().height for axes in panels)
    title = sum(text.get_window_extent().height + 8 for text in figure.texts)
    figure.set_figheight((tall + title + 14) / DPI)


def _faces(axes: Axes, images: Tensor, side: str, values: np.ndarray) -> Axes:
    """The images of a heat map's "rows" or "columns" before their numbers; returns the strip."""
    (rows, columns), count = values.shape, values.shape[side == "columns"]
    if len(images) != count:
        raise ValueError(f"{len(images)} images do not fit the {count} {side} of the heat map")
    if side == "rows":
        axes.tick_params("y", labelleft=False)
        strip, place = axes.inset_axes((-1.15 / columns, 0, 1 / columns, 1)), (0, 1, count, 0)
        numbered, other = strip.yaxis, strip.xaxis
    else:
        axes.tick_params("x", labelbottom=False)
        strip, place = axes.inset_axes((0, -1.15 / rows, 1, 1 / rows)), (0, count, 1, 0)
        numbered, other = strip.xaxis, strip.yaxis
    strip.imshow(make_sheet(images, 1 if side == "rows" else count, gap=(0, 0)), aspect="auto",
                 extent=[end - 0.5 for end in place])
    numbered.set_major_locator(_counted(count))
    other.set_ticks([])
    strip.grid(visible=False)
    strip.spines[:].set_visible(False)
    return strip


@styled
def fitted(panels: Sequence[tuple[str, str, str, Mapping[str, Sequence[tuple[float, float]]],
                                  Callable[[float], float]]]) -> Figure:
    """Measured points and a fitted line, side by side on logarithmic axes.

    Args:
        panels: (title, x label, y label, name -> [(x, y), ...], line y(x)).
    """
    figure, row = _panels(4.2 * len(panels), 3.8, len(panels))
    for axes, (title, xlabel, ylabel, groups, line) in zip(row, panels, strict=True):
        for n, (name, points) in enumerate(groups.items()):
            axes.plot(*zip(*sorted(points), strict=True), linestyle="none", marker=MARKERS[n],
                      markersize=6, color=PALETTE[n], label=name)
        everything = [point for points in groups.values() for point in points]
        xs, ys = zip(*everything, strict=True)
        grid = np.geomspace(min(xs), max(xs), 100)
        axes.plot(grid, [line(x) for x in grid], color=CHANCE, label="fitted line", zorder=1)
        axes.set(xscale="log", yscale="log")
        for axis, values in ((axes.xaxis, xs), (axes.yaxis, ys)):  # four round numbers each
            ticks = {float(f"{value:.2g}") for value in np.geomspace(min(values), max(values), 4)}
            axis.set_major_locator(FixedLocator(sorted(ticks)))
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())
        _finish(axes, title, xlabel, ylabel, 3.6, 3.4)
    _legend(figure, axes, 4)
    figure.alt = _words("Measured points and a fitted line", *(
        f"{title}: {ylabel} over {xlabel}, for {', '.join(groups)}"
        for title, xlabel, ylabel, groups, _ in panels))
    return figure
