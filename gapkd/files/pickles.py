"""Reads pickles as data. Nothing in the file is imported, called or executed.

A pickle is a program for a small stack machine, and Python's own unpickler obeys it: it imports what the program names
and calls it. Here the program is interpreted with the calls left out. Containers and numbers become what they are;
a name must stand on a short list, and a call of it becomes a tensor, a dict, or an inert `Record` of what was asked
for. Every step and every byte allocated is paid from one `Budget` per file, of 64 MiB and three times the file's size:
whatever the file says, its reading takes time and memory in proportion to that.

The layout of torch.save files (zip and the older one) and of NVIDIA's network pickles is public: torch/serialization.py
and torch_utils/persistence.py of the StyleGAN repositories.
"""

from __future__ import annotations

import io
import math
import pickletools
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C  # first pickle of a torch.save file without zip
STEP = 256  # bytes that one operation can allocate besides what it carries: an empty set has 216

DTYPES = {"FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
          "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
          "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
          "BoolStorage": torch.bool, "UntypedStorage": torch.uint8}


class UnreadableError(ValueError):
    """The pickle is damaged, asks for what no network needs, or is too much."""


@dataclass
class Budget:
    """What the reading of one file may still cost, in bytes; time is paid in the same coin."""

    left: int

    @classmethod
    def of(cls, content: bytes) -> Budget:
        return cls(3 * len(content) + 2**26)

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise UnreadableError("it unpacks to far more than its own size: refused")


@dataclass(frozen=True)
class Name:
    """Something that a pickle refers to as module.name; on the list of what may be referred to."""

    name: str


@dataclass(eq=False)
class Record:
    """What a pickle wanted made: a call of `name` with `arguments`, then given `state`."""

    name: str
    arguments: tuple = ()
    state: object = None


@dataclass(eq=False)
class Storage:
    """A flat run of numbers, of which tensors are views."""

    values: Tensor


# What may be named without being more than a Record.
INERT = {"torch_utils.persistence._reconstruct_persistent_obj", "argparse.Namespace", "copyreg._reconstructor",
         "builtins.object", "builtins.set", "numpy.dtype", "numpy.ndarray", "torch.device", "torch.Size"}
INERT |= {f"numpy.{core}.multiarray.{f}" for core in ("core", "_core") for f in ("scalar", "_reconstruct")}
INERT |= {f"torch.{name}" for name in ("float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool")}
INERT |= {f"{place}.{name}" for name in DTYPES for place in ("torch", "torch.storage", "torch.cuda")}
DICTS = {"collections.OrderedDict", "dnnlib.util.EasyDict", "dnnlib.EasyDict"}
OLD_NAMES = {"__builtin__": "builtins", "copy_reg": "copyreg"}


@dataclass
class _Machine:
    """One pickle program's stack and memo."""

    find_storage: Callable[[tuple], Storage] | None
    budget: Budget
    stack: list = field(default_factory=list)
    marks: list = field(default_factory=list)
    memo: dict = field(default_factory=dict)

    def pop_to_mark(self) -> list:
        items, self.stack = self.stack, self.marks.pop()
        return items

    # ------------------------------------------------------------------------------------- calls

    def name(self, module: object, name: object) -> Name:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise UnreadableError("it names something by what is not a string")
        full = f"{OLD_NAMES.get(module, module)}.{name}"
        if full.startswith("dnnlib.tflib."):
            raise UnreadableError("it is a TensorFlow network (dnnlib.tflib): convert it first, with legacy.py of "
                                  "NVIDIA's stylegan2-ada-pytorch")
        if full not in INERT and full not in DICTS and full not in CALLS:
            raise UnreadableError(f"it asks for {full[:80]!r}, which no network needs: refused")
        return Name(full)

    def call(self, target: object, arguments: object) -> object:
        if not isinstance(target, Name) or not isinstance(arguments, tuple):
            raise UnreadableError("it calls what is not a name")
        if target.name in DICTS:
            return dict_of(self.budget, arguments[0] if arguments else ())
        if target.name in CALLS:
            if len(arguments) > 8:
                raise UnreadableError(f"it calls {target.name} with {len(arguments)} arguments")
            return CALLS[target.name](self, *arguments)
        return Record(target.name, arguments)

    def build(self, target: object, state: object) -> None:
        if isinstance(target, Record):
            target.state = state
        elif not isinstance(target, dict):  # an EasyDict's state repeats its items
            raise UnreadableError(f"it gives a state to a {type(target).__name__}")


def dict_of(budget: Budget, pairs: object) -> dict:
    if not isinstance(pairs, (dict, list, tuple)):
        raise UnreadableError("a dict is made from what are not pairs")
    budget.spend(STEP * len(pairs))  # the pairs may be copied again and again
    result = {}
    for pair in pairs.items() if isinstance(pairs, dict) else pairs:
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise UnreadableError("a dict is made from what are not pairs")
        put(budget, result, *pair)
    return result


def put(budget: Budget, target: dict, key: object, value: object) -> None:
    check_key(budget, target, key)
    target[key] = value


def check_key(budget: Budget, among: dict | set, key: object) -> None:
    """Refuse keys that take long to hash: nested tuples, numbers of a million digits. Hashes of strings cannot be
    foreseen, but a number may be chosen to collide with all that are there, so it pays for comparing it with each."""
    if not isinstance(key, (str, bytes, int, float, type(None))) or (isinstance(key, int) and key.bit_length() > 63):
        raise UnreadableError(f"a {type(among).__name__} has as a key a {type(key).__name__} that no network needs")
    if isinstance(key, (int, float)):
        budget.spend(len(among))


# ------------------------------------------------------------------------------------------- tensors


def _tensor(machine: _Machine, storage: object, offset: object, size: object, stride: object, *rest: object) -> Tensor:
    """A view of a storage, within its bounds, no element shown twice more often than there are elements."""
    if not isinstance(storage, Storage) or not isinstance(size, tuple) or not isinstance(stride, tuple):
        raise UnreadableError("a tensor is built from what are not a storage and sizes")
    if len(size) != len(stride) or len(size) > 16:
        raise UnreadableError(f"a tensor has {len(size)} sizes and {len(stride)} strides")
    if not all(type(n) is int and 0 <= n < 2**48 for n in (offset, *size, *stride)):
        raise UnreadableError("a tensor is built from what are not a storage and sizes")
    count, there = math.prod(size), storage.values.numel()
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    if count > there or (count and last >= there):
        raise UnreadableError(f"a tensor of shape {size} reaches beyond its storage of {there} numbers")
    if not count:
        return storage.values.new_empty(size)
    return storage.values.as_strided(size, stride, offset)


def _parameter(machine: _Machine, data: object = None, *rest: object) -> Tensor:
    if not isinstance(data, Tensor):
        raise UnreadableError("a parameter is built from what is not a tensor")
    return data


def _encoded(machine: _Machine, text: object = None, encoding: object = None) -> bytes:
    """How old protocols write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise UnreadableError("it encodes text in an unknown way")
    machine.budget.spend(len(text))
    return text.encode("latin1")


def _nested(machine: _Machine, content: object = None) -> Storage:
    """A storage that was itself saved into bytes with torch.save, in the layout without zip."""
    if machine.find_storage is not None:  # each level would be read twice as often as the one around it
        raise UnreadableError("a storage is nested in what torch.save wrote: refused")
    if not isinstance(content, bytes):
        raise UnreadableError("a storage is read from what are not bytes")
    value = read_legacy(content, machine.budget)
    if not isinstance(value, Storage):
        raise UnreadableError("where a storage was announced there is something else")
    return value


def storage_of(content: bytes, kind: Name | None, numel: int, budget: Budget) -> Storage:
    """Raw little-endian numbers -> Storage."""
    dtype = _dtype(kind)
    if numel * dtype.itemsize != len(content):
        raise UnreadableError("a storage's size or kind is not what was announced")
    budget.spend(len(content))
    return Storage(torch.frombuffer(bytearray(content), dtype=dtype) if content else torch.empty(0, dtype=dtype))


CALLS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor_v2": _tensor, "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_parameter": _parameter, "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch.storage._load_from_bytes": _nested, "_codecs.encode": _encoded,
}


# ------------------------------------------------------------------------------------------- the stack machine


def run(file: io.BytesIO, budget: Budget, find_storage: Callable[[tuple], Storage] | None = None) -> object:
    """The value that one pickle in the file stands for; the file is then behind its end.

    Args:
        budget: one for all pickles of a file.
        find_storage: what a persistent id stands for; None: there are none, and storages may be nested in the pickle.
    """
    m = _Machine(find_storage, budget)
    for opcode, argument, _ in pickletools.genops(file):
        budget.spend(STEP + sys.getsizeof(argument))
        name = opcode.name
        if name in VALUES:
            m.stack.append(argument)
        elif name in OPERATIONS:
            OPERATIONS[name](m, argument)
        elif name == "STOP":
            return m.stack.pop()
        elif name not in ("PROTO", "FRAME"):
            raise UnreadableError(f"it uses {name}, which no network needs: refused")
    raise UnreadableError("it ends in the middle")


VALUES = {"INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "STRING", "BINSTRING", "SHORT_BINSTRING",
          "BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8",
          "FLOAT", "BINFLOAT"}


def _mark(m: _Machine, _: object) -> None:
    m.marks.append(m.stack)
    m.stack = []


def _pop(m: _Machine, _: object) -> None:
    if m.stack:
        m.stack.pop()
    else:
        m.stack = m.marks.pop()


def _tuple(count: int) -> Callable[[_Machine, object], None]:
    def make(m: _Machine, _: object) -> None:
        if len(m.stack) < count:
            raise UnreadableError("its stack is empty")
        m.stack[len(m.stack) - count:] = [tuple(m.stack[len(m.stack) - count:])]

    return make


def _extend(m: _Machine, items: list) -> None:
    target = m.stack[-1]
    if not isinstance(target, (list, set)):
        raise UnreadableError(f"it appends to a {type(target).__name__}")
    if isinstance(target, list):
        target.extend(items)
    else:
        for item in items:
            check_key(m.budget, target, item)
            target.add(item)


def _set_items(m: _Machine, items: list) -> None:
    target = m.stack[-1]
    if not isinstance(target, dict) or len(items) % 2:
        raise UnreadableError(f"it sets items of a {type(target).__name__}")
    for key, value in zip(items[::2], items[1::2], strict=True):
        put(m.budget, target, key, value)


def _memoise(m: _Machine, place: int) -> None:
    """Picklers number without gaps; places chosen freely could be made to collide."""
    if not 0 <= place <= 2 * len(m.memo) + 1000:
        raise UnreadableError("its memo is not numbered as picklers do")
    m.memo[place] = m.stack[-1]


def _reduce(m: _Machine, _: object) -> None:
    arguments, target = m.stack.pop(), m.stack.pop()
    m.stack.append(m.call(target, arguments))


def _build(m: _Machine, _: object) -> None:
    state = m.stack.pop()
    m.build(m.stack[-1], state)


def _global(m: _Machine, argument: object) -> None:
    module, _, name = argument.partition(" ")
    m.stack.append(m.name(module, name))


def _stack_global(m: _Machine, _: object) -> None:
    name, module = m.stack.pop(), m.stack.pop()
    m.stack.append(m.name(module, name))


def _persistent(m: _Machine, _: object) -> None:
    identity = m.stack.pop()
    if m.find_storage is None or not isinstance(identity, tuple):
        raise UnreadableError("it refers to something outside itself")
    m.stack.append(m.find_storage(identity))


def _new_with_keywords(m: _Machine, _: object) -> None:
    keywords, arguments, target = m.stack.pop(), m.stack.pop(), m.stack.pop()
    if keywords:
        raise UnreadableError("it makes an object with keywords")
    m.stack.append(m.call(target, arguments))


OPERATIONS: dict[str, Callable[[_Machine, object], None]] = {
    "NONE": lambda m, _: m.stack.append(None), "NEWTRUE": lambda m, _: m.stack.append(True),
    "NEWFALSE": lambda m, _: m.stack.append(False), "EMPTY_LIST": lambda m, _: m.stack.append([]),
    "EMPTY_DICT": lambda m, _: m.stack.append({}), "EMPTY_SET": lambda m, _: m.stack.append(set()),
    "EMPTY_TUPLE": lambda m, _: m.stack.append(()), "MARK": _mark, "POP": _pop,
    "POP_MARK": lambda m, _: m.pop_to_mark(), "DUP": lambda m, _: m.stack.append(m.stack[-1]),
    "TUPLE": lambda m, _: (items := m.pop_to_mark(), m.stack.append(tuple(items))),
    "LIST": lambda m, _: (items := m.pop_to_mark(), m.stack.append(items)),
    "DICT": lambda m, _: (items := m.pop_to_mark(), m.stack.append({}), _set_items(m, items)),
    "TUPLE1": _tuple(1), "TUPLE2": _tuple(2), "TUPLE3": _tuple(3),
    "APPEND": lambda m, _: (item := m.stack.pop(), _extend(m, [item])),
    "APPENDS": lambda m, _: (items := m.pop_to_mark(), _extend(m, items)),
    "ADDITEMS": lambda m, _: (items := m.pop_to_mark(), _extend(m, items)),
    "SETITEM": lambda m, _: (value := m.stack.pop(), key := m.stack.pop(), _set_items(m, [key, value])),
    "SETITEMS": lambda m, _: (items := m.pop_to_mark(), _set_items(m, items)),
    "GET": lambda m, n: m.stack.append(m.memo[n]), "BINGET": lambda m, n: m.stack.append(m.memo[n]),
    "LONG_BINGET": lambda m, n: m.stack.append(m.memo[n]), "PUT": _memoise, "BINPUT": _memoise,
    "LONG_BINPUT": _memoise, "MEMOIZE": lambda m, _: _memoise(m, len(m.memo)),
    "GLOBAL": _global, "STACK_GLOBAL": _stack_global, "REDUCE": _reduce, "NEWOBJ": _reduce,
    "NEWOBJ_EX": _new_with_keywords, "BUILD": _build, "BINPERSID": _persistent,
}


# ------------------------------------------------------------------------------------------- kinds of file


def read_pickle(content: bytes) -> object:
    """A file that is one pickle, such as NVIDIA's networks."""
    return _guarded(lambda: run(io.BytesIO(content), Budget.of(content)))


def read_torch(content: bytes) -> object:
    """A file that torch.save wrote, with zip or without."""
    if content.startswith(b"PK"):
        return _guarded(lambda: _read_zip(content))
    return _guarded(lambda: read_legacy(content, Budget.of(content)))


def _guarded(read: Callable[[], object]) -> object:
    """Whatever goes wrong becomes UnreadableError."""
    try:
        return read()
    except UnreadableError:
        raise
    except Exception as error:  # pickletools raises almost anything on a damaged file
        raise UnreadableError(f"it is truncated or damaged ({type(error).__name__})") from error


def read_legacy(content: bytes, budget: Budget) -> object:
    """torch.save without zip: pickles of a magic number, a version, the machine, the object and the storages' keys,
    then the storages' numbers. The object's pickle is run twice, since the numbers stand behind it: first to learn of
    the storages, then with them."""
    file, told = io.BytesIO(content), {}

    def refuse(identity: tuple) -> Storage:
        raise UnreadableError("it refers to a storage where there is none")

    if run(file, budget, refuse) != LEGACY_MAGIC:
        raise UnreadableError("it does not begin as torch.save files do")
    for _ in ("version", "machine"):
        run(file, budget, refuse)
    start = file.tell()

    def promise(identity: tuple) -> Storage:
        kind, key, numel = _described(identity)
        if len(identity) > 5 and identity[5] is not None:
            raise UnreadableError("a storage is a view of another: save the file with a newer torch")
        told[key] = kind, numel
        return Storage(torch.empty(numel, dtype=_dtype(kind), device="meta"))

    run(file, budget, promise)
    keys = run(file, budget, refuse)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise UnreadableError("its storages have no names")
    if len(set(keys)) != len(keys) or not told.keys() <= set(keys):
        raise UnreadableError("its storages are not those that it lists")
    storages = {}
    for key in keys:
        kind, numel = told.get(key, (None, None))
        if int.from_bytes(file.read(8), "little") != numel:
            raise UnreadableError("a storage has another size than announced")
        storages[key] = storage_of(file.read(numel * _dtype(kind).itemsize), kind, numel, budget)
    file.seek(start)
    return run(file, budget, lambda identity: storages[_described(identity)[1]])


def _read_zip(content: bytes) -> object:
    """torch.save with zip: <name>/data.pkl, and the numbers of storage k in <name>/data/k."""
    budget = Budget.of(content)
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()
                 if entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)}  # others take any memory
        programs = [name for name in sizes if name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise UnreadableError("it is a zip, but not one of torch.save")
        if f"{programs[0].removesuffix('data.pkl')}constants.pkl" in sizes:
            raise UnreadableError("it is a TorchScript archive: save the network's state_dict instead")
        folder, storages = programs[0].removesuffix("data.pkl"), {}

        def entry(name: str) -> bytes:
            if name not in sizes or sizes[name] > len(content):  # torch.save does not compress
                raise UnreadableError(f"its entry {name[:80]} is missing, or unpacks to more than the file holds")
            return archive.read(name)

        def find(identity: tuple) -> Storage:
            kind, key, numel = _described(identity)
            if key not in storages:
                storages[key] = storage_of(entry(f"{folder}data/{key}"), kind, numel, budget)
            return storages[key]

        if f"{folder}byteorder" in sizes and entry(f"{folder}byteorder") != b"little":
            raise UnreadableError("its numbers are big-endian: save it again on a little-endian machine")
        return run(io.BytesIO(entry(programs[0])), budget, find)


def _described(identity: tuple) -> tuple[Name, str, int]:
    """(kind, key, numel) of a storage that a persistent id describes."""
    if not (len(identity) >= 5 and identity[0] == "storage" and isinstance(identity[1], Name)
            and isinstance(identity[2], str) and type(identity[4]) is int and 0 <= identity[4] < 2**48):
        raise UnreadableError("a storage is not described as torch does")
    return identity[1], identity[2], identity[4]


def _dtype(kind: Name | None) -> torch.dtype:
    dtype = DTYPES.get(kind.name.rsplit(".", 1)[-1]) if kind else None
    if dtype is None:
        raise UnreadableError("a storage is of an unknown kind")
    return dtype
