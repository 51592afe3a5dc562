"""Images to train on: toy faces without end, or a folder or zip of real images.

A dataset turns indices into images, nothing more; which indices come when is `ordered_indices`'
affair. So a run that resumes at image 100,000 sees what it would have seen without the pause, and
two runs that share a seed see the same images in the same order.

Reading a file executes nothing: Pillow decodes a fixed list of formats (its PostScript reader,
which calls another program, is not among them), and entries of a zip are read in memory and never
unpacked.
"""

from __future__ import annotations

import json
import math
import os
import time
import warnings
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, TypeVar

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from gapkd.data.toyfaces import check_resolution, toy_faces

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "PPM")
CACHE_BYTES = 2**30
ENTRY_BYTES = 2**28  # a zip entry that unpacks to more is no image that anybody trains on
CHECK_SECONDS = 20  # so long images are looked at before a training begins
AT_ONCE_PIXELS = 10**8  # so much is decoded within seconds: when a dataset is opened
T = TypeVar("T")
U = TypeVar("U")
NAMED = 100  # broken files in one message


class Dataset(Protocol):
    """What training and metrics need of a dataset.

    name: for logs and file names. resolution: R. size: number of images, None: there is no end.
    load: indices, int64 (N,) -> images, float32 (N, 3, R, R) in [-1, 1].
    """

    name: str
    resolution: int
    size: int | None

    def load(self, indices: Tensor) -> Tensor: ...


class ToyFaces:
    """Rendered faces, endless: index i is the same face for the same seed, at any resolution.

    Args:
        device: where they are rendered; a GPU draws some thousand at once, ahead of their being
            asked for, since it takes as long over one batch.
    """

    name = "toyfaces"
    size = None

    def __init__(self, resolution: int = 32, seed: int = 0, device: torch.device | str = "cpu"):
        check_resolution(resolution)
        self.resolution, self.seed, self.device = resolution, seed, torch.device(device)
        self._block = lru_cache(maxsize=2)(self._render_block)

    def load(self, indices: Tensor) -> Tensor:
        """Indices, int64 (N,) -> images, float32 (N, 3, R, R) in [-1, 1]."""
        if self.device.type == "cpu":
            images, _ = toy_faces(indices, resolution=self.resolution, seed=self.seed)
            return images
        numbers, images = indices // self._at_once, []
        for number, count in zip(*torch.unique_consecutive(numbers, return_counts=True),
                                 strict=True):
            places, indices = indices.split([count, len(indices) - count])
            images.append(self._block(int(number))[places % self._at_once])
        return torch.cat(images)

    @property
    def _at_once(self) -> int:
        return max(1, 2**24 // self.resolution**2)

    def _render_block(self, number: int) -> Tensor:
        first = number * self._at_once
        numbers = torch.arange(first, first + self._at_once, device=self.device)
        return toy_faces(numbers, resolution=self.resolution, seed=self.seed)[0]


class ImageFiles:
    """What a folder and a zip share: named files that become square RGB images of one size.

    Every header is read at once, so that what is no image or too small is named before training
    starts. Pixels are kept as uint8 if the whole set fits into `cache_bytes`. They are decoded when
    asked for; where all of that takes seconds, here, so that a damaged file is named here, too.

    Args:
        path: of the folder or zip.
        resolution: R, a power of two. Other images are cut to their central square and resized.
        cache_bytes: memory that decoded images may take; 0 decodes every time.
        only: name of the one image to read; empty: all of them.
    Attributes:
        names: paths inside the folder or zip, sorted; index i is names[i].
        labels: from a dataset.json in StyleGAN's format: int64 (size,), float32 (size, c_dim) or
            None.
    Raises ValueError for no image, a broken, huge or too small image, an unusable dataset.json.
    """

    def __init__(self, path: str | Path, resolution: int, cache_bytes: int = CACHE_BYTES,
                 only: str = ""):
        check_resolution(resolution)
        self.path, self.resolution = Path(path), resolution
        self.name = self.path.resolve().stem
        everything = [only] if only else self._list()
        self.names = sorted(name for name in everything if _is_image_name(name))
        if not self.names:
            raise ValueError(f"there is no image in {self.path}: "
                             f"it should hold files that end in {', '.join(SUFFIXES)}")
        self.size = len(self.names)
        self.labels = self._read_labels() if "dataset.json" in everything else None
        self._cached = self.size * 3 * resolution**2 <= cache_bytes
        self._kept: dict[int, Tensor] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            sizes = _try_all(self._image_size, self.names, self.names)
        others = sum(size != (resolution, resolution) for size in sizes)
        if others and not only:
            warnings.warn(f"{others:,} of the {self.size:,} images in {self.path.name} are not "
                          f"{resolution}x{resolution}: they are cut to their central square and "
                          "resized", stacklevel=3)
        if self._cached and sum(width * height for width, height in sizes) <= AT_ONCE_PIXELS:
            self.check()

    def check(self, seconds: float = math.inf) -> None:
        """Decode one image after the other until the time is up; where one is broken, all of them.
        ValueError names the broken ones."""
        _try_all(self._pixels, range(self.size), self.names, seconds)

    def load(self, indices: Tensor) -> Tensor:
        """Indices, int64 (N,) -> images, float32 (N, 3, R, R) in [-1, 1]. ValueError names the
        broken images of the set if one of them is among these."""
        try:
            pixels = torch.stack([self._pixels(i) for i in indices.tolist()])
        except ValueError:
            self.check()
            raise
        return pixels.float().div_(127.5).sub_(1.0)

    def _list(self) -> list[str]:
        raise NotImplementedError

    def _open(self, name: str) -> BinaryIO:
        raise NotImplementedError

    @contextmanager
    def _image(self, name: str) -> Iterator[Image.Image]:
        """The opened image; whatever goes wrong with it names it."""
        bombs = Image.DecompressionBombError, Image.DecompressionBombWarning, _TooMuchError
        try:
            with self._open(name) as file, Image.open(file, formats=FORMATS) as image:
                yield image
        except bombs as error:
            raise ValueError(f"{name} in {self.path} is refused, it would unpack to an enormous "
                             f"image ({error}): remove it or make it smaller") from error
        except Exception as error:  # decoders raise what they like: OSError, struct.error, ...
            raise ValueError(f"{name} in {self.path} cannot be read as an image ({error}): remove "
                             "or replace it") from error

    def _image_size(self, name: str) -> tuple[int, int]:
        with self._image(name) as image:
            width, height = image.size
        if min(width, height) < self.resolution:
            fitting = 1 << (min(width, height).bit_length() - 1)
            raise ValueError(
                f"{name} in {self.path} is {width}x{height}, smaller than the resolution "
                f"{self.resolution}: remove it, or ask for a resolution of at most {fitting}")
        return width, height

    def _pixels(self, i: int) -> Tensor:
        """Image i, uint8 (3, R, R)."""
        if i in self._kept:
            return self._kept[i]
        with self._image(self.names[i]) as image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            square = to_rgb(image)
        if square.size != (self.resolution, self.resolution):
            side = min(square.size)
            left, top = (square.width - side) // 2, (square.height - side) // 2
            # cropped first, not by resize(box=...): the filter would reach beyond the box
            square = square.crop((left, top, left + side, top + side))
            square = square.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1)
        if self._cached:
            self._kept[i] = pixels
        return pixels

    def _read_labels(self) -> Tensor | None:
        try:
            with self._open("dataset.json") as file:
                entries = json.loads(file.read()).get("labels")
            if not entries:
                return None
            by_name = dict(entries)
            labels = torch.tensor([by_name[name] for name in self.names])
            if labels.ndim > 2 or (labels.ndim == 1 and labels.is_floating_point()):
                raise ValueError("a label is a whole number or a vector")
        except KeyError as error:
            raise ValueError(f"dataset.json in {self.path} has no label for {error.args[0]}: add "
                             "it, or remove dataset.json to train without labels") from error
        except (ValueError, TypeError, AttributeError, RecursionError, OSError, RuntimeError,
                zipfile.BadZipFile) as error:
            raise ValueError(f"dataset.json in {self.path} is not in StyleGAN's format, "
                             '{"labels": [["name.png", 3], ...]}: mend or remove it') from error
        return labels.float() if labels.ndim == 2 else labels.long()


class ImageFolder(ImageFiles):
    """Images in a folder and the folders below it. Arguments and errors as for ImageFiles."""

    def _list(self) -> list[str]:
        files = (Path(folder, file) for folder, _, names in os.walk(self.path) for file in names)
        return [file.relative_to(self.path).as_posix() for file in files]

    def _open(self, name: str) -> BinaryIO:
        return open(self.path / name, "rb")


class ImageZip(ImageFiles):
    """Images in a zip, as one made for StyleGAN. Arguments and errors as for ImageFiles."""

    def _list(self) -> list[str]:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, NotImplementedError) as error:
            raise ValueError(f"{self.path} cannot be read as a zip ({error}): download or pack it "
                             "again") from error
        return [entry.filename for entry in self._zip.infolist() if not entry.is_dir()]

    def _open(self, name: str) -> BinaryIO:
        entry = self._zip.getinfo(name)
        if entry.file_size > ENTRY_BYTES:
            raise _TooMuchError(f"{entry.file_size:,} bytes")
        return self._zip.open(entry)


class _TooMuchError(ValueError):
    """A zip entry that is far larger than any image."""


def _is_image_name(name: str) -> bool:
    # macOS puts "._photo.jpg", which is no image, beside photo.jpg, and "__MACOSX" into its zips.
    hidden = any(part.startswith(".") or part == "__MACOSX" for part in PurePosixPath(name).parts)
    return name.lower().endswith(SUFFIXES) and not hidden


def _try_all(read: Callable[[T], U], items: Iterable[T], names: Sequence[str],
             seconds: float = math.inf) -> list[U]:
    """`read` of every item, or of as many as there is time for. Nobody wants to mend fifty files in
    fifty runs: from the first problem on there is time for all, and the names of all are raised."""
    found, problems, end = [], {}, time.monotonic() + seconds
    for item, name in zip(items, names, strict=True):
        if time.monotonic() > end and not problems:
            break
        try:
            found.append(read(item))
        except ValueError as error:
            problems[name] = error
    if problems:
        (_, first), *others = problems.items()
        shown = ", ".join(name if name.isprintable() else ascii(name) for name, _ in others[:NAMED])
        more = f" and {len(others) - NAMED:,} more" if len(others) > NAMED else ""
        listed = f" ({len(problems):,} such files in all); the others: {shown}{more}"
        raise ValueError(f"{first}{listed if others else ''}") from first
    return found


def to_rgb(image: Image.Image) -> Image.Image:
    """Any 8- or 16-bit image -> RGB. 16 bits are scaled to 8; transparent parts become white.

    Raises ValueError for pixels without a known range (32-bit integers above 65,535, floats).
    """
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise ValueError("it has 32-bit pixels; 8 or 16 bits are understood")
        eight_bits = (values.astype(np.uint32) * 255 + 32767) // 65535
        image = Image.fromarray(eight_bits.astype(np.uint8))
    elif image.mode == "F":
        raise ValueError("it has floating-point pixels; 8 or 16 bits are understood")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_image(path: str | Path, resolution: int) -> Tensor:
    """One image file, cut to its central square and resized: (1, 3, R, R) in [-1, 1]. Raises as
    ImageFiles."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"there is no image {path}: give the path of a picture")
    if not _is_image_name(path.name):
        raise ValueError(f"{path} is no image by its name: it should end in {', '.join(SUFFIXES)}")
    one = ImageFolder(path.parent, resolution, only=path.name)
    return one.load(torch.zeros(1, dtype=torch.int64))


def open_dataset(source: str | Path, resolution: int, seed: int = 0,
                 device: torch.device | str = "cpu") -> Dataset:
    """The dataset that `source` names.

    Args:
        source: "toyfaces", or the path of a folder or zip of images.
        resolution: R, a power of two.
        seed: of the toy faces; real images are what they are.
        device: where toy faces are rendered; real images come from the disk to the CPU.
    Raises ValueError when nothing is there, when it is neither folder nor zip, and as ImageFiles.
    """
    if str(source) == "toyfaces":
        return ToyFaces(resolution, seed, device)
    path = Path(source)
    if path.is_dir():
        return ImageFolder(path, resolution)
    if not path.exists():
        raise ValueError(f"there is no folder or zip at {path}: give a path that exists, or "
                         '"toyfaces"')
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is neither a folder nor a zip: give a folder of images or a zip "
                         "of images")
    return ImageZip(path, resolution)


@lru_cache(maxsize=4)
def _permutation(size: int, seed: int, epoch: int) -> Tensor:
    # SeedSequence mixes the two: (seed 0, epoch 1) and (seed 1, epoch 0) differ.
    (mixed,) = np.random.SeedSequence((seed, epoch)).generate_state(1, np.uint64)
    return torch.randperm(size, generator=torch.Generator().manual_seed(int(mixed) >> 1))


def ordered_indices(dataset_size: int | None, start: int, count: int, seed: int) -> Tensor:
    """Indices at positions start, ..., start + count - 1 of a run's endless stream. int64 (count,)

    A finite set comes in a fresh permutation every epoch, which depends on the seed and the epoch
    alone; a set without end comes in order. A position gives the same index whatever the batch
    size. Raises ValueError for an empty set or a negative start, count or seed.
    """
    if (dataset_size is not None and dataset_size < 1) or min(start, count, seed) < 0:
        raise ValueError("ordered_indices needs at least 1 image, and start, count and seed of at "
                         f"least 0, not size {dataset_size}, start {start}, count {count}, "
                         f"seed {seed}")
    if dataset_size is None:
        return torch.arange(start, start + count)
    parts = [torch.empty(0, dtype=torch.int64)]
    position, end = start, start + count
    while position < end:
        epoch, offset = divmod(position, dataset_size)
        taken = min(dataset_size - offset, end - position)
        parts.append(_permutation(dataset_size, seed, epoch)[offset:offset + taken])
        position += taken
    return torch.cat(parts)


class Prefetcher:
    """Loads the batch that will be asked for next, while the caller works on the one it has.

    Args:
        load: position -> batch; what it raises is raised where the batch is asked for.
        in_background: use a second thread; without it, batches are loaded when asked for.
    """

    def __init__(self, load: Callable[[int], Tensor], in_background: bool):
        self.load, self.pending = load, {}
        self.thread = ThreadPoolExecutor(1, "images") if in_background else None

    def __call__(self, position: int, following: int) -> Tensor:
        """The batch at `position`; the one at `following` is begun."""
        if self.thread is None:
            return self.load(position)
        begun = self.pending.pop(position, None)
        self.pending = {following: self.thread.submit(self.load, following)}
        return begun.result() if begun else self.load(position)




def flip(images: Tensor, coins: Tensor) -> Tensor:
    """Mirror image i left to right where coins[i] < 1/2. images (N, 3, R, R), coins (N,)."""
    return torch.where(coins[:, None, None, None] < 0.5, images.flip(3), images)
