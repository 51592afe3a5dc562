"""Reads pickles as data. Nothing in the file is imported, called or executed.

A pickle is a program for a small stack machine, and Python's own unpickler obeys it: it imports
what the program names and calls it. Here the program is interpreted with the calls left out.
Containers and numbers become what they are; a call of the few names that make tensors and dicts
becomes one, and whatever else is named or called an inert `Record` of what was asked for: an
object that nobody knows does not lose the network beside it. Every step and every byte allocated
is paid from one `Budget` per file, of 64 MiB and three times the file's size: whatever the file
says, its reading takes time and memory in proportion to that.

The layout of torch.save files (zip and the older one) and of NVIDIA's network pickles is public:
torch/serialization.py and torch_utils/persistence.py of the StyleGAN repositories.
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

# The number in the first pickle of a torch.save file without zip.
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")
# Bytes that an operation takes besides what it carries, a little above what CPython allocates.
STEP, CONTAINER, ITEM, ENTRY, OBJECT, VIEW = 8, 80, 16, 64, 200, 600

DTYPES = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool, "UntypedStorage": torch.uint8,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128,
    "QInt8Storage": torch.int8, "QUInt8Storage": torch.uint8, "QInt32Storage": torch.int32}
UNTYPED = {str(dtype): dtype for dtype in (
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz,
    torch.uint16, torch.uint32, torch.uint64)}
NUMPY = {
    "f2": torch.float16, "f4": torch.float32, "f8": torch.float64, "i1": torch.int8,
    "i2": torch.int16, "i4": torch.int32, "i8": torch.int64, "u1": torch.uint8, "b1": torch.bool}
AGAIN = "fetch or save it again"
DICTS = {"collections.OrderedDict", "dnnlib.util.EasyDict", "dnnlib.EasyDict"}


class UnreadableError(ValueError):
    """The pickle is damaged, cheats, or is too much."""


@dataclass
class Budget:
    """What the reading of one file may still cost, in bytes; time is paid in the same coin."""

    left: int

    def spend(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise UnreadableError("it unpacks to far more than its own size: refused")


@dataclass(eq=False, slots=True)
class Record:
    """What a pickle refers to as module.name (arguments: None), or wanted made by a call of it,
    with the state and the items that it was to have."""

    name: str
    arguments: tuple | None = None
    state: object = None
    items: dict | list | None = None


@dataclass(eq=False)
class Storage:
    """A flat run of numbers, of which tensors are views."""

    values: Tensor


FindStorage = Callable[[tuple], Storage | Record]


@dataclass
class Machine:
    """One pickle program's stack and memo.

    Args:
        find_storage: what a persistent id stands for; None: there are none, and storages may be
            nested in the pickle.
    """

    find_storage: FindStorage | None
    budget: Budget
    stack: list = field(default_factory=list)
    marks: list = field(default_factory=list)
    memo: list = field(default_factory=list)

    def take(self, number: int | None) -> list:
        """So many values off the stack, None: all down to the last mark."""
        if number is None:
            items, self.stack = self.stack, self.marks.pop()
            return items
        items = self.stack[-number:]
        if len(items) < number:
            raise UnreadableError("its stack is empty")
        del self.stack[-number:]
        return items

    def name(self, module: object, name: object) -> Record:
        if not (isinstance(module, str) and isinstance(name, str)):
            raise UnreadableError("it names something by what is not a string")
        full = f"{module}.{name}"
        self.budget.spend(OBJECT + len(full))
        return Record(full)

    def call(self, target: object, arguments: object) -> object:
        if not (isinstance(target, Record) and isinstance(arguments, tuple)):
            raise UnreadableError("it calls what is not a name")
        known = target.arguments is None  # not what another call was to make
        if known and target.name in DICTS:
            return self.dict_of(arguments[0] if arguments else ())
        if known and target.name in CALLS:
            if len(arguments) > 8:
                raise UnreadableError(f"it calls {target.name} with {len(arguments)} arguments")
            made = CALLS[target.name](self, *arguments)
            if made is not None:
                return made
        self.budget.spend(OBJECT)
        return Record(target.name, arguments)

    def dict_of(self, pairs: object) -> dict:
        if not isinstance(pairs, (dict, list, tuple)):
            raise UnreadableError("a dict is made from what are not pairs")
        self.budget.spend(ENTRY * len(pairs))  # the pairs may be copied again and again
        result = {}
        for pair in pairs.items() if isinstance(pairs, dict) else pairs:
            if not isinstance(pair, (list, tuple)) or len(pair) != 2:
                raise UnreadableError("a dict is made from what are not pairs")
            result[self.key(pair[0])] = pair[1]
        return result

    def key(self, value: object) -> object:
        """A key of a dict. Numbers, which can be chosen to collide, stand as text; tuples, which
        can take for ever to hash, in a Record, a key of its own each time."""
        if isinstance(value, (str, bytes, bool, Record, type(None))):
            return value
        if isinstance(value, float) or isinstance(value, int) and value.bit_length() < 64:
            self.budget.spend(ENTRY)
            return f"#{value}"
        self.budget.spend(OBJECT)
        return Record("key", (value,))


# ---------------------------------------------------------------------------------------- tensors


def _tensor(machine: Machine, storage: object, offset: object, size: object, stride: object,
            grad: object = None, hooks: object = None, marks: object = None) -> Tensor:
    """A view of a storage, within its bounds; None for a storage of an unknown kind."""
    if isinstance(storage, Record):
        return None
    if not (isinstance(storage, Storage) and isinstance(size, tuple) and isinstance(stride, tuple)
            and len(size) == len(stride) <= 16
            and all(type(n) is int and 0 <= n < 2**48 for n in (offset, *size, *stride))):
        raise UnreadableError("a tensor is built from what are not a storage, sizes and strides")
    count, there = math.prod(size), storage.values.numel()
    last = offset + sum((n - 1) * s for n, s in zip(size, stride, strict=True))
    # an expanded tensor shows a number many times: who copies it must look at its size
    if count >= 2**48 or (count and last >= there):
        raise UnreadableError(f"a tensor of shape {size} reaches beyond its storage of {there} "
                              "numbers")
    machine.budget.spend(VIEW)
    if not count:
        return storage.values.new_empty(size)
    values = storage.values
    if isinstance(marks, dict) and marks.get("neg") is True and values.is_floating_point():
        machine.budget.spend(values.nbytes)  # torch negates when a number is asked for
        values = -values
    return values.as_strided(size, stride, offset)


def _typed(machine: Machine, storage: object, offset: object, size: object, stride: object,
           grad: object = None, hooks: object = None, dtype: object = None, *rest: object
           ) -> Tensor | None:
    """A view of a storage of bytes as numbers of a kind that has no storage of its own."""
    kind = UNTYPED.get(dtype.name) if isinstance(dtype, Record) else None
    if kind is None or not isinstance(storage, Storage):
        return None
    return _tensor(machine, Storage(storage.values.view(kind)), offset, size, stride)


def _parameter(machine: Machine, data: object = None, *rest: object) -> Tensor | None:
    return data if isinstance(data, Tensor) else None


def _of_type(machine: Machine, function: object = None, kind: object = None,
             arguments: object = None, *rest: object) -> object:
    """A tensor with attributes of its own, or of a class of its own, without these."""
    return machine.call(function, arguments)


def _encoded(machine: Machine, text: object = None, encoding: object = None) -> bytes | None:
    """How old protocols write bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        return None
    machine.budget.spend(len(text))
    return text.encode("latin1")


def _scalar(machine: Machine, dtype: object = None, content: object = None) -> object:
    """A number of numpy's as Python's own; None for other kinds."""
    if not (isinstance(dtype, Record) and dtype.arguments and isinstance(dtype.arguments[0], str)
            and isinstance(dtype.state, tuple) and isinstance(content, bytes)):
        return None
    kind, order = NUMPY.get(dtype.arguments[0]), dtype.state[1:2]
    if kind is None or order not in (("<",), ("|",)):
        return None
    return _numbers(content, kind, 1).item()


def _nested(machine: Machine, content: object = None) -> Storage | None:
    """A storage that was itself saved into bytes with torch.save, in the layout without zip."""
    if machine.find_storage is not None:  # each level would be read twice as often as its outer one
        raise UnreadableError("a storage is nested in what torch.save wrote: refused")
    value = _read_legacy(content, machine.budget) if isinstance(content, bytes) else None
    return value if isinstance(value, Storage) else None


CALLS: dict[str, Callable] = {
    "torch._utils._rebuild_tensor": _tensor, "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _typed,
    "torch._utils._rebuild_parameter": _parameter, "torch.storage._load_from_bytes": _nested,
    "torch._utils._rebuild_parameter_with_state": _parameter,
    "torch._tensor._rebuild_from_type_v2": _of_type, "_codecs.encode": _encoded,
    "numpy.core.multiarray.scalar": _scalar, "numpy._core.multiarray.scalar": _scalar}
"""What is made of a call; None: a Record of it, as of any other."""


# ------------------------------------------------------------------------------ the stack machine


def run(file: io.BytesIO, budget: Budget, find_storage: FindStorage | None = None) -> object:
    """The value that one pickle in the file stands for; the file is then behind its end. One budget
    is for all pickles of a file."""
    m = Machine(find_storage, budget)
    for opcode, argument, _ in pickletools.genops(file):
        budget.spend(STEP + sys.getsizeof(argument))
        name = opcode.name
        if name in VALUES:
            m.stack.append(argument)
        elif name in FRESH:
            budget.spend(CONTAINER)
            m.stack.append(FRESH[name]())
        elif name in MADE:
            number, make = MADE[name]
            made = make(m, *m.take(number))  # which may put another stack in the place of this
            m.stack.append(made)
        elif name in DONE:
            number, do = DONE[name]
            do(m, m.take(number))
        elif name in OPERATIONS:
            OPERATIONS[name](m, argument)
        elif name == "STOP":
            return m.stack.pop()
        elif opcode.proto < 2:
            raise UnreadableError("it is written in pickle protocol 0 or 1: save it with protocol "
                                  "2 or newer")
        elif name not in ("PROTO", "FRAME"):
            raise UnreadableError(f"it uses {name}, which no network's file needs: refused")
    raise UnreadableError("it ends in the middle")


# The text of protocols 0 and 1 is not among these: no network is kept in it.
VALUES = {
    "BININT", "BININT1", "BININT2", "LONG1", "LONG4", "BINSTRING", "SHORT_BINSTRING", "BINBYTES",
    "SHORT_BINBYTES", "BINBYTES8", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8", "BINFLOAT",
    "BYTEARRAY8"}
FRESH: dict[str, Callable[[], object]] = {
    "NONE": lambda: None, "NEWTRUE": lambda: True, "NEWFALSE": lambda: False, "EMPTY_LIST": list,
    "EMPTY_DICT": dict, "EMPTY_TUPLE": tuple,
    "EMPTY_SET": list}  # nothing is hashed


def _tuple(m: Machine, *items: object) -> tuple:
    m.budget.spend(CONTAINER + ITEM * len(items))
    return items


def _target(m: Machine, kind: type) -> object:
    """What the items on the stack are for: a list or dict, or that of a Record."""
    target = m.stack[-1]
    if isinstance(target, Record) and target.arguments is not None:
        if target.items is None:
            m.budget.spend(CONTAINER)
            target.items = kind()
        target = target.items
    if not isinstance(target, kind):
        raise UnreadableError(f"it adds items to a {type(target).__name__}")
    return target


def _extend(m: Machine, items: list) -> None:
    m.budget.spend(ITEM * len(items))
    _target(m, list).extend(items)


def _set_items(m: Machine, items: list) -> None:
    target = _target(m, dict)
    if len(items) % 2:
        raise UnreadableError("it sets a key without a value")
    m.budget.spend(ENTRY * len(items) // 2)
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[m.key(key)] = value


def _build(m: Machine, items: list) -> None:
    target, (state,) = m.stack[-1], items
    if isinstance(target, Record) and target.arguments is not None:
        target.state = state
    elif not isinstance(target, (dict, Tensor)):  # an EasyDict's state repeats its items
        raise UnreadableError(f"it gives a state to a {type(target).__name__}")


def _persistent(m: Machine, identity: object) -> object:
    if m.find_storage is None or not isinstance(identity, tuple):
        raise UnreadableError("it refers to something outside itself: give the whole file that "
                              "torch.save wrote; where it was unpacked, zip its folder again "
                              "(zip -0 -r NAME.pt FOLDER)")
    is_class = len(identity) == 4 and identity[0] == "module"  # with its source text
    return identity[1] if is_class else m.find_storage(identity)


def _with_keywords(m: Machine, *_: object) -> Record:
    m.budget.spend(OBJECT)
    return Record("an object made with keywords", ())


# What takes values off the stack: how many, None being all down to a mark; what is made of them,
# to lie there instead, or done with them.
MADE: dict[str, tuple[int | None, Callable[..., object]]] = {
    "TUPLE": (None, _tuple), "TUPLE1": (1, _tuple), "TUPLE2": (2, _tuple), "TUPLE3": (3, _tuple),
    "FROZENSET": (None, _tuple), "STACK_GLOBAL": (2, Machine.name), "REDUCE": (2, Machine.call),
    "NEWOBJ": (2, Machine.call), "NEWOBJ_EX": (3, _with_keywords), "BINPERSID": (1, _persistent)}
DONE: dict[str, tuple[int | None, Callable[[Machine, list], None]]] = {
    "APPEND": (1, _extend), "APPENDS": (None, _extend), "ADDITEMS": (None, _extend),
    "SETITEM": (2, _set_items), "SETITEMS": (None, _set_items), "BUILD": (1, _build),
    "POP": (1, lambda m, items: None), "POP_MARK": (None, lambda m, items: None)}


def _mark(m: Machine, _: object) -> None:
    m.budget.spend(CONTAINER)
    m.marks.append(m.stack)
    m.stack = []


def _recall(m: Machine, place: int) -> None:
    m.stack.append(m.memo[place])


def _memoise(m: Machine, place: int | None) -> None:
    """Picklers number one by one, and leave out a few at most."""
    place = len(m.memo) if place is None else place
    missing = place + 1 - len(m.memo)
    if missing > len(m.memo) + 1000:
        raise UnreadableError("its memo is not numbered as picklers do")
    if missing > 0:
        m.budget.spend(ITEM * missing)
        m.memo.extend([None] * missing)
    m.memo[place] = m.stack[-1]


OPERATIONS: dict[str, Callable[[Machine, object], None]] = {
    "MARK": _mark, "BINPUT": _memoise, "LONG_BINPUT": _memoise, "MEMOIZE": _memoise,
    "BINGET": _recall, "LONG_BINGET": _recall,
    "GLOBAL": lambda m, full: m.stack.append(m.name(*full.split(" ", 1)))}


# ---------------------------------------------------------------------------------- kinds of file


def read(content: bytes) -> object:
    """What a file holds that is one pickle, as NVIDIA's networks are, or that torch.save wrote,
    with zip or without. Raises UnreadableError."""
    budget = Budget(3 * len(content) + 2**26)
    try:
        if content.startswith(b"PK"):
            return _read_zip(content, budget)
        if LEGACY_MAGIC in content[:24]:
            return _read_legacy(content, budget)
        return run(io.BytesIO(content), budget)
    except UnreadableError:
        raise
    except Exception as error:  # pickletools raises almost anything on a damaged file
        raise UnreadableError(f"it is truncated or damaged ({type(error).__name__}): {AGAIN}"
                              ) from error


def _read_legacy(content: bytes, budget: Budget) -> object:
    """torch.save without zip: pickles of a magic number, a version, the machine, the object and the
    storages' keys; then the storages' numbers, which are filled in below the object's tensors."""
    file, storages = io.BytesIO(content), {}

    def promise(identity: tuple) -> Storage:
        dtype, key, numel = _described(identity)
        if dtype is None or any(part is not None for part in identity[5:]):
            raise UnreadableError("a storage is of an unknown kind, or a view of another: save the "
                                  "file with a newer torch")
        if key not in storages:
            budget.spend(VIEW + numel * dtype.itemsize)
            storages[key] = Storage(torch.empty(numel, dtype=dtype))
        return storages[key]

    *_, value, keys = [run(file, budget, promise) for _ in range(5)]
    listed = isinstance(keys, list) and all(isinstance(key, str) for key in keys)
    if not listed or sorted(keys) != sorted(storages):
        raise UnreadableError("its storages are not those that it lists")
    for key in keys:
        values = storages[key].values
        if int.from_bytes(file.read(8), "little") != values.numel():
            raise UnreadableError("a storage has another size than announced")
        values.copy_(_numbers(file.read(values.nbytes), values.dtype, values.numel()))
    return value


def _read_zip(content: bytes, budget: Budget) -> object:
    """torch.save with zip: <name>/data.pkl, and the numbers of storage k in <name>/data/k."""
    storages: dict[str, Storage] = {}
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        sizes = {entry.filename: entry.file_size for entry in archive.infolist()
                 if entry.compress_type in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)}
        programs = [name for name in sizes if name.endswith("/data.pkl")]
        if len(programs) != 1:
            raise UnreadableError("it is a zip, but not one of torch.save: if it is an archive, "
                                  "unpack it and give the network's file in it, else the .pkl or "
                                  ".pt that it was made from")
        folder = programs[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in sizes:
            raise UnreadableError("it is a TorchScript program: save the state_dict() of the "
                                  "network that it was made from instead")

        def entry(name: str) -> bytes:
            if name not in sizes:
                raise UnreadableError(f"its entry {name[:80]} is missing: {AGAIN}")
            if sizes[name] > len(content):
                raise UnreadableError(f"its entry {name[:80]} unpacks to more than the file holds: "
                                      "unzip it and zip it again without compression (zip -0 -r), "
                                      "or save it again")
            try:
                return archive.read(name)
            except zipfile.BadZipFile as error:
                raise UnreadableError(f"its entry {name[:80]} has another checksum than its "
                                      "content: it is damaged, or was saved without checksums; "
                                      f"{AGAIN}") from error

        def find(identity: tuple) -> Storage | Record:
            dtype, key, numel = _described(identity)
            if dtype is None:
                return Record("a storage of an unknown kind", ())
            if key not in storages:
                budget.spend(VIEW + numel * dtype.itemsize)
                storages[key] = Storage(_numbers(entry(f"{folder}data/{key}"), dtype, numel))
            return storages[key]

        if f"{folder}byteorder" in sizes and entry(f"{folder}byteorder") != b"little":
            raise UnreadableError("its numbers are big-endian: save it again on a little-endian "
                                  "machine")
        return run(io.BytesIO(entry(programs[0])), budget, find)


def _described(identity: tuple) -> tuple[torch.dtype | None, str, int]:
    """(dtype, key, numel) of a storage that a persistent id describes; None: an unknown one."""
    if not (len(identity) >= 5 and identity[0] == "storage" and isinstance(identity[1], Record)
            and isinstance(identity[2], str) and type(identity[4]) is int
            and 0 <= identity[4] < 2**48):
        raise UnreadableError("a storage is not described as torch does")
    return DTYPES.get(identity[1].name.rsplit(".", 1)[-1]), identity[2], identity[4]


def _numbers(content: bytes, dtype: torch.dtype, numel: int) -> Tensor:
    """Raw little-endian numbers -> (numel,)."""
    if numel * dtype.itemsize != len(content):
        raise UnreadableError("a storage's size or kind is not what was announced")
    return torch.frombuffer(bytearray(content or bytes(8)), dtype=dtype)[:numel]
