"""Networks of other repositories: their names translated to ours, and back.

    NVIDIA (stylegan2-ada-pytorch, stylegan3)       .pkl, every module pickled with its source text
    rosinality, StyleKD, CAGAN, DCP-GAN             .pt, state dicts under "g_ema", "g", "d"

A network is found wherever it stands in a file, by what its tensors are called, its architecture
by their shapes, so that pruned networks of any channel list load too. Our network of that
architecture then asks for each of its tensors by the name that the other repository gives it.
"""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count, pairwise
from os.path import commonprefix

import torch
from torch import Tensor, nn

from gapkd.files.pickles import Budget, Record
from gapkd.networks.base import MOST_CLAMP, MOST_CLASSES
from gapkd.networks.families import build
from gapkd.networks.filtered_lrelu import low_pass
from gapkd.networks.layers import fir_kernel
from gapkd.networks.stylegan2 import Generator, StyledConv, ToRGB
from gapkd.settings import MOST

State = dict[str, Tensor | Record]
Rules = list[tuple[str, str | Callable[[re.Match], str]]]
PERSISTENT = "torch_utils.persistence._reconstruct_persistent_obj"
DEEPEST = 32  # levels of modules
MOST_PARTS = 2**15  # modules and tensors of one network, several times those of the largest
AVERAGED = {"ema", "gema", "average", "averaged", "avg", "gavg", "mavg", "mvavg", "mean", "polyak",
            "running", "moving", "gma", "shadow", "smooth", "smoothed", "smoothing", "gsmooth",
            "swa", "gs", "ge", "copy", "target", "test"}
"""Words in the names of averaged weights, whatever number follows them."""
DENIALS = {"no", "non", "not", "without"}
WRAPPERS = re.compile(r"(_orig_mod|_(checkpoint|fsdp)_wrapped_module|(?<=\.)module)\.")
"""What torch puts into names: compiling, checkpointing, and training on several GPUs."""
LONGEST = 300  # characters of a tensor's name
DEFAULTS = {"w_avg": 0.0, "noise_const": 0.0, "noise_strength": 0.0}
"""What may be missing, and is then as if it were not there."""
FIXED = "filter", "kernel", "noise_const"  # what no training changes
MEANS = "latent_avg", "mean_latent"
"""The mean of w beside a network, of any layout."""
KEPT = re.compile(r"(^|\.)(noise_const|noise_\d+|w_avg|latent_avg|magnitude_ema|freqs|phases|"
                  r"transform|down_filter)$")
"""What an average of parameters alone lacks: noise maps, the mean of w, and StyleGAN3's buffers."""
OUR_NAMES = re.compile(r"(^|\.)(synthesis\.(blocks\.\d+\.conv[01s]|layers\.\d+)\."
                       r"|blocks\.\d+\.conv0\.(weight|bias)$)")
OURS = ("it seems to hold the weights of a gapkd network without its architecture: write the "
        "network with gapkd.save_network")
ALONE = re.compile(r"(^|(?<!synthesis)\.)(b\d+\.torgb|L\d+_\d+_\d+)\.")
"""In a synthesis network that is not called so."""
ALTERED = {
    re.compile(r"(^|\.)(weight|bias)_(g|v|orig|mask)$|(^|\.)parametrizations\."):
        "its weights are kept in parts, by weight_norm, spectral_norm or pruning: undo that with "
        "torch.nn.utils (remove_weight_norm, remove_spectral_norm, prune.remove or "
        "parametrize.remove_parametrizations), and save the network again",
    re.compile(r"(^|\.)_?flat_param"):
        "it holds the flat parameters of FSDP: save its full state dict (StateDictType."
        "FULL_STATE_DICT)"}
"""What names show that parameters are not saved as they are -> what to do about it."""
LIMITS = MOST | {"c_dim": MOST_CLASSES, "mbstd_group": 2**10, "critical": 1000,
                 "output_scale": 1000}

# Our names to theirs, one rule after the other.
NVIDIA: Rules = [
    (r"^(mapping|label)\.layers\.", "mapping.fc"),
    (r"^label\.", "mapping."),
    (r"^synthesis\.const$", "synthesis.b4.const"),
    (r"^synthesis\.blocks\.(\d+)\.", lambda m: f"synthesis.b{4 << int(m[1])}."),
    (r"\.(conv\d|torgb)\.conv\.", r".\1."),
    (r"^(conv|fc|out)\.", r"b4.\1."),
]
ROSINALITY: Rules = [
    (r"^mapping\.layers\.(\d+)", lambda m: f"style.{int(m[1]) + 1}"),  # 0 normalises z
    (r"^mapping\.w_avg$", "latent_avg"),
    (r"^synthesis\.const$", "input.input"),
    (r"^synthesis\.blocks\.(\d+)\.torgb\.", lambda m: f"to_rgbs.{int(m[1]) - 1}."),
    (r"^synthesis\.blocks\.(\d+)\.conv(\d)\.noise_const$",
     lambda m: f"noises.noise_{2 * int(m[1]) - 1 + int(m[2])}"),
    (r"^synthesis\.blocks\.(\d+)\.conv(\d)\.", lambda m: f"convs.{2 * int(m[1]) - 2 + int(m[2])}."),
    (r"^to_rgbs\.-1\.", "to_rgb1."),
    (r"^convs\.-1\.", "conv1."),
    (r"\.affine\.", ".conv.modulation."),
    (r"\.noise_strength$", ".noise.weight"),
    (r"^(conv1|convs\.\d+)\.bias$", r"\1.activate.bias"),
]
ROSINALITY_DISCRIMINATOR: Rules = [
    (r"^blocks\.(\d+)\.", lambda m: f"convs.{int(m[1]) + 1}."),
    (r"\.skip\.", ".skip.1."),
    (r"\.conv1\.weight$", ".conv2.1.weight"),  # 0 blurs
    (r"\.conv1\.bias$", ".conv2.2.bias"),
    (r"\.conv0\.", ".conv1."),
    (r"^from_rgb\.", "convs.0."),
    (r"^conv\.", "final_conv."),
    (r"(^convs\.0|\.conv1|^final_conv)\.weight$", r"\1.0.weight"),
    (r"(^convs\.0|\.conv1|^final_conv)\.bias$", r"\1.1.bias"),
    (r"^fc\.", "final_linear.0."),
    (r"^out\.", "final_linear.1."),
]


class ForeignError(ValueError):
    """What was read is no network that can be translated."""


@dataclass(frozen=True)
class Found:
    """A network in our terms: its kind in files, the constructor's arguments, the state dict."""

    kind: str
    architecture: dict
    state: dict[str, Tensor]
    source: str
    note: str = ""
    """What the reader of a message may want to know about the choice."""


@dataclass(frozen=True)
class Place:
    """Where in a file a network seems to stand, such as "state_dict.decoder"."""

    path: str
    role: str
    modules: Modules
    prefix: str
    translate: Callable[[Modules], Found]


def _raw(path: Iterable[str]) -> int:
    """0 for the path of averaged weights, as its words say; 2 where they deny it, as in g_no_ema;
    1 where they say nothing."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", ".".join(path))  # modelEma, as some write
    words = re.split(r"[^a-z0-9]+", spaced.lower().replace("exp_avg", ""))  # Adam's
    found = [2 if before in DENIALS else 0 for before, word in pairwise(["", *words])
             if word.rstrip("0123456789") in AVERAGED]
    return min(found, default=1)


def find_network(content: object, role: str | None) -> Found:
    """The network that a file's content holds, of the role "generator" or "discriminator" if there
    is one (None: generator), the averaged one where there are several, or the next that holds.

    Only that one is translated: a generator loads whatever lies beside it. Raises ForeignError when
    none is there, or none can be translated.
    """
    places, problems = _places(content)
    chosen = [place for place in places if place.role == (role or "generator")]
    if not chosen and problems:
        raise problems[0]
    chosen = chosen or places
    if not chosen:
        raise ForeignError(_what_instead(content))
    rank = _rank_among(chosen)
    wrong, ordered = [], sorted(chosen, key=rank)[:8]
    for best in ordered:
        own = best.modules.under(best.prefix)
        lender = _complete(own, chosen[:8])
        try:
            found = best.translate(own)
            break
        except ForeignError as error:
            wrong.append(ForeignError(altered(own.state) or str(error)))
    else:
        if role is None:  # either will do
            with suppress(ForeignError):
                return find_network(content, "discriminator")
        raise wrong[0]
    notes = [found.note]
    if best.prefix and best.modules.pickled:  # by a module around it
        notes.append(_not_applied(_beside(best.modules, {best.prefix.partition(".")[0]})))
    if lender:
        notes.append("the noise maps, Fourier features or mean of w that it lacks are those of "
                     f"{_shown(lender)}")
    if not wrong and (unread := _averaged_beside(content, best, own)):
        notes.append(f"the averaged weights in {_shown(unread)} are not read, since they do not "
                     "bear a network's names: copy them into it by the code that averaged them, "
                     "and save that")
    if len(chosen) > 1:
        if wrong:
            which = f"since {_shown(ordered[0].path)} cannot be read: {wrong[0]}"
        elif rank(best)[0] == 0:
            alone = [rank(place) for place in chosen].count(rank(best)) == 1
            several = "the first of those that are called averaged"
            which = "the averaged one" if alone else several
        elif best is chosen[0]:
            which = "the first, since none alone is called averaged"
        else:
            which = "the first that is not called unaveraged"
        listed = ", ".join(_shown(place.path) for place in chosen[:8])
        notes.insert(0, f"it holds {len(chosen)} {best.role}s ({listed}): taken is "
                        f"{_shown(best.path)}, {which}")
    return replace(found, note="; ".join(filter(None, notes)))


def _rank_among(places: Sequence[Place]) -> Callable[[Place], tuple[int, int]]:
    """How averaged one of several networks is called, by what their paths do not have in common;
    then, of those that are, by what theirs do not: in ema.ema_model and ema.online_model."""
    paths = {place.path: place.path.split(".") for place in places}
    shared = len(commonprefix([*paths.values()]))
    averaged = [path for path in paths.values() if not _raw(path[shared:])]
    below = len(commonprefix(averaged))

    def rank(place: Place) -> tuple[int, int]:
        path = paths[place.path]
        outer = _raw(path[shared:])
        return outer, 0 if outer else _raw(path[below:])

    return rank


def altered(names: Iterable[str]) -> str:
    """What became of a network's parameters before they were saved, and what undoes it; "": nothing
    that is known."""
    found = (what for name in names for pattern, what in ALTERED.items() if pattern.search(name))
    return next(found, "")


def _parameters(modules: Modules) -> dict[str, tuple]:
    """Name -> shape of what an average of parameters alone holds."""
    return {name: tuple(value.shape) for name, value in modules.state.items()
            if isinstance(value, Tensor) and not (KEPT.search(name) or name.endswith(FIXED))}


def _complete(own: Modules, places: Iterable[Place]) -> str:
    """Give a network the noise maps and mean of w that it lacks and one of its parameters' names
    and shapes has, of several the one whose parameters are nearest: a student's average is not its
    teacher's. Returns the path of that one, "" for none."""
    lenders = []
    for place in places:
        other = place.modules.under(place.prefix)
        lent = {name: value for name, value in other.state.items()
                if name not in own.state and KEPT.search(name)}
        if lent and _parameters(own) == _parameters(other):
            lenders.append((_distance(own, other), place.path, lent))
    _, path, lent = min(lenders, key=lambda lender: lender[0], default=(0, "", {}))
    own.state |= lent
    return path


def _distance(own: Modules, other: Modules) -> float:
    """Of two networks of the same parameters: the sum of the squared differences of the first 1000
    numbers of each tensor, which takes no memory whatever size it claims."""
    total = 0.0
    for name in _parameters(own):
        pair = own.state[name], other.state[name]
        if all(t.is_contiguous() and t.is_floating_point() for t in pair):
            a, b = (t.view(-1)[:1000].double() for t in pair)
            total += (a - b).square().sum().item()
    return total


def _averaged_beside(content: object, taken: Place, own: Modules) -> str:
    """Where tensors of the shapes of all parameters of the network that is taken are called
    averaged, as those in the list that torch_ema keeps, while it is not; "" if nowhere."""
    there, places, path, seen = Counter(), [], taken.path.split("."), set()
    for above, value, _ in _contents(content):
        for key, part in value.items() if isinstance(value, dict) else ():
            inside = isinstance(part, (list, tuple))
            if inside and id(part) in seen:  # it may lie in a million places
                continue
            seen.add(id(part))
            tensors = [t for t in (part if inside else [part]) if isinstance(t, Tensor)]
            outer = key if inside or not isinstance(key, str) else key.rpartition(".")[0]
            where = _joined(above, outer) if tensors else ""
            parts = where.split(".")
            shared = len(commonprefix([parts, path]))
            if tensors and not _raw(parts[shared:]) and _raw(path[shared:]):
                there.update(tuple(t.shape) for t in tensors)
                places.append(where)
    return places[0] if places and Counter(_parameters(own).values()) <= there else ""


def _places(content: object) -> tuple[list[Place], list[ForeignError]]:
    """Everything in a file that looks like a network, outer things first, and what is wrong with
    modules that cannot be followed."""
    places, problems, parts = [], [], Budget(4 * MOST_PARTS)
    for path, value, latent_avg in _contents(content):
        try:
            modules = Modules.of(value, parts)
        except ForeignError as error:
            problems.append(error)
            continue
        for prefix, role, translate in modules.marks():
            steps = prefix.split(".")[:-1]  # it may stand beside the network, or further out
            outer = [".".join([*steps[:n], name]) for n in range(len(steps), -1, -1)
                     for name in MEANS]
            mean = next((modules.state[at] for at in outer if at in modules.state), latent_avg)
            if isinstance(mean, (Tensor, Record, list, tuple)):
                modules.state.setdefault(f"{prefix}latent_avg", mean)
            places.append(Place(_joined(path, prefix), role, modules, prefix, translate))
    return places, problems


def _contents(content: object) -> Iterator[tuple[str, object, object]]:
    """(path, value, latent_avg beside or above it) of every dict and Record in a file, each once,
    outer ones first; what NVIDIA's modules hold is left to `Modules`."""
    waiting, seen = deque([("", content, None)]), set()
    while waiting:
        path, value, latent_avg = waiting.popleft()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            latent_avg = next((value[name] for name in MEANS
                               if isinstance(value.get(name), (Tensor, Record, list, tuple))),
                              latent_avg)
        if isinstance(value, (dict, Record)):
            yield path, value, latent_avg
        for key, part in _parts(value):
            if isinstance(part, (Record, dict, list, tuple)) and part:
                waiting.append((_joined(path, key), part, latent_avg))


def _parts(value: object) -> Iterable[tuple[object, object]]:
    if isinstance(value, Record):
        parts = value.arguments, value.state, value.items
        return [] if value.name == PERSISTENT else [("", part) for part in parts]
    if isinstance(value, dict):
        return value.items()
    return enumerate(value) if isinstance(value, (list, tuple)) else ()


def _joined(path: str, key: object) -> str:
    """The end of a longer path."""
    key = str(key) if isinstance(key, (str, int)) else "..."  # a Record's text may have no end
    return f"{path}.{key[:LONGEST]}".strip(".")[-LONGEST:]


def _what_instead(content: object) -> str:
    """What a file holds in which no network was found, and what to do."""
    parts = Budget(4 * MOST_PARTS)
    for _, value, _ in _contents(content):
        names = Modules.of(value, parts).state
        if any(map(OUR_NAMES.search, names)):
            return OURS
        if what := altered(names):
            return what
        if any(map(ALONE.search, names)):
            return ("its synthesis network stands apart from the mapping network: join both to one "
                    "state dict, with mapping. and synthesis. before their names")
        if isinstance(value, Record) and value.name.startswith("dnnlib.tflib."):
            return ("it is a TensorFlow network (dnnlib.tflib): convert it first, with legacy.py "
                    "of NVIDIA's stylegan2-ada-pytorch")
        if isinstance(value, Record) and isinstance(value.state, dict) and (
                "_modules" in value.state):
            if value.name.startswith("gapkd."):
                return ("it holds whole modules of gapkd: write the network with "
                        "gapkd.save_network, where it is at hand")
            return (f"it holds whole modules ({_shown(value.name)}), which only their own code can "
                    "read: save the network's state_dict() instead, where that code is at hand")
    entries = [*content.items()][:5] if isinstance(content, dict) else [("", content)]
    held = ", ".join(f"{_shown(key)}: {_shown(value)}" for key, value in entries)
    return ("it holds no StyleGAN2 network under any name, and no StyleGAN3 (it holds "
            f"{held or 'nothing'}): gapkd reads both in NVIDIA's layout, and StyleGAN2 in "
            "rosinality's; other families cannot be the teacher")


def _shown(value: object) -> str:
    """Something of the file, for a message; never the repr of a container: it may have no end."""
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else f"{value[:30]}...{value[-27:]}")
    if isinstance(value, bytes):
        return repr(value[:30])
    if isinstance(value, (bool, int, float, type(None))):
        return repr(value)[:30]
    if isinstance(value, Record):
        if re.fullmatch(r"numpy\..*\._(reconstruct|frombuffer)", value.name):
            return "a numpy array"
        return f"{_shown(value.name)}, which gapkd neither knows nor calls"
    return f"a {type(value).__name__}"


def _named(name: str) -> str:
    """The name of a tensor or module, for a message."""
    known = re.fullmatch(r"[\w.]{1,80}", name, re.ASCII)
    return name if known else _shown(name) if name else "the network"


def outline(kind: str, architecture: dict) -> nn.Module:
    """The network without its numbers: whatever size a file claims, this takes no memory.

    Raises ValueError for sizes that no network has, whatever the constructor raises for others.
    """
    for name, most in LIMITS.items():
        value, least = architecture.get(name, 1), int(name == "mbstd_group")
        if value is None and name == "mbstd_group":  # the whole batch
            continue
        kinds = (int, float) if name == "output_scale" else (int,)
        if type(value) not in kinds or not least <= value <= most:
            raise ValueError(f"{name} is {_shown(value)}")
    for name in ("clamp_skips", "radial"):
        if type(value := architecture.get(name, False)) is not bool:
            raise ValueError(f"{name} is {_shown(value)}, not true or false")
    if not _are_whole(architecture.get("channels", 1)):
        raise ValueError("channels are not all whole numbers")
    with torch.device("meta"):
        return build(kind, architecture)


def _are_whole(value: object) -> bool:
    """Whether it is a whole number, or a list of such, or of pairs of such."""
    return type(value) is int or (isinstance(value, (list, tuple)) and all(map(_are_whole, value)))


def _collect(kind: str, architecture: dict, modules: Modules, rules: Rules, source: str) -> Found:
    """Our network's tensors from theirs, by name; their shapes may differ in sizes of one."""
    theirs = modules.state
    try:
        network = outline(kind, architecture)
    except ValueError as error:
        raise ForeignError(f"its sizes make no network: {error}") from error
    taken, storages, used, lost = {}, {}, set(), 0
    for name, wanted in network.state_dict().items():
        their_name, default = _renamed(name, rules), DEFAULTS.get(name.rsplit(".", 1)[-1])
        used.add(their_name)
        if their_name not in theirs and default is not None:
            tensor = torch.full(wanted.shape, default)
            lost += name.endswith("noise_const")
        else:
            tensor = _need(theirs, their_name)
        if [n for n in tensor.shape if n != 1] != [n for n in wanted.shape if n != 1]:
            raise ForeignError(f"{their_name} has the shape {tuple(tensor.shape)}, not "
                               f"{tuple(wanted.shape)}")
        taken[name] = tensor, wanted.shape
        storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    parts = {name.partition(".")[0] for name in used}
    beside = _beside(modules, parts)
    if beside and modules.pickled:  # it draws with all that it holds
        raise ForeignError(f"it holds {beside[0]}, which the published versions do not have")
    for name, value in sorted(theirs.items()):
        if name.partition(".")[0] not in parts:
            continue
        if name not in used and not name.endswith(FIXED):
            raise ForeignError(f"it holds {_named(name)}, which the published versions do not have")
        # Where rosinality's upsample, their sum is that of the four pixels that one becomes.
        gain = 4.0 if name.endswith("kernel") and kind.endswith("generator") else 1.0
        if name.endswith(("resample_filter", "kernel")) and not _is_low_pass(value, gain):
            coarse = isinstance(value, Tensor) and value.dtype.itemsize == 1
            fault = "too coarse: save it with float32 weights" if coarse else "has another gain"
            raise ForeignError(f"{_named(name)} is another filter than [1, 3, 3, 1], or {fault}")
    if sum(tensor.numel() for tensor, _ in taken.values()) > sum(storages.values()):
        raise ForeignError("it shows the same numbers in many tensors, which would take far more "
                           "memory than it: save a clone() of every tensor")
    state = {name: tensor.detach().reshape(shape).contiguous()
             for name, (tensor, shape) in taken.items()}
    loud = any(value.any() for name, value in state.items() if name.endswith("noise_strength"))
    note = f"{lost} noise maps are missing: without noise=\"random\" it draws none there"
    notes = (note if lost and loud else "", _not_applied(beside))
    return Found(kind, network.architecture(), state, source, "; ".join(filter(None, notes)))


def _beside(modules: Modules, parts: set[str]) -> list[str]:
    """What else stands where these parts of a network stand, without the other networks there."""
    known = tuple(prefix for prefix, *_ in modules.marks() if prefix)
    names = {name for name, value in modules.state.items()  # whole numbers are counters
             if isinstance(value, Tensor) and value.is_floating_point()}
    if modules.pickled:  # what has no tensors may draw, too
        names |= modules.attributes.keys()
    return sorted({_named(name.partition(".")[0]) for name in names
                   if name.partition(".")[0] not in parts | {"", *MEANS}
                   and not f"{name}.".startswith(known)})


def _not_applied(beside: list[str]) -> str:
    """What to say of it; "" where there is nothing."""
    named = ", ".join(beside[:8])
    return named and (f"what it holds under {named} is not applied: if the network draws with it, "
                      "gapkd draws otherwise")


def _renamed(name: str, rules: Rules) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _need(state: State, name: str, dimensions: int | None = None) -> Tensor:
    """The tensor of that name, not empty (its other sizes could be anything)."""
    if name not in state:
        raise ForeignError(f"it lacks {name}: it is not a network of the layout that it resembles")
    tensor = state[name]
    if not isinstance(tensor, Tensor):
        raise ForeignError(f"{name} is no tensor, but {_shown(tensor)}: save plain tensors "
                           "(torch.from_numpy makes one of an array, to_dense of a sparse one, "
                           "dequantize of a quantised one)")
    if not tensor.numel() or dimensions not in (None, tensor.ndim):
        raise ForeignError(f"{name} has the shape {tuple(tensor.shape)}, which is empty or has not "
                           "as many sizes as usual")
    return tensor


def _mapping_sizes(state: State, layer: str, first: int) -> dict:
    """Sizes of a mapping network whose layers are called `layer` and a number, from `first` on."""
    depth = next(n for n in count() if f"{layer}{first + n}.weight" not in state)
    if not depth:
        raise ForeignError(f"it has no mapping network ({layer}{first}.weight)")
    w_dim = len(_need(state, f"{layer}{first + depth - 1}.weight", 2))
    z_dim, c_dim = _need(state, f"{layer}{first}.weight", 2).shape[1], 0
    if "mapping.embed.weight" in state:  # the embedded label enters beside z
        embedded, c_dim = _need(state, "mapping.embed.weight", 2).shape
        z_dim -= embedded
    return {"z_dim": z_dim, "w_dim": w_dim, "c_dim": c_dim, "mapping_layers": depth}


def _is_low_pass(kernel: Tensor | Record, gain: float) -> bool:
    """Whether it is [1, 3, 3, 1] x [1, 3, 3, 1] with that sum."""
    if not isinstance(kernel, Tensor) or kernel.shape[-2:] != (4, 4) or kernel.numel() != 16:
        return False
    return torch.allclose(kernel.float().reshape(4, 4), fir_kernel(gain)[0, 0], atol=1e-4)


def _rounding(dtype: torch.dtype) -> float:
    """How far off, relatively, a number may be that was rounded to such."""
    return torch.finfo(dtype).eps / 2 if dtype.is_floating_point else 0.0


# ---------------------------------------------------------------------------------------- NVIDIA

ACTIVATED = r"(^|\.)(conv[01]?|fromrgb|fc\d*)$"
LINEAR = r"(^|\.)(affine|embed|out|skip|torgb)$"
SLOW = r"\bmapping\.fc\d+$"
CLAMPED = r"(^|\.)(conv[01]?|torgb|fromrgb|L\d+_\d+_\d+)$"
LR = "learning-rate multiplier"
FIELDS: dict[str, tuple[tuple[str, tuple], ...]] = {
    "activation": ((ACTIVATED, ("lrelu",)), (LINEAR, ("linear",)), ("", ("lrelu", "linear"))),
    "act_gain": ((ACTIVATED, (math.sqrt(2),)), (r"\bskip$", (1.0,))),
    "bias_gain": ((SLOW, (0.01,)), (r"\b(affine|embed|b4\.\w+)$", (1.0,))),
    "architecture": ((r"^synthesis\.", ("skip",)), (r"^b\d+$", ("resnet",))),
    "num_channels": ((r"\bmbstd$", (1,)),), "use_noise": (("", (True, False)),),
    "bandwidth": (("", (2.0,)),),
    "up": ((r"^synthesis\.b\d+\.conv0$", (2,)), (r"^synthesis\.b\d+\.conv1$", (1,)),
           (r"^b\d+\.", (1,))),
    "down": ((r"^b\d+\.(conv1|skip)$", (2,)), (r"^b\d+\.(conv0?|fromrgb)$", (1,)))}
"""What a field of NVIDIA's modules must be, so that our layers compute the same, by a pattern of
the modules' paths; none of them need be there."""
PLANNED = {"in_sampling_rate": "in_rate", "out_sampling_rate": "out_rate",
           "in_cutoff": "in_cutoff", "out_cutoff": "out_cutoff", "in_half_width": "in_half_width",
           "out_half_width": "out_half_width", "is_critically_sampled": "critical",
           "is_torgb": "torgb", "in_size": "in_size", "out_size": "out_size"}
"""Fields of StyleGAN3's layers -> what they are called in our `LayerPlan`."""
SYNTHESIS = {"critical": ("num_critical", 2), "output_scale": ("output_scale", 0.25)}
"""Our arguments -> fields of StyleGAN3's synthesis network, and what they usually are."""
NOT_PERSISTENT = ("it holds a module that is not laid out as NVIDIA's torch_utils.persistence lays "
                  "out its own")
OF_NO_MATTER = frozenset("""
    block_resolutions c_dim channels channels_last cmap_dim conv_clamp conv_kernel down_factor
    down_radial down_taps dtype first_layer_idx fp16_channels_last fused_modconv_default
    group_size img_channels img_resolution img_resolution_log2 in_channels in_cutoff in_features
    in_half_width in_sampling_rate in_size is_critically_sampled is_last is_torgb layer_names
    magnitude_ema_beta margin_size memory_format name num_conv num_critical num_fp16_res
    num_layers num_torgb num_ws out_channels out_cutoff out_features out_half_width
    out_sampling_rate out_size output_scale padding resolution sampling_rate size
    tmp_sampling_rate trainable training up_factor up_taps use_fp16 w_avg_beta w_dim weight_gain
    z_dim""".split())
"""Fields that the tensors' shapes repeat, that matter in training or for speed alone, or that are
read elsewhere here."""


@dataclass
class Modules:
    """The modules of an NVIDIA pickle: their attributes by path, their tensors by full name; their
    source text is never looked at."""

    attributes: dict[str, dict] = field(default_factory=dict)
    state: State = field(default_factory=dict)

    @property
    def pickled(self) -> bool:
        """Whether these are modules, and no state dict."""
        return any(self.attributes.values())

    @classmethod
    def of(cls, value: object, budget: Budget) -> Modules:
        """Of a pickled module, or of a state dict, whose attributes are then the usual ones."""
        modules = cls()
        if isinstance(value, dict):
            modules.state = {WRAPPERS.sub("", name): part for name, part in value.items()
                             if isinstance(name, str) and len(name) <= LONGEST
                             and isinstance(part, (Tensor, Record))}
            modules.attributes = {name.rpartition(".")[0]: {} for name in modules.state}
        elif value.name == PERSISTENT:
            modules.add(value, "", budget)
        return modules

    def add(self, record: object, path: str, budget: Budget) -> None:
        """The module that a record stands for, with all below it: shared ones once per parent."""
        meta = record.arguments[0] if isinstance(record, Record) and record.arguments else None
        own = meta.get("state") if isinstance(meta, dict) else None
        if path.count(".") > DEEPEST or not isinstance(own, dict):
            raise ForeignError(NOT_PERSISTENT)
        parts = [own.get(key) or {} for key in ("_parameters", "_buffers", "_modules")]
        if not all(isinstance(part, dict) for part in parts):
            raise ForeignError(NOT_PERSISTENT)
        names = [name for part in parts for name in part]
        budget.spend(1 + len(names))
        if not all(isinstance(name, str) and len(name) <= 100 for name in names):
            raise ForeignError(NOT_PERSISTENT)
        self.attributes[path] = own
        prefix = f"{path}." if path else ""
        for name, value in (parts[0] | parts[1]).items():
            if isinstance(value, (Tensor, Record)):
                self.state[prefix + name] = value
        for name, child in parts[2].items():
            if child is not None:
                self.add(child, prefix + name, budget)

    def marks(self) -> list[tuple[str, str, Callable[[Modules], Found]]]:
        """(prefix, role, how it is translated) of every network among the tensors' names."""
        found = {}
        for name in self.state:
            if match := MARKS.match(name):
                role, translate = KINDS[match.lastgroup]
                if match.lastgroup == "alias_free" or (match[1], role) not in found:
                    found[match[1], role] = translate
        return [(*key, translate) for key, translate in found.items()]

    def under(self, prefix: str) -> Modules:
        """What lies below a prefix, which ends in a dot, or is empty."""
        parts = ({name[len(prefix):]: value for name, value in whole.items()
                  if name.startswith(prefix)} for whole in (self.attributes, self.state))
        return Modules(*parts)

    def get(self, path: str, name: str, default: object) -> object:
        """An attribute of a module."""
        return self.attributes.get(path, {}).get(name, default)

    def check(self) -> None:
        """Raise ForeignError, with the field's name, for what our layers do otherwise and for what
        no published version has."""
        for path, attributes in self.attributes.items():
            for name, value in attributes.items():
                _check_field(path, name, value)
            weight = self.state.get(f"{path}.weight")
            if isinstance(weight, Tensor) and weight.ndim in (2, 4) and weight.numel():
                multiplier = 0.01 if re.search(SLOW, path) else 1.0
                self.agree(path, weight_gain=multiplier / math.sqrt(weight[0].numel()))
                if weight.ndim == 4 and not re.search(r"\.L\d+_", path):
                    self.agree(path, padding=weight.shape[-1] // 2)
            if attributes.get("use_noise", True) is False:
                self.state.pop(f"{path}.noise_strength", None)  # missing: none

    def agree(self, path: str, **right: object) -> None:
        """Raise ForeignError for a field of a module that is there and is not what follows from the
        other parts of a published network."""
        for name, ours in right.items():
            value = self.get(path, name, None)
            if value is not None and not (_same(value, ours) or _is_size(value, ours)):
                ours = f"{ours:g}" if isinstance(ours, float) else ours
                raise ForeignError(f"{_named(path)} has the {name} {_shown(value)}: in the "
                                   f"published configurations it is {ours}")

    def sizes(self, pattern: str) -> list[int]:
        """4, 8, ... as the blocks are named; raises ForeignError for gaps."""
        found = sorted({int(m[1]) for name in self.state if (m := re.match(pattern, name))})
        if not 2 <= len(found) <= 10 or found != [4 << i for i in range(len(found))]:
            raise ForeignError(f"it holds blocks of the sizes {found[:12]}, not 4, 8, 16, ...")
        return found

    def clamp(self, pattern: str = CLAMPED) -> dict:
        """{"clamp": value} if every convolution of that name clamps there, {} if none does."""
        clamps = [self.get(path, "conv_clamp", None) for path in self.attributes
                  if re.search(pattern, path)]
        for clamp in clamps:
            if clamp is not None and not (type(clamp) in (int, float) and 0 < clamp <= MOST_CLAMP):
                raise ForeignError(f"a convolution's conv_clamp is {_shown(clamp)}, not a number "
                                   f"above 0 and up to {MOST_CLAMP:g}")
        if len(set(clamps)) > 1:
            raise ForeignError("its convolutions clamp their outputs at different values")
        return {"clamp": float(clamps[0])} if clamps and clamps[0] is not None else {}


def _check_field(path: str, name: str, value: object) -> None:
    if name.startswith("_"):  # torch's own; the source's arguments, which the fields repeat
        return
    if value is None and name not in FIELDS:  # a layer or parameter that is not there
        return
    if name not in FIELDS and name not in OF_NO_MATTER:
        raise ForeignError(f"{_named(path)} has the field {_shown(name)} ({_shown(value)}), which "
                           "the published versions do not have: it may draw otherwise than they do")
    for where, right in FIELDS.get(name, ()):
        if re.search(where, path) and not any(_same(value, one) for one in right):
            raise ForeignError(f"{_named(path)} has the {name.replace('bias_gain', LR)} "
                               f"{_shown(value)}: only {' or '.join(map(str, right))} is known")


def _same(value: object, right: object) -> bool:
    if isinstance(right, float) and type(value) in (int, float):
        return math.isclose(value, right, rel_tol=1e-6)
    return type(value) is type(right) and value == right


def _is_size(value: object, right: object) -> bool:
    """Whether it is a numpy array of that whole number twice, as NVIDIA keeps sizes."""
    if type(right) is not int or not isinstance(value, Record) or "numpy" not in value.name:
        return False
    parts = *(value.arguments or ()), *(value.state or ())
    return any(part in parts for part in (right.to_bytes(size, "little") * 2 for size in (4, 8)))


def nvidia_generator(modules: Modules) -> Found:
    """`mapping.fc0...`, `synthesis.b4...` -> ours."""
    modules.check()
    state, pairs = modules.state, []
    sizes = modules.sizes(r"synthesis\.b(\d+)\.")
    for size in sizes:
        first = "synthesis.b4.const" if size == 4 else f"synthesis.b{size}.conv0.weight"
        second = f"synthesis.b{size}.conv1.weight"
        pairs.append([len(_need(state, first)), len(_need(state, second, 4))])
    architecture = {"resolution": sizes[-1], "channels": pairs, **modules.clamp(),
                    "img_channels": len(_need(state, "synthesis.b4.torgb.bias", 1)),
                    **_mapping_sizes(state, "mapping.fc", 0)}
    modules.agree("mapping", num_layers=architecture["mapping_layers"])
    modules.agree("synthesis", block_resolutions=sizes)
    for path in ("", "mapping", "synthesis"):
        modules.agree(path, img_resolution=sizes[-1], num_ws=2 * len(sizes))
    found = _collect("stylegan2-generator", architecture, modules, NVIDIA, "NVIDIA's StyleGAN2")
    return found if "mapping.w_avg" in state else _with_mean_w(found, state.get("latent_avg"))


def nvidia_alias_free(modules: Modules) -> Found:
    """StyleGAN3's `synthesis.input...`, `synthesis.L0_36_512...` -> ours."""
    modules.check()
    state, layers = modules.state, {}
    for path in modules.attributes:
        if match := re.fullmatch(r"synthesis\.L(\d{1,3})_(\d{1,5})_(\d{1,5})", path):
            layers[int(match[1])] = path, int(match[2]), int(match[3])
    if not state.keys() & {"synthesis.input.freqs", "synthesis.input.transform"} and layers:
        raise ForeignError("it holds the parameters of a StyleGAN3 alone, and lost are its Fourier "
                           "features (synthesis.input.freqs and phases), from which it draws: save "
                           "its whole state_dict()")
    if not layers and any(map(OUR_NAMES.search, state)):
        raise ForeignError(OURS)
    if not 3 <= len(layers) <= 64 or sorted(layers) != list(range(len(layers))):
        raise ForeignError(f"it holds the layers {sorted(layers)[:12]} of a StyleGAN3 generator, "
                           "not 0, 1, ...")
    paths, resolutions, widths = zip(*(layers[n] for n in range(len(layers))), strict=True)
    kernel = _need(state, f"{paths[0]}.weight", 4).shape[-1]
    down = state.get(f"{paths[0]}.down_filter")  # which a file of parameters alone has not
    radial = down.ndim == 2 if isinstance(down, Tensor) else kernel == 1
    numbers = {ours: modules.get("synthesis", *theirs) for ours, theirs in SYNTHESIS.items()}
    # The first layer has 16 samples and the margin on both sides, whatever the resolution.
    numbers["margin"] = modules.get("synthesis", "margin_size", (resolutions[0] - 16) // 2)
    architecture = {"resolution": resolutions[-1], "channels": list(widths[:-1]), **numbers,
                    "img_channels": widths[-1], "kernel": kernel, "radial": radial,
                    **modules.clamp(), **_mapping_sizes(state, "mapping.fc", 0)}
    modules.agree("mapping", num_layers=architecture["mapping_layers"])
    modules.agree("synthesis", layer_names=[path.removeprefix("synthesis.") for path in paths])
    for path in ("", "mapping", "synthesis"):
        modules.agree(path, img_resolution=resolutions[-1], num_ws=len(paths) + 1)
    names: Rules = [(r"^synthesis\.layers\.(\d+)", lambda m: paths[int(m[1])])]
    found = _collect("stylegan3-generator", architecture, modules, NVIDIA + names,
                     "NVIDIA's StyleGAN3")
    synthesis = outline(found.kind, architecture).synthesis
    modules.agree("synthesis.input", size=synthesis.input.size, sampling_rate=synthesis.input.rate)
    for n, layer in enumerate(synthesis.layers):
        if resolutions[n] != layer.plan.out_size:
            raise ForeignError(f"{_named(paths[n])} has another size in its name than the "
                               f"published configurations give it ({layer.plan.out_size})")
        bend, plan = layer.activation, {k: getattr(layer.plan, v) for k, v in PLANNED.items()}
        modules.agree(paths[n], **plan, conv_kernel=layer.kernel, up_factor=bend.up_factor,
                      down_factor=bend.down_factor, padding=[*bend.padding] * 2,
                      tmp_sampling_rate=float(layer.up_design[3]), up_taps=layer.up_design[0],
                      down_taps=layer.down_design[0],
                      down_radial=radial and not layer.plan.critical)
        for name, design in (("up_filter", layer.up_design), ("down_filter", layer.down_design)):
            ours, theirs = low_pass(*design), state.get(f"{paths[n]}.{name}")
            if theirs is not None and not (getattr(theirs, "shape", None) == ours.shape
                                           and torch.allclose(theirs.double(), ours, atol=1e-4,
                                                              rtol=_rounding(theirs.dtype))):
                raise ForeignError(f"layer {n} of its synthesis network has other filters than the "
                                   f"published configurations ({name})")
    return found if "mapping.w_avg" in state else _with_mean_w(found, state.get("latent_avg"))


def nvidia_discriminator(modules: Modules) -> Found:
    """`b32...`, `b4...` -> ours."""
    modules.check()
    state, sizes = modules.state, modules.sizes(r"b(\d+)\.")
    top = sizes[-1]
    if f"b{top}.skip.weight" not in state:
        raise ForeignError("the discriminator is not a residual one ('resnet'): only those are "
                           "supported")
    widths = [len(_need(state, f"b{size}.conv1.weight", 4)) for size in sizes[1:]]
    widths.append(len(_need(state, f"b{top}.fromrgb.weight", 4)))
    group = modules.get("b4.mbstd", "group_size", 4)
    if group is not None and not (type(group) is int and group > 0):
        raise ForeignError(f"b4.mbstd has the group_size {_shown(group)}, not a number above 0")
    clamp, skips = modules.clamp(), modules.clamp(r"^b\d+\.skip$")
    if skips and skips != clamp:
        raise ForeignError("its skip convolutions clamp their outputs at different values")
    architecture = {"resolution": top, "channels": widths, "mbstd_group": group, **clamp,
                    "img_channels": state[f"b{top}.fromrgb.weight"].shape[1],
                    **({"clamp_skips": True} if skips else {})}
    if "mapping.embed.weight" in state:
        architecture["c_dim"] = _need(state, "mapping.embed.weight", 2).shape[1]
    blocks: Rules = [(r"^from_rgb", f"b{top}.fromrgb"),
                     (r"^blocks\.(\d+)", lambda m: f"b{top >> int(m[1])}")]
    return _collect("stylegan2-discriminator", architecture, modules, NVIDIA + blocks,
                    "NVIDIA's StyleGAN2")


# ------------------------------------------------------------------------------------ rosinality


def rosinality_generator(modules: Modules) -> Found:
    """`style.1...`, `conv1...`, `convs.0...`, `to_rgbs.0...` -> ours."""
    state = modules.state
    number = next(n for n in count() if f"convs.{n}.conv.weight" not in state)
    if number % 2 or not 2 <= number <= 18:
        raise ForeignError(f"it has {number + 1} styled convolutions, not an odd number of at "
                           "least 3")
    layers = ["conv1", *(f"convs.{n}" for n in range(number))]
    weights = [_need(state, f"{layer}.conv.weight", 5) for layer in layers]  # (1, O, I, k, k)
    for layer in layers:
        _need(state, f"{layer}.noise.weight")
    channels = [_need(state, "input.input", 4).shape[1], *(weight.shape[1] for weight in weights)]
    pairs = [channels[i:i + 2] for i in range(0, len(channels), 2)]
    architecture = {"resolution": 2 << len(pairs), "channels": pairs,
                    "kernel": weights[-1].shape[-1],
                    "img_channels": _need(state, "to_rgb1.bias").numel(),
                    **_mapping_sizes(state, "style.", 1)}
    mean = state.pop("latent_avg", None)  # it may be none
    found = _collect("stylegan2-generator", architecture, modules, ROSINALITY,
                     "rosinality's StyleGAN2")
    return _with_mean_w(found, mean)


@torch.no_grad()
def _with_mean_w(found: Found, mean: object) -> Found:
    """The network with its latent_avg as the mean of w; where that is None, or no mean of w, with
    the one over 10,000 z, always the same ones and the classes in turn: files of parameters alone,
    and rosinality's training checkpoints, whose own tools estimate it like this when they truncate.
    """
    note, w_dim = found.note, found.architecture["w_dim"]
    if mean is not None:
        what = "which is no tensor,"
        if isinstance(mean, Tensor):
            what = f"of shape {tuple(mean.shape)},"
            few = 0 < mean.numel() <= w_dim * LIMITS["mapping_layers"]
            if few and w_dim in (mean.numel(), *mean.shape[-1:]):
                rows = mean.reshape(-1, w_dim)  # often there is one for each layer, all the same
                what = what if rows.float().isfinite().all() else "which is not finite,"
                if (rows == rows[0]).all():
                    found.state["mapping.w_avg"] = rows[0].detach().clone()
                    return found
        said = f"its latent_avg, {what} is no mean of w: the mean of 10,000 w takes its place"
        note = "; ".join(filter(None, (note, said)))
    mapping = outline(found.kind, found.architecture).mapping
    layers = {name.removeprefix("mapping."): value.float() for name, value in found.state.items()
              if name.startswith("mapping.")}
    mapping.load_state_dict(layers, assign=True)
    dice = torch.Generator().manual_seed(0)
    z = torch.randn(40, 250, mapping.z_dim, generator=dice)
    c = [None] * len(z)
    if n := mapping.c_dim:
        drawn = torch.randint(n, (10_000,), generator=dice)
        labels = torch.arange(10_000) % n if n <= 10_000 else drawn
        c = [nn.functional.one_hot(part, n).float() for part in labels.view(40, 250)]
    means = [mapping(*part).mean(dim=0) for part in zip(z, c, strict=True)]
    found.state["mapping.w_avg"] = torch.stack(means).mean(dim=0)
    return replace(found, note=note)


def rosinality_discriminator(modules: Modules) -> Found:
    """`convs.0.0.weight`, `convs.1.conv1...`, `final_conv...` -> ours."""
    state = modules.state
    blocks = next(n for n in count() if f"convs.{n + 1}.conv1.0.weight" not in state)
    widths = [len(_need(state, f"convs.{n}.conv2.1.weight", 4)) for n in range(blocks, 0, -1)]
    top = _need(state, "convs.0.0.weight", 4)
    return _collect("stylegan2-discriminator",
                    {"resolution": 4 << blocks, "channels": [*widths, len(top)],
                     "img_channels": top.shape[1]}, modules,
                    ROSINALITY_DISCRIMINATOR, "rosinality's StyleGAN2")


# What a network of each kind holds, whatever stands before the name.
MARKS = re.compile(r"""((?:.*?\.)?)(?:
    (?P<alias_free>synthesis\.(?:input|L\d+_\d+_\d+)\.) | (?P<nvidia>synthesis\.b\d+\.)
    | (?P<nvidia_d>b4\.(?:conv|fc|out)\.) | (?P<rosinality>input\.input$)
    | (?P<rosinality_d>convs\.\d+\.skip\.1\.))""", re.VERBOSE)
KINDS: dict[str, tuple[str, Callable[[Modules], Found]]] = {
    "alias_free": ("generator", nvidia_alias_free),
    "nvidia": ("generator", nvidia_generator),
    "nvidia_d": ("discriminator", nvidia_discriminator),
    "rosinality": ("generator", rosinality_generator),
    "rosinality_d": ("discriminator", rosinality_discriminator)}


@torch.no_grad()
def largest_activation(G: Generator) -> float:
    """The largest magnitude that any layer which clamps puts out, toRGB included, for 200 latents,
    with truncation 1 and the stored noise."""
    found, dice = [0.0], torch.Generator().manual_seed(0)
    layers = [layer for layer in G.modules() if isinstance(layer, (StyledConv, ToRGB))]
    hooks = [layer.register_forward_hook(lambda *call: found.append(call[2].abs().max().item()))
             for layer in layers]
    try:
        for z in torch.randn(200, G.z_dim, generator=dice).split(max(1, 1024 // G.resolution)):
            G(z.to(G.mapping.w_avg))
    finally:
        for hook in hooks:
            hook.remove()
    return max(found)


def to_rosinality(G: Generator, drop_clamp: bool = False) -> dict:
    """A generator as rosinality's, StyleKD's and CAGAN's tools read it: {"g_ema": state dict,
    "latent_avg": (w_dim,)}.

    That layout knows no clamp. Of a generator that clamps it is left out, with a warning that says
    how far the activations stay below it, where they reach less than half of it; with `drop_clamp`
    in any case.

    Raises ForeignError for what that layout cannot hold: another family, a conditional generator,
    or one whose activations come near its clamp.
    """
    if G.kind != Generator.kind:
        raise ForeignError(f"rosinality's layout is one of StyleGAN2: a {G.kind} cannot be written "
                           "in it")
    if G.c_dim:
        raise ForeignError("rosinality's layout has no classes: this conditional generator cannot "
                           "be written in it")
    if G.clamp:
        largest = largest_activation(G)
        reach = f"the largest activation of 200 latents is {largest:.3g}"
        if largest > G.clamp / 2 and not drop_clamp:
            raise ForeignError("rosinality's layout knows no clamped convolutions, and this "
                               f"generator comes near its clamp of {G.clamp:g} ({reach}): the file "
                               "would draw otherwise; --drop-clamp writes it all the same")
        warnings.warn(f"the clamp at {G.clamp:g}, which rosinality's layout does not know, is left "
                      f"out: {reach}, {largest / G.clamp:.0%} of it", stacklevel=2)
    out = {}
    for ours, value in G.state_dict().items():
        name, value = _renamed(ours, ROSINALITY), value.detach().cpu().clone()
        if name.endswith("conv.weight"):
            value = value[None]  # (1, O, I, k, k)
        elif name.endswith("noise.weight"):
            value = value.reshape(1)
        elif name.startswith("to_rgb") and value.ndim == 1 and "modulation" not in name:
            value = value.reshape(1, -1, 1, 1)
        out[name] = value
    for block in range(len(G.channels) - 1):
        out[f"convs.{2 * block}.conv.blur.kernel"] = fir_kernel(gain=4.0)[0, 0]
        out[f"to_rgbs.{block}.upsample.kernel"] = fir_kernel(gain=4.0)[0, 0]
    latent_avg = out.pop("latent_avg")
    return {"g_ema": out, "latent_avg": latent_avg}
