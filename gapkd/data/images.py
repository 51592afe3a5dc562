"""Tensors in [-1, 1] to 8-bit pictures."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gapkd.files.storage import write_atomically


def to_uint8(images: Tensor) -> Tensor:
    """(N, 3, R, R) in [-1, 1], clamped -> (N, R, R, 3) uint8 on the CPU."""
    scaled = images.detach().float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu()


def tile(images: Tensor, columns: int = 8) -> Image.Image:
    """Images (N, 3, R, R) side by side, row by row, on a white ground with a hairline between them."""
    pixels = to_uint8(images)
    n, r = len(pixels), pixels.shape[1]
    rows = -(-n // columns)
    gap = max(1, r // 32)
    sheet = torch.full((rows * (r + gap) - gap, columns * (r + gap) - gap, 3), 255, dtype=torch.uint8)
    for i, picture in enumerate(pixels):
        y, x = divmod(i, columns)
        sheet[y * (r + gap):y * (r + gap) + r, x * (r + gap):x * (r + gap) + r] = picture
    return Image.fromarray(sheet.numpy())


def untile(row: Tensor) -> Tensor:
    """The images of a `tile` that has one row: (3, R, W) -> (N, 3, R, R)."""
    r = row.shape[1]
    return row.unfold(2, r, r + max(1, r // 32)).permute(2, 0, 1, 3)


def png(picture: Image.Image) -> bytes:
    """The content of a PNG file."""
    buffer = io.BytesIO()
    picture.save(buffer, format="png")
    return buffer.getvalue()


def save_png(images: Tensor, path: str | Path, columns: int = 8) -> Path:
    """Write images (N, 3, R, R) as one tiled PNG."""
    return write_atomically(path, png(tile(images, columns)))


def save_gif(frames: list[Image.Image], path: str | Path, milliseconds: int = 60) -> Path:
    """Write pictures of one size as an animation that starts again at its end."""
    buffer = io.BytesIO()
    small = [frame.quantize(64, Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE) for frame in frames]
    small[0].save(buffer, format="gif", save_all=True, append_images=small[1:], duration=milliseconds, loop=0)
    return write_atomically(path, buffer.getvalue())
