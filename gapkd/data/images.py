"""Tensors in [-1, 1] to 8-bit pictures; grey, RGB and RGBA."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from gapkd.files.storage import write_atomically

LUMA = 0.299, 0.587, 0.114  # of red, green and blue, as Pillow weighs them


def with_channels(images: Tensor, channels: int = 3) -> Tensor:
    """Images of 1 (grey), 3 or 4 (RGBA) channels as such of another number of channels: grey is
    repeated, colours are weighed, what is transparent shows a white ground, what had no alpha is
    opaque. (N, C, R, R) -> (N, channels, R, R), with gradients."""
    if images.shape[1] == channels:
        return images
    if images.shape[1] == 4:
        alpha = (images[:, 3:].clamp(-1, 1) + 1) / 2
        images = images[:, :3] * alpha + (1 - alpha)
    if channels == 1:
        if images.shape[1] == 3:
            images = sum(weight * images[:, i:i + 1] for i, weight in enumerate(LUMA))
        return images
    images = images.expand(-1, 3, -1, -1)
    return images if channels == 3 else torch.cat([images, torch.ones_like(images[:, :1])], dim=1)


def check_range(images: object, values: bool = False) -> None:
    """Raise ValueError for what is no tensor of floats; where its `values` are looked at, too, for
    some that are not finite, or far beyond [-1, 1], which generators overshoot a little."""
    is_tensor = isinstance(images, Tensor)
    kind = images.dtype if is_tensor else type(images).__name__
    if is_tensor and images.is_floating_point():
        if not values or (images.abs() <= 10).all():
            return
        kind = f"values of up to {images.abs().max():g}"
    raise ValueError(f"images are tensors of floats in [-1, 1], not {kind}: "
                     "torch.as_tensor(x) / 127.5 - 1 brings 0 to 255 there")


def refuse_bytes(images: Tensor) -> None:
    """Raise ValueError for what is no tensor of floats, and for floats of 0 to 255. (What
    generators draw overshoots to both sides.)"""
    check_range(images)
    if images.numel() and images.min() >= 0 and images.max() > 10:
        check_range(images, values=True)


def to_uint8(images: Tensor) -> Tensor:
    """(N, 3, R, R) in [-1, 1], clamped -> (N, R, R, 3) uint8 on the CPU; of grey and RGBA images
    what they look like (`with_channels`). Raises ValueError for what is no tensor of floats, or of
    another shape."""
    refuse_bytes(images)
    if images.ndim != 4 or not len(images) or images.shape[1] not in (1, 3, 4):
        raise ValueError("images have the shape (N, 3, R, R), N at least 1, or 1 or 4 channels, "
                         f"not {tuple(images.shape)}: give a single image as images[None], and "
                         "those whose channels come last as images.permute(0, 3, 1, 2)")
    scaled = with_channels(images.detach()).float().add(1).mul(127.5).round().clamp(0, 255)
    return scaled.to(torch.uint8).permute(0, 2, 3, 1).cpu()


def tile(images: Tensor, columns: int = 8, gap: tuple[int, int] | None = None,
         factor: int = 1) -> Image.Image:
    """Images (N, 3, R, R) row by row on a white ground.

    Args:
        gap: px between them, (down, across); None: a hairline.
        factor: how many times as large every pixel is drawn.
    """
    pixels = to_uint8(images).repeat_interleave(factor, dim=1).repeat_interleave(factor, dim=2)
    n, r = pixels.shape[:2]
    down, across = (max(1, r // 32),) * 2 if gap is None else gap
    height, width = -(-n // columns) * (r + down) - down, columns * (r + across) - across
    sheet = torch.full((height, width, 3), 255, dtype=torch.uint8)
    for i, picture in enumerate(pixels):
        row, column = divmod(i, columns)
        y, x = row * (r + down), column * (r + across)
        sheet[y:y + r, x:x + r] = picture
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
    palette = {"colors": 256, "method": Image.Quantize.MEDIANCUT, "dither": Image.Dither.NONE}
    first, *others = [frame.quantize(**palette) for frame in frames]  # one of its own each
    buffer = io.BytesIO()
    first.save(buffer, format="gif", save_all=True, append_images=others, duration=milliseconds,
               loop=0)
    return write_atomically(path, buffer.getvalue())
