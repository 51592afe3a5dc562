"""Pictures: what is laid out in a row is read back."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from gapkd.data.images import save_gif, save_png, tile, to_uint8, untile, with_channels


@pytest.mark.parametrize("resolution", [8, 64])
def test_a_row_is_read_back(resolution):
    images = torch.randint(0, 256, (5, 3, resolution, resolution))
    row = torch.from_numpy(np.array(tile(images / 127.5 - 1, columns=5))).permute(2, 0, 1)
    assert torch.equal(untile(row).long(), images)


def test_rows_lie_on_white_and_values_are_clamped(tmp_path):
    images = torch.stack([torch.full((3, 32, 32), v) for v in (-3.0, 3.0, -1.0)])
    with Image.open(save_png(images, tmp_path / "sheet.png", columns=2)) as sheet:
        pixels = np.asarray(sheet)
    assert pixels.shape == (65, 65, 3)                         # a line of one pixel between them
    assert pixels[:32, :32].max() == 0 and pixels[:32, 33:].min() == 255
    assert pixels[33:, :32].max() == 0 and pixels[33:, 33:].min() == 255
    assert pixels[32].min() == 255 and pixels[:, 32].min() == 255


@pytest.mark.parametrize("images, kind", [
    (torch.full((1, 3, 8, 8), 128, dtype=torch.uint8), "torch.uint8"),
    (np.zeros((1, 3, 8, 8), np.float32), "ndarray")])
def test_what_is_in_no_range_of_floats_is_refused(images, kind):
    """Clamped to [-1, 1], 0 to 255 would be white."""
    for use in (to_uint8, tile):
        with pytest.raises(ValueError, match=rf"of floats in \[-1, 1\], not {kind}: torch.as"):
            use(images)


@pytest.mark.parametrize("shape", [(3, 8, 8), (5, 3, 8), (1, 8, 8, 3), (0, 3, 8, 8), (1, 2, 8, 8)])
def test_images_of_another_shape_are_refused(shape):
    for use in (to_uint8, tile):
        with pytest.raises(ValueError, match=r"have the shape \(N, 3, R, R\).*: give a single im"):
            use(torch.zeros(shape))


def test_a_gif_keeps_its_frames_and_their_colours(tmp_path):
    across = np.linspace(0, 255, 64, dtype=np.uint8)
    pixels = np.stack(np.broadcast_arrays(across, across[:, None], 128), axis=2).astype(np.uint8)
    frames = [Image.fromarray(pixels), Image.fromarray(255 - pixels)]
    with Image.open(save_gif(frames, tmp_path / "a.gif", milliseconds=50)) as gif:
        assert (gif.n_frames, gif.info["loop"], gif.info["duration"]) == (2, 0, 50)
        for number, frame in enumerate(frames):
            gif.seek(number)
            error = np.asarray(gif.convert("RGB"), float) - np.asarray(frame, float)
            assert np.abs(error).mean() < 4  # of 255: each frame has its own 256 colours


def test_grey_and_rgba_images_are_seen_as_they_look():
    grey, rgb = (torch.rand(2, c, 4, 4) * 2 - 1 for c in (1, 3))
    assert torch.equal(with_channels(grey), grey.repeat(1, 3, 1, 1))
    assert torch.equal(to_uint8(grey), to_uint8(grey.repeat(1, 3, 1, 1)))
    ours = to_uint8(with_channels(rgb, 1))[0, :, :, 0].numpy()
    theirs = np.asarray(Image.fromarray(to_uint8(rgb)[0].numpy()).convert("L"))
    assert np.abs(ours.astype(int) - theirs).max() <= 1
    alpha = torch.tensor([-1.0, 0.0, 1.0, 9.0]).expand(2, 1, 4, 4)
    seen = with_channels(torch.cat([rgb, alpha], dim=1))
    assert torch.equal(seen[..., 0], torch.ones(2, 3, 4))  # transparent: the white ground
    torch.testing.assert_close(seen[..., 1], (rgb[..., 1] + 1) / 2)
    assert torch.equal(seen[..., 2:], rgb[..., 2:])
    assert torch.equal(with_channels(with_channels(rgb, 4)), rgb)
    assert with_channels(rgb) is rgb and with_channels(grey, 4).shape == (2, 4, 4, 4)
    assert with_channels(torch.cat([rgb, alpha], dim=1), 1).shape == grey.shape
