"""Images to train on: toy faces without end, or a folder or zip of real images.

A dataset turns indices into images, nothing more; which indices come when is `ordered_indices`'
affair. So a run that resumes at image 100,000 sees what it would have seen without the pause, and
two runs that share a seed see the same images in the same order.

Reading a file executes nothing (gapkd/data/decoding.py), and entries of a zip are read in memory
and never unpacked.
"""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import stat
import time
import unicodedata
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from gapkd.data.decoding import (
    DEPTHS,
    NEARLY_BLACK,
    PUT_AWAY_WORDS,
    SIGNED,
    SmallCopies,
    copied_from,
    formats,
    is_put_away,
    is_unseen,
    needed_depth,
    same_name,
    says_its_kind,
    stated_depth,
    to_8_bits,
    turn_of,
    why_left_out,
    without_metadata,
)
from gapkd.data.toyfaces import as_indices, toy_faces
from gapkd.files.storage import NOT_FETCHED, cache_folder, other_kind
from gapkd.networks.base import MOST_CLASSES, check_resolution
from gapkd.settings import shown

CACHE_BYTES = 2**30
UNPACKED = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
ENTRY_BYTES = 2**28  # a zip entry that unpacks to more is no image that anybody trains on
CHECK_SECONDS = 20  # so long images are looked at before a training begins
AT_ONCE_PIXELS = 10**8  # so much is decoded within seconds: when a dataset is opened
LABELS = "dataset.json"  # in small letters or others
NAMED = 100  # broken files in one message
MISNAMED = NOT_FETCHED | {"HEIC": "save it as JPEG"}
"""A word of what a file is that should be an image -> what to do about it."""


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

    On a GPU some thousand are rendered at once, ahead of their being asked for, since it takes as
    long over one batch.
    """

    name = "toyfaces"
    size = None

    def __init__(self, resolution: int = 32, seed: int = 0, device: torch.device | str = "cpu"):
        check_resolution(resolution)
        self.resolution, self.seed, self.device = resolution, seed, torch.device(device)
        self._at_once = max(1, 2**24 // resolution**2)
        self._blocks: dict[int, Tensor] = {}  # the last two

    def load(self, indices: Tensor) -> Tensor:
        """Indices, int64 (N,) -> images, float32 (N, 3, R, R) in [-1, 1]."""
        indices = as_indices(indices)
        if self.device.type == "cpu":
            images, _ = toy_faces(indices, resolution=self.resolution, seed=self.seed)
            return images
        images = torch.empty(len(indices), 3, self.resolution, self.resolution, device=self.device)
        numbers = indices // self._at_once
        for number in numbers.unique().tolist():
            here = numbers == number
            images[here] = self._block(number)[indices[here] % self._at_once]
        return images

    def _block(self, number: int) -> Tensor:
        if number not in self._blocks:
            first = number * self._at_once
            faces = torch.arange(first, first + self._at_once, device=self.device)
            rendered, _ = toy_faces(faces, resolution=self.resolution, seed=self.seed)
            self._blocks = dict([*self._blocks.items()][-1:]) | {number: rendered}
        return self._blocks[number]


class ImageFiles:
    """What a folder and a zip share: named files that become square RGB images of one size.

    Every header is read at once, so that what is too small or damaged is named before training
    starts; files that are not images are skipped, which one line says. Pixels are kept as uint8 if
    the whole set fits into `cache_bytes`; if not, small copies of larger pictures are kept on the
    disk. They are decoded when asked for; where all of that takes seconds, here.

    Args:
        path: of the folder or zip.
        resolution: R, a power of two. Other images are cut to their central square and resized.
        cache_bytes: memory that decoded images may take.
        only: name of the one image to read; empty: all of them.
    Attributes:
        names: paths inside the folder or zip, sorted, however accents are composed; index i is
            names[i].
        labels: from a dataset.json in StyleGAN's format: int64 (size,), float64 (size, c_dim) or
            None.
        depth: bits of a value of the images that do not state them; 0 where all do.
    Raises ValueError for no image, a broken, huge or too small image, an unusable dataset.json.

    A kind of files has a `_list` of all names (what cannot be a file is counted in `_left_out`), a
    way to `_open` one, its `_bytes`, and its `_identity`, which changes when the file does.
    """

    def __init__(self, path: str | Path, resolution: int, cache_bytes: int = CACHE_BYTES,
                 only: str = ""):
        check_resolution(resolution)
        self.path, self.resolution = Path(path), resolution
        self.name, self._alone = self.path.resolve().stem, bool(only)
        # What Pillow finds odd in metadata is of no use to anybody here. (It warns of large images
        # in another category.)
        warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
        self._left_out: Counter[str] = Counter()
        self._longer = 0  # files with several images
        self._unseen, self._told_dark = 0, False
        everything = [only] if only else self._list()
        reasons = {name: None if only else self._why_left_out(name) for name in everything}
        for name in reasons:
            if reasons[name] is None and reasons.get(copied_from(name), "") is None:
                reasons[name] = "copies beside a picture"
        self._left_out += Counter(filter(None, reasons.values()))
        named = sorted(name for name, reason in reasons.items() if reason is None)
        self.names = sorted(named, key=lambda name: unicodedata.normalize("NFC", name))
        self.size = len(self.names)
        self._say_what_is_left_out()
        self.labels = None if only else self._read_labels(self._label_files(everything))
        self._cached = self.size * 3 * resolution**2 <= cache_bytes
        self._kept: dict[int, Tensor] = {}
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            headers = _try_all(self._size_and_depth, self.names, self.names)
        sizes, depths = zip(*headers, strict=True)
        self._fits = [size == (resolution, resolution) for size in sizes]
        self._copies = None if self._cached else SmallCopies(cache_folder() / "pictures")
        if not only:
            self._say_what_is_resized(self._fits.count(False))
            if self._longer:
                self._warn(f"of {self._longer:,} of the {self.size:,} files", "with several pages "
                           "or frames only the first one is used: save the others as files of "
                           "their own if they are wanted")
        self.depth = self._find_depth(
            [name for name, depth in zip(self.names, depths, strict=True) if depth is None])
        if self._cached and sum(width * height for width, height in sizes) <= AT_ONCE_PIXELS:
            self.check()

    def check(self, seconds: float = math.inf) -> None:
        """Decode one image after the other until the time is up; where one is broken, ten times as
        long. ValueError names the broken ones; of values in a wrong range a warning speaks."""
        self._unseen = 0
        # the pixels are kept by `_pixels`, if there is room for all of them
        largest = _try_all(lambda i: int(self._pixels(i).max()), range(self.size), self.names,
                           seconds)
        if self._unseen:
            self._warn(f"{self._unseen:,} of {len(largest):,} images", "have an opacity of 0 or 1 "
                       "of 255 everywhere, which would hide them: their colours are used as they "
                       "are")
        if 0 < max(largest, default=0) <= NEARLY_BLACK and not (self.depth or self._told_dark):
            self._told_dark = True
            self._warn(f"{len(largest):,} of {self.size:,} images, all that were looked at,",
                       f"hold no value above {max(largest)} of 255, so they are nearly black: "
                       "bring their values to 0 to 255")

    def load(self, indices: Tensor) -> Tensor:
        """Indices, int64 (N,) -> images, float32 (N, 3, R, R) in [-1, 1]. ValueError names the
        broken images of the set if one of them is among these."""
        indices = as_indices(indices)
        try:
            pixels = torch.stack([self._pixels(i) for i in indices.tolist()])
        except ValueError:
            self.check(CHECK_SECONDS)
            raise
        return pixels.float().div_(127.5).sub_(1.0)

    def checksum(self) -> str:
        """Of the names and sizes of the files: the same for a folder and for a zip of it."""
        entries = "\0".join(f"{name} {self._bytes(name)}" for name in self.names)
        return hashlib.sha256(entries.encode(errors="surrogateescape")).hexdigest()

    def _why_left_out(self, name: str) -> str | None:
        """As decoding.why_left_out; a file that goes without saying, or does not say what it is, is
        asked."""
        reason = why_left_out(name)
        if reason is None or reason and says_its_kind(name):
            return reason
        try:
            with self._open(name) as file, Image.open(file, formats=SIGNED):
                return PUT_AWAY_WORDS if is_put_away(name) else None
        except Exception:  # decoders raise what they like
            return reason

    def _say_what_is_left_out(self) -> None:
        ordered = sorted(self._left_out.items(), key=lambda item: (-item[1], item[0]))
        listed = ", ".join(f"{count:,} {reason}" for reason, count in ordered[:8])
        left = self._left_out.total()
        if not self.size:
            raise ValueError(f"there is no image in {shown(self.path)}"
                             f"{f' (skipped: {listed})' if left else ''}: it should hold files "
                             "that end in .png, .jpg, .webp, .gif, .tif...")
        if left:
            self._warn(f"skipped {left:,} of {left + self.size:,} files",
                       f"(not readable images: {listed}{', ...' if ordered[8:] else ''})")

    def _say_what_is_resized(self, count: int) -> None:
        if not count:
            return
        self._warn(f"{count:,} of the {self.size:,} images", f"are not {self.resolution}x"
                   f"{self.resolution}: they are cut to their central square and resized")
        if self._copies:
            gigabytes = count * 3 * self.resolution**2 / 1e9
            self._warn("decoded, all images", "are too many for the memory: small copies (at most "
                       f"{gigabytes:.1f} GB) are kept in {shown(self._copies.folder)}, which may "
                       "be removed at any time")

    def _warn(self, which: str, what: str) -> None:
        warnings.warn(f"{which} in {shown(self.path.name)} {what}", stacklevel=5)

    def _read(self, name: str, take: Callable[[Image.Image], object]) -> object:
        """What `take` makes of the opened image; whatever goes wrong with it names it."""
        bombs = Image.DecompressionBombError, Image.DecompressionBombWarning
        try:
            try:
                with self._open(name) as file, Image.open(file, formats=formats(name)) as image:
                    if not isinstance(image.info.get("xmp"), bytes):  # which Pillow searches
                        image.info.pop("xmp", None)
                    return take(image)
            except bombs:
                raise
            except Exception:
                with self._open(name) as file:
                    bare = without_metadata(file.read(ENTRY_BYTES))
                if bare is None:
                    raise
                with Image.open(io.BytesIO(bare), formats=formats(name)) as image:
                    return take(image)
        except bombs as error:
            raise ValueError(f"{self._named(name)} is refused, it would unpack to an enormous "
                             f"image ({error}): remove it or make it smaller") from error
        except FileNotFoundError as error:
            raise ValueError(f"{self._named(name)} is gone: put it back") from error
        except Exception as error:  # decoders raise what they like: OSError, struct.error, ...
            why, mend = self._fault(name, error)
            raise ValueError(f"{self._named(name)} cannot be read as an image ({why}): {mend}"
                             ) from error

    def _fault(self, name: str, error: Exception) -> tuple[str, str]:
        """What is wrong with a file that cannot be read, and what to do about it."""
        mend = "save it as JPEG or PNG" if self._alone else "remove or replace it"
        if not isinstance(error, UnidentifiedImageError):
            return shown(error), mend
        with self._open(name) as file:
            kind = other_kind(file.read(512))
        if kind in ("a PNG picture", "a JPEG picture", "of an unknown kind"):
            return "it is damaged, or of a kind that is not known", mend
        mends = (mend for word, mend in MISNAMED.items() if word in kind)
        return f"it is {kind}", next(mends, mend)

    def _named(self, name: str) -> str:
        return f"{shown(name)} in {shown(self.path)}"

    def _size_and_depth(self, name: str) -> tuple[tuple[int, int], int | None]:
        """Width and height, and the bits of a value if the file states them."""
        (width, height), depth, longer = self._read(name, lambda image: (
            image.size, stated_depth(image), _has_more(image)))
        self._longer += longer
        if min(width, height) < self.resolution:
            if self._alone:
                raise ValueError(f"{self._named(name)} is {width}x{height}: give a picture of at "
                                 f"least {self.resolution}x{self.resolution}")
            fitting, smaller = 1 << (min(width, height).bit_length() - 1), ""
            if fitting >= 8:
                smaller = f", or ask for a resolution (or take a teacher) of at most {fitting}"
            raise ValueError(f"{self._named(name)} is {width}x{height}, smaller than the "
                             f"resolution {self.resolution}: remove it{smaller}")
        return (width, height), depth

    def _pixels(self, i: int) -> Tensor:
        """Image i, uint8 (3, R, R)."""
        if i in self._kept:
            return self._kept[i]
        pixels = torch.from_numpy(np.array(self._square(i))).permute(2, 0, 1)
        if self._cached:
            self._kept[i] = pixels
        return pixels

    def _square(self, i: int) -> Image.Image:
        """Image i, RxR; where that takes long and is not kept in memory, from its copy."""
        if self._fits[i] or not self._copies:
            return self._decoded(i)
        try:
            decisive = self.resolution, self.depth, self._identity(self.names[i])
        except OSError:  # the file is gone, which is said where it is read
            return self._decoded(i)
        square = self._copies.get(*decisive)
        if square is None:
            square = self._decoded(i)
            self._copies.put(square, *decisive)
        return square

    def _decoded(self, i: int) -> Image.Image:
        """The central square of image i, RxR."""
        picture = self._read(self.names[i], self._decode)
        if picture.size == (self.resolution, self.resolution):
            return picture
        side = min(picture.size)
        left, top = (picture.width - side) // 2, (picture.height - side) // 2
        # cropped first, not by resize(box=...): the filter would reach beyond the box
        square = picture.crop((left, top, left + side, top + side))
        return square.resize((self.resolution, self.resolution), Image.Resampling.LANCZOS)

    def _decode(self, image: Image.Image) -> Image.Image:
        # A JPEG can be decoded at a half, a quarter or an eighth; twice R is left to the filter.
        image.draft(None, (2 * self.resolution, 2 * self.resolution))
        picture = to_8_bits(image, stated_depth(image) or self.depth)
        picture.load()
        self._unseen += is_unseen(picture)
        picture, turn = to_rgb(picture), turn_of(image)
        return picture if turn is None else picture.transpose(turn)

    def _find_depth(self, names: list[str]) -> int:
        """Bits of a value of images that do not state them: what the largest value of all needs;
        0 for none. Where that is all 16, some of the others tell whether they are as deep."""
        needed = {}
        for name in names:
            needed[name] = self._read(name, needed_depth)
            if needed[name] == DEPTHS[-1]:
                break
        rest = names[len(needed):]
        for name in rest[::len(rest) // 10 + 1]:  # each is decoded whole
            with suppress(ValueError):  # a damaged one is named with all others
                needed[name] = self._read(name, needed_depth)
        depth = max(DEPTHS[0], *needed.values()) if names else 0
        if names and depth < DEPTHS[-1]:
            self._warn(f"{len(names):,} of the {self.size:,} images", "store more than 8 bits a "
                       "value and do not say how many count: their largest value needs "
                       f"{depth}, so white is {2**depth - 1:,}")
        shallow = [name for name, bits in needed.items() if 0 < bits <= depth - 4]
        if shallow:
            self._warn(f"{len(shallow):,} of {len(needed):,} images of more than 8 bits that were "
                       "looked at", f"hold no value above {2**(depth - 4) - 1:,} "
                       f"({shown(shallow[0])} is one); others need {depth} bits, so white is "
                       f"{2**depth - 1:,} for all, and these are nearly black: unless they are "
                       "meant to be, bring all images to one depth")
        return depth

    def _label_files(self, everything: list[str]) -> list[str]:
        """dataset.json; where there is none those of folders below, if no picture lies outside."""
        found = [name for name in everything
                 if Path(same_name(name)).name.lower() == LABELS and not is_put_away(name)]
        for name in found:
            if same_name(name).lower() == LABELS:
                return [name]
        above = tuple(name[:-len(LABELS)] for name in found)
        outside = [name for name in self.names if not name.startswith(above)]
        if found and outside:
            self._warn(", ".join(map(shown, found)), f"is not used, since {shown(outside[0])} lies "
                       "in another folder: remove that, or label all images in one dataset.json at "
                       "the top")
        return [] if outside else found

    def _read_labels(self, files: list[str]) -> Tensor | None:
        by_name, twice, listed, values = {}, [], ", ".join(map(shown, files)), []
        there, spelt = set(self.names), {}  # labels by other spellings of a file's name
        try:
            for file in files:
                for name, label in self._entries(file, there):
                    labels = by_name if name in there else spelt
                    key = name if name in there else same_name(name)
                    if labels.setdefault(key, label) != label:
                        twice.append(name)
            if not (by_name or spelt):
                return None
            twice += [name for name, label in by_name.items()
                      if spelt.get(same_name(name), label) != label]
            values = [by_name[name] if name in by_name else spelt[same_name(name)]
                      for name in self.names]
            labels, whole = torch.tensor(values), True
            if labels.is_floating_point():  # of 32 bits, which round whole numbers above 2**24
                labels = torch.tensor(values, dtype=torch.float64)
                whole = bool(((labels == labels.floor()) & (labels.abs() < 2**63)).all())
            if labels.ndim > 2 or (labels.ndim == 1 and not whole):
                raise ValueError("a label is a whole number or a vector")
            labels = labels.double() if labels.ndim == 2 else labels.long()
        except KeyError as error:
            raise ValueError(f"{listed} in {shown(self.path)} has no label for "
                             f"{shown(error.args[0])}: add it, or remove {listed} to train without "
                             "labels") from error
        except Exception as error:  # parsers and decoders raise what they like
            if (odd := _odd_one(values)) is not None:
                raise ValueError(f"the label of {self._named(self.names[odd])} is "
                                 f"{json.dumps(values[odd])[:40]}, neither a whole number nor a "
                                 f"vector as the others are: mend it in {listed}, or remove "
                                 f"{listed} to train without labels") from error
            raise ValueError(f"{listed} in {shown(self.path)} is not in StyleGAN's format, "
                             '{"labels": [["name.png", 3], ...]}, or damaged: mend or remove it'
                             ) from error
        if twice:
            raise ValueError(f"{listed} in {shown(self.path)} gives {shown(twice[0])} two "
                             "different labels: keep the right one")
        finite = labels.float().isfinite().view(self.size, -1).all(dim=1)
        if not finite.all():
            name = self.names[finite.long().argmin()]
            raise ValueError(f"the label of {self._named(name)} holds what is no finite number "
                             f"(NaN?): mend it in {listed}, or remove {listed} to train without "
                             "labels")
        return labels

    def _entries(self, file: str, there: set[str]) -> list[tuple[str, object]]:
        """Names and labels of a dataset.json, which speaks of the folder in which it lies."""
        with self._open(file) as content:
            text = content.read()
        try:
            found = json.loads(text, object_pairs_hook=_with_repeats)
        except UnicodeDecodeError:  # another code page, as in names of old files
            text = text.decode(errors="surrogateescape")
            found = json.loads(text, object_pairs_hook=_with_repeats)
        if found and "labels" not in found:
            raise TypeError("its entries are elsewhere")
        entries = [] if found.get("labels") is None else found["labels"]
        pairs = [*entries.items()] if isinstance(entries, dict) else entries
        if not all(isinstance(pair, (list, tuple)) for pair in pairs):
            raise TypeError("each entry is a pair")  # of two characters or fields there are others
        folder = file[:-len(LABELS)]
        return [(_place_of(name, folder, there), label) for name, label in pairs]


def _with_repeats(pairs: list[tuple[str, object]]) -> dict | list:
    """An object of a JSON file; where a name comes twice, its pairs as they are."""
    found = dict(pairs)
    return found if len(found) == len(pairs) else pairs


def _place_of(name: str, folder: str, there: set[str]) -> str:
    """Where the picture lies that a dataset.json in a folder names: some name it from the top."""
    below = folder + name
    if not folder or below in there:
        return below
    tidy = folder + same_name(name)
    return name if name in there and tidy not in there else tidy


def _odd_one(labels: list) -> int | None:
    """The first label that is neither a whole number nor a vector, or not what most are."""
    kinds = [_kind(label) for label in labels]
    usual = Counter(filter(None, kinds)).most_common(1)
    return next((i for i, kind in enumerate(kinds) if not kind or kind != usual[0][0]), None)


def _kind(label: object) -> str | int | None:
    if isinstance(label, list):
        return len(label) if all(isinstance(number, (int, float)) for number in label) else None
    whole = isinstance(label, (int, float)) and label % 1 == 0 and abs(label) < 2**63
    return "whole" if whole else None


class ImageFolder(ImageFiles):
    """Images in a folder and the folders below it, linked ones too."""

    def _list(self) -> list[str]:
        around = {_place(folder) for folder in self.path.resolve().parents}
        found, seen, starts = [], set(), [str(self.path)]
        for start in starts:  # what is linked comes after what lies here, and nothing comes twice
            for folder, below, names in os.walk(start, onerror=self._count_unreadable):
                place = _place(folder)
                self._left_out["that lead to a folder around it"] += place in around
                if place in around or place in seen:
                    below.clear()
                    continue
                seen.add(place)
                if {"settings.json", "log.jsonl"} <= set(names) and "grids" in below:
                    below.remove("grids")  # of a run in this folder: drawn, not to be learned from
                found += [os.path.join(folder, name) for name in names]
                folders = [os.path.join(folder, name) for name in sorted(below)]
                starts += filter(os.path.islink, folders)
        files = [file for file in found if os.path.isfile(file)]
        self._left_out["that are no files or lead to none"] += len(found) - len(files)
        self._left_out += Counter()  # drops what was counted as 0
        return [Path(file).relative_to(self.path).as_posix() for file in files]

    def _count_unreadable(self, _: OSError) -> None:
        self._left_out["that you may not read"] += 1

    def _open(self, name: str) -> BinaryIO:
        return open(self.path / name, "rb")

    def _bytes(self, name: str) -> int:
        return os.stat(self.path / name).st_size

    def _identity(self, name: str) -> tuple:
        there = os.stat(self.path / name)
        return (os.path.realpath(self.path / name), there.st_size, there.st_mtime_ns,
                there.st_ctime_ns)


class ImageZip(ImageFiles):
    """Images in a zip, as one made for StyleGAN."""

    def _list(self) -> list[str]:
        try:
            self._zip = zipfile.ZipFile(self.path)
        except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError) as error:
            raise ValueError(f"{self.path} cannot be read as a zip ({error}): download or pack it "
                             "again") from error
        everything = self._zip.infolist()
        named = [entry for entry in everything if entry.filename]
        self._left_out["without a name"] += len(everything) - len(named)
        entries = [entry for entry in named
                   if not (entry.is_dir() or stat.S_ISLNK(entry.external_attr >> 16))]
        self._left_out["that are links"] += sum(
            stat.S_ISLNK(entry.external_attr >> 16) for entry in named)
        for entry in entries:
            if entry.flag_bits & 1 or entry.compress_type not in UNPACKED:
                raise ValueError(f"{self.path} is encrypted, or packed by a method that Python "
                                 "does not know: unpack it, and give the folder")
        self._by_name = {_name_of(entry): entry for entry in entries}
        replaced = len(entries) - len(self._by_name)
        self._left_out["replaced by later ones of their name"] += replaced
        runs = [name[:-len("log.jsonl")] for name in self._by_name
                if f"/{name}".endswith("/log.jsonl")]
        drawn = tuple(f"{run}grids/" for run in runs if f"{run}settings.json" in self._by_name)
        return [name for name in self._by_name if not name.startswith(drawn)]

    def _open(self, name: str) -> BinaryIO:
        entry = self._by_name[name]
        if entry.file_size > ENTRY_BYTES:
            raise Image.DecompressionBombError(f"{entry.file_size:,} bytes")
        return self._zip.open(entry)

    def _bytes(self, name: str) -> int:
        return self._by_name[name].file_size

    def _identity(self, name: str) -> tuple:
        entry = self._by_name[name]
        return name, entry.CRC, entry.file_size, entry.compress_size


def _name_of(entry: zipfile.ZipInfo) -> str:
    """Its name, also where a Mac wrote UTF-8 without the flag that says so: Python then reads the
    characters of an old code page."""
    if not entry.flag_bits & 0x800:
        with suppress(UnicodeError):
            return entry.filename.encode("cp437").decode()
    return entry.filename


def _has_more(image: Image.Image) -> bool:
    """Whether a file has pages or frames after the first one. (Layers of a PSD make up the one that
    is read; a phone's MPO holds the same view again.)"""
    try:
        return image.format not in ("PSD", "MPO") and getattr(image, "is_animated", False)
    except Exception:  # decoders raise what they like, of what is not used
        return False


def _place(folder: str | Path) -> tuple[int, int]:
    """What tells a folder from all others, under whatever name."""
    there = os.stat(folder)
    return there.st_dev, there.st_ino


def _try_all(read: Callable, items: Iterable, names: Sequence[str],
             seconds: float = math.inf) -> list:
    """`read` of every item, or of as many as there is time for. Nobody wants to mend fifty files in
    fifty runs: from the first problem on there is ten times as much, and all names are raised."""
    found, problems, begun = [], {}, time.monotonic()
    for item, name in zip(items, names, strict=True):
        if time.monotonic() - begun > (10 * seconds if problems else seconds):
            break
        try:
            found.append(read(item))
        except ValueError as error:
            problems[name] = error
    if problems:
        (_, first), *others = problems.items()
        named = ", ".join(map(shown, dict(others[:NAMED])))
        more = f" and {len(others) - NAMED:,} more" if len(others) > NAMED else ""
        listed = f" ({len(problems):,} such files in all); the others: {named}{more}"
        raise ValueError(f"{first}{listed if others else ''}") from first
    return found


def to_rgb(image: Image.Image) -> Image.Image:
    """Any 8- or 16-bit image -> RGB. 16 bits are scaled to 8; transparent parts become white, but
    not where that is everything (`is_unseen`).

    Raises ValueError for pixels without a known range (integers below 0 or above 65,535, floats).
    """
    if image.mode == "F":
        raise ValueError("it has floating-point pixels; 8 or 16 bits are understood")
    image = to_8_bits(image, depth=16)
    if image.has_transparency_data and not is_unseen(image):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def load_image(path: str | Path, resolution: int) -> Tensor:
    """One image file, cut to its central square and resized: (1, 3, R, R) in [-1, 1]. Raises as
    ImageFiles."""
    path = Path(os.path.expanduser(path))
    if not path.is_file():
        raise ValueError(f"there is no image {path}: give the path of a picture")
    one = ImageFolder(path.parent, resolution, only=path.name)
    return one.load(torch.zeros(1, dtype=torch.int64))


def open_dataset(source: str | Path, resolution: int, seed: int = 0,
                 device: torch.device | str = "cpu") -> Dataset:
    """The dataset that `source` names: "toyfaces", or the path of a folder or zip of images.

    Args:
        resolution: R, a power of two.
        seed, device: of the toy faces; real images come as they are, from the disk to the CPU.
    Raises ValueError when nothing is there, when it is neither folder nor zip, and as ImageFiles.
    """
    if str(source) == "toyfaces":
        return ToyFaces(resolution, seed, device)
    if not str(source):
        raise ValueError('data is empty: give a folder or zip of images, or "toyfaces"')
    path = Path(os.path.expanduser(source))
    if path.is_dir():
        return ImageFolder(path, resolution)
    if not path.exists():
        raise ValueError(f"there is no folder or zip at {source}: give a path that exists, or "
                         '"toyfaces"')
    is_zip = path.is_file() and (  # a device or pipe may never end
        zipfile.is_zipfile(path) or path.suffix.lower() == ".zip")
    if not is_zip:
        raise ValueError(f"{path} is neither a folder nor a zip: give a folder of images or a zip "
                         "of images")
    return ImageZip(path, resolution)


def class_shares(dataset: Dataset, c_dim: int) -> Tensor:
    """How frequent each class of a labelled dataset is: (c_dim,), sum 1. Raises ValueError for data
    that do not have the network's classes."""
    labels = _classes(dataset, f"the network is conditional, with {c_dim} classes",
                      "take a network without classes")
    if labels.min() < 0 or labels.max() >= c_dim:
        strange = int(labels[(labels < 0) | (labels >= c_dim)][0])
        raise ValueError(f"dataset.json of {dataset.name} names class {strange}, but the "
                         f"network's classes are 0 to {c_dim - 1}: give the data that it was "
                         "trained on")
    return torch.bincount(labels, minlength=c_dim) / len(labels)


def class_count(dataset: Dataset) -> int:
    """How many classes a labelled dataset has, 0 to the highest one that is named. Raises
    ValueError."""
    labels = _classes(dataset, "a conditional network is asked for", "leave conditional out")
    if labels.min() < 0:
        raise ValueError(f"dataset.json of {dataset.name} names class {int(labels.min())}: number "
                         "the classes from 0")
    count, name = int(labels.max()) + 1, shown(dataset.names[labels.argmax()])
    if count > MOST_CLASSES:
        raise ValueError(f"{name} in {dataset.name} is of class {count - 1:,}, and a network has "
                         f"at most {MOST_CLASSES:,} classes: number them 0, 1, 2, ...")
    if 2 * (empty := count - len(labels.unique())) > count:
        warnings.warn(f"{empty:,} of the {count:,} classes of {dataset.name} have no image, since "
                      f"{name} is of class {count - 1:,}: number the classes 0, 1, 2, ..., unless "
                      "that is meant", stacklevel=2)
    elif labels.min() > 0:
        warnings.warn(f"no image of {dataset.name} is of class 0, so that the network draws "
                      "something untrained for it: number the classes from 0, unless that is "
                      "meant", stacklevel=2)
    return count


def _classes(dataset: Dataset, wanted: str, instead: str) -> Tensor:
    """The class of every image, int64 (size,)."""
    labels = getattr(dataset, "labels", None)
    if labels is None or labels.ndim != 1:
        has = "no class labels" if labels is None else "vectors for labels"
        raise ValueError(f"{wanted}, but {dataset.name} has {has}: give data with a dataset.json "
                         f"that names the class of every image, or {instead}")
    return labels


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
        in_background: use a second thread; without it, batches are loaded when asked for.
    """

    def __init__(self, in_background: bool):
        self.pending = {}
        self.thread = ThreadPoolExecutor(1, "images") if in_background else None

    def __call__(self, load: Callable[[int], Tensor], position: int, following: int) -> Tensor:
        """load(position); load(following) is begun. What it raises is raised where the batch is
        asked for."""
        if self.thread is None:
            return load(position)
        begun = self.pending.pop(position, None)
        self.pending = {following: self.thread.submit(load, following)}
        return begun.result() if begun else load(position)


def flip(images: Tensor, coins: Tensor) -> Tensor:
    """Mirror image i left to right where coins[i] < 1/2. images (N, 3, R, R), coins (N,)."""
    return torch.where(coins[:, None, None, None] < 0.5, images.flip(3), images)
