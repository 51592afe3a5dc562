"""Files that mean harm, or are damaged: nothing is executed, nothing explodes, one kind of error comes out."""

from __future__ import annotations

import builtins
import functools
import importlib
import io
import operator
import os
import pickle
import random
import struct
import time

import pytest
import torch
from official_files import named_like_nvidia, nvidia_pickle, torch_bytes

from gapkd.checkpoints import CheckpointError, load_discriminator, load_generator, save_network
from gapkd.foreign import to_rosinality
from gapkd.pickles import UnreadableError, read_pickle, read_torch
from gapkd.stylegan2 import Discriminator, Generator


class Call:
    """Pickles as a call of anything."""

    def __init__(self, function, *arguments):
        self.function, self.arguments = function, arguments

    def __reduce__(self):
        return self.function, self.arguments


def trace(monkeypatch) -> list:
    """Calls of what an attacker would call."""
    calls = []
    harm = ((os, "system"), (os, "popen"), (builtins, "eval"), (builtins, "exec"), (builtins, "__import__"))
    for module, name in harm:
        real = getattr(module, name)
        if name != "__import__":
            monkeypatch.setattr(module, name, lambda *a, n=name, **k: calls.append((n, a)))
        else:
            monkeypatch.setattr(module, name, lambda *a, r=real, **k: calls.append(("import", a[0])) or r(*a, **k))
    return calls


ATTACKS = {
    "system": Call(os.system, "touch /tmp/harm"),
    "eval": Call(eval, "__import__('os').system('touch /tmp/harm')"),
    "exec": Call(exec, "import os"),
    "getattr": Call(getattr, "text", "join"),
    "partial": functools.partial(print, "harm"),
    "itemgetter": operator.itemgetter(1),
    "methodcaller": operator.methodcaller("system", "touch /tmp/harm"),
    "import_module": Call(importlib.import_module, "antigravity"),
    "torch.load": Call(torch.load, "/etc/passwd"),
    "open": Call(open, "/etc/passwd"),
    "bytearray of a terabyte": Call(bytearray, 2**40),
    "nn.Module": torch.nn.Linear(2, 2),
    "lambda's code": Call(builtins.compile, "1", "x", "eval"),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_calls_are_refused_and_named(tmp_path, name, protocol):
    content = pickle.dumps({"G_ema": ATTACKS[name]}, protocol=protocol)
    with pytest.raises(UnreadableError, match="which no network needs: refused|it uses"):
        read_pickle(content)
    if protocol >= 2:
        file = tmp_path / "net.pkl"
        file.write_bytes(content)
        with pytest.raises(CheckpointError, match="net.pkl cannot be read as a network"):
            load_generator(file)


def test_a_call_inside_a_storage_is_refused():
    call = Call(os.system, "true")
    for inner in (pickle.dumps(call, protocol=2), torch_bytes(call, with_zip=False)):
        class Nested:
            def __reduce__(self, inner=inner):
                return torch.storage._load_from_bytes, (inner,)

        with pytest.raises(UnreadableError):
            read_pickle(pickle.dumps({"G_ema": Nested()}))


def test_nothing_is_imported_or_called_while_reading(monkeypatch):
    content = pickle.dumps({"G_ema": ATTACKS["system"]})
    good = nvidia_pickle(named_like_nvidia(Generator(8, 4, 4, 4, mapping_layers=1)))
    read_pickle(good)
    calls = trace(monkeypatch)
    with pytest.raises(UnreadableError):
        read_pickle(content)
    read_pickle(good)
    monkeypatch.undo()
    assert [c for c in calls if c[0] != "import"] == []
    assert not {c[1].split(".")[0] for c in calls if c[0] == "import"} & {"torch_utils", "dnnlib", "posix", "nt"}


# Programs written by hand, in pickle's own language.
GLOBAL = b"c%s\n%s\n"
ORDERED = GLOBAL % (b"collections", b"OrderedDict")
TENSOR = GLOBAL % (b"torch._utils", b"_rebuild_tensor_v2")
LOAD = GLOBAL % (b"torch.storage", b"_load_from_bytes")


def as_bytes(content: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(content)) + content


def number(n: int) -> bytes:
    return b"\x8a\x08" + struct.pack("<q", n)


def storage(count: int = 4) -> bytes:
    return LOAD + as_bytes(torch_bytes(torch.zeros(count).untyped_storage(), with_zip=False)) + b"\x85R"


def tensor(offset: int, size: tuple[int, ...], stride: tuple[int, ...]) -> bytes:
    numbers = [b"(" + b"".join(map(number, t)) + b"t" for t in (size, stride)]
    return b"\x80\x03" + TENSOR + b"(" + storage() + number(offset) + b"".join(numbers) + b"\x89" + ORDERED + b")RtR."


def test_the_programs_written_here_are_right():
    assert read_pickle(tensor(4, (2, 3), (3, 1))).shape == (2, 3)  # 16 bytes, as uint8
    assert read_pickle(tensor(0, (0, 5), (5, 1))).shape == (0, 5)


PROGRAMS = {
    "beyond its storage": tensor(0, (5, 4), (4, 1)), "offset beyond": tensor(16, (1,), (1,)),
    "stride beyond": tensor(0, (2, 2), (100, 1)), "shown many times": tensor(0, (10**6, 10**6), (0, 0)),
    "terabytes": tensor(0, (2**40,), (1,)), "negative size": tensor(0, (-1,), (1,)),
    "negative stride": tensor(8, (2,), (-4,)), "negative offset": tensor(-8, (2,), (1,)),
    "more sizes than strides": tensor(0, (2, 2), (1,)), "many dimensions": tensor(0, (1,) * 40, (1,) * 40),
    "no storage": b"\x80\x03" + TENSOR + b"(]K\x00)))tR.",
    "a state for a class": b"\x80\x03" + ORDERED + b"}U\x01aK\x01sb.",
    "a state for a list": b"\x80\x03]}b.",
    "attributes walked": b"\x80\x04\x8c\x0bcollections\x8c\x13OrderedDict.__init__\x93.",
    "a number called": b"\x80\x03K\x01)R.",
    "a name made up": b"\x80\x04K\x01K\x02\x93.",
    "an extension": b"\x80\x03\x82\x01.",
    "outside": b"\x80\x03U\x01aQ.", "outside, as text": b"\x80\x03Pabc\n.",
    "old instances": b"(ios\nsystem\n.",
    "memo from nowhere": b"\x80\x03j\xff\xff\xff\xff.",
    "empty stack": b"\x80\x03R.", "no mark": b"\x80\x03t.", "nothing": b"\x80\x03.", "never stops": b"\x80\x03N",
    "claims a terabyte": b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
    "claims all": b"\x80\x04\x8e" + struct.pack("<Q", 2**63 - 1) + b"abc.",
    "a frame of a terabyte": b"\x80\x04\x95" + struct.pack("<Q", 2**40) + b"N",
    "keys that hash for ever": b"\x80\x04}" + b")" + b"2\x86" * 60 + b"Ns.",
    "a set of tuples": b"\x80\x04\x8f(" + b")" + b"2\x86" * 60 + b"\x90.",
    "a long number": b"\x80\x03L" + b"9" * 100_000 + b"L\n.",
    "protocol 77": b"\x80\x4d\x99.",
    "keywords": b"\x80\x04" + ORDERED + b")}\x8c\x01aK\x01s\x92.",
    "a dict of no pairs": b"\x80\x03" + ORDERED + b"(]K\x01atR.",
    "an encoding": b"\x80\x03" + GLOBAL % (b"_codecs", b"encode") + b"X\x01\x00\x00\x00aX\x05\x00\x00\x00rot13\x86R.",
    "a parameter of nothing": b"\x80\x03" + GLOBAL % (b"torch._utils", b"_rebuild_parameter") + b"N\x85R.",
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs_that_cheat_are_refused_at_once(name):
    start = time.monotonic()
    with pytest.raises(UnreadableError):
        read_pickle(PROGRAMS[name])
    assert time.monotonic() - start < 20


def test_a_memo_bomb_takes_no_memory():
    before = peak()
    value = read_pickle(b"\x80\x03Nr\xfe\xff\xff\xff.")  # C unpicklers make room for four billion entries
    assert value is None and peak() - before < 50 * 2**20


def test_deep_nesting_is_read_without_recursion():
    value = read_pickle(b"\x80\x03" + b"]" * 200_000 + b"a" * 199_999 + b".")
    for _ in range(199_999):
        (value,) = value


def test_one_storage_unpacked_again_and_again_is_refused():
    once = torch_bytes(torch.zeros(250_000).untyped_storage(), with_zip=False)
    program = b"\x80\x03" + as_bytes(once) + b"q\x010" + (LOAD + b"h\x01\x85R0") * 1000 + b"N."
    before = peak()
    with pytest.raises(UnreadableError, match="far more than its own size"):
        read_pickle(program)
    assert peak() - before < 200 * 2**20


def peak() -> int:
    """Bytes of the most memory this process has held."""
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def test_a_compressed_entry_that_explodes(tmp_path):
    import zipfile

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02N.")
        archive.writestr("net/data.pkl.more", bytes(10**8))
    assert read_torch(buffer.getvalue()) is None
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", b"\x80\x02N" + b"0N" * (5 * 10**7) + b".")
    with pytest.raises(UnreadableError, match="unpacks to more than the file holds"):
        read_torch(buffer.getvalue())


@pytest.mark.parametrize("content, what", [
    (b"", "is empty"), (b"<!doctype html><html>", "is a web page"), (b"\x89PNG\r\n", "is a PNG picture"),
    (b"version https://git-lfs.github.com/spec/v1", "Git LFS pointer"), (b"a,b\n1,2", "is text"),
    (bytes(range(1, 60)) * 2 + b"\xff", "is of an unknown kind"), (b"\x1f\x8b\x08", "is a gzip archive")])
def test_other_files_are_named_for_what_they_are(tmp_path, content, what):
    file = tmp_path / "net.pkl"
    file.write_bytes(content)
    with pytest.raises(CheckpointError, match=f"net.pkl {what}|net.pkl .*{what}: expected|{what}"):
        load_generator(file)


def test_tensorflow_networks_are_told_where_to_go(tmp_path):
    file = tmp_path / "ffhq.pkl"
    file.write_bytes(b"\x80\x03cdnnlib.tflib.network\nNetwork\nq\x00)\x81.")
    with pytest.raises(CheckpointError, match="TensorFlow network .* convert it first, with legacy.py"):
        load_generator(file)


# ------------------------------------------------------------------------------------------- fuzzing


def good_files() -> dict[str, bytes]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        G, D = Generator(8, 4, 4, [3, 2], mapping_layers=2).eval(), Discriminator(8, [3, 2])
    layout = to_rosinality(G)
    return {"nvidia.pkl": nvidia_pickle(named_like_nvidia(G), named_like_nvidia(D)),
            "nvidia3.pkl": nvidia_pickle(named_like_nvidia(G), named_like_nvidia(D), protocol=3),
            "zip.pt": torch_bytes(layout), "legacy.pt": torch_bytes(layout, with_zip=False)}


def mutate(content: bytes, dice: random.Random) -> bytes:
    data = bytearray(content)
    kind = dice.randrange(7)
    for _ in range(dice.choice((1, 1, 2, 8))):
        at = dice.randrange(len(data))
        if kind == 0:
            data[at] ^= 1 << dice.randrange(8)
        elif kind == 1:
            data[at] = dice.randrange(256)
        elif kind == 2:
            del data[at:at + dice.choice((1, 2, 10, 1000))]
        elif kind == 3:
            data[at:at] = bytes(dice.randrange(256) for _ in range(dice.choice((1, 4, 50))))
        elif kind == 4:
            other = dice.randrange(len(data))
            data[at:at + 20] = data[other:other + 20]
        elif kind == 5:
            data[at:at + 4] = struct.pack("<I", dice.choice((0, 1, 2**31 - 1, 2**32 - 1, 2**16)))
        else:
            del data[at:]
        if len(data) < 2:
            break
    return bytes(data)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["nvidia.pkl", "nvidia3.pkl", "zip.pt", "legacy.pt", "own.safetensors"])
def test_mutated_files_load_rightly_or_give_our_error(tmp_path, name, monkeypatch):
    file = tmp_path / name
    if name == "own.safetensors":
        with torch.random.fork_rng():
            torch.manual_seed(0)
            content = save_network(Generator(8, 4, 4, [3, 2], mapping_layers=2), file).read_bytes()
    else:
        content = good_files()[name]
    dice, outcomes, before = random.Random(name), {"loaded": 0, "refused": 0}, peak()
    file.write_bytes(content)
    assert load_generator(file).resolution == 8
    monkeypatch.setattr(os, "system", lambda *a: pytest.fail("something was executed"))
    for _ in range(1000):
        file.write_bytes(mutate(content, dice))
        start = time.monotonic()
        for load in (load_generator, load_discriminator):
            try:
                network = load(file)
            except CheckpointError as error:
                outcomes["refused"] += 1
                assert name in str(error)
            else:
                outcomes["loaded"] += 1
                assert type(network) is (Generator if load is load_generator else Discriminator)
                type(network)(**network.architecture()).load_state_dict(network.state_dict())  # the shapes fit
        assert time.monotonic() - start < 30
    assert outcomes["refused"] > 300 and sum(outcomes.values()) == 2000
    assert peak() - before < 300 * 2**20
