"""Files that mean harm, or are damaged: nothing is executed, nothing explodes, one kind of error
comes out."""

from __future__ import annotations

import bz2
import ctypes
import datetime
import enum
import functools
import importlib
import io
import json
import lzma
import operator
import os
import pickle
import platform
import random
import struct
import sys
import time
import warnings
import zipfile
from argparse import Namespace
from collections import OrderedDict, defaultdict, deque
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from official_files import TRACE, named_like_nvidia, nvidia_pickle, shared_modules, torch_bytes
from safetensors.torch import save as safetensors_bytes
from tiny import equal

from gapkd.cli import main
from gapkd.files.checkpoints import (
    CheckpointError,
    load_discriminator,
    load_generator,
    network_bytes,
    read_metadata,
)
from gapkd.files.foreign import PERSISTENT, ForeignError, find_network, to_rosinality
from gapkd.files.pickles import Record, UnreadableError, read
from gapkd.metrics.editing import load_directions
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator

HARM = {"os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen",
        "pickle.find_class"}
watched: list[tuple[set[str], list]] = []


def note(event: str, arguments: tuple) -> None:
    for events, seen in watched:
        if event in events:
            seen.append((event, *arguments[:1]))


# the interpreter reports here what it does, by whatever name it was asked; for ever, hence idle
sys.addaudithook(note)


@contextmanager
def nothing_executed(*more: str):
    """Fails if the block runs a program, unpickles by Python's own rules, or does `more`."""
    watched.append((HARM | set(more), []))
    try:
        yield
    finally:
        _, seen = watched.pop()
    assert seen == [] and TRACE not in os.environ


@contextmanager
def within(size: int):
    """Fails if the block at any time holds so many bytes more than were held before, or takes more
    than twenty seconds."""

    def held(which: str) -> int:
        status = Path("/proc/self/status").read_text()
        return 1024 * int(status.split(f"{which}:")[1].split()[0])

    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)  # memory that was kept would hide what is taken
    try:
        Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    except OSError:
        pytest.skip("this system does not tell the peak of a process's memory")
    before, start = held("VmRSS"), time.monotonic()
    yield
    assert held("VmHWM") - before < size and time.monotonic() - start < 20


def small() -> Generator:
    return Generator(8, 4, 4, 4, mapping_layers=1)


def refused(tmp_path: Path, content: bytes, message: str, name: str = "net.pkl") -> None:
    """Loading fails with one sentence."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(CheckpointError, match=f"{name} .*{message}") as caught:
        load_generator(tmp_path / name)
    assert "\n" not in str(caught.value)


# ---------------------------------------------------------------------------------------- calls


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


ATTACKS = {
    "system": Call(os.system, "true"), "eval": Call(eval, "__import__('os').system('true')"),
    "getattr": Call(getattr, "text", "join"), "partial": functools.partial(print, "harm"),
    "methodcaller": operator.methodcaller("system", "true"), "open": Call(open, "/etc/passwd"),
    "import_module": Call(importlib.import_module, "antigravity"),
    "torch.load": Call(torch.load, "/etc/passwd"), "terabyte": Call(bytearray, 2**40),
    "nn.Module": torch.nn.Linear(2, 2), "code": Call(compile, "1", "x", "eval")}


class Colour(enum.Enum):
    RED = 1


BESIDE = ATTACKS | {"path": Path("/data"), "set": {1, (2, 3)}, "array": np.arange(5.0),
                    "number": np.float32(3), "tuples": {(8, 8): 1, 7: 2}, "enum": Colour.RED}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_are_inert_and_named(tmp_path, name, protocol):
    content = pickle.dumps({"G_ema": ATTACKS[name]}, protocol=protocol)
    with nothing_executed():
        assert isinstance(read(content)["G_ema"], Record)
        message = "(neither knows nor calls|holds whole modules .'torch.nn.*Linear')"
        refused(tmp_path, content, f"cannot be read as a network: .*{message}")


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_what_lies_beside_a_network_does_not_lose_it(tmp_path, protocol):
    G = small()
    beside = BESIDE | {"frozen": frozenset({4}), "date": datetime.date(2026, 1, 1), "complex": 1j,
                       "class": Colour, "deque": deque([1]), "default": defaultdict(list, a=[1]),
                       "keys": {0.5: 3, None: 4}, "bytes": bytearray(b"abc")}
    content = nvidia_pickle(named_like_nvidia(G), protocol=protocol, beside=beside)
    with nothing_executed("open"):
        read(content)
    (tmp_path / "net.pkl").write_bytes(content)
    assert equal(load_generator(tmp_path / "net.pkl"), G)
    with pytest.raises(CheckpointError, match="'D': .*|whole modules|of the kind"):
        load_discriminator(tmp_path / "net.pkl")


@pytest.mark.parametrize("with_zip", [True, False])
def test_tensors_and_lists_beside_a_network_do_not_lose_it(tmp_path, with_zip):
    G = small()
    beside = {"complex": torch.ones(3, dtype=torch.complex64), "expanded": torch.ones(1).expand(9),
              "sparse": torch.eye(3).to_sparse(), "buffer": torch.nn.Buffer(torch.ones(2)),
              "quantized": torch.quantize_per_tensor(torch.ones(3), 0.1, 0, torch.qint8),
              "module": torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3)), "generator": Colour.RED,
              "args": Namespace(path=Path("/data")), "losses": [n + 0.5 for n in range(400_000)],
              "steps": {n: n + 0.5 for n in range(150_000)},
              "log": [{"d": n + 0.5} for n in range(9999)],
              "means": [np.float64(n) for n in range(20_000)], "device": torch.device("cpu")}
    (tmp_path / "net.pt").write_bytes(torch_bytes(to_rosinality(G) | beside, with_zip))
    with within(200 * 2**20), nothing_executed():
        loaded = load_generator(tmp_path / "net.pt")
    assert equal(loaded, G)


def test_what_the_network_itself_needs_is_named(tmp_path):
    layout = to_rosinality(small())["g_ema"]
    for odd in (Colour.RED, torch.eye(4).to_sparse()):
        content = torch_bytes({"g_ema": layout | {"style.1.bias": odd}})
        refused(tmp_path, content, "style.1.bias is no tensor, but .* neither knows nor", "net.pt")


@pytest.mark.parametrize("inner", [pickle.dumps(Call(os.system, "true"), 2),
                                   torch_bytes(Call(os.system, "true"), with_zip=False)])
def test_a_call_inside_a_storage_is_refused(tmp_path, inner):
    content = pickle.dumps({"G_ema": Call(torch.storage._load_from_bytes, inner)})
    with nothing_executed():
        refused(tmp_path, content, "(neither knows nor calls|is truncated or damaged)")


def test_nothing_is_imported_or_called_while_reading():
    good = nvidia_pickle(named_like_nvidia(small()))
    read(good)
    with nothing_executed("import", "exec", "compile", "open"):
        read(good)


def test_the_watch_kept_here_would_notice():
    for harm in (lambda: pickle.loads(pickle.dumps(ATTACKS["system"])), lambda: os.system("true")):
        with pytest.raises(AssertionError), nothing_executed():
            harm()
    with pytest.raises(AssertionError), within(50 * 2**20):
        torch.ones(20 * 2**20)


# --------------------------------------------- programs written by hand, in pickle's own language

GLOBAL = b"c%s\n%s\n"
ORDERED = GLOBAL % (b"collections", b"OrderedDict")
TENSOR = GLOBAL % (b"torch._utils", b"_rebuild_tensor_v2")
PARAMETER = GLOBAL % (b"torch._utils", b"_rebuild_parameter")
ENCODE = GLOBAL % (b"_codecs", b"encode")
LOAD = GLOBAL % (b"torch.storage", b"_load_from_bytes")
EMPTY = torch_bytes(torch.zeros(0).untyped_storage(), with_zip=False)
TUPLES = b")" + b"q\0h\0\x86" * 60  # of two tuples, which are one, and so on: hashing it never ends


def as_bytes(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


def tensor(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    """The program of a tensor of a storage of 16 bytes."""
    storage = LOAD + as_bytes(torch_bytes(torch.zeros(4).untyped_storage(), False)) + b"\x85R"

    def number(n: int) -> bytes:
        return b"\x8a\x08" + struct.pack("<q", n)

    numbers = b"".join(b"(" + b"".join(map(number, t)) + b"t" for t in (size, stride))
    return (b"\x80\x03" + TENSOR + b"(" + storage + number(offset) + numbers + b"\x89" + ORDERED
            + b")RtR.")


def keys(step: int, count: int) -> bytes:
    """The program of a dict with the numbers 0, step, 2 step... as keys."""
    numbers = ((i * step).to_bytes(14, "little") for i in range(count))
    return b"\x80\x03}(" + b"".join(b"\x8a\x0e" + number + b"N" for number in numbers) + b"u."


def legacy(program: bytes, keys: object = (), version: bytes = b"\x80\x02N.") -> bytes:
    """A torch.save file without zip, around the program of its object."""
    magic = pickle.dumps(0x1950A86A20F9469CFC6C, 2)
    return magic + version + pickle.dumps({}, 2) + program + pickle.dumps([*keys], 2)


def loading(content: bytes) -> bytes:
    """The program of a storage that was saved into bytes."""
    return b"\x80\x03" + LOAD + as_bytes(content) + b"\x85R."


def test_the_programs_written_here_are_right():
    assert read(tensor(4, (2, 3), (3, 1))).shape == (2, 3)
    assert read(tensor(0, (0, 5), (5, 1))).shape == (0, 5)
    assert read(loading(EMPTY)).values.numel() == 0
    assert len(read(keys(1, 1000))) == 1000


PROGRAMS = {
    "beyond its storage": tensor(0, (5, 4), (4, 1)), "offset beyond": tensor(16, (1,), (1,)),
    "terabytes": tensor(0, (2**40,), (1,)), "negative offset": tensor(-8, (2,), (1,)),
    "negative stride": tensor(8, (2,), (-4,)), "negative size": tensor(0, (-1,), (1,)),
    "more sizes than strides": tensor(0, (2, 2), (1,)),
    "many sizes": tensor(0, (1,) * 40, (1,) * 40),
    "no storage": b"\x80\x03" + TENSOR + b"(]K\x00)))tR.",
    "a state for a class": b"\x80\x03" + ORDERED + b"}U\x01aK\x01sb.",
    "a state for a list": b"\x80\x03]}b.", "a number called": b"\x80\x03K\x01)R.",
    "attributes walked": b"\x80\x04\x8c\x0bcollections\x8c\x13OrderedDict.__init__\x93.",
    "a name made up": b"\x80\x04K\x01K\x02\x93.", "an extension": b"\x80\x03\x82\x01.",
    "a buffer elsewhere": b"\x80\x05\x97\x98.",
    "outside": b"\x80\x03U\x01aQ.", "outside, as text": b"\x80\x03Pabc\n.",
    "memo from nowhere": b"\x80\x03j\xff\xff\xff\xff.",
    "empty stack": b"\x80\x03R.", "no mark": b"\x80\x03t.", "nothing": b"\x80\x03.",
    "never stops": b"\x80\x03N",
    "claims a terabyte": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "claims all": b"\x80\x04\x8e" + struct.pack("<Q", 2**63 - 1) + b"abc.",
    "a frame of a terabyte": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N",
    "a long number": b"\x80\x03L" + b"9" * 100_000 + b"L\n.", "protocol 77": b"\x80\x4d\x99.",
    "old instances": b"\x80\x03(ios\nsystem\n.", "old objects": b"\x80\x03(" + ORDERED + b"o.",
    "text of old protocols": pickle.dumps({"a": 1}, 0),
    "a dict of no pairs": b"\x80\x03" + ORDERED + b"(]K\x01atR."}


INERT = {
    "shown many times": tensor(0, (10**6, 10**6), (0, 0)),
    "a record called": b"\x80\x03" + GLOBAL % (b"torch", b"Size") + b")R)R.",
    "keywords": b"\x80\x04" + ORDERED + b")}\x8c\x01aK\x01s\x92.",
    "keys that hash for ever": b"\x80\x04}" + TUPLES + b"Ns.",
    "a set of tuples": b"\x80\x04\x8f(" + TUPLES + b"\x90.",
    "a frozen set of tuples": b"\x80\x04(" + TUPLES + b"\x91.",
    "a dict of tuples": b"\x80\x03" + ORDERED + b"]" + TUPLES + b"N\x86a\x85R.",
    "keys of one hash": keys(2**61 - 1, 8000), "numbers as keys": keys(1, 15_000),
    "bytes": b"\x80\x05\x96\3" + bytes(7) + b"abc.",
    "an encoding": b"\x80\x03" + ENCODE + b"X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    "a parameter of nothing": b"\x80\x03" + PARAMETER + b"N\x85R.",
    "appended to an object": b"\x80\x03" + GLOBAL % (b"os", b"x") + b")R(K\1K\2e.",
    "a list of a million": b"\x80\x03](" + b"G" + bytes(8) + (b"G" + bytes(8)) * 10**6 + b"e."}


@pytest.mark.parametrize("name", INERT)
def test_programs_that_are_read_at_once(name):
    with within(150 * 2**20), nothing_executed("import", "open"):
        value = read(INERT[name])
        with pytest.raises(ForeignError):
            find_network(value, None)


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_cheat_are_refused_at_once(name):
    with within(50 * 2**20), pytest.raises(UnreadableError):
        read(PROGRAMS[name])


@pytest.mark.parametrize("content, message", [
    # C unpicklers make room for four billion entries
    (b"\x80\x03Nr\xfe\xff\xff\xff.", "not numbered as picklers do"),
    (b"\x80\x03" + TENSOR + b"(" + b"N" * 300 + b"tR.", "with 300 arguments"),
    (tensor(0, (-1,) * 5000, (1,) * 5000), "not a storage, sizes and strides"),
    (tensor(0, (2, 2), (100, 1)), "reaches beyond its storage of 16 numbers"),
    *[(content, "nested in what torch.save wrote") for around in (loading, bytes)  # each doubles
      for content in (around(legacy(loading(EMPTY))),
                      around(legacy(b"N.", version=loading(EMPTY))))],
    *[(legacy(b"N.", keys=keys), "not those that it lists") for keys in (["0"], [((),)])]])
def test_what_cheats_is_named(content, message):
    with within(50 * 2**20), pytest.raises(UnreadableError, match=message):
        read(content)


TEXT = (b"\x80\x03X" + struct.pack("<I", 10**5) + b"a" * 10**5 + b"q\x010"
        + b"X\x06\x00\x00\x00latin1q\x020")
PAIRS = b"\x80\x03](" + b"".join(b"(U\x03%03dNt" % n for n in range(1000)) + b"e\x85q\x010"
MEGABYTE = torch_bytes(torch.zeros(250_000).untyped_storage(), with_zip=False)


def again(content: bytes, times: int) -> bytes:
    """The program that unpacks a storage again and again."""
    begin = b"\x80\x03" + b"N0" * 20  # of no importance, but no file of torch.save begins so
    return begin + as_bytes(content) + b"q\x010" + (LOAD + b"h\x01\x85R0") * times + b"N."


DEAR = {  # each step is cheap
    "steps": b"\x80\x04" + b"\x8f" * 10**6 + b".",
    "encoded text": TEXT + (ENCODE + b"h\x01h\x02\x86R0") * 900 + b"N.",
    "storages": again(MEGABYTE, 1000), "empty storages": again(EMPTY, 20_000),
    "copies of a list": PAIRS + (ORDERED + b"h\x01R0") * 1500 + b"N.",
    "copies of a dict":
        PAIRS + ORDERED + b"h\x01R\x85q\x020" + (ORDERED + b"h\x02R0") * 1500 + b"N.",
    "numbers as keys": keys(1, 10**6)}


@pytest.mark.parametrize("name", DEAR)
def test_all_work_is_paid_from_one_budget(name):
    with within(200 * 2**20), pytest.raises(UnreadableError, match="far more than its own"):
        read(DEAR[name])


def test_deep_nesting_is_read_without_recursion():
    value = read(b"\x80\x03" + b"]" * 100_000 + b"a" * 99_999 + b".")
    for _ in range(99_999):
        (value,) = value


def test_a_compressed_entry_that_explodes():
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02N.")
        archive.writestr("net/data.pkl.more", bytes(10**8))
    assert read(buffer.getvalue()) is None
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02N" + b"0N" * (5 * 10**7) + b".")
    with pytest.raises(UnreadableError, match="more than the file holds: unzip it and zip it"):
        read(buffer.getvalue())


def test_many_compressed_entries_are_paid_from_the_budget():
    plain, buffer = io.BytesIO(torch_bytes([torch.zeros(250_000) for _ in range(90)])), io.BytesIO()
    with zipfile.ZipFile(plain) as source, zipfile.ZipFile(buffer, "w") as target:
        target.writestr("x/padding", random.Random(0).randbytes(10**6))  # as large as each of them
        for name in source.namelist():
            target.writestr(name, source.read(name), zipfile.ZIP_DEFLATED)
    assert len(read(plain.getvalue())) == 90
    with pytest.raises(UnreadableError, match="far more than its own size"):
        read(buffer.getvalue())


# ------------------------------------------------------------------------------------- networks


def test_values_without_end_are_not_printed_or_hashed(tmp_path):
    endless, state = (), named_like_nvidia(small())
    for _ in range(60):
        endless = (endless, endless)
    for path, name in (("mapping.fc0", "bias_gain"), ("synthesis.b8", "architecture"),
                       ("synthesis.b8.conv0", "activation"), ("synthesis.b8.conv1", "conv_clamp")):
        refused(tmp_path, nvidia_pickle(state, attributes={path: {name: endless}}), "a tuple")
    (tmp_path / "net.pkl").write_bytes(
        nvidia_pickle(state, attributes={"mapping": {"resolution": endless}}))
    assert load_generator(tmp_path / "net.pkl").resolution == 8  # nobody asks for that one
    with pytest.raises(ForeignError, match="holds no StyleGAN2 network"):
        find_network(Record(PERSISTENT, ({"class_name": endless, "state": {}},)), None)


def test_shared_modules_are_counted_each_time(tmp_path):
    refused(tmp_path, shared_modules(30), "cannot be read as a network: it unpacks to far more")
    refused(tmp_path, shared_modules(60), "a module that is not laid out as")


@pytest.mark.parametrize("weight, bias, message", [
    (torch.zeros(100, 100, dtype=torch.uint8), torch.zeros(100), "the same numbers in many tensor"),
    (torch.zeros(2**24, 0), torch.zeros(2**24, 0), r"style.60.weight .* \(16777216, 0\).* empty")])
def test_one_storage_under_many_names_is_refused(tmp_path, weight, bias, message):
    layers = {f"style.{n + 1}.weight": weight for n in range(60)}
    layers |= {f"style.{n + 1}.bias": bias for n in range(60)}
    layout = to_rosinality(Generator(8, 100, 100, 4, mapping_layers=1))["g_ema"] | layers
    with within(50 * 2**20):
        refused(tmp_path, torch_bytes({"g_ema": layout}), message, "net.pt")


@pytest.mark.parametrize("content, message", [
    (b"", "is empty"), (b"<!doctype html><html>", "is a web page"), (b"\x89PNG\r\n", "is a PNG"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"), (b"a,b\n1,2", "is text"),
    (bytes(range(1, 60)) * 2 + b"\xff", "is of an unknown kind: expected a network as"),
    (b"\x1f\x8b\x08", "is a gzip archive"), (bz2.compress(b"x"), "is a bzip2 archive: unpack it"),
    (lzma.compress(b"x"), "is an xz archive: unpack"), (b"\x28\xb5\x2f\xfd..", "is a Zstandard"),
    (bytes(257) + b"ustar\x0000", "is a tar archive: unpack"), (b"\n <html>", "is a web page"),
    (b"\xef\xbb\xbf\r\n<!DOCTYPE html>", "is a web page .*: fetch the file itself"),
    (b"\x93NUMPY\x01\x00v", r"is a numpy array \(.npy\): give the .pkl"),
    (b"\x08\x08\x12\x07pytorch\x1a\x052.1", "is an ONNX program: give the .pkl or .pt"),
    (b"\x08\x08\x12\x05gapkd:\xf2", "is an ONNX program"),
    *[(content[:len(content) // 2], "is truncated or damaged .*: fetch or save it again")
      for content in (torch_bytes(to_rosinality(small())), nvidia_pickle({"a": torch.ones(99)}))],
    *[(content, "pickle of protocol 0 or 1: save it with protocol 2 or newer")
      for content in (pickle.dumps({"a": 1}, 0), pickle.dumps({"a": 1}, 1),
                      pickle.dumps(OrderedDict(a=1), 1), torch_bytes(1, False, pickle_protocol=0))],
    (torch_bytes({"a": 1}, pickle_protocol=0), "is written in pickle protocol 0 or 1: save it"),
    (b"\x80\x02cdnnlib.tflib.network\nNetwork\nq\x00)\x81.", "TensorFlow network .* legacy.py")])
def test_other_files_are_named_for_what_they_are(tmp_path, content, message):
    refused(tmp_path, content, message)


EVIL = "x\n\x1b[31mgapkd: all is well\x1b[0m\u202e"


def spoilt(dtype: torch.dtype = torch.float32, network: torch.nn.Module | None = None,
           **changes) -> bytes:
    """A file of ours with other metadata, or another kind of numbers."""
    G = network or small()
    known = {"gapkd": "1", "kind": G.kind, "architecture": json.dumps(G.architecture()),
             "provenance": "{}"}
    weights = {k: v.to(dtype).contiguous() for k, v in G.state_dict().items()}
    return safetensors_bytes(weights, known | changes)


def claimed(**architecture) -> bytes:
    return spoilt(architecture=json.dumps(small().architecture() | architecture))


def edited(network: torch.nn.Module, **architecture) -> bytes:
    """Its file, whose architecture says something else."""
    return spoilt(network=network, architecture=json.dumps(network.architecture() | architecture))


NO_NETWORK = "is a safetensors file, but not one of gapkd's"


@pytest.mark.parametrize("content, message", [
    (spoilt()[:-100], "is not a whole safetensors file"),
    (spoilt()[:-100] + b"\xff" * 100, "not finite"),
    (safetensors_bytes({"a": torch.zeros(2)}), "cannot be read as a net"),
    (network_bytes(Discriminator(8, 2)),
     "of the kind stylegan2-discriminator, but a generator was asked for"),
    (spoilt(kind="stylegan9-generator"), "kind style"),
    (spoilt(gapkd="2"), "written in format '2', this gapkd reads '1': install a newer gapkd"),
    (spoilt(architecture="5"), NO_NETWORK), (spoilt(architecture="[" * 100_000), NO_NETWORK),
    (spoilt(provenance="[5]"), NO_NETWORK), (spoilt(provenance="[" * 100_000), NO_NETWORK),
    *[(spoilt(dtype), "holds numbers of a kind that no network")
      for dtype in (torch.float8_e4m3fn, torch.complex64, torch.int32)],
    (claimed(w_dim=9), "do not fit .*size mismatch"), (claimed(z_dim=0), "do not fit"),
    (claimed(w_dim="4"), "do not fit"), (claimed(channels=[[10**6, 10**6]] * 2), "do not fit"),
    (claimed(mapping_layers=10**9), "do not fit .*mapping_layers is 1000000000"),
    *[(claimed(clamp=clamp), "clamp must be a number above 0")
      for clamp in ("x", [1], -1.0, 0, True, {"a": 1}, 1e39, 10**20, 10**400)]],
    ids=lambda value: "file" if isinstance(value, bytes) else value)
def test_unusable_files_of_our_own(tmp_path, content, message):
    refused(tmp_path, content, message, "network.safetensors")


@pytest.mark.parametrize("make, load, name, value", [
    *[(lambda: Discriminator(8, 2), load_discriminator, *odd) for odd in (
        ("mbstd_group", 2.5), ("mbstd_group", 0), ("clamp_skips", "x"), ("c_dim", 0.0))],
    *[(lambda: AliasFreeGenerator(16, 4, 4, [4, 4, 4], mapping_layers=1), load_generator, *odd)
      for odd in (("margin", 10.0), ("critical", 1.5), ("radial", 1))],
    (small, load_generator, "channels", [[2.9, 2], [2, 2]])])
def test_sizes_that_are_no_whole_numbers_are_refused(tmp_path, make, load, name, value):
    (tmp_path / "net.safetensors").write_bytes(edited(make(), **{name: value}))
    with pytest.raises(CheckpointError, match=f"do not fit the architecture .*{name} "):
        load(tmp_path / "net.safetensors")


@pytest.mark.parametrize("text", [EVIL, EVIL + "k" * 100_000, EVIL + " k" * 50_000])
def test_text_of_a_file_in_a_message_is_short_and_printable(tmp_path, text):
    G, filters = small(), torch.ones(4, 4)
    named, layout = named_like_nvidia(G), to_rosinality(G)["g_ema"]
    module = text.replace(".", " ")[:90]
    for content in (
            nvidia_pickle(named | {f"synthesis.b8.{module}.resample_filter": filters}),
            nvidia_pickle(named, attributes={"synthesis.b8.conv0": {"activation": text}}),
            nvidia_pickle(named, attributes={"synthesis.b8.conv0": {text: 1}}),
            pickle.dumps({text: 1}), pickle.dumps({"G": Record(text)}), torch_bytes({text: {}}),
            torch_bytes({"g": layout | {text[-200:] + "kernel": filters}}),
            torch_bytes({"g": layout, text: layout | {"input.input": filters}, "ema": {}}),
            spoilt(kind=text), claimed(**{text: 1}), claimed(clamp=text), claimed(channels=text),
            safetensors_bytes({text: filters})):
        (tmp_path / "net").write_bytes(content)
        with pytest.raises(CheckpointError) as caught, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            load_generator(tmp_path / "net")
            raise CheckpointError("this one may load")
        assert str(caught.value).isprintable() and len(str(caught.value)) < 450


def test_long_paths(tmp_path, capsys):
    for path in ("a" * 300, "a" * 5000, "a\0b", f"{tmp_path}/{'b' * 300}/c"):
        for read_it in (load_generator, load_discriminator, read_metadata):
            with pytest.raises(CheckpointError, match=r"cannot be looked for|no checkpoint"):
                read_it(path)
    assert main(["convert", "toyfaces32", str(tmp_path / f"{'a' * 300}.pt")]) == 2
    assert "cannot be made (File name too long)" in capsys.readouterr().err


def test_what_is_there_but_no_file(tmp_path):
    (tmp_path / "link.pkl").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path / "link.pkl", os.devnull):
        with pytest.raises(CheckpointError, match=f"{path} is no file, but a pipe, a device"):
            load_generator(path)


def test_names_that_are_not_utf8(tmp_path):
    bad = os.fsdecode(b"m\xff")
    (tmp_path / bad).mkdir()
    for name, fault in ((f"{bad}.safetensors", r"file 'm.*safetensors'"),
                        (f"{bad}/generator.safetensors", r"folder 'm[^.]*'")):
        (tmp_path / name).write_bytes(network_bytes(small()))
        for load, error in ((load_generator, CheckpointError), (load_directions, ValueError)):
            with pytest.raises(error, match=f"the {fault} has a name that is not UTF-8, .*rename"):
                load(tmp_path / name)
    (tmp_path / name).rename(tmp_path / "m.safetensors")
    assert load_generator(tmp_path / "m.safetensors").resolution == 8


def test_a_zip_without_checksums(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        content = torch_bytes(to_rosinality(small()))
    finally:
        torch.serialization.set_crc32_options(True)
    refused(tmp_path, content, "has another checksum than its content", "net.pt")


# -------------------------------------------------------------------------------------- fuzzing


def networks() -> tuple[Generator, Discriminator]:
    return Generator(8, 4, 4, [3, 2], mapping_layers=2).eval(), Discriminator(8, [3, 2])


FILES = {
    "own.safetensors": lambda G, D: network_bytes(G),
    "theirs.safetensors": lambda G, D: safetensors_bytes(
        {f"g_ema.{k}": v.contiguous() for k, v in to_rosinality(G)["g_ema"].items()}),
    "zip.pt": lambda G, D: torch_bytes(to_rosinality(G)),
    "legacy.pt": lambda G, D: torch_bytes(to_rosinality(G), with_zip=False),
    "beside.pt": lambda G, D: torch_bytes(to_rosinality(G) | BESIDE, with_zip=False),
    "nvidia3.pkl": lambda G, D: nvidia_pickle(named_like_nvidia(G), named_like_nvidia(D), 3),
    "beside.pkl": lambda G, D: nvidia_pickle(named_like_nvidia(G), named_like_nvidia(D), 5,
                                             beside=BESIDE)}


def mutate(content: bytes, dice: random.Random) -> bytes:
    data = bytearray(content)
    kind = dice.randrange(8)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(data))
        other = dice.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            data[at] = dice.randrange(256)
        elif kind == 2:
            del data[at:at + dice.choice((1, 2, 10, 1000))]
        elif kind == 3:
            data[at:at] = dice.randbytes(dice.choice((1, 4, 50)))
        elif kind == 4:
            data[at:at + 20] = data[other:other + 20]
        elif kind == 5:
            data[at:at + 4] = struct.pack("<I", dice.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**16)))
        elif kind == 6:
            data[at:at] = b"cposix\nsystem\n(X\x04\x00\x00\x00truetR0"
        else:
            del data[at:]
        if len(data) < 2:
            break
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_mutated_files_load_rightly_or_give_our_error(tmp_path, name):
    file, content = tmp_path / name, FILES[name](*networks())
    dice, outcomes = random.Random(name), {"loaded": 0, "refused": 0}
    shapes = {type(network): {k: v.shape for k, v in network.state_dict().items()}
              for network in networks()}
    file.write_bytes(content)
    load_generator(file)
    for _ in range(400):
        file.write_bytes(mutate(content, dice))
        for load, kind in ((load_generator, Generator), (load_discriminator, Discriminator)):
            with within(200 * 2**20), nothing_executed():
                try:
                    network = load(file)
                except CheckpointError as error:
                    outcomes["refused"] += 1
                    assert name in str(error) and str(error).isprintable()
                else:
                    outcomes["loaded"] += 1
                    assert type(network) is kind
                    found = {k: v.shape for k, v in network.state_dict().items()}
                    assert found == shapes[kind]
    assert outcomes["refused"] > 200 and sum(outcomes.values()) == 800
