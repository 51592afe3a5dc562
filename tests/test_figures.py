"""Figures: exact pixels, labelled axes, room for long texts, nothing left in pyplot."""

from __future__ import annotations

import io
import re
import warnings

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.patches import FancyBboxPatch
from matplotlib.text import Text
from PIL import Image

from gapkd.metrics.agreement import Agreement
from gapkd.viewing import diagrams, figures


def pixels_of(png: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def images(n: int, resolution: int = 8) -> torch.Tensor:
    dice = torch.Generator().manual_seed(0)
    return torch.rand(n, 3, resolution, resolution, generator=dice) * 2 - 1


def contains(picture: np.ndarray, tile: np.ndarray) -> bool:
    height, width = tile.shape[:2]
    corners = np.argwhere((picture == tile[0, 0]).all(axis=2))
    return any(np.array_equal(picture[y:y + height, x:x + width], tile) for y, x in corners)


def texts(figure) -> str:
    written = figure.findobj(lambda artist: hasattr(artist, "get_text"))
    return " | ".join(text.get_text() for text in written if text.get_text())


def test_a_grid_enlarges_every_pixel_by_a_whole_factor():
    sheet = figures.make_sheet(images(5), ncols=3, size=24)
    assert sheet.shape == (2 * 26 - 2, 3 * 26 - 2, 3)
    first = ((images(5)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(sheet[:24, :24], first.repeat(3, axis=0).repeat(3, axis=1))
    assert (sheet[26:, 52:] == 255).all()  # the empty place is white
    assert figures.make_sheet(images(1, 128), ncols=1, size=64).shape == (128, 128, 3)


LONG = "The same twelve latents through the teacher and the student that inherits its mapping"
NAME = "the student that inherits its mapping"
TWO = "curly hair,\nno glasses"
WORD = "distilled, teacher's mapping\nand the direction loss"


@pytest.mark.parametrize("figure, size", [
    (lambda: figures.show_grid(images(4), 4, "Four faces", size=16), 16),
    (lambda: figures.show_grid(images(4), 2, "Four", ["a", "b", "c", "d"], size=16), 16),
    (lambda: figures.show_grid(images(4), 2, LONG, [TWO] * 4, size=24), 24),
    (lambda: figures.compare_rows({"a": images(4), "b": images(4)}, "Latents", size=16), 16),
    (lambda: figures.compare_rows({TWO: images(4)[:2], "b": images(4)[2:]}, LONG, size=16), 16),
    (lambda: figures.compare_rows({"a": images(4)[:2], "b": images(4)[2:]}, size=16,
                                  titles=[TWO, "more"]), 16),
    (lambda: figures.compare_rows({TWO: images(4)[:2], "b": images(4)[2:]}, size=16,
                                  titles=["a", TWO, LONG, "d"]), 16)])
def test_the_png_of_a_grid_holds_all_pixels_and_colours(figure, size):
    for png in (figures.to_png(figure()), figure()._repr_png_()[0]):
        for n in range(4):
            tile = figures.make_sheet(images(4)[n:n + 1], 1, size)
            assert contains(pixels_of(png), tile), f"image {n} is covered or was changed"


def test_rows_need_one_resolution_and_captions_one_image_each():
    with pytest.raises(ValueError, match="one resolution"):
        figures.compare_rows({"a": images(2), "b": images(2, 16)})
    with pytest.raises(ValueError, match="3 titles do not fit 2 images"):
        figures.show_grid(images(2), titles=["x", "y", "z"])
    with pytest.raises(ValueError, match="3 titles fit neither 2 columns nor 4 images"):
        figures.compare_rows({"a": images(2), "b": images(2)}, titles=["x", "y", "z"])
    with pytest.raises(ValueError, match="shape"):
        figures.show_grid(images(2)[0])


def agreement(value: float) -> dict[str, Agreement]:
    return {"hair_style": Agreement("accuracy", value, 0.3),
            "mean_correlation": Agreement("correlation", 0.1, 0.0),
            "yaw": Agreement("correlation", value - 0.5, 0.0),
            "mean_accuracy": Agreement("accuracy", value, 0.3)}


def line(*values: float) -> tuple:
    return list(range(len(values))), list(values)


NAN = float("nan")
FITTED = [(LONG, LONG, LONG, {NAME: [(1, 2), (3, 4)], WORD: [(5, 9)]}, lambda x: 1 + x)] * 2
CRAMPED = {  # "function, case" -> a figure whose texts are long for the room they have
    "show_grid, captions": lambda: figures.show_grid(images(8), 4, LONG, [TWO] * 8),
    "show_grid, no title": lambda: figures.show_grid(images(2), titles=[TWO, "one"], size=96),
    "show_grid, tiny": lambda: figures.show_grid(images(4), 2, LONG, [TWO, WORD, LONG, ""],
                                                 size=16),
    "show_grid, title alone": lambda: figures.show_grid(images(1), title=LONG),
    "compare_rows, rows": lambda: figures.compare_rows({TWO: images(6), WORD: images(6)}, LONG),
    "compare_rows, tiny": lambda: figures.compare_rows({TWO: images(2), LONG: images(2)}, size=8),
    "compare_rows, heads": lambda: figures.compare_rows({TWO: images(2), WORD: images(2)}, LONG,
                                                        titles=[LONG, "b"]),
    "compare_rows, captions": lambda: figures.compare_rows(
        {TWO: images(2), WORD: images(2)}, LONG, titles=["a", TWO, WORD, "b"]),
    "curves, names": lambda: figures.curves(
        {TWO: line(0, 1, 2), WORD: line(2, 1, 0), NAME: line(1, 1, 0)}, LONG, LONG,
        "mean correlation of continuous factors", {"chance": 0.3}),
    "curves, ends": lambda: figures.curves(
        {TWO: line(0, 1), WORD: line(2, 1), NAME: line(1, 1.01), "d": line(0, 0.99)}, LONG, LONG,
        NAME, {"chance": 0.98, "no": 2}, labels="ends"),
    "grouped_bars": lambda: figures.grouped_bars(
        {NAME: {TWO: 0.5, NAME: -0.25}, "b": {TWO: 0.1, "c": 1}}, LONG, NAME, {"chance": 0.3}),
    "grouped_bars, lying": lambda: figures.grouped_bars(
        {WORD: dict.fromkeys("abcdefghi", 0.5)}, LONG, NAME, {"chance": 0.3, NAME: 0.4}),
    "curves, small": lambda: figures.curves({NAME: line(0, 1)}, LONG, NAME, NAME, width=3.2,
                                            height=2.4),
    "bars_with_chance, one": lambda: figures.bars_with_chance({NAME: agreement(0.9)}, LONG),
    "bars_with_chance, three": lambda: figures.bars_with_chance(
        {TWO: agreement(0.9), WORD: agreement(0.4), NAME: agreement(0.5)}, LONG),
    "dots, one": lambda: figures.dots({NAME: {WORD: [1.0, 2.0], "b": [3.0]}}, LONG, {NAME: 2.0}),
    "dots, three": lambda: figures.dots(
        {panel: {NAME: [1.0, 2.0], "b": [3.0]} for panel in (TWO, NAME, WORD)}, LONG),
    "intervals, one": lambda: figures.intervals({NAME: {WORD: (1, 0, 2), "b": (3, NAN, NAN)}},
                                                LONG, LONG),
    "intervals, three": lambda: figures.intervals(
        {name: {NAME: (1, 0, 2), WORD: (-3, -4, -2)} for name in (TWO, NAME, WORD)}, LONG, LONG),
    "heatmaps, one": lambda: figures.heatmaps({TWO: torch.eye(12)}, NAME, "moved face j", "face i",
                                              NAME),
    "heatmaps, faces": lambda: figures.heatmaps(
        {name: torch.rand(4, 6) for name in (WORD, TWO)}, LONG, NAME, NAME,
        row_images=images(4), column_images=images(6), marks=[(0, 1)]),
    "dots, families": lambda: figures.dots(
        {panel: {NAME: [1.0, 2.0], "b": [3.0]} for panel in (TWO, NAME)}, LONG,
        colours={NAME: WORD, "b": LONG}),
    "fitted": lambda: figures.fitted(FITTED),
}


@pytest.mark.parametrize("case", CRAMPED)
def test_texts_are_apart_on_the_canvas_and_words_say_what_is_shown(case, monkeypatch):
    drawn, draw = {}, Text.draw

    def record(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():  # hidden ticks are not drawn
            drawn[self] = self.get_text(), self.get_window_extent(renderer)
        return draw(self, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", record)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns when no room is left for the panels
        figure = CRAMPED[case]()
        drawn.clear()  # some lay themselves out by drawing once
        assert pixels_of(figures.to_png(figure)).std() > 5
    found = list(drawn.values())
    for n, (text, a) in enumerate(found):
        inside = min(a.x0, a.y0, figure.bbox.width - a.x1, figure.bbox.height - a.y1)
        assert inside >= 0, f"{text!r} ends {-inside:.1f} px outside"
        for other, b in found[:n]:
            across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(across, down) <= 1, f"{text!r} covers {other!r}"
    grid = case.startswith(("show_grid", "compare_rows"))
    for axes in figure.axes:
        bar = axes.get_label() == "<colorbar>"
        assert bar or min(axes.get_window_extent().size) > 12, "a panel is squeezed"
        labels = axes.get_title(loc="left"), axes.get_xlabel(), axes.get_ylabel()
        assert grid or any(labels)
    assert 20 < len(figure.alt) <= 300 and "\n" not in figure.alt
    assert any(" ".join(name.split()) in figure.alt for name in (LONG, NAME, TWO)), figure.alt


def test_what_the_words_of_a_chart_say():
    seeds = {"inherited": ([0, 1], [[0, 1], [0, 2]]), "random": line(0, 1)}
    written = texts(figures.curves(seeds, "Agreement", "images", "accuracy", {"chance": 0.3}))
    for word in ("Agreement", "images", "accuracy", "chance", "inherited (2 seeds)", "random"):
        assert re.search(rf"\b{re.escape(word)}", written), word
    bars = figures.bars_with_chance({"a": agreement(0.9)})
    left, right = bars.axes
    names = [tick.get_text() for tick in left.get_yticklabels()]
    assert names == ["hair style", "same class, mean"]
    assert left.get_xlabel() == "share of faces with the same class"
    assert right.get_title(loc="left") == "continuous factors"
    assert [bar.get_width() for bar in right.patches] == pytest.approx([0.4, 0.1])
    assert list(left.collections[0].get_offsets()[:, 0]) == pytest.approx([0.3, 0.3])


def test_thousands_of_images_are_written_short():
    figure = figures.curves({"a": ([0, 50_000, 100_000], [0, 1, 2])}, "t", "images", "y")
    ticks = figure.axes[0].xaxis.get_major_formatter()
    assert [ticks(value, 0) for value in (0, 2_500, 100_000)] == ["0", "2.5k", "100k"]


@pytest.mark.parametrize("points", [4, 200])  # with markers and without
def test_lines_that_coincide_are_all_seen(points):
    x = list(range(points))
    for visible in ([0, 1], [1, 2], [0, 3], [0, 1, 2, 3]):
        figure = figures.curves({name: (x, x) for name in "abcd"}, "t", "x", "y")
        axes = figure.axes[0]
        for n, drawn in enumerate(axes.lines):
            drawn.set_visible(n in visible)
        figure.canvas.draw()
        box, height = axes.get_window_extent(), figure.bbox.height
        whole = np.asarray(figure.canvas.buffer_rgba())[:, :, :3].astype(float)
        part = whole[int(height - box.y1):int(height - box.y0), int(box.x0):int(box.x1)]
        for n in visible:
            colour = np.array(to_rgb(figures.PALETTE[n])) * 255
            seen = (np.abs(part - colour).max(axis=2) < 40).sum()
            assert seen > 25, f"line {n} of {visible}: {seen} px"


@pytest.mark.filterwarnings("error")
def test_curves_show_mean_and_spread_over_the_seeds_that_are_there():
    for one in ([[0.0, 1.0, 2.0]], [[0.0, 1.0, 2.0], [NAN, NAN, NAN]]):
        figure = figures.curves({"one": ([0, 1, 2], one)}, "t", "x", "y")
        axes = figure.axes[0]
        assert not axes.collections and np.allclose(axes.lines[0].get_ydata(), [0, 1, 2])
        assert "nan" not in texts(figure) and "seeds" not in texts(figure)
    y = [[0.0, 1.0, 2.0], [2.0, 3.0, NAN]]
    figure = figures.curves({"a": ([0, 1, 2], y)}, "t", "x", "y")
    figures.to_png(figure)
    axes = figure.axes[0]
    drawn = next(line for line in axes.lines if len(line.get_ydata()) == 3)
    assert np.allclose(drawn.get_ydata(), [1, 2, 2]) and "nan" not in texts(figure)
    band = axes.collections[0].get_paths()[0].vertices
    assert band[:, 0].max() == 1 and np.isfinite(band).all()  # the last point has one seed
    assert band[:, 1].min() == pytest.approx(1 - 2**0.5)
    assert band[:, 1].max() == pytest.approx(2 + 2**0.5)


def test_heatmaps_share_one_scale():
    zeros, threes = torch.zeros(2, 2), torch.full((2, 2), 3.0)
    for centred, limits in ((False, (0.0, 3.0)), (True, (-3.0, 3.0))):
        figure = figures.heatmaps({"a": zeros, "b": threes}, centred=centred)
        assert {axes.images[0].get_clim() for axes in figure.axes if axes.images} == {limits}


@pytest.mark.parametrize("n", [1, 4, 12, 40])
def test_images_of_a_heatmap_are_counted_in_whole_numbers(n):
    axes = figures.heatmaps({"a": torch.rand(n, n), "b": torch.rand(n, n)}).axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        ticks = [tick for tick in axis.get_ticklocs() if -0.5 <= tick <= n - 0.5]
        assert ticks and all(tick == round(tick) for tick in ticks), ticks


def test_nothing_is_left_in_pyplot_and_a_notebook_shows_a_figure_once():
    import matplotlib.pyplot as plt

    before, size = plt.get_fignums(), plt.rcParams["font.size"]
    figure = figures.curves({"a": line(0, 1)}, "t", "x", "y", width=6, height=3)
    assert plt.get_fignums() == before and plt.rcParams["font.size"] == size
    png, meta = figure._repr_png_()
    stored, whole = Image.open(io.BytesIO(png)), io.BytesIO()
    assert (stored.size, stored.mode) == ((864, 432), "RGB")  # sharp, and in all its colours
    figure.savefig(whole, format="png", dpi=1.5 * figures.DPI)
    assert np.array_equal(pixels_of(png), pixels_of(whole.getvalue()))
    assert meta == {"width": 576, "height": 288, "alt": figure.alt}
    assert pixels_of(figures.to_png(figure)).shape == (288, 576, 3)


def test_dots_show_every_seed_and_the_mean():
    values = {"FID": {"ours": [1.0, 2.0, 3.0], "theirs": [5.0]},
              "r": {"ours": [0.1, 0.2, 0.3], "theirs": [0.5]}}
    left, right = figures.dots(values, "Two methods", {"FID": 4.0}).axes
    dots = [list(line.get_xdata()) for line in left.lines if line.get_marker() == "o"]
    assert dots == [[1.0, 2.0, 3.0], [5.0]]
    bars = [bar for bar in left.containers if hasattr(bar, "has_xerr")]
    assert [float(bar.lines[0].get_xdata()[0]) for bar in bars] == [2.0, 5.0]
    (ends,) = bars[0].lines[2][0].get_segments()
    assert [tuple(point) for point in ends] == [(1.0, 0.0), (3.0, 0.0)]  # mean 2, deviation 1
    assert [tick.get_text() for tick in left.get_yticklabels()] == ["ours", "theirs"]
    assert left.lines[-1].get_xdata() == [4.0, 4.0] != list(right.lines[-1].get_xdata())


def test_intervals_reach_from_low_to_high_in_the_row_that_they_belong_to():
    groups = {"a": {"FID": (1.0, 0.5, 2.0), "PPL": (3.0, NAN, NAN)},
              "b": {"PPL": (-1.0, -2.0, 0.0)}}
    figure = figures.intervals(groups, "Two")
    assert figure.alt == "Two. difference, with intervals. a: FID 1, PPL 3. b: PPL -1."
    (axes,) = figure.axes
    a, b = axes.containers
    assert list(a.lines[0].get_xdata()) == [1.0, 3.0] and list(b.lines[0].get_xdata()) == [-1.0]
    ends = [segment[:, 0].tolist() for segment in a.lines[2][0].get_segments()]
    assert ends == [[0.5, 2.0], [3.0, 3.0]]
    rows = [round(float(y)) for bars in (a, b) for y in bars.lines[0].get_ydata()]
    assert rows == [0, 1, 1]
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["FID", "PPL"]


def test_intervals_are_hollow_where_nothing_is_seen():
    groups = {"a": {"FID": (1.0, 0.5, 2.0), "PPL": (3.0, 1.0, 4.0)},
              "b": {"PPL": (-1.0, -2.0, 0.0)}}
    figure = figures.intervals(groups, "Two", significant={"a": ["PPL"], "b": []})
    assert figure.alt == "Two. difference, with intervals. a: FID 1, PPL (filled) 3. b: PPL -1."
    (axes,) = figure.axes
    paper = axes.get_facecolor()
    hollow = [line for line in axes.lines if line.get_marker() in ("o", "s")
              and tuple(line.get_markerfacecolor()) == paper]
    assert [list(line.get_xdata()) for line in hollow] == [[1.0], [-1.0]]


@pytest.mark.parametrize("name", diagrams.DRAWINGS)
def test_a_diagram_is_in_colour_where_it_is_lit(name):
    def colourful(figure) -> int:
        picture = pixels_of(figures.to_png(figure)).astype(int)
        return int((picture.max(axis=2) - picture.min(axis=2) > 40).sum())

    whole = diagrams.diagram(name)
    with pytest.raises(ValueError, match=f"{name!r} has no part 'x': choose among ") as error:
        diagrams.diagram(name, lit=("x",))
    parts = str(error.value).partition("among ")[2].split(", ")
    assert len(parts) > 2
    assert len(whole.alt) > 50 and "In colour" not in whole.alt
    assert colourful(diagrams.diagram(name, lit=())) == 0
    for part in parts:
        figure = diagrams.diagram(name, lit=part)
        assert figure.alt == f"{whole.alt} In colour: {part}."
        assert 0 < colourful(figure) < colourful(whole), part
    assert colourful(diagrams.diagram(name, lit=parts)) > 0.6 * colourful(whole)


def test_what_belongs_to_several_parts_is_in_colour_when_one_of_them_is_lit():
    sketch = diagrams.Sketch(1, 1, lit=("b",))
    assert sketch.ink(("a", "b"), "red") == "red" != sketch.ink(("a", "c"), "red")


def test_the_map_of_the_course_says_every_question_and_an_unknown_diagram_is_refused():
    alt = diagrams.diagram("course").alt
    for number, (question, _) in diagrams.QUESTIONS.items():
        assert f"{number}: {' '.join(question.split())}" in alt
    with pytest.raises(ValueError, match="no diagram 'house': choose one of course, generator"):
        diagrams.diagram("house")


@pytest.mark.parametrize("name", diagrams.DRAWINGS)
def test_the_texts_of_a_diagram_are_readable_and_apart(name):
    figure = diagrams.diagram(name)
    (axes,) = figure.axes
    texts = [text for text in axes.texts if text.get_text().strip()]
    extents = [text.get_window_extent() for text in texts]
    assert all(text.get_size() >= 8.5 for text in texts)
    page = figure.bbox
    for n, box in enumerate(extents):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1
        frames = [patch for patch in axes.patches if isinstance(patch, FancyBboxPatch)]
        for frame in (patch.get_window_extent() for patch in frames):
            apart = not frame.overlaps(box)
            within = frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and (
                box.y1 <= frame.y1)
            assert apart or within, texts[n].get_text()
        for other in extents[:n]:
            within = name == "course"  # the number stands above the question, in one box
            assert within or not box.overlaps(other), texts[n].get_text()


def test_alternative_texts_hold_the_last_values():
    figure = figures.curves({"a": line(0, 0.25), "b": ([0, 1], [[1, 2], [3, NAN]])}, "Up", "images",
                            "r", {"chance": 0.1})
    assert figure.alt == ("Up. Curves of r over images, which end at a 0.25, b 2. "
                          "Dashed lines: chance 0.1.")
    faces = {"teacher": images(4), "student": images(4)}
    assert figures.compare_rows(faces, "Alike", 3).alt == (
        "Alike. Rows of 3 images: teacher, student.")
    assert figures.compare_rows(faces, "Steps", 2, titles=["less", "more"]).alt == (
        "Steps. Rows of 2 images: teacher, student. Above them: less, more.")


@pytest.mark.parametrize("last, tick", [(100_000, "100k"), (4_000, "4000")])
def test_many_images_are_counted_in_thousands(last, tick):
    figure = figures.curves({"a": ([0, last], [0, 1])}, "t", "images", "y")
    figure.draw_without_rendering()
    assert tick in [label.get_text() for label in figure.axes[0].get_xticklabels()]


def test_names_stand_at_the_ends_of_their_lines_in_their_colours():
    lines = {"low": line(1, 0), "high": line(0, 1), "higher": line(0, 1.01)}
    axes = figures.curves(lines, "t", "x", "y", labels="ends").axes[0]
    notes = {note.get_text(): note for note in axes.texts}
    middles = []
    for name, drawn in zip(lines, axes.lines, strict=True):
        assert notes[name].get_color() == drawn.get_color()
        box = notes[name].get_window_extent()
        assert box.x0 > axes.get_window_extent().x1
        middles.append((box.y0 + box.y1) / 2)
    assert middles[0] < middles[1] < middles[2]  # in the order in which the lines end
    end = axes.transData.transform((1, 0))[1]
    assert abs(middles[0] - end) < 1  # the one that has room stands where its line ends
    assert not axes.figure.legends
    with pytest.raises(ValueError, match="up to four lines"):
        figures.curves({str(n): line(0, n) for n in range(5)}, "t", "x", "y", labels="ends")


def test_grouped_bars_stand_above_their_category_and_many_lie():
    values = {"teacher": {"own": 1.0, "foreign": 0.2}, "student": {"foreign": 0.1}}
    axes = figures.grouped_bars(values, "t", "r", {"chance": 0.3}).axes[0]
    ticks = dict(zip((t.get_text() for t in axes.get_xticklabels()), axes.get_xticks(),
                     strict=True))
    bars = [(bar.get_x() + bar.get_width() / 2, bar.get_height()) for bar in axes.patches]
    expected = [(ticks["own"] - 0.2, 1.0), (ticks["foreign"] - 0.2, 0.2),
                (ticks["foreign"] + 0.2, 0.1)]
    assert np.allclose(bars, expected)
    assert "chance" in texts(axes.figure) and axes.lines[0].get_ydata()[0] == 0.3
    assert "Dashed lines: chance 0.3." in axes.figure.alt
    for decimals, labels in ((None, ["1", "0.2", "0.1"]), (2, ["1.00", "0.20", "0.10"])):
        axes = figures.grouped_bars(values, "t", "r", decimals=decimals).axes[0]
        assert [text.get_text() for text in axes.texts] == labels
    values = {"a": {f"factor {n}": 0.1 * n for n in range(15)}, "b": {"factor 3": -0.5}}
    axes = figures.grouped_bars(values, "t", "r", {"chance": 0.3}).axes[0]
    assert "chance: 0.3" in texts(axes.figure) and "chance 0.3" in axes.figure.alt
    assert [label.get_text() for label in axes.get_yticklabels()] == list(values["a"])
    bars = [bar for bar in axes.patches if bar.get_width()]
    assert bars[2].get_width() == pytest.approx(0.3) and bars[-1].get_width() == -0.5
    assert axes.get_xlabel() == "r"
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert not any(a.overlaps(b) for a, b in zip(boxes, boxes[1:], strict=False))


def test_a_heat_map_shows_the_faces_of_its_rows_and_columns():
    faces = images(6)
    figure = figures.heatmaps({"a": torch.rand(4, 6)}, row_images=faces[:4], column_images=faces,
                              marks=[(1, 2)])
    axes = figure.axes[0]
    below, beside, bar = axes.child_axes
    for strip, sheet in ((below, (faces, 6)), (beside, (faces[:4], 1))):
        assert np.array_equal(strip.images[0].get_array(), figures.make_sheet(*sheet, gap=(0, 0)))
    assert not [tick for tick in axes.get_xticklabels() if tick.get_visible()]
    assert [frame.get_xy() for frame in axes.patches] == [(1.5, 0.5)]
    assert (below.get_xlabel(), beside.get_ylabel()) == ("image j", "image i")
    assert [list(below.get_xticks()), list(beside.get_yticks())] == [[*range(6)], [*range(4)]]
    figure.draw_without_rendering()
    cells, scale = axes.get_window_extent(), bar.get_window_extent()
    assert scale.height == pytest.approx(cells.height)  # the bar is as high as the cells
    assert cells.height > 0.5 * figure.bbox.height
    with pytest.raises(ValueError, match="5 images do not fit the 4 rows"):
        figures.heatmaps({"a": torch.rand(4, 6)}, row_images=faces[:5])


def test_dots_are_coloured_by_family():
    values = {"FID": {"a": [1.0, 2.0], "b": [2.0], "c": [3.0]}}
    figure = figures.dots(values, colours={"a": "ours", "b": "theirs", "c": "ours"})
    colours = [drawn.get_color() for drawn in figure.axes[0].lines if drawn.get_marker() == "o"]
    assert colours[:3] == [figures.PALETTE[0], figures.PALETTE[1], figures.PALETTE[0]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["ours", "theirs"]
    with pytest.raises(ValueError, match="no family for b, c"):
        figures.dots(values, colours={"a": "ours"})
