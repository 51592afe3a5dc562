"""Datasets: order, resuming, every kind of image, and one clear sentence for every bad input."""

import io
import itertools
import json
import math
import os
import re
import shutil
import struct
import threading
import unicodedata
import warnings
import zipfile
import zlib
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from gapkd.data.datasets import (
    ImageFolder,
    ImageZip,
    Prefetcher,
    ToyFaces,
    class_count,
    flip,
    load_image,
    open_dataset,
    ordered_indices,
    to_rgb,
)
from gapkd.data.images import png
from gapkd.data.toyfaces import toy_faces


def gradient(width=16, height=16, mode="RGB"):
    """A picture in which every corner has its own colour."""
    y, x = np.mgrid[0:height, 0:width]
    rgb = np.stack([255 * x / (width - 1), 255 * y / (height - 1), np.full_like(x, 40)], axis=-1)
    return Image.fromarray(rgb.astype(np.uint8)).convert(mode)


def folder_of(path, images):
    """Save {name: image} below path. A name may have folders in it."""
    for name, image in images.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        image.save(path / name)
    return path


def having(labels):
    """The text of a dataset.json with these labels."""
    return json.dumps({"labels": labels})


def zip_of(path, images, labels=None):
    with zipfile.ZipFile(path, "w") as archive:
        for name, image in images.items():
            archive.writestr(name, png(image))
        if labels is not None:
            archive.writestr("dataset.json", having(labels))
    return path


SIX = {f"{i % 2:05}/img{i}.png": Image.new("RGB", (16, 16), (40 * i, 10, 250 - 40 * i))
       for i in range(6)}


@pytest.fixture
def six(tmp_path):
    """A folder of six 16x16 images of different colours, in two sub-folders."""
    return folder_of(tmp_path / "six", SIX)


@pytest.fixture
def never_at_once(monkeypatch):
    """Every set is too large to be decoded when it is opened."""
    monkeypatch.setattr("gapkd.data.datasets.AT_ONCE_PIXELS", 0)


@pytest.fixture
def decoded(monkeypatch):
    """The names of files that are decoded."""
    found, read = [], ImageFolder._read
    monkeypatch.setattr(ImageFolder, "_read", lambda self, name, take: (
        found.append(name) if take.__name__ == "_decode" else None) or read(self, name, take))
    return found


no_notice = pytest.mark.filterwarnings("error")


# -- order


def test_every_epoch_is_a_fresh_permutation():
    stream = ordered_indices(10, 0, 30, seed=3).view(3, 10)
    assert all(epoch.sort().values.tolist() == list(range(10)) for epoch in stream)
    assert not torch.equal(stream[0], stream[1]) and not torch.equal(stream[1], stream[2])
    # seed and epoch are not interchangeable
    assert not torch.equal(ordered_indices(50, 0, 50, seed=1), ordered_indices(50, 50, 50, seed=0))
    assert ordered_indices(None, 5, 3, seed=9).tolist() == [5, 6, 7]


def test_order_does_not_depend_on_the_batch_size():
    pieces, position = [], 0
    for count in (1, 4, 0, 9, 16, 30):
        pieces.append(ordered_indices(7, position, count, seed=1))
        position += count
    assert torch.equal(torch.cat(pieces), ordered_indices(7, 0, 60, seed=1))


@pytest.mark.parametrize("arguments", [(0, 0, 4, 0), (5, -1, 4, 0), (5, 0, -4, 0), (5, 0, 4, -2)])
def test_order_refuses_nonsense(arguments):
    with pytest.raises(ValueError, match="at least 0"):
        ordered_indices(*arguments)


def test_flip_mirrors_where_the_coin_says():
    images = torch.randn(4, 3, 2, 8)
    flipped = flip(images, torch.tensor([0.1, 0.5, 0.9, 0.49]))
    assert torch.equal(flipped[[1, 2]], images[[1, 2]])
    assert torch.equal(flipped[[0, 3]], images[[0, 3]].flip(3))


@pytest.mark.parametrize("in_background", [True, False])
def test_prefetching_gives_what_was_asked_for_and_raises_where_it_was(in_background):
    threads, loaded = [], []

    def load(position):
        threads.append(threading.current_thread().name)
        loaded.append(position)
        if position == 40:
            raise ValueError("photo 40 is broken")
        return torch.full((2,), float(position))

    reals = Prefetcher(in_background)
    for position in (0, 10, 30, 7):  # the jump to 7 was not announced
        assert reals(load, position, position + 10).tolist() == [position, position]
    assert any("images" in name for name in threads) == in_background
    assert loaded.count(10) == 1  # begun and put to use
    reals(load, 30, 40)
    with pytest.raises(ValueError, match="photo 40"):
        reals(load, 40, 50)


# -- what a dataset gives


def test_toy_faces_are_endless():
    faces, numbers = open_dataset("toyfaces", 16, seed=4), torch.tensor([7, 10**9, 7])
    assert isinstance(faces, ToyFaces) and faces.size is None and faces.name == "toyfaces"
    assert torch.equal(faces.load(numbers), toy_faces(numbers, 16, seed=4)[0])


@no_notice
def test_folder_and_zip_give_the_same_images(six, tmp_path):
    folder = open_dataset(six, 16)
    archive = open_dataset(str(zip_of(tmp_path / "six.zip", SIX)), 16)
    assert isinstance(folder, ImageFolder) and isinstance(archive, ImageZip)
    assert folder.names == archive.names == sorted(SIX)
    assert folder.name == archive.name == "six" and folder.size == 6
    assert torch.equal(folder.load(torch.arange(6)), archive.load(torch.arange(6)))
    expected = torch.tensor(SIX[folder.names[4]].getpixel((0, 0))) / 127.5 - 1
    torch.testing.assert_close(folder.load(torch.tensor([4]))[0, :, 5, 9], expected)
    assert folder.load(torch.tensor([4])).is_contiguous()


def test_a_cache_changes_nothing_but_the_work(six, never_at_once, decoded):
    order = torch.tensor([3, 0, 3, 5])
    kept, fresh = ImageFolder(six, 16), ImageFolder(six, 16, cache_bytes=0)
    first = kept.load(order)
    assert len(decoded) == 3
    first.zero_()  # what the caller does with a batch must not reach the cache
    assert torch.equal(kept.load(order), fresh.load(order))
    assert len(decoded) == 3 + 4


def test_labels_of_a_stylegan_zip(tmp_path):
    numbers = [[name, i % 3] for i, name in enumerate(SIX)]
    dataset = open_dataset(zip_of(tmp_path / "numbers.zip", SIX, numbers), 16)
    assert dataset.labels.tolist() == [dict(numbers)[name] for name in dataset.names]
    assert dataset.labels.dtype == torch.int64
    vectors = [[name, [0.0, 1.0]] for name in SIX]
    dataset = open_dataset(zip_of(tmp_path / "vectors.zip", SIX, vectors), 16)
    assert dataset.labels.shape == (6, 2) and dataset.labels.dtype == torch.float64
    assert open_dataset(zip_of(tmp_path / "plain.zip", SIX), 16).labels is None


def test_every_format_of_pillow_is_taken_with_its_first_frame(tmp_path):
    first, second = Image.new("RGB", (16, 16), (200, 60, 20)), Image.new("RGB", (16, 16), "blue")
    frames = {"a.gif": "GIF", "b.webp": "WEBP", "c.tif": "TIFF", "d.avif": "AVIF", "e.apng": "PNG"}
    for name, kind in frames.items():
        first.save(tmp_path / name, kind, save_all=True, append_images=[second])
    plain = {"f.jfif": "JPEG", "g.JPE": "JPEG", "h.jp2": "JPEG2000", "i.tga": "TGA", "j.pcx": "PCX",
             "l.ico": "ICO", "m.qoi": "QOI", "n.sgi": "SGI", "o.pnm": "PPM",
             "p.png": "WEBP"}
    for name, kind in plain.items():
        first.save(tmp_path / name, kind)
    with pytest.warns(UserWarning) as told:
        dataset = open_dataset(tmp_path, 16)
    (said,) = told
    assert str(said.message).startswith(f"of 5 of the {len(frames | plain)} files in ")
    assert "several pages or frames only the first one is used" in str(said.message)
    assert set(dataset.names) == {*frames, *plain}
    first.save(tmp_path / "k.jpg", "MPO", save_all=True, append_images=[second])  # of a phone
    for missing in (1, 40, 50):  # of the frame that is not used
        (tmp_path / "o.gif").write_bytes((tmp_path / "a.gif").read_bytes()[:-missing])
        with pytest.warns(UserWarning, match=f"of {6 if missing == 1 else 5} of the 17 files"):
            assert "o.gif" in open_dataset(tmp_path, 16).names
    for name in ("k.jpg", "o.gif"):
        (tmp_path / name).unlink()
    expected = torch.tensor([200, 60, 20]).view(1, 3, 1, 1) / 127.5 - 1
    assert (dataset.load(torch.arange(dataset.size)) - expected).abs().max() < 0.06


def test_what_is_skipped_is_said_in_one_line(six, tmp_path):
    for name in ("a.heic", "b.heic", "notes.fits", "Thumbs.db", "what is.this one", "README",
                 "@eaDir/0.png/SYNOPHOTO_THUMB_M.png", ".thumbs/0.jpg", "#recycle/0.png",
                 "__MACOSX/00000/img0.png", "00000/._img0.png", "00000/.DS_Store"):
        (six / name).parent.mkdir(parents=True, exist_ok=True)
        (six / name).write_bytes(b"\x89PN")
    (six / "gone.png").symlink_to(tmp_path / "nothing.png")
    with pytest.warns(UserWarning) as notices:
        assert open_dataset(six, 16).names == sorted(SIX)
    assert [str(notice.message) for notice in notices] == [
        "skipped 9 of 15 files in six (not readable images: 3 hidden, deleted or thumbnails, "
        "2 .heic, 2 of other kinds, 1 .fits, 1 that are no files or lead to none)"]


@no_notice
def test_linked_folders_are_followed_once(six, tmp_path):
    inner, outer = six, tmp_path / "outer"
    folder_of(outer, {"deep/a.png": gradient(), "b.png": gradient()})
    (inner / "more").symlink_to(outer)
    (inner / "again").symlink_to(outer / "deep")
    (outer / "deep" / "back").symlink_to(inner)
    (outer / "loop").symlink_to(outer)
    (inner / "c.png").symlink_to(outer / "b.png")
    (inner / "0").symlink_to(inner / "00001")  # what is linked comes after what lies here
    (inner / ".hidden").mkdir()
    (inner / ".hidden" / "also").symlink_to(inner / "00001")  # from deeper down, too
    dataset = open_dataset(inner, 16)
    assert dataset.names == sorted([*SIX, "again/a.png", "more/b.png", "c.png"])
    (inner / "up").symlink_to(folder_of(tmp_path, {"around.png": gradient()}))
    with pytest.warns(UserWarning, match="1 that lead to a folder around it"):
        assert open_dataset(inner, 16).size == 9


def test_a_picture_without_a_suffix_is_known_by_its_content(tmp_path):
    folder = folder_of(tmp_path / "hashes", {"a.png": gradient(), "b.jpg": gradient()})
    (folder / "a.png").rename(folder / "d41d8cd9")
    (folder / "notes").write_text("no picture")
    with pytest.warns(UserWarning, match="skipped 1 of 3 files .* 1 of other kinds"):
        assert open_dataset(folder, 16).names == ["b.jpg", "d41d8cd9"]
    names = ["IMG.2023.01.02", "a.jpg?size=l", "a.pjpeg", "a.png.1", "photo v1.2"]
    for name in (*names, "a.bak", "a.part", "a.png~"):  # of the last three the name says enough
        shutil.copy(folder / "b.jpg", folder / name)
    with pytest.warns(UserWarning, match="skipped 4 of 11 files"):
        assert {*open_dataset(folder, 16).names} == {*names, "b.jpg", "d41d8cd9"}
    for name in ("b.jpg.1", "b.jpg.~1~", "b.jpg_original"):  # wget's, Emacs', exiftool's
        shutil.copy(folder / "b.jpg", folder / name)
    with pytest.warns(UserWarning, match="skipped 7 of 14 files .* 3 copies beside a picture"):
        assert {*open_dataset(folder, 16).names} == {*names, "b.jpg", "d41d8cd9"}


@pytest.mark.parametrize("name", [".hidden/a", ".b", "__MACOSX/a.png", "a/._b.png"])
def test_a_picture_that_is_put_away_is_counted_whatever_its_name(six, name):
    (six / name).parent.mkdir(exist_ok=True)
    shutil.copy(six / min(SIX), six / name)
    with pytest.warns(UserWarning, match="skipped 1 of 7 files .* 1 hidden, deleted or thumbnai"):
        assert open_dataset(six, 16).names == sorted(SIX)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="Windows has no such files")
def test_a_file_that_is_no_file_is_not_waited_for(six):
    os.mkfifo(six / "pipe.png")
    with pytest.warns(UserWarning, match="1 that are no files"):
        assert open_dataset(six, 16).size == 6


# -- kinds of images


def test_every_mode_becomes_rgb(tmp_path):
    colour, grey = gradient(), gradient(mode="L")
    same = {"rgb.png": colour, "rgb.ppm": colour, "rgb.bmp": colour, "rgb.tif": colour,
            "UPPER.PNG": colour, "rgba.png": gradient(mode="RGBA")}
    near = {"palette.png": colour.quantize(64), "rgb.webp": colour, "rgb.jpg": colour,
            "cmyk.jpg": gradient(mode="CMYK")}
    deep = Image.fromarray(np.asarray(grey).astype(np.uint16) * 257)
    greys = {"grey.png": grey, "greyalpha.png": gradient(mode="LA"), "deep.png": deep}
    others = {"grey.jpeg": grey, "bilevel.png": gradient(mode="1")}
    dataset = open_dataset(folder_of(tmp_path, same | near | greys | others), 16)
    images = dataset.load(torch.arange(dataset.size))
    batch = dict(zip(dataset.names, images, strict=True))
    assert batch.keys() == {*same, *near, *greys, *others}
    for name in same:
        assert torch.equal(batch[name], batch["rgb.png"]), name
    for name in near:
        assert (batch[name] - batch["rgb.png"]).abs().mean() < 0.1, name
    for name in greys:
        assert torch.equal(batch[name], batch["grey.png"]), name
    for name in (*greys, *others):
        assert torch.equal(batch[name][0], batch[name][2]), name


@pytest.mark.parametrize("mode, value", [("I", 70000), ("I", -1), ("F", 0.5)])
def test_pixels_of_unknown_range_are_refused(tmp_path, mode, value):
    Image.new(mode, (16, 16), value).save(tmp_path / "a.tif")
    fails("a.tif in .* 8 or 16 bits are understood", tmp_path)


@pytest.mark.parametrize("values, said, message", [
    ((-1,), {"bits": 8, "form": 2}, "has pixels below 0"),
    ((65_535, 0, 0), {"planes": 2}, "16-bit colours plane by plane"),
    ((4095, 0, 0), {"planes": 2}, "16-bit colours plane by plane")])
def test_pixels_that_pillow_misreads_are_refused(tmp_path, values, said, message):
    pixels = np.full((16, 16, len(values)), values)
    (tmp_path / "a.tif").write_bytes(tiff_of(pixels, **said))
    fails(f"a.tif in .* {message}", tmp_path)


def png_of(values, more=b""):
    """A PNG of 16 bits, which Pillow would not write in colour. values: (H, W, C)."""
    height, width, channels = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return (b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + more
            + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))


def tiff_of(values, bits=16, order="<", deflated=False, kind=None, planes=1, form=1):
    """A TIFF of 8, 12 (both grey) or 16 bits a value. values: (H, W, C)."""
    height, width, channels = values.shape
    pixels = values.astype(f"{order}u{1 if bits == 8 else 2}").tobytes()
    if bits == 12:  # two values in three bytes
        pixels = bytes.fromhex("".join(f"{value:03x}" for value in values.flat))
    pixels = zlib.compress(pixels) if deflated else pixels
    start = 8 + 2 + 11 * 12 + 4
    colour = channels >= 3
    kind = (2 if colour else 1) if kind is None else kind
    fields = {256: (1, width), 257: (1, height), 258: (channels, start if colour else bits),
              259: (1, 8 if deflated else 1), 262: (1, kind), 273: (1, start + 8),
              277: (1, channels), 278: (1, height), 279: (1, len(pixels)),
              284: (1, planes), 339: (1, form)}
    listed = b""
    for tag, (count, value) in fields.items():
        small = tag not in (273, 279) and count == 1
        listed += struct.pack(f"{order}HHI", tag, 3 if small or tag == 258 else 4, count)
        listed += struct.pack(f"{order}{'H2x' if small else 'I'}", value)
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, 11)
    return head + listed + bytes(4) + struct.pack(f"{order}4H", *[bits] * 4) + pixels


@pytest.mark.parametrize("largest, white", [
    (1, 255), (200, 255), (300, 1023), (1000, 1023), (4000, 4095), (16_000, 16_383),
    (20_000, 65_535), (65_535, 65_535)])
@pytest.mark.parametrize("kind", ["int32", ">u2", "png"])
def test_the_largest_value_of_a_set_tells_its_depth(tmp_path, kind, largest, white):
    values = np.full((2, 16, 16), largest // 2)
    values[1, 0, 0] = largest  # in the second picture alone
    for i, picture in enumerate(values):
        name = tmp_path / f"{i}.{'png' if kind == 'png' else 'tif'}"
        Image.fromarray(picture.astype("u2" if kind == "png" else kind)).save(name)
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        images = open_dataset(tmp_path, 16).load(torch.arange(2))
    expected = torch.from_numpy(values / white * 2 - 1).float()
    assert (images - expected[:, None]).abs().max() < 1 / 250
    said = [str(notice.message) for notice in notices]
    assert len(said) == (white < 65_535)
    assert all(f"so white is {white:,}" in text and "2 of the 2 images" in text for text in said)


@pytest.mark.parametrize("largest, shallow", [
    ([4000, 65_535, 300], "2 of 3"), ([65_535, 16_000, 0, 15], ""),
    ([65_535, *[900] * 250], "10 of 11"), ([200, 65_535], "1 of 2")])
@pytest.mark.parametrize("colours", [1, 3])
def test_images_of_12_bits_beside_one_of_16_are_mentioned(tmp_path, largest, shallow, colours):
    for i, value in enumerate(largest):
        picture = png_of(np.full((16, 16, colours), value))
        (tmp_path / f"{i:03}.png").write_bytes(picture)
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        images = open_dataset(tmp_path, 16).load(torch.arange(len(largest)))
    assert (images[:, 0, 0, 0] - torch.tensor(largest) / 65_535 * 2 + 1).abs().max() < 1 / 125
    said = [str(notice.message) for notice in notices]
    assert len(said) == bool(shallow)
    assert all(f"{shallow} images" in text and "hold no value above 4,095 (00" in text
               for text in said)


@pytest.mark.parametrize("largest, told", [
    ([200, 4000], "value above 255 .* need 12 bits, so white is 4,095"),
    ([900, 16_000], "value above 1,023 .* need 14 bits"), ([300, 4000, 0], "")])
def test_images_of_few_bits_beside_deeper_ones_are_mentioned(tmp_path, largest, told):
    for i, value in enumerate(largest):
        Image.fromarray(np.full((16, 16), value, np.uint16)).save(tmp_path / f"{i}.png")
    with pytest.warns(UserWarning) as notices:
        open_dataset(tmp_path, 16)
    said = [str(notice.message) for notice in notices][1:]  # the first says where white is
    assert len(said) == bool(told) and all(re.search(told, text) for text in said)


@pytest.mark.parametrize("kind, channels", [
    *itertools.product([png_of, tiff_of, lambda values: tiff_of(values, order=">"),
                        lambda values: tiff_of(values, deflated=True)], [3, 4]), (png_of, 2)])
def test_colours_of_12_bits_are_not_black(tmp_path, kind, channels):
    colours = 1 if channels == 2 else 3  # the others are opacity
    values = np.random.default_rng(0).integers(0, 4096, (16, 16, channels))
    values[0, 0], values[..., colours:] = 4095, 4095
    (tmp_path / "a.bin").write_bytes(kind(values))
    (tmp_path / "a.bin").rename(tmp_path / ("a.png" if kind is png_of else "a.tif"))
    with pytest.warns(UserWarning, match="largest value needs 12, so white is 4,095"):
        image = open_dataset(tmp_path, 16).load(torch.tensor([0]))[0]
    expected = torch.from_numpy(values[..., :colours] / 4095 * 2 - 1).permute(2, 0, 1).float()
    assert (image - expected).abs().max() < 1 / 250


@pytest.mark.filterwarnings("ignore:.*so white is")
@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("grey, seen", [(0, 127), (4000, 252), (65_535, 255)])
def test_opacity_has_16_bits_whatever_the_colours_have(tmp_path, channels, grey, seen):
    values = np.full((16, 16, channels), grey)
    values[..., -1] = 32_768  # half of it
    (tmp_path / "a.png").write_bytes(png_of(values))
    image = load_image(tmp_path / "a.png", 16)
    assert (image - (seen / 127.5 - 1)).abs().max() < 1 / 100


@pytest.mark.parametrize("deflated", [False, True])
def test_inks_of_12_bits_are_not_white(tmp_path, deflated):
    inks = np.full((16, 16, 4), (4095, 0, 2048, 0))
    (tmp_path / "a.tif").write_bytes(tiff_of(inks, kind=5, deflated=deflated))
    with pytest.warns(UserWarning, match="largest value needs 12, so white is 4,095"):
        image = open_dataset(tmp_path, 16).load(torch.tensor([0]))
    assert (image - torch.tensor([-1, 1, 0]).view(3, 1, 1)).abs().max() < 1 / 100


@no_notice
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("deflated", [False, True])
def test_white_may_be_zero(tmp_path, bits, deflated):
    values = np.arange(256).reshape(16, 16, 1) * (2**bits - 1) // 255
    (tmp_path / "a.tif").write_bytes(tiff_of(values, bits, deflated=deflated, kind=0))
    expected = torch.arange(255, -1, -1).view(16, 16) / 127.5 - 1
    assert (load_image(tmp_path / "a.tif", 16) - expected).abs().max() < 1 / 250


@no_notice
def test_where_white_is_zero_the_largest_value_is_no_depth(tmp_path):
    values = np.full((16, 16, 1), 10_000)
    (tmp_path / "a.tif").write_bytes(tiff_of(values, kind=0))
    image = load_image(tmp_path / "a.tif", 16)
    assert (image - (1 - 10_000 / 65_535 * 2)).abs().max() < 1 / 250


@pytest.mark.parametrize("named, white", [(4095, 4095), (65_535, 1023)])
def test_a_tiff_may_name_its_largest_value(tmp_path, named, white):
    values = np.full((16, 16), 803, np.uint16)
    Image.fromarray(values).save(tmp_path / "a.tif", tiffinfo={281: named})
    with pytest.warns(UserWarning, match=f"so white is {white:,}"):
        image = load_image(tmp_path / "a.tif", 16)
    assert (image - (803 / white * 2 - 1)).abs().max() < 1 / 250


@no_notice
def test_a_palette_of_8_bits_is_not_black(tmp_path):
    image = gradient().quantize(64)
    image.save(tmp_path / "a.tif")
    content, expected = (tmp_path / "a.tif").read_bytes(), load_image(tmp_path / "a.tif", 16)
    with Image.open(tmp_path / "a.tif") as saved:
        colours = saved.tag_v2[320]
    deep, shallow = (struct.pack("<768H", *(c // by for c in colours)) for by in (1, 256))
    assert deep in content
    (tmp_path / "a.tif").write_bytes(content.replace(deep, shallow))
    assert torch.equal(load_image(tmp_path / "a.tif", 16), expected)


@no_notice
def test_a_depth_that_a_file_states_decides(tmp_path):
    """However dark it is, and whatever lies beside it."""
    values = np.full((16, 16, 1), 1000)
    (tmp_path / "a.tif").write_bytes(tiff_of(values, bits=12))
    (tmp_path / "b.pgm").write_bytes(b"P5 16 16 4095\n" + values.astype(">u2").tobytes())
    images = open_dataset(tmp_path, 16).load(torch.arange(2))
    assert (images - (1000 / 4095 * 2 - 1)).abs().max() < 1 / 250
    Image.fromarray(np.full((16, 16), 65535, np.uint16)).save(tmp_path / "c.png")
    images = open_dataset(tmp_path, 16).load(torch.arange(3))
    assert (images[:2] - (1000 / 4095 * 2 - 1)).abs().max() < 1 / 250 and images[2].min() == 1


def test_transparent_parts_become_white(tmp_path):
    rgba = Image.new("RGBA", (8, 8), (0, 0, 0, 0))
    rgba.putpixel((0, 0), (0, 0, 255, 255))
    rgba.putpixel((1, 0), (0, 0, 255, 128))
    pixels = np.asarray(to_rgb(rgba))
    assert pixels[4, 4].tolist() == [255, 255, 255] and pixels[0, 0].tolist() == [0, 0, 255]
    assert pixels[0, 1].tolist() == [127, 127, 255]
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([255, 0, 0, 0, 255, 0])
    palette.putpixel((0, 0), 0)
    palette.save(tmp_path / "palette.png", transparency=1)
    image = open_dataset(tmp_path, 8).load(torch.tensor([0]))[0]
    assert image[:, 0, 0].tolist() == [1, -1, -1] and image[:, 4, 4].tolist() == [1, 1, 1]


@pytest.mark.parametrize("name, opacity", [("a.png", 0), ("a.png", 1), ("a.webp", 0), ("a.tga", 0)])
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_an_opacity_that_hides_everything_is_not_heeded(tmp_path, mode, name, opacity):
    hidden = gradient(mode=mode)
    hidden.putalpha(opacity)
    if mode == "L" and name != "a.png":
        hidden = hidden.convert("RGBA")
    hidden.save(tmp_path / name, **{"lossless": True, "exact": True} if "w" in name else {})
    Image.new("RGBA", (16, 16)).save(tmp_path / "b.png")  # in which nothing is hidden
    with pytest.warns(UserWarning, match="^1 of 2 images in .* their colours are used") as told:
        images = open_dataset(tmp_path, 16).load(torch.arange(2))
    gradient(mode=mode).save(tmp_path / "c.png")
    assert torch.equal(images[:1], load_image(tmp_path / "c.png", 16)) and len(told) == 1
    assert images[1].min() == 1


@pytest.mark.filterwarnings("ignore:.*so white is", "ignore:.*used as they are")
@pytest.mark.parametrize("white", [255, 4095, 65_535])
def test_a_deep_png_may_have_an_opacity_of_8_bits(tmp_path, white):
    values = np.full((16, 16, 4), (white, 0, 0, 255))
    values[0, 0] = 0, 0, 0, 255
    (tmp_path / "a.png").write_bytes(png_of(values))
    image = load_image(tmp_path / "a.png", 16)[0]
    assert image[:, 5, 5].tolist() == [1, -1, -1] and image.sum() == 256 - 1 - 2 * 256 - 1


@pytest.mark.parametrize("value, told", [(1, True), (15, True), (16, False), (0, False)])
def test_a_set_of_masks_is_mentioned_once(tmp_path, value, told):
    folder_of(tmp_path, {"a.png": Image.new("L", (16, 16), value),
                         "b.png": Image.new("L", (16, 16))})
    with warnings.catch_warnings(record=True) as notices:
        warnings.simplefilter("always")
        open_dataset(tmp_path, 16).check()
    assert len(notices) == told
    assert all(f"2 of 2 images, all that were looked at, in {tmp_path.name} hold no value above "
               f"{value} of 255" in str(notice.message) for notice in notices)


@pytest.mark.filterwarnings("ignore:.*so white is")
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("largest", [4095, 65_535])
def test_the_hidden_value_of_a_deep_png_becomes_white(tmp_path, channels, largest):
    values = np.full((16, 16, channels), 513)
    values[0, 0], values[0, 1] = largest, 0
    hidden = chunk(b"tRNS", struct.pack(">H", 513) * channels)
    (tmp_path / "a.png").write_bytes(png_of(values, hidden))
    image = load_image(tmp_path / "a.png", 16)[0]
    assert (image[:, 0, 1] == -1).all() and image.sum() == 3 * (16 * 16 - 2)


@no_notice
@pytest.mark.parametrize("bits", [1, 2, 4, 8])
def test_the_hidden_value_of_a_shallow_png_becomes_white(tmp_path, bits):
    row = "".join(f"{value:0{bits}b}" for value in [1] + [0] * 7)  # 1 is hidden, 0 is black
    rows = (b"\0" + int(row, 2).to_bytes(bits, "big")) * 8
    header = struct.pack(">IIBBBBB", 8, 8, bits, 0, 0, 0, 0)
    (tmp_path / "a.png").write_bytes(
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"tRNS", b"\0\1")
        + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b""))
    image = load_image(tmp_path / "a.png", 8)[0]
    assert (image[..., 0] == 1).all() and (image[..., 1:] == -1).all()


@no_notice
def test_another_size_is_cropped_and_resized_with_one_notice(tmp_path):
    wide = Image.new("RGB", (64, 32), "red")
    ImageDraw.Draw(wide).rectangle((16, 0, 47, 31), fill="blue")  # the central square
    tall = wide.rotate(90, expand=True)
    folder_of(tmp_path, {"a.png": wide, "b.png": tall, "c.png": Image.new("RGB", (8, 8))})
    with pytest.warns(UserWarning) as notices:
        images = open_dataset(tmp_path, 8).load(torch.arange(3))
    assert len(notices) == 1
    assert str(notices[0].message).startswith("2 of the 3 images in ")
    (tmp_path / "b.png").write_bytes(b"rubbish")  # of no matter to one who wants a.png alone
    alone = load_image(tmp_path / "a.png", 8)
    for image in (*images[:2], *alone):
        assert image[2].min() == 1 and image[0].max() == -1


def test_shrinking_is_antialiased(tmp_path):
    """A checkerboard of single pixels is grey from afar."""
    board = Image.fromarray(((np.indices((128, 128)).sum(0) % 2) * 255).astype(np.uint8))
    folder_of(tmp_path, {"board.png": board})
    assert load_image(tmp_path / "board.png", 16).abs().max() < 0.05


def test_turned_photographs_are_turned_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show it rotated by 90 degrees clockwise
    gradient().rotate(90).save(tmp_path / "a.png", exif=exif)
    gradient().save(tmp_path / "b.png")
    turned = (tmp_path / "a.png").read_bytes()  # beside a text that cannot be read, too
    (tmp_path / "c.png").write_bytes(turned[:33] + chunk(b"zTXt", LARGE_TEXT) + turned[33:])
    images = open_dataset(tmp_path, 16).load(torch.arange(3))
    assert torch.equal(images[0], images[1]) and torch.equal(images[2], images[1])
    values = np.arange(256, dtype=np.uint16).reshape(16, 16) * 16
    Image.fromarray(np.rot90(values).copy()).save(tmp_path / "deep.png", exif=exif)
    with pytest.warns(UserWarning, match="white is 4,095"):
        image = load_image(tmp_path / "deep.png", 16)[0]
    assert (image[0] - torch.from_numpy(values / 4095 * 2 - 1)).abs().max() < 1 / 250


def chunk(kind, content):
    """A chunk of a PNG file."""
    return (struct.pack(">I", len(content)) + kind + content
            + struct.pack(">I", zlib.crc32(kind + content)))


def entry(tag, kind, count, value):
    return struct.pack("<HHI", tag, kind, count) + value.ljust(4, b"\0")


LARGE_TEXT = b"workflow\0\0" + zlib.compress(bytes(3_000_000))
TURNED = entry(0x0112, 3, 1, b"\6")
EXIF = b"Exif\0\0II*\0\x08\0\0\0"
ODD = {
    "text.png": chunk(b"zTXt", LARGE_TEXT), "late.png": chunk(b"zTXt", LARGE_TEXT),
    "size.png": chunk(b"pHYs", b"\0"),
    "gamma.png": chunk(b"gAMA", b""), "sum.png": chunk(b"tEXt", b"a\0b")[:-1] + b"?",
    "method.png": chunk(b"zTXt", b"k\0\5rubbish"), "exif.png": chunk(b"eXIf", b"\0\x08\0\2\x01"),
    "moving.png": chunk(b"acTL", b"\0"), "hidden.png": chunk(b"tRNS", b"\0"),
    "exif.jpg": b"\xe1" + EXIF + b"\xff\xff" + b"\xff" * 20, "none.jpg": b"\xe1Exif\0\0",
    "profile.jpg": b"\xe2ICC_PROFILE\0", "iptc.jpg": b"\xedPhotoshop 3.0\x008BIM\3\xed",
    "jfif.jpg": b"\xe0JFIF", "adobe.jpg": b"\xeeAdobe", "pictures.jpg": b"\xe2MPF\0II*\0\xff",
}


def with_metadata(picture, name):
    """A file whose metadata are the odd ones of that name: a chunk, or a segment with its kind."""
    odd, encoded = ODD[name], io.BytesIO()
    picture.save(encoded, "PNG" if name.endswith("png") else "JPEG", quality=100, subsampling=0)
    plain = encoded.getvalue()
    if name.endswith("png"):
        at = len(plain) - 12 if name == "late.png" else 33  # after the pixels, or before
        return plain[:at] + odd + plain[at:]
    return plain[:2] + b"\xff" + odd[:1] + struct.pack(">H", len(odd) + 1) + odd[1:] + plain[2:]


@no_notice  # nobody need hear of it
@pytest.mark.parametrize("name", ODD)
def test_metadata_is_not_content(tmp_path, name):
    (tmp_path / name).write_bytes(with_metadata(gradient(), name))
    gradient().save(tmp_path / "z.png")
    odd, plain = open_dataset(tmp_path, 16).load(torch.arange(2))
    assert (odd - plain).abs().max() < 0.04


@no_notice
def test_malformed_exif_of_an_avif_is_not_content(tmp_path):
    gradient().save(tmp_path / "a.avif", quality=100, exif=EXIF + bytes(6))
    expected = load_image(tmp_path / "a.avif", 16)
    content = (tmp_path / "a.avif").read_bytes()
    (tmp_path / "a.avif").write_bytes(content.replace(EXIF[6:], b"rubbish!"))
    assert torch.equal(load_image(tmp_path / "a.avif", 16), expected)


@no_notice
@pytest.mark.parametrize("kind", [2, 3, 4, 5, 11])  # text, numbers, fractions, floats
def test_xmp_of_a_tiff_may_be_of_any_type(tmp_path, kind):
    gradient().save(tmp_path / "a.tif", tiffinfo={700: b"<x:xmpmeta/>1234"})
    content, field = (tmp_path / "a.tif").read_bytes(), struct.pack("<HHI", 700, 1, 16)
    assert field in content
    count = 16 // {2: 1, 3: 2, 4: 4, 5: 8, 11: 4}[kind]
    (tmp_path / "b.tif").write_bytes(content.replace(field, struct.pack("<HHI", 700, kind, count)))
    images = open_dataset(tmp_path, 16).load(torch.arange(2))
    assert torch.equal(images[0], images[1])


@no_notice
@pytest.mark.parametrize("broken", [entry(0x0128, 2, 2, b"2"), entry(0x9003, 2, 900, b"\xff")])
def test_a_turn_is_read_beside_broken_fields(tmp_path, broken):
    upright = gradient()
    exif = EXIF + struct.pack("<H", 2) + TURNED + broken + bytes(4)
    upright.rotate(90).save(tmp_path / "a.jpg", exif=exif, quality=100, subsampling=0)
    upright.rotate(90).save(tmp_path / "b.png", exif=exif[6:])
    upright.save(tmp_path / "c.png")
    images = open_dataset(tmp_path, 16).load(torch.arange(3))
    assert (images[0] - images[2]).abs().max() < 0.04 and torch.equal(images[1], images[2])


@pytest.mark.parametrize("name", ["exif.png", "gamma.png", "jfif.jpg", "exif.jpg"])
def test_damaged_pixels_are_damaged_whatever_the_metadata(tmp_path, name):
    content = with_metadata(gradient(), name)
    (tmp_path / name).write_bytes(content[:len(content) * 3 // 4])
    fails(f"{name} in .* cannot be read as an image", tmp_path)


# -- large pictures


@pytest.fixture
def large(tmp_path, monkeypatch):
    """A folder of three pictures of another size than 16x16 and one that has it; and the cache."""
    monkeypatch.setenv("GAPKD_CACHE", str(tmp_path / "cache"))
    noise = np.random.default_rng(0).integers(0, 256, (3, 48, 64, 3), dtype=np.uint8)
    pictures = {f"{i}.png": Image.fromarray(pixels) for i, pixels in enumerate(noise)}
    folder_of(tmp_path / "large", pictures | {"fits.png": gradient()})
    return tmp_path / "large", tmp_path / "cache" / "pictures"


small_copies = pytest.mark.filterwarnings("ignore:.*cut to their central", "ignore:decoded, all",
                                          "ignore:.*so white is")


@small_copies
def test_small_copies_of_large_pictures_are_kept_on_the_disk(large, decoded):
    folder, cache = large
    before = sorted(folder.iterdir())
    plain = ImageFolder(folder, 16).load(torch.arange(4))
    assert not cache.exists()  # in memory there is room
    decoded.clear()
    with pytest.warns(UserWarning) as notices:
        dataset = ImageFolder(folder, 16, cache_bytes=0)
    assert any(f"(at most 0.0 GB) are kept in {cache}, which may be" in str(notice.message)
               for notice in notices)
    order = torch.tensor([0, 1, 0, 3, 3])
    assert torch.equal(dataset.load(order), plain[order])
    assert decoded == ["0.png", "1.png", "fits.png", "fits.png"]
    decoded.clear()
    again = ImageFolder(folder, 16, cache_bytes=0)
    assert torch.equal(again.load(torch.arange(4)), plain) and decoded == ["2.png", "fits.png"]
    assert len([*cache.rglob("*.png")]) == 3 and not [*cache.rglob("*.partial")]
    assert sorted(folder.iterdir()) == before


@small_copies
def test_a_copy_is_of_this_file_at_this_size_and_depth(large, decoded):
    folder, _ = large
    first = ImageFolder(folder, 16, cache_bytes=0).load(torch.tensor([0]))
    assert ImageFolder(folder, 32 // 4, cache_bytes=0).load(torch.tensor([0])).shape[-1] == 8
    there = (folder / "0.png").stat()
    Image.open(folder / "1.png").transpose(Image.Transpose.ROTATE_180).save(folder / "0.png")
    os.utime(folder / "0.png", ns=(there.st_atime_ns, there.st_mtime_ns))
    assert not torch.equal(ImageFolder(folder, 16, cache_bytes=0).load(torch.tensor([0])), first)
    values = np.full((32, 32), 200, np.uint16)
    deep = folder_of(folder.parent / "deep", {"a.png": Image.fromarray(values)})
    dark = ImageFolder(deep, 16, cache_bytes=0).load(torch.tensor([0]))
    Image.fromarray(values * 300).save(deep / "b.png")  # white is now elsewhere
    assert ImageFolder(deep, 16, cache_bytes=0).load(torch.tensor([0])).max() < dark.min()


@small_copies
def test_copies_of_a_zip_and_damaged_ones(large, tmp_path):
    folder, cache = large
    pictures = {f"{i}.png": Image.open(folder / f"{i}.png") for i in range(3)}
    dataset = ImageZip(zip_of(tmp_path / "a.zip", pictures), 16, cache_bytes=0)
    first = dataset.load(torch.arange(3))
    for file, damage in zip(cache.rglob("*.png"), (b"", b"rubbish", None), strict=True):
        file.write_bytes(file.read_bytes()[:-30] if damage is None else damage)
    assert torch.equal(dataset.load(torch.arange(3)), first)  # made anew
    assert {Image.open(file).size for file in cache.rglob("*.png")} == {(16, 16)}
    swapped = zip_of(tmp_path / "a.zip", {"0.png": pictures["1.png"]})
    assert torch.equal(ImageZip(swapped, 16, cache_bytes=0).load(torch.tensor([0])), first[1:2])


@small_copies
@pytest.mark.parametrize("fault", ["a file", "nearly full"])
def test_a_cache_that_takes_nothing_is_done_without(large, tmp_path, monkeypatch, fault):
    folder, cache = large
    plain = ImageFolder(folder, 16).load(torch.arange(3))
    if fault == "a file":
        (tmp_path / "cache").write_text("in the way")
    else:
        monkeypatch.setattr("gapkd.data.decoding.SPARE", 2**70)
    dataset = ImageFolder(folder, 16, cache_bytes=0)
    with pytest.warns(UserWarning, match="no more small copies .* set GAPKD_CACHE") as notices:
        assert torch.equal(dataset.load(torch.arange(3)), plain)
    assert len(notices) == 1 and not [*cache.rglob("*.p*")]
    (folder / "2.png").unlink()
    with pytest.raises(ValueError, match="2.png in .* is gone: put it back"):
        dataset.load(torch.tensor([2]))


def test_large_jpegs_are_decoded_at_a_reduced_size(tmp_path, monkeypatch):
    coarse = Image.fromarray(np.random.default_rng(1).integers(0, 256, (24, 32, 3), dtype=np.uint8))
    coarse.resize((1024, 768), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    sizes = []
    monkeypatch.setattr("gapkd.data.datasets.to_rgb",
                        lambda image: sizes.append(image.size) or to_rgb(image))
    reduced = load_image(tmp_path / "a.jpg", 64)
    assert sizes == [(256, 192)]  # at least twice the size
    Image.open(tmp_path / "a.jpg").save(tmp_path / "b.png")
    assert (load_image(tmp_path / "b.png", 64) - reduced).abs().mean() < 0.01


# -- bad input


def fails(match, source, resolution=16):
    """The error is one sentence that matches, whether it comes when opening or when loading."""
    with pytest.raises(ValueError, match=match) as caught:
        dataset = open_dataset(source, resolution)
        dataset.load(torch.arange(dataset.size))
    assert "\n" not in str(caught.value)


def test_what_is_no_dataset(six, tmp_path):
    fails("no folder or zip at .*nowhere", tmp_path / "nowhere")
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts" / "readme.txt").write_text("hello")
    fails("there is no image in", tmp_path / "texts")
    fails("there is no image in", zip_of(tmp_path / "empty.zip", {}))
    (tmp_path / "a.tar").write_bytes(b"not a zip")
    fails("a.tar is neither a folder nor a zip", tmp_path / "a.tar")
    path = zip_of(tmp_path / "six.zip", SIX)
    path.write_bytes(path.read_bytes()[:-40])
    fails("six.zip cannot be read as a zip .*: download or pack it again", path)


def test_names_in_a_zip_that_none_can_have(tmp_path):
    path = zip_of(tmp_path / "a.zip", {"\u00e9.png": gradient(), "b.png": gradient()})
    path.write_bytes(path.read_bytes().replace("\u00e9".encode(), b"\xe9\xe9"))
    fails("a.zip cannot be read as a zip .*: download or pack it again", path)
    with zipfile.ZipFile(path, "w") as archive:
        for name in ("", "b.png"):
            archive.writestr(zipfile.ZipInfo(name), png(gradient()))
    with pytest.warns(UserWarning, match="skipped 1 of 2 files .* 1 without a name"):
        assert open_dataset(path, 16).names == ["b.png"]


def test_an_entry_that_a_later_one_replaces_is_mentioned(tmp_path):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate name"):
        for size in (8, 16):
            archive.writestr("a.png", png(gradient(size)))
    with pytest.warns(UserWarning, match="skipped 1 of 2 files .* 1 replaced by later ones of"):
        dataset = open_dataset(path, 16)
    assert dataset.names == ["a.png"] and dataset._fits == [True]


@no_notice
def test_names_in_utf8_that_no_flag_says_are_read(tmp_path):
    """As macOS packs them."""
    path = zip_of(tmp_path / "a.zip", {"m\u00fcller.png": gradient()}, [["m\u00fcller.png", 3]])
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 7), (b"PK\x01\x02", 9)):
        content[content.index(mark) + at] &= ~8
    path.write_bytes(content)
    assert zipfile.ZipFile(path).namelist()[0] != "m\u00fcller.png"
    dataset = open_dataset(path, 16)
    assert dataset.names == ["m\u00fcller.png"] and dataset.labels.tolist() == [3]
    assert dataset.load(torch.arange(1)).shape == (1, 3, 16, 16) and dataset.checksum()
    with zipfile.ZipFile(path, "w") as archive:  # a name of the old code page stays
        archive.writestr("n\u00fc.png", png(gradient()))
    old = path.read_bytes().replace("\u00fc".encode(), b"\x81_").replace(b"\0\x08", b"\0\0")
    path.write_bytes(old)
    assert open_dataset(path, 16).names == ["n\u00fc_.png"]


def test_links_in_a_zip_are_left_out_and_mentioned(tmp_path):
    path, link = zip_of(tmp_path / "a.zip", {"a.png": gradient()}), zipfile.ZipInfo("b.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(link, "a.png")
    with pytest.warns(UserWarning, match="skipped 1 of 2 files .* 1 that are links"):
        assert open_dataset(path, 16).names == ["a.png"]


def test_the_order_is_the_same_however_accents_are_composed(tmp_path):
    names = ["f.png", "z.png", "\u00e9.png"]
    for form in ("NFC", "NFD"):
        spelt = [unicodedata.normalize(form, name) for name in names]
        path = zip_of(tmp_path / "a.zip", dict.fromkeys(spelt[::-1], gradient()))
        assert open_dataset(path, 16).names == spelt


@no_notice
def test_a_zip_made_beside_its_pictures_is_read(tmp_path):
    """Packed as ../photos; nothing is unpacked, so that the names lead nowhere."""
    names = ["../../photos/a.png", "../photos/b.png", "./photos/c.png", "/photos/d.png"]
    dataset = open_dataset(zip_of(tmp_path / "set.zip", dict.fromkeys(names, gradient())), 16)
    assert dataset.names == names


@no_notice
def test_what_a_run_inside_the_pictures_drew_is_no_picture_of_them(tmp_path):
    pictures = dict.fromkeys(("a.png", "grids/b.png", "run/grids/000000016.png"), gradient())
    folder = folder_of(tmp_path / "set", pictures)
    for name in ("log.jsonl", "settings.json"):
        (folder / "run" / name).touch()
    shutil.make_archive(str(folder), "zip", folder)
    for path in (folder, tmp_path / "set.zip"):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "skipped 2 of 4 files")
            assert open_dataset(path, 16).names == ["a.png", "grids/b.png"]


def test_damaged_entries_are_named(six, tmp_path):
    for name in ("00000/img4.png", "00001/img3.png"):
        (six / name).write_bytes((six / name).read_bytes()[:50])
    with pytest.raises(ValueError, match=r"img4.png .* cannot be read .* \(2 such files in all\)"):
        open_dataset(six, 16)  # a small set is checked to the last pixel
    path = zip_of(tmp_path / "six.zip", SIX)
    content = bytearray(path.read_bytes())
    start = content.index(b"00001/img3.png") + 60
    content[start:start + 10] = bytes(10)
    path.write_bytes(content)
    fails("00001/img3.png in .* cannot be read as an image", path)


def test_a_large_set_names_damage_when_it_is_met(six, never_at_once):
    (six / "00001/img3.png").write_bytes((six / "00001/img3.png").read_bytes()[:50])
    dataset = open_dataset(six, 16)
    damaged = dataset.names.index("00001/img3.png")
    dataset.load(torch.tensor([i for i in range(6) if i != damaged]))
    with pytest.raises(ValueError, match="00001/img3.png in .* cannot be read as an image"):
        dataset.load(torch.tensor([damaged]))


def test_what_is_no_image_is_named_and_never_run(six, monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_: pytest.fail("it was run"))
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 32 32\n%%EndComments\n%%EOF\n"
    (six / "a.eps").write_bytes(script)
    # an IPTC record, whose content Pillow would open as whatever it is
    header = b"\x1c\x03\x3c\x00\x02\x01\x00\x1c\x03\x14\x00\x01\x08\x1c\x03\x1e\x00\x01\x08"
    record = b"\x1c\x08\x0a" + len(script).to_bytes(2, "big") + script
    (six / "b.iim").write_bytes(header + record)
    with pytest.warns(UserWarning, match="1 .eps, 1 .iim"):
        open_dataset(six, 16)
    for name in ("a.eps", "b.iim"):
        (six / name).unlink()
    (six / "fake.png").write_bytes(script)
    fails("fake.png in .* cannot be read as an image", six)


MISNAMED = [
    (b"", "it is empty.: fetch it again"),
    (b"version https://git-lfs.github.com/spec/v1\noid", "it is a Git LFS .*: run git lfs pull"),
    (b"<!DOCTYPE html><html>", "it is a web page .*: fetch the file itself"),
    (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(99), "it is a HEIC picture.: save it as JPEG"),
    (b"%PDF-1.4", "it is a PDF document.: remove or replace it"),
    (b"\x89PNG\r\n\x1a\n", "it is damaged, or of a kind that is not known.: remove or replace it")]


@pytest.mark.parametrize("content, message", MISNAMED)
def test_what_is_called_a_picture_is_named_for_what_it_is(six, tmp_path, content, message):
    for name in ("a.png", "a.jpg"):
        (six / name).write_bytes(content)
        fails(rf"a.(png|jpg) in .*six cannot be read as an image \({message}", six)
    shutil.make_archive(str(six), "zip", six)
    fails(rf"a.jpg in .*six.zip cannot be read as an image \({message}", tmp_path / "six.zip")


def test_an_image_that_is_gone_is_missed(six, never_at_once):
    dataset = open_dataset(six, 16)
    (six / dataset.names[2]).unlink()
    with pytest.raises(ValueError, match=f"^{dataset.names[2]} in .*six is gone: put it back$"):
        dataset.load(torch.tensor([2]))


def test_one_image_that_is_none_is_named(tmp_path):
    with pytest.raises(ValueError, match="there is no image .*a.png"):
        load_image(tmp_path / "a.png", 16)
    (tmp_path / "a.png").write_bytes(b"rubbish")
    with pytest.raises(ValueError, match="a.png in .* cannot be read as an image .*: save it as "
                                         "JPEG or PNG$"):
        load_image(tmp_path / "a.png", 16)
    gradient().save(tmp_path / "b.png")
    with pytest.raises(ValueError, match="b.png in .* is 16x16: give a picture of at least 64x64$"):
        load_image(tmp_path / "b.png", 64)


def test_bad_sizes_are_named_with_a_mend(six):
    fails(r"img0.png in .* is 16x16, smaller than the resolution 32: .* at most 16", six, 32)
    for resolution in (24, 0, -8, 4):
        for source in (six, "toyfaces"):
            fails(f"power of two .* not {resolution}", source, resolution)
    Image.new("RGB", (7, 40)).save(six / "0.png")  # for which no resolution is small enough
    fails("0.png in .* is 7x40, smaller than the resolution 16: remove it$", six)


@pytest.mark.parametrize("limit", [200, 100])  # 16x16 lies between once and twice the guard, above
def test_enormous_images_are_refused(six, monkeypatch, limit):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    fails("img0.png in .* is refused, it would unpack to an enormous image", six)


def test_what_a_phone_takes_is_not_enormous():
    with warnings.catch_warnings(action="error"):
        Image._decompression_bomb_check((16_384, 12_288))  # 200 megapixels
        with pytest.raises(Image.DecompressionBombWarning):
            Image._decompression_bomb_check((20_000, 14_000))


def test_zip_bombs_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("gapkd.data.datasets.ENTRY_BYTES", 50)
    fails("img0.png in .* is refused", zip_of(tmp_path / "six.zip", SIX))


WRONG = "dataset.json in .* is not in StyleGAN's format"
NAN = r"label of 00001/img3.png in .* no finite number .* mend it in dataset.json"


@pytest.mark.parametrize("text, message", [
    *[(text, WRONG) for text in ("{", "[]", "[" * 100_000, json.dumps(dict.fromkeys(SIX, 1)))],
    *[(having(labels), WRONG) for labels in (5, "x", [["00000/img0.png"]], [[1, 2, 3]])],
    (having([{"file": name, "label": 1} for name in SIX]), WRONG),
    (having([[name, i] for i in (1, 2) for name in SIX]), "gives 00000/img0.png two dif.* labels"),
    (having(dict.fromkeys(SIX, 1) | {"x": 2}).replace("x", min(SIX)), "gives 00000/img0.png two"),
    (having([]).replace("}", ', "labels": []}'), WRONG), (having(0), WRONG), (having(False), WRONG),
    *[(having([[name, bad if "img3" in name else label] for name in SIX]),
       rf"label of 00001/img3.png in .* is {re.escape(json.dumps(bad))}, neither a whole")
      for label, bad in ((1, None), (1, "3"), (1, 0.5), (1, math.nan), (1, 10**20), (1, 1e20),
                         (1, [1, 0]), ([1, 0], [1]), ([1, 0], 1), ([1, 0], [1, "0"]))],
    *[(having([[name, label] for name in SIX]),
       f"label of 00000/img0.png in .* is {re.escape(json.dumps(label))}, neither a whole")
      for label in (0.5, "smile", None, [[1]])],
    (having([[name, 1] for name in SIX if "img3" not in name]), "no label for 00001/img3.png"),
    *[(having([[name, label if "img3" in name else [0.5, 1.0]] for name in SIX]), NAN)
      for label in ([0.5, math.nan], [math.inf, 0.0])]])
def test_labels_that_cannot_be_used(six, text, message):
    (six / "dataset.json").write_text(text)
    fails(message, six)


@pytest.mark.parametrize("method, cut", [
    (zipfile.ZIP_STORED, True), (zipfile.ZIP_STORED, False), (zipfile.ZIP_DEFLATED, False),
    (zipfile.ZIP_BZIP2, False), (zipfile.ZIP_LZMA, False)])
def test_damaged_labels_of_a_zip_are_named(tmp_path, method, cut):
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("a.png", png(gradient()))
        archive.writestr("dataset.json", having([[f"{i:x}.png", i] for i in range(99)]))
        last = archive.getinfo("dataset.json")
    content = bytearray(path.read_bytes())
    start = last.header_offset + 30 + len(last.filename)
    if cut:  # its size, packed and unpacked, is said to be more than there is
        said_at = content.rindex(b"PK\1\2") + 20
        content[said_at:said_at + 8] = struct.pack("<II", 10**6, 10**6)
    else:
        content[start + 20:start + 60] = b"\xff" * 40
    path.write_bytes(content)
    fails(WRONG, path)


def test_whole_labels_may_be_written_as_floats(six):
    (six / "dataset.json").write_text(having([[name, float(i % 3)] for i, name in enumerate(SIX)]))
    labels = open_dataset(six, 16).labels
    assert labels.dtype == torch.long and set(labels.tolist()) == {0, 1, 2}
    (six / "dataset.json").write_text(having([[n, 20_230_101 + i] for i, n in enumerate(SIX)]))
    days = open_dataset(six, 16).labels.tolist()
    (six / "dataset.json").write_text((six / "dataset.json").read_text().replace("],", ".0],"))
    assert open_dataset(six, 16).labels.tolist() == days and len({*days}) == 6


def test_classes_that_are_too_many_or_mostly_empty(six):
    """A network of more could not be read from its file."""
    for largest, message in ((2**20, "00001/img5.png in .* is of class 1,048,576, and a network"),
                             (10**9, "class 1,000,000,000")):
        (six / "dataset.json").write_text(having([[n, i // 5 * largest]
                                                  for i, n in enumerate(SIX)]))
        with pytest.raises(ValueError, match=message):
            class_count(open_dataset(six, 16))
    for labels, empty in ([0, 0, 0, 1, 1, 7], 5), ([0, 0, 0, 0, 0, 1], 0):
        (six / "dataset.json").write_text(having([*zip(SIX, labels, strict=True)]))
        told = pytest.warns(UserWarning, match=f"{empty} of the 8 classes .* have no image")
        with told if empty else nullcontext():
            assert class_count(open_dataset(six, 16)) == max(labels) + 1


def test_classes_that_begin_at_1_are_mentioned(six):
    (six / "dataset.json").write_text(having([[n, 1 + i % 3] for i, n in enumerate(SIX)]))
    with pytest.warns(UserWarning, match="no image of six is of class 0, .* number the classes"):
        assert class_count(open_dataset(six, 16)) == 4


def test_no_labels_may_be_said(six):
    (six / "dataset.json").write_text(having(None))
    assert open_dataset(six, 16).labels is None


def test_a_label_may_be_said_twice(six):
    (six / "dataset.json").write_text(having([[name, [1, 2]] for name in SIX] * 2))
    assert open_dataset(six, 16).labels.tolist() == [[1, 2]] * 6


@pytest.mark.parametrize("spelling", ["./{}", "{}"])
def test_two_spellings_of_a_name_may_not_have_two_labels(six, spelling):
    pairs, again = [[name, 1] for name in SIX], spelling.format(min(SIX))
    for order in (1, -1):
        content = having([*pairs, [again, 2]][::order])
        (six / "dataset.json").write_text(content)
        fails("gives .* two different labels: keep the right one", six)
    (six / "dataset.json").write_text(having([*pairs, [again, 1]]))
    assert open_dataset(six, 16).labels.tolist() == [1] * 6


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("spelling", ["./{}", "in/{}", "{}", "./in/{}"])
def test_labels_below_the_top_may_name_pictures_from_either_place(tmp_path, packed, spelling):
    names = {f"{i}.png": i for i in range(3)}
    (tmp_path / "set" / "in").mkdir(parents=True)
    for name in names:
        gradient().save(tmp_path / "set" / "in" / name)
    content = having([[spelling.format(name), label] for name, label in names.items()])
    (tmp_path / "set" / "in" / "dataset.json").write_text(content)
    if packed:
        shutil.make_archive(str(tmp_path / "set"), "zip", tmp_path / "set")
    path = tmp_path / ("set.zip" if packed else "set")
    if spelling == "./in/{}":
        fails("no label for in/0.png", path)  # neither from here nor from there
    else:
        assert open_dataset(path, 16).labels.tolist() == [0, 1, 2]


def test_a_set_is_told_by_names_and_sizes_of_its_files(six, tmp_path):
    """In a folder, under another name, or in a zip."""
    known = open_dataset(six, 16).checksum()
    shutil.copytree(six, tmp_path / "copy")
    shutil.make_archive(str(tmp_path / "packed"), "zip", six)
    for place in ("copy", "packed.zip"):
        assert open_dataset(tmp_path / place, 16).checksum() == known
    Image.new("RGB", (99, 99), "blue").save(tmp_path / "copy" / sorted(SIX)[0])
    with pytest.warns(UserWarning, match="not 16x16"):
        assert open_dataset(tmp_path / "copy", 16).checksum() != known
    os.rename(six / sorted(SIX)[0], six / "other.png")
    assert open_dataset(six, 16).checksum() != known


def test_zips_that_cannot_be_unpacked_and_what_is_no_file(tmp_path, monkeypatch):
    path = zip_of(tmp_path / "a.zip", {"a.png": gradient()})
    content = bytearray(path.read_bytes())
    for mark, at in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag of an encrypted entry
        content[content.index(mark) + at] |= 1
    path.write_bytes(content)
    fails("a.zip is encrypted, or packed by a method .*: unpack it, and give the folder", path)
    path = zip_of(tmp_path / "b.zip", {"a.png": gradient()}, [["a.png", 1]] * 1000)
    monkeypatch.setattr("gapkd.data.datasets.ENTRY_BYTES", 5000)
    fails("dataset.json in .* is not in StyleGAN's format", path)
    fails("neither a folder nor a zip", "/dev/zero")
    fails("data is empty: give a folder or zip of images, or \"toyfaces\"", "")


NUMBERED = [(f"f\u00fcnf/{i}.png", i) for i in range(4)]


@pytest.mark.parametrize("spelt", [
    lambda name: unicodedata.normalize("NFD", name), lambda name: f"./{name}",
    lambda name: name.replace("/", "\\")])
def test_labels_are_found_however_a_name_is_spelt(tmp_path, spelt):
    plain = {name: Image.new("RGB", (16, 16)) for name, _ in NUMBERED}
    turned = {spelt(name): picture for name, picture in plain.items()}
    for pictures, labels in ((plain, [[spelt(name), i] for name, i in NUMBERED]),
                             (turned, NUMBERED)):
        dataset = open_dataset(zip_of(tmp_path / "a.zip", pictures, labels), 16)
        assert dataset.labels.tolist() == [0, 1, 2, 3]
    both = [["e\u0301.png", 0], ["\u00e9.png", 1]]  # two files all the same
    path = zip_of(tmp_path / "b.zip", {name: plain[NUMBERED[0][0]] for name, _ in both}, both)
    assert open_dataset(path, 16).labels.tolist() == [0, 1]


@pytest.mark.parametrize("folders", [["photos"], ["photos/train", "photos/val"]])
@pytest.mark.parametrize("zipped", [True, False])
def test_labels_in_a_folder_of_the_folder_or_zip(tmp_path, folders, zipped):
    path = tmp_path / "a"
    for folder in folders:
        folder_of(path / folder, {f"{i}.png": gradient() for i in range(3)})
        (path / folder / "dataset.json").write_text(having([[f"{i}.png", i] for i in range(3)]))
    if zipped:
        path = shutil.make_archive(path, "zip", path)
    assert open_dataset(path, 16).labels.tolist() == [0, 1, 2] * len(folders)
    if not zipped:  # a picture of which no dataset.json speaks
        gradient().save(path / "cover.png")
        with pytest.warns(UserWarning, match="/dataset.json in a is not used, .* cover.png"):
            assert open_dataset(path, 16).labels is None


@pytest.mark.parametrize("name", ["DATASET.JSON", "./dataset.json", "photos/Dataset.json"])
def test_labels_are_found_however_their_file_is_spelt(tmp_path, name):
    folder = name[:-len("dataset.json")]
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for i in range(3):
            archive.writestr(f"{folder}{i}.png", png(gradient()))
        archive.writestr(name, having([[f"{i}.png", i] for i in range(3)]))
    assert open_dataset(path, 16).labels.tolist() == [0, 1, 2]


def test_names_that_are_not_utf8_or_hold_a_line_break(six):
    bad = os.fsencode(six)
    try:
        for name in (b"m\xfcller.png", b"a\nb.png"):
            shutil.copy(os.path.join(bad, b"00000", b"img0.png"), os.path.join(bad, name))
    except OSError:
        pytest.skip("this file system has no such names")
    dataset = open_dataset(six, 16)
    assert dataset.size == 8 and dataset.load(torch.arange(8)).shape == (8, 3, 16, 16)
    labels = having([[os.fsencode(name).decode("latin1"), 7] for name in dataset.names])
    (six / "dataset.json").write_bytes(labels.replace("\\u00fc", "\u00fc").encode("latin1"))
    assert open_dataset(six, 16).labels.tolist() == [7] * 8
    for name in {*dataset.names} - {*SIX}:
        (six / name).write_bytes(b"")
    (six / "dataset.json").write_text(having([[name, 1] for name in SIX]))
    fails(r"no label for 'a\\nb.png'", six)
    (six / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"'a\\nb.png' in .* cannot be read") as caught:
        open_dataset(six, 16)
    str(caught.value).encode()
