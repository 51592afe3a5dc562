"""Figures: exact pixels, labelled axes, small files, nothing left in pyplot."""

from __future__ import annotations

import inspect
import io
import re
import warnings

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.text import Text
from PIL import Image

from gapkd.metrics.distribution import Agreement
from gapkd.viewing import figures


def pixels_of(figure) -> np.ndarray:
    png = figures.to_png(figure)
    assert len(png) < 150_000
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def images(n: int, resolution: int = 8) -> torch.Tensor:
    levels = torch.randint(0, 4, (n, 3, resolution, resolution), generator=torch.Generator().manual_seed(0))
    return levels / 1.5 - 1  # few colours: figures are stored with 256


def contains(picture: np.ndarray, tile: np.ndarray) -> bool:
    windows = np.lib.stride_tricks.sliding_window_view(picture[:, :, 0], tile.shape[:2])
    for y, x in np.argwhere((windows == tile[:, :, 0]).all(axis=(2, 3))):
        if np.array_equal(picture[y:y + tile.shape[0], x:x + tile.shape[1]], tile):
            return True
    return False


def texts(figure) -> str:
    return " | ".join(t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text")) if t.get_text())


def test_a_grid_enlarges_every_pixel_by_a_whole_factor():
    shown = figures.make_sheet(images(5), ncols=3, size=24, gap=2)
    assert shown.shape == (2 * 26 - 2, 3 * 26 - 2, 3)
    first = ((images(5)[0] + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
    assert np.array_equal(shown[:24, :24], first.repeat(3, axis=0).repeat(3, axis=1))
    assert (shown[26:, 52:] == 255).all()                                  # the empty place is white
    assert figures.make_sheet(images(1, 128), ncols=1, size=64).shape == (128, 128, 3)


def test_the_png_of_a_grid_holds_these_pixels():
    for figure in (
        figures.show_grid(images(4), 4, "Four faces", size=16),
        figures.show_grid(images(4), 2, "Four", ["a", "b", "c", "d"], size=16),
        figures.compare_rows({"teacher": images(4), "a student": images(4)}, "Same latents", size=16),
    ):
        tile = figures.make_sheet(images(4)[2:3], 1, 16)
        assert contains(pixels_of(figure), tile)
    assert "Four" in texts(figures.show_grid(images(4), 2, "Four")) and "a student" in texts(figure)


def test_rows_need_one_resolution_and_captions_one_image_each():
    with pytest.raises(ValueError, match="one resolution"):
        figures.compare_rows({"a": images(2), "b": images(2, 16)})
    with pytest.raises(ValueError, match="3 titles do not fit 2 images"):
        figures.show_grid(images(2), titles=["x", "y", "z"])
    with pytest.raises(ValueError, match="shape"):
        figures.show_grid(images(2)[0])


def agreement(value: float) -> dict[str, Agreement]:
    return {
        "hair_style": Agreement("accuracy", value, 0.3),
        "yaw": Agreement("correlation", value - 0.5, 0.0),
        "mean_accuracy": Agreement("accuracy", value, 0.3),
        "mean_correlation": Agreement("correlation", 0.1, 0.0),
    }


def charts() -> dict:
    x = [0, 1, 2]
    return {
        "curves": figures.curves(
            {"inherited": (x, [[0, 1, 2], [0, 2, 3]]), "random": (x, [0, 0, 1])},
            "Agreement",
            "images",
            "accuracy",
            {"chance": 0.3},
        ),
        "bars": figures.bars_with_chance({"inherited": agreement(0.9), "random": agreement(0.4)}),
        "heatmaps": figures.heatmaps({"teacher": torch.eye(4), "student": 2 * torch.eye(4)}, "Relations"),
        "scatter": figures.scatter(
            {n: (torch.arange(5.0), torch.arange(5.0)) for n in ("yaw", "skin_tone")}, "Same face?"
        ),
    }


def test_every_chart_has_title_and_axis_labels_and_draws():
    for name, figure in charts().items():
        assert pixels_of(figure).std() > 5, name
        written = texts(figure)
        for axes in figure.axes:
            labelled = axes.get_xlabel() or axes.get_ylabel() or figure.get_supxlabel()
            assert labelled, (name, written)
    made = charts()
    assert "Agreement" in texts(made["curves"]) and "chance" in texts(made["curves"])
    assert re.search(r"inherited \(2 seeds\)", texts(made["curves"]))
    assert "hair style" in texts(made["bars"]) and "r = 1.00" in texts(made["scatter"])


LONG = "The same twelve latents through the teacher and the student that inherits its mapping"
NAME = "the student that inherits its mapping"
TWO = "curly hair,\nno glasses"
WORD = "distilled, teacher's mapping\nand the direction loss"


def line(*values: float) -> tuple:
    return list(range(len(values))), list(values)


CRAMPED = {  # "function, case" -> a figure whose texts are long for the room they have
    "show_grid, captions": lambda: figures.show_grid(images(8), 4, LONG, [TWO] * 8),
    "show_grid, captions alone": lambda: figures.show_grid(images(2), titles=[TWO, "one line"], size=96),
    "show_grid, tiny": lambda: figures.show_grid(images(4), 2, LONG, [TWO, WORD, LONG, ""], size=16),
    "show_grid, title alone": lambda: figures.show_grid(images(1), title=LONG),
    "compare_rows, rows": lambda: figures.compare_rows({TWO: images(6), WORD: images(6)}, LONG),
    "compare_rows, tiny": lambda: figures.compare_rows({TWO: images(2), LONG: images(2)}, size=8),
    "curves, names": lambda: figures.curves({TWO: line(0, 1, 2), WORD: line(2, 1, 0), NAME: line(1, 1, 0)}, LONG, LONG,
                                            "mean correlation of continuous factors", {"chance": 0.3}),
    "curves, small": lambda: figures.curves({NAME: line(0, 1)}, LONG, NAME, NAME, width=3.2, height=2.4),
    "bars_with_chance, one": lambda: figures.bars_with_chance({NAME: agreement(0.9)}, LONG),
    "bars_with_chance, three": lambda: figures.bars_with_chance(
        {TWO: agreement(0.9), WORD: agreement(0.4), NAME: agreement(0.5)}, LONG),
    "dots, one": lambda: figures.dots({NAME: {WORD: [1.0, 2.0], "b": [3.0]}}, LONG, {NAME: 2.0}, width=4),
    "dots, three": lambda: figures.dots({t: {NAME: [1.0, 2.0], "b": [3.0]} for t in (TWO, NAME, WORD)}, LONG),
    "heatmaps, one": lambda: figures.heatmaps({TWO: torch.eye(12)}, NAME, "moved face j", "face i", NAME),
    "heatmaps, small": lambda: figures.heatmaps({WORD: torch.eye(4), NAME: torch.eye(4), TWO: torch.eye(4)}, LONG,
                                                "moved face j", "face i", size=1.8),
    "fitted": lambda: figures.fitted(2 * [(LONG, LONG, LONG, {NAME: [(1, 2), (3, 4)], WORD: [(5, 9)]},
                                           lambda x: 1 + x)]),
    "scatter, one": lambda: figures.scatter({"W of another mapping": (torch.arange(5.0), torch.arange(5.0))}, NAME),
    "scatter, small": lambda: figures.scatter({n: (torch.arange(5.0), torch.arange(5.0))
                                               for n in (TWO, "W of another mapping", "yaw")}, LONG, LONG, size=2),
}


def drawn_texts(figure, monkeypatch) -> list[tuple]:
    """(text, extent in px) of everything that is written while the figure is drawn; hidden ticks are not."""
    found, draw = {}, Text.draw

    def record(self, renderer, *args, **kwargs):
        if self.get_visible() and self.get_text().strip():
            found[self] = self.get_text(), self.get_window_extent(renderer)
        return draw(self, renderer, *args, **kwargs)

    monkeypatch.setattr(Text, "draw", record)
    figures.to_png(figure)
    return list(found.values())


@pytest.mark.parametrize("case", CRAMPED)
def test_no_text_leaves_the_canvas_or_covers_another(case, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # matplotlib warns when no room is left for the panels
        figure = CRAMPED[case]()
        found = drawn_texts(figure, monkeypatch)
    assert found
    for text, box in found:
        inside = min(box.x0, box.y0, figure.bbox.width - box.x1, figure.bbox.height - box.y1)
        assert inside >= 0, f"{text!r} ends {-inside:.1f} px outside"
    for n, (text, a) in enumerate(found):
        for other, b in found[:n]:
            across, down = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
            assert min(across, down) <= 1, f"{text!r} covers {other!r}"
    for axes in figure.axes:
        assert axes.get_label() == "<colorbar>" or min(axes.get_window_extent().size) > 12, "a panel is squeezed"


def test_every_public_figure_function_is_tried_with_long_texts():
    public = {name for name, f in inspect.getmembers(figures, inspect.isfunction) if f.__module__ == figures.__name__
              and not name.startswith("_") and inspect.signature(f).return_annotation == "Figure"}
    assert public == {case.split(",")[0] for case in CRAMPED}


def test_captions_of_two_lines_cover_no_image():
    for figure, size in (
        (figures.show_grid(images(4), 2, LONG, [TWO] * 4, size=24), 24),
        (figures.compare_rows({TWO: images(4)[:2], "b": images(4)[2:]}, LONG, size=16), 16),
    ):
        figure.canvas.draw()
        picture = np.asarray(figure.canvas.buffer_rgba())[:, :, :3]
        for n in range(4):
            assert contains(picture, figures.make_sheet(images(4)[n:n + 1], 1, size)), n


@pytest.mark.parametrize("points", [4, 200])  # with markers and without
def test_lines_that_coincide_are_all_seen(points):
    x = list(range(points))
    names = ["a", "b", "c", "d"]
    lines = {name: (x, x) for name in names}
    for shown in ([0, 1], [1, 2], [0, 3], [0, 1, 2, 3]):
        figure = figures.curves({names[n]: lines[names[n]] for n in range(4)}, "t", "x", "y")
        axes = figure.axes[0]
        for n, drawn in enumerate(axes.lines):
            drawn.set_visible(n in shown)
        figure.canvas.draw()
        box = axes.get_window_extent()
        whole = np.asarray(figure.canvas.buffer_rgba())[:, :, :3].astype(float)
        part = whole[int(figure.bbox.height - box.y1):int(figure.bbox.height - box.y0), int(box.x0):int(box.x1)]
        for n in shown:
            colour = np.array(to_rgb(figures.PALETTE[n])) * 255
            seen = (np.abs(part - colour).max(axis=2) < 40).sum()
            assert seen > 25, f"line {n} of {shown}: {seen} px"


def test_a_spread_needs_two_seeds():
    nan = float("nan")
    cases = {
        "one seed": [[0.0, 1.0, 2.0]],
        "one with values": [[0.0, 1.0, 2.0], [nan, nan, nan]],
    }
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for case, y in cases.items():
            figure = figures.curves({case: ([0, 1, 2], y)}, "t", "x", "y")
            assert not figure.axes[0].collections, case
            assert np.allclose(figure.axes[0].lines[0].get_ydata(), [0, 1, 2]), case
            assert "nan" not in texts(figure) and "seeds" not in texts(figure), case
        figure = figures.curves({"a": ([0, 1, 2], [[0.0, 1.0, 2.0], [2.0, 3.0, nan]])}, "t", "x", "y")
        assert pixels_of(figure).std() > 5 and "nan" not in texts(figure)
    drawn = next(d for d in figure.axes[0].lines if len(d.get_ydata()) == 3)
    assert np.allclose(drawn.get_ydata(), [1, 2, 2])               # the mean of the seeds that are there
    band = figure.axes[0].collections[0].get_paths()[0].vertices
    assert band[:, 0].max() == 1 and np.isfinite(band).all()       # the last point has one seed: no spread


def test_curves_show_mean_and_spread_over_seeds():
    figure = figures.curves({"a": ([0, 1], [[0.0, 1.0], [2.0, 3.0]])}, "t", "x", "y")
    lines = [line.get_ydata() for line in figure.axes[0].lines]
    assert any(np.allclose(y, [1, 2]) for y in lines)
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(1 - 2**0.5) and band.max() == pytest.approx(2 + 2**0.5)


def test_heatmaps_share_one_scale():
    figure = figures.heatmaps({"a": torch.zeros(2, 2), "b": torch.full((2, 2), 3.0)})
    assert {axes.images[0].get_clim() for axes in figure.axes if axes.images} == {(0.0, 3.0)}


@pytest.mark.parametrize("n", [1, 4, 12, 40])
def test_images_of_a_heatmap_are_counted_in_whole_numbers(n):
    axes = figures.heatmaps({"a": torch.rand(n, n), "b": torch.rand(n, n)}).axes[0]
    for axis in (axes.xaxis, axes.yaxis):
        ticks = [t for t in axis.get_ticklocs() if -0.5 <= t <= n - 0.5]
        assert ticks and all(t == round(t) for t in ticks), ticks


def test_nothing_is_left_in_pyplot_and_a_notebook_shows_a_figure_once():
    import matplotlib.pyplot as plt

    before, size = plt.get_fignums(), plt.rcParams["font.size"]
    figure = charts()["curves"]
    assert plt.get_fignums() == before and plt.rcParams["font.size"] == size
    assert figure._repr_png_().startswith(b"\x89PNG")


def test_dots_show_every_seed_and_the_mean():
    values = {"FID": {"ours": [1.0, 2.0, 3.0], "theirs": [5.0]}, "r": {"ours": [0.1, 0.2, 0.3], "theirs": [0.5]}}
    figure = figures.dots(values, "Two methods", {"FID": 4.0})
    left, right = figure.axes
    dots = [line for line in left.lines if line.get_linestyle() == "None" and line.get_marker() == "o"]
    assert [list(line.get_xdata()) for line in dots] == [[1.0, 2.0, 3.0], [5.0]]
    bars = [c for c in left.containers if hasattr(c, "has_xerr")]
    assert [float(bar.lines[0].get_xdata()[0]) for bar in bars] == [2.0, 5.0]
    (ends,) = bars[0].lines[2][0].get_segments()
    assert [tuple(point) for point in ends] == [(1.0, 0.0), (3.0, 0.0)]  # mean 2, deviation 1
    assert [t.get_text() for t in left.get_yticklabels()] == ["ours", "theirs"]
    assert "Two methods" in texts(figure) and "FID" in texts(figure) and pixels_of(figure).size


def test_panels_of_one_kind_reach_equally_far():
    near, far = torch.linspace(-1, 1, 9), torch.linspace(-4, 4, 9)
    figure = figures.scatter({"near": (near, near), "far": (far, far)}, shared=True)
    figure.canvas.draw()
    assert len({(*axes.get_xlim(), *axes.get_ylim()) for axes in figure.axes}) == 1
    own = figures.scatter({"near": (near, near), "far": (far, far)})
    own.canvas.draw()
    assert own.axes[0].get_xlim()[1] < 2 < own.axes[1].get_xlim()[1]
