"""Figures: exact pixels, labelled axes, small files, nothing left in pyplot."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
import torch
from PIL import Image

from gapkd import figures
from gapkd.metrics import Agreement


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


def test_curves_show_mean_and_spread_over_seeds():
    figure = figures.curves({"a": ([0, 1], [[0.0, 1.0], [2.0, 3.0]])}, "t", "x", "y")
    lines = [line.get_ydata() for line in figure.axes[0].lines]
    assert any(np.allclose(y, [1, 2]) for y in lines)
    band = figure.axes[0].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(1 - 2**0.5) and band.max() == pytest.approx(2 + 2**0.5)


def test_heatmaps_share_one_scale():
    figure = figures.heatmaps({"a": torch.zeros(2, 2), "b": torch.full((2, 2), 3.0)})
    assert {axes.images[0].get_clim() for axes in figure.axes if axes.images} == {(0.0, 3.0)}


def test_nothing_is_left_in_pyplot_and_a_notebook_shows_a_figure_once():
    import matplotlib.pyplot as plt

    before, size = plt.get_fignums(), plt.rcParams["font.size"]
    figure = charts()["curves"]
    assert plt.get_fignums() == before and plt.rcParams["font.size"] == size
    assert figure._repr_png_().startswith(b"\x89PNG")
