"""What a chapter's notebook needs while it runs, and how one is run with other parameters.

What is written into the notebooks beforehand, badges and first cells, is in tools/readme.py.
"""

from __future__ import annotations

import ast
import difflib
import json
import os
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path

import yaml

from gapkd.files.download import is_address
from gapkd.files.storage import ROOT, check_place, data_folder, data_path, runs_folder
from gapkd.progress import show
from gapkd.settings import (
    DISTANCES,
    FEATURE_SPACES,
    FILES,
    KINDS,
    DistillConfig,
    as_kind,
    from_dict,
    read_settings,
    read_yaml,
)

NOTEBOOKS = ROOT / "notebooks"


def announce() -> None:
    """Make the kernel ready to train (`parallel.keep_memory`), and print the version, the device
    and whether the embedded networks are there."""
    import torch

    from gapkd import __version__, parallel

    parallel.keep_memory()

    device = (torch.cuda.get_device_name() if torch.cuda.is_available()
              else f"CPU, {torch.get_num_threads()} threads")
    try:
        data_path("toyfaces32.safetensors")
        data = "found"
    except FileNotFoundError as error:
        data = str(error)
    print(f"gapkd {__version__} · device: {device} · embedded networks: {data}")


def new_run(name: str) -> str:
    """The next free folder runs/<name>-NNN for the `out` of a live training: of the clone, or of
    what can be written of the working directory and the home folder. Raises ValueError where
    nothing can."""
    from gapkd.training.runs import next_run_folder

    homes = runs_folder(), Path.cwd() / "runs", Path.home() / "gapkd-runs"
    for home in homes:
        try:
            folder = check_place(next_run_folder(name, home))
        except ValueError:
            continue
        if home != homes[0]:
            print(f"{homes[0]} cannot be written: this run goes into {folder}")
        return str(folder)
    raise ValueError(f"no run can be written below {', '.join(map(str, homes))}: name a folder "
                     "with out")


def find_notebook(name: str) -> Path:
    """The notebook of that name, number or path. Raises ValueError naming the chapters."""
    files = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
    for file in files:
        number = file.stem[:2]
        if name in (file.stem, file.name, number, str(int(number))):
            return file
    if Path(name).is_file():
        return Path(name)
    known = ", ".join(file.stem for file in files)
    raise ValueError(f"there is no chapter {name}: choose one of {known}")


def parse_parameters(pairs: Sequence[str], known: dict, rules: dict | None = None) -> dict:
    """name=value pairs as papermill wants them.

    Args:
        pairs: as typed; values are read as YAML: numbers, switches, lists. What names a file counts
            from the folder where it was typed.
        known: the notebook's parameters, name -> (default, words beside it).
        rules: what `check_parameters` is told of them; of others, the kind of the default counts.

    Where the notebook has a parameter `settings`, whose text goes to `read_settings`, the fields of
    DistillConfig can be given by name, too: they are added to that text, a recipe before the
    others, and `check_settings` looks at all of them.

    Raises ValueError naming a parameter that is unknown, malformed or not allowed, or a file that
    is not there (papermill itself only warns).
    """
    values, more, given = {}, [], set()
    more_names = [field.name for field in fields(DistillConfig)] if "settings" in known else []
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not (name and equals):
            raise ValueError(f"write parameters as name=value, not {pair!r}")
        if name in given:
            raise ValueError(f"{name} is given twice: leave one of them out")
        given.add(name)
        if name in known:
            values[name] = _place(name, text, *known[name])
        elif name in more_names:
            more.append(_setting(name, text))
        else:
            near = difflib.get_close_matches(name, [*known, *more_names], n=1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(known)}"
            raise ValueError(f"this chapter has no parameter {name}: {hint}")
    kinds = {name: object if default is None else type(default)
             for name, (default, _) in known.items()} | (rules or {})
    check_parameters(values, **{name: kinds[name] for name in values})
    if more:
        more.sort(key=lambda text: not text.startswith("recipe:"))
        first = values.get("settings", known["settings"][0])
        values["settings"] = ", ".join(filter(None, [first, *more]))
    if pairs and "settings" in known:
        check_settings(**{name: default for name, (default, _) in known.items()} | values)
    return values


def _setting(name: str, text: str) -> str:
    """A field of DistillConfig as `read_settings` reads it; files by absolute paths."""
    words = "folder" if name == "data" else "file of a network"
    bare = text.strip()[:1] not in ("[", "'", '"')
    if bare and name not in FILES and set(",()") & set(text):
        raise ValueError(f"{name}={text}: write several numbers as [1, 2], and 0.5 with a point")
    if name in FILES and text not in DISTANCES + FEATURE_SPACES:
        text = json.dumps(_place(name, text, "", words))
    return f"{name}: {text}"


def _place(name: str, value: str, default: object, words: str) -> str:
    """A value that names a file or folder (the words beside the parameter say so, or its default is
    an embedded network) as an absolute path, seen from here or from the repository; the name of an
    embedded network, a network's address, the default or another text as it is. `out` need not be
    there."""
    if len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        value = value[1:-1]
    a_file = set(re.findall(r"\w+", words)) & {"file", "folder", "path"}
    a_text = default is None or isinstance(default, str)
    a_network = default in embedded_networks() or "network" in words
    if not a_text or not (a_file or a_network):
        return value
    if value in ("", default) or a_network and is_address(value):
        return value
    if is_address(value):
        raise ValueError(f"{name}={value}: only networks may have an address: give the path of a "
                         "copy on this machine")
    path = Path(value).expanduser()
    if name == "out":
        return str(path.absolute())
    if not os.path.lexists(path) and (data_folder() / f"{value}.safetensors").is_file():
        return value
    for place in (path.absolute(), ROOT / path):
        if os.path.lexists(place):
            return str(place)
    hub = ""
    if a_network and name not in ("perceptual", "fid_features"):  # those take files alone
        hub = ", or a model hub's repository as hf://user/name"
    raise ValueError(f"{name}={value}: there is neither a file nor a folder {path.absolute()}, nor "
                     f"an embedded network of that name: give a path that exists{hub}")


def _settings_of(notebook: Path) -> tuple[dict, dict]:
    """A notebook's parameters, name -> (default, the words beside it), and what its call of
    `check_parameters` allows for each. Nothing is run."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        marks = [list(cell["metadata"].get("tags", ())) for cell in cells]
        code = [(tags, "".join(cell["source"])) for cell, tags in zip(cells, marks, strict=True)
                if cell["cell_type"] == "code"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{notebook} cannot be read as a notebook ({type(error).__name__}): give "
                         "an .ipynb file, or a chapter's number") from error
    known, rules = {}, {}
    for tags, source in code:
        with suppress(SyntaxError):  # lines for the shell or for IPython, which are not for us
            if "parameters" in tags:
                known |= _assignments(source)
            elif "check_parameters(" in source:
                rules |= _rules(source)
    return known, rules


def _assignments(source: str) -> dict[str, tuple[object, str]]:
    """Name -> default and comment of each `name = value  # type: kind  words`; None for a default
    that is computed."""
    found = {}
    for node in ast.parse(source).body:
        target = node.targets[0] if isinstance(node, ast.Assign) else getattr(node, "target", None)
        if isinstance(target, ast.Name) and node.value is not None:
            default = None
            with suppress(ValueError):
                default = ast.literal_eval(node.value)
            line = source.splitlines()[node.end_lineno - 1].encode()
            words = line[node.end_col_offset:].decode()
            found[target.id] = default, re.sub(r"^[\s#]*(type:\s*\S+\s*)?", "", words)
    return found


def _rules(source: str) -> dict[str, object]:
    """Name -> rule of a call of `check_parameters`, as far as they are written out."""
    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check_parameters":
            for keyword in node.keywords:
                with suppress(ValueError):  # computed: the notebook checks it when it runs
                    found[keyword.arg] = _rule(keyword.value)
    return found


def _rule(node: ast.expr) -> object:
    """What a rule's code says. Raises ValueError for what is more than numbers, texts and kinds."""
    if isinstance(node, ast.Name) and node.id in ("bool", "str"):
        return {"bool": bool, "str": str}[node.id]
    if isinstance(node, (ast.Tuple, ast.List)):
        entries = [_rule(entry) for entry in node.elts]
        return entries if isinstance(node, ast.List) else tuple(entries)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow):
        base, power = _rule(node.left), _rule(node.right)
        if not (isinstance(base, int) and isinstance(power, int) and 0 <= power <= 64):
            raise ValueError("not a number that a parameter can have")
        return base**power
    return ast.literal_eval(node)


# -------------------------------------------------------------------------------------- checking


def check_parameters(scope: dict, **allowed: object) -> None:
    """Check a chapter's parameters in the cell below them, before anything is loaded or trained.

    What papermill handed over as text ("8000", "[2, 3]") becomes what it says.

    Args:
        scope: the notebook's `globals()`, in which the values stand.
        allowed: for each parameter `(least, most)` for a number (a whole one where both are whole),
            `("auto", "cpu")` for one of these words, the same in a list for several of them, `bool`
            for a switch, `str` for any text, "network" for an embedded network, a file or an
            address ("stylegan2": of that family; "network like teacher": with the resolution and
            the z of the parameter `teacher`), "arm" for a row of chapter 6's table, ["direction"]
            for names of directions.

    Raises ValueError, one sentence: the parameter, its value and what it may be.
    """
    for name, rule in allowed.items():
        rule = _spelt_out(rule)
        value, kind = scope[name], _kind(rule)
        if isinstance(value, str) and kind is not str:
            with suppress(yaml.YAMLError):
                value = read_yaml(value)
        value = list(value) if isinstance(value, tuple) else as_kind(value, kind)
        if _is_network(rule) and isinstance(value, str):
            value = os.path.expanduser(value)
        if not _fits(value, rule):
            near = difflib.get_close_matches(str(value), _words(rule), n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"{name} must be {_in_words(rule)}, not {value!r}{hint}: change it "
                             "in the cell of parameters, or where you gave it")
        if _is_network(rule) and not os.path.exists(value):
            value = locate(value)
        scope[name] = value
    for name, rule in allowed.items():
        if _is_network(rule):
            _check_network(name, rule, scope)


def check_settings(settings: str, **own: object) -> None:
    """Check what is asked of a training, before it has a folder and before an image is drawn.

    Args:
        settings: a chapter's parameter of that name: "name: value, name: value".
        own: its other parameters; those that are fields of DistillConfig count.

    Raises ValueError, one sentence, for what `gapkd.distill` would refuse: of the settings, of
    teacher and student, of the discriminator, of the device; and for `ld_blocks` that the teacher
    lacks, since chapters show these blocks whatever the losses are.
    """
    given, names = read_settings(settings), {field.name for field in fields(DistillConfig)}
    for name in given:
        if name in own:
            raise ValueError(f"settings: {name} is a parameter of its own in this chapter: give "
                             f"{name}=... instead")
    here = {name: own[name] for name in own if name in names and name not in ("out", "resume")}
    config = from_dict(DistillConfig, {name: locate(value) if name in FILES else value
                                       for name, value in (here | given).items()})
    # What takes seconds to import, only now.
    from gapkd.distillation.directions import check_blocks
    from gapkd.files.checkpoints import load_generator
    from gapkd.parallel import choose_device
    from gapkd.training.loop import first_discriminator
    from gapkd.training.start import check_student

    choose_device(config.device)
    teacher = load_generator(config.teacher)
    check_blocks("ld_blocks", config.ld_blocks, teacher)
    check_student(config, teacher)
    first_discriminator(config, teacher)


def locate(value: str) -> str:
    """A path counts from the repository, if something of that name is there."""
    return str(ROOT / value) if value and (ROOT / value).exists() else value


def _spelt_out(rule: object) -> object:
    """A rule of `check_parameters`; for the name of what lies elsewhere, the words there."""
    sources = {"arm": _arms, "direction": _directions}
    if isinstance(rule, list) and rule[0] in sources:
        return sources[rule[0]]()
    return tuple(sources[rule]()) if isinstance(rule, str) and rule in sources else rule


def _arms() -> list[str]:
    """The methods of chapter 6's table."""
    return list(read_yaml((ROOT / "tools/sweeps/table.yml").read_text(encoding="utf-8"))["arms"])


def _directions() -> list[str]:
    """The directions that the embedded attribute network gives a name."""
    from gapkd.metrics.attributes import load_attribute_network
    from gapkd.metrics.editing import direction_names

    return direction_names(load_attribute_network())


def _kind(rule: object) -> type:
    """The kind of value that a rule of `check_parameters` asks for."""
    if isinstance(rule, type):
        return rule
    if isinstance(rule, list):
        return list
    if isinstance(rule[0], str):
        return str
    return int if all(type(bound) is int for bound in rule) else float


def _fits(value: object, rule: object) -> bool:
    """Whether one value is what a rule of `check_parameters` allows."""
    kind = _kind(rule)
    if _is_network(rule):
        return isinstance(value, (str, Path)) and _names_network(str(value))
    right = isinstance(value, (int, float) if kind is float else kind)
    if kind in (int, float) and isinstance(value, bool):
        right = False
    if not right or isinstance(rule, type):
        return right
    if kind is list:
        return len(value) > 0 and all(_fits(entry, tuple(rule)) for entry in value)
    return value in rule if kind is str else rule[0] <= value <= rule[1]


def _is_network(rule: object) -> bool:
    return isinstance(rule, str) and rule.split()[0] in ("network", "stylegan2")


def _check_network(name: str, rule: str, scope: dict) -> None:
    """Refuse one of another family than the rule's, or unlike the other one that it names."""
    described = _architecture(scope[name])
    if rule == "stylegan2" and not described.get("kind", rule).startswith(rule):
        raise ValueError(f"{name} must be a StyleGAN2, which this chapter takes apart; "
                         f"{scope[name]} holds a {described['kind']}")
    if " like " in rule:
        other = rule.split(" like ")[1]
        model = _architecture(scope[other])
        for size, words in (("resolution", "px"), ("z_dim", "numbers in z")):
            pair = described.get(size), model.get(size)
            if None not in pair and pair[0] != pair[1]:
                raise ValueError(f"{name}={scope[name]} has {pair[0]} {words}, and "
                                 f"{other}={scope[other]} {pair[1]}: they are compared for the "
                                 "same z, so give two that are alike")


def _architecture(value: str | Path) -> dict:
    """Kind, resolution and so on of a network, as far as its file tells them; nothing of one that
    is not here, or not readable: its loading will say why."""
    if is_address(str(value)):
        return {}
    from gapkd.files.checkpoints import CheckpointError, read_metadata

    try:
        metadata = read_metadata(value)
    except (CheckpointError, OSError):
        return {}
    return {"kind": metadata["kind"], **metadata["architecture"]}


def _names_network(value: str) -> bool:
    """Whether it is an embedded network's name, an address or, here or in the repository, a file or
    a folder that holds a network."""
    if is_address(value) or value in embedded_networks():
        return True
    return value != "" and any(_is_there(place) for place in (Path(value), ROOT / value))


def _is_there(place: Path) -> bool:
    """Whether there is a file, whatever it holds, or a folder in which `load_generator` finds
    one."""
    if not os.path.isdir(place):
        return os.path.exists(place)
    from gapkd.files.checkpoints import CheckpointError, find_checkpoint  # takes a second to import

    try:
        find_checkpoint(place)
    except (CheckpointError, OSError):
        return False
    return True


def _words(rule: object) -> list[str]:
    """The words among which a rule lets one choose."""
    if _is_network(rule):
        return embedded_networks()
    return [] if isinstance(rule, type) else [word for word in rule if isinstance(word, str)]


def _in_words(rule: object) -> str:
    """What a rule of `check_parameters` allows, for a sentence."""
    kind = _kind(rule)
    if isinstance(rule, type):
        return KINDS.get(rule, f"of type {rule.__name__}")
    if kind is list:
        return f"a list, each entry {_in_words(tuple(rule))}"
    if kind is str:
        more = ", a file or an address" if _is_network(rule) else ""
        return f"one of {', '.join(_words(rule))}{more}"
    return f"{KINDS[kind]} from {rule[0]:,} to {rule[1]:,}"


def embedded_networks() -> list[str]:
    """The names under which the generators in data/ load."""
    others = "attributes", "second_judge"
    files = sorted(file.stem for file in data_folder().glob("*.safetensors"))
    return [name for name in files if name not in others and not name.endswith("_discriminator")]


def run_chapter(name: str, parameters: Sequence[str] = (), out: str = "") -> Path:
    """Execute a chapter (its name, number or notebook) through papermill with name=value pairs, and
    print where its results are: in `out`, or the next free runs/<chapter>-NNN. Returns that
    folder."""
    notebook = find_notebook(name)
    known, rules = _settings_of(notebook)
    values = parse_parameters(parameters, known, rules)
    missing = [need for need in ("papermill", "ipykernel") if find_spec(need) is None]
    if missing:
        raise ValueError(f"a chapter needs {' and '.join(missing)} to run: pip install "
                         '"gapkd[course]"')
    folder = Path(out or new_run(notebook.stem)).resolve()
    executed = folder / notebook.name
    if os.path.lexists(executed):
        raise ValueError(f"{executed} exists already: choose another out")
    import papermill
    from jsonschema import ValidationError
    from nbclient.exceptions import DeadKernelError

    if "out" in known and "out" not in values:
        values["out"] = str(folder)
    check_place(executed)
    folder.mkdir(parents=True, exist_ok=True)
    where, summary = short(executed), folder / "result.json"
    before = summary.stat().st_mtime_ns if summary.exists() else None  # another chapter's
    show(f"running {notebook.stem} (some minutes on two cores); {where} fills in")
    try:
        papermill.execute_notebook(
            str(notebook), str(executed), values, cwd=str(folder), log_output=False,
            kernel_name="python3",  # this Python's, whatever an editor called its own
            progress_bar=sys.stderr.isatty(),
            extra_arguments=["--IPKernelApp.log_level=CRITICAL"])  # no warning on transports
    except papermill.PapermillExecutionError as error:
        raise ValueError(f"{notebook.name} stopped at In [{error.exec_count}]: {error.ename}: "
                         f"{error.evalue}; see {where}") from error
    except DeadKernelError as error:
        raise ValueError(f"{notebook.name} stopped, its kernel died (there may be too little "
                         f"memory: ask for less, or close other programs); see {where}") from error
    except ValidationError as error:
        raise ValueError(f"{notebook} is no notebook of format 4 ({error.message[:100]}): open it "
                         "in JupyterLab and save it") from error
    show(f"notebook  {where}")
    if summary.exists() and summary.stat().st_mtime_ns != before:
        for key, value in json.loads(summary.read_text()).items():
            is_file = (folder / str(value)).exists()
            show(f"{key:<9} {short(folder / value) if is_file else value}")
    return folder


def short(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here) if path.is_relative_to(here) else path)
