"""The folder of a run: settings.json, log.jsonl, grids/*.png, checkpoints/*.pt and, at the end, the
networks."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import os
import warnings
import zipfile
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from filelock import Timeout
from torch import Tensor

from gapkd import parallel
from gapkd.data.decoding import same_name
from gapkd.data.images import save_png
from gapkd.files.checkpoints import (
    CheckpointError,
    find_checkpoint,
    read_metadata,
    save_network,
    states_of,
)
from gapkd.files.provenance import provenance
from gapkd.files.storage import check_place, json_lines, locked, write_atomically
from gapkd.networks.base import StyleGenerator
from gapkd.networks.stylegan2 import Discriminator
from gapkd.parallel import choose_device
from gapkd.settings import (
    DISTANCES,
    FEATURE_SPACES,
    OF_THE_DAY,
    RunConfig,
    as_word,
    in_brief,
    shown,
    to_dict,
)

CLASS = " (class "
"""Between an image's name and its class, where classes are learnt."""
KEPT_CHECKPOINTS = 2
"""The newest checkpoints that stay on the disk."""


FREE = {*OF_THE_DAY, "probe_every", "fid_every", "fid_samples", "fid_features", "precision",
        "cuda_graphs"}
"""Settings that a resumed run may change: they do not change what its weights mean."""
KNOWN_BY_CONTENT = {"data", "teacher", "perceptual"}
"""Settings that may name a file: it is told by what is in it, wherever it lies by now."""
OF_THE_START = {"start_from", "discriminator"}
"""Settings that no resumed run asks for."""


def free_on_resume(config: RunConfig) -> set[str]:
    """What a resumed run may change."""
    # Rates that fall, and a discriminator that begins late, do so along a curve that images
    # stretches.
    if config.lr_end == config.r1_end == 1.0 and not config.gan_from:
        return FREE | {"images"}
    return FREE


def differences(config: RunConfig, settings: dict, by_content: Iterable[str]) -> list[str]:
    """What a run that has these settings was begun with, and this config may not change.

    Args:
        by_content: settings whose files are told by what is in them, not by name.
    """
    free = free_on_resume(config) | OF_THE_START | KNOWN_BY_CONTENT.intersection(by_content)
    return [f"{name}={shown(repr(settings.get(name)))}, not {shown(repr(value))}"
            for name, value in to_dict(config).items()
            if name not in free  # 8 is as good as [8]
            and value not in (settings.get(name), [settings.get(name)])]


def digest_of(names: Sequence[str]) -> str:
    """The checksum of a list of images."""
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()


def read_about(folder: str | Path) -> dict:
    """What settings.json says of the run in a folder; {} where none can be read."""
    try:
        found = json.loads((Path(folder) / "settings.json").read_text("utf-8-sig"))
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def lost_settings(folder: str | Path) -> str:
    """What to say of a run whose settings.json cannot be read; "" where it has no checkpoint."""
    if not (states := states_of(Path(folder))):
        return ""
    return (f"{Path(folder) / 'settings.json'} cannot be read, without which this run cannot be "
            "resumed: bring it back, or train its networks on in another folder with `gapkd "
            f"teacher --start-from {as_word(states[-1])}` (and its --data; a distillation begins "
            "anew)")


def next_run_folder(kind: str, root: str | Path = "runs") -> Path:
    """The first unused runs/<kind>-NNN."""
    number = 1
    while (folder := Path(root) / f"{kind}-{number:03d}").exists():
        number += 1
    return folder


def find_files(settings: dict, started_in: str, given: Iterable[str]) -> dict[str, str]:
    """Where the files are that a run goes on to need. Relative paths count from the folder in which
    it was started, or from here.

    Args:
        given: settings that were just given: they are as they are.
    Raises ValueError naming those that are not there any more, or are no names.
    """
    used = {"data": settings["data"] != "toyfaces", "teacher": "teacher" in settings,
            "perceptual": (settings.get("perceptual_weight") or settings.get("moment_weight"))
            and settings["perceptual"] not in DISTANCES,
            "fid_features": settings["fid_every"]
            and settings["fid_features"] not in FEATURE_SPACES}
    wanted = [name for name, needed in used.items() if needed and name not in given]
    if wrong := [name for name in wanted if not isinstance(settings[name], str)]:
        raise ValueError(f"{settings['out']}/settings.json was edited: {wrong[0]} must be a text, "
                         f"not {in_brief(settings[wrong[0]])}; give the old value there")
    places = {name: _place(settings[name], started_in, name) for name in wanted}
    if missing := [name for name, place in places.items() if place is None]:
        named = ", ".join(f"{name}={shown(settings[name])}" for name in missing)
        options = " ".join(f"--{name.replace('_', '-')} PATH" for name in missing)
        raise ValueError(f"what the run in {settings['out']} needs is not there any more: {named}; "
                         f"say where it is now, `gapkd resume {as_word(settings['out'])} "
                         f"{options}`")
    return places


def _place(value: str, started_in: str, name: str) -> str | None:
    for path in (Path(str(started_in), value), Path(value)):
        if os.path.exists(path):
            return str(path)
    try:
        return value if name != "data" and find_checkpoint(value) else None
    except CheckpointError:
        return None


class RunFolder:
    """Reads and writes what a run leaves behind, in a with block. Of several processes, the first
    one alone does.

    Args:
        inputs: sha256 of the files the run depends on throughout (the teacher), by the setting that
            names them.
        names: of the images it is trained on; none for rendered ones.
    Raises ValueError when the folder holds a run already (and resume is off), or when a resumed
    run's settings or inputs differ.
    """

    def __init__(self, config: RunConfig, kind: str, inputs: dict[str, str] | None = None,
                 names: Sequence[str] = ()):
        self.kind, self.config, self.names = kind, config, list(names)
        self.inputs = dict(inputs or {}) | ({"data": digest_of(names)} if names else {})
        self.writes = parallel.is_first()
        self.before: dict = {}  # settings.json of the run that is resumed
        self.board, self.lock = None, ExitStack()

    def __enter__(self) -> RunFolder:
        try:
            self.path = parallel.from_first(self._prepare)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        self.lock.close()
        if self.board:
            self.board.close()

    def check(self) -> None:
        """What can be said of the folder before the networks are made. Raises ValueError."""
        config = self.config
        if config.tensorboard:
            _summary_writer()
        self.path = Path(config.out) if config.out else next_run_folder(self.kind)
        check_place(self.path / "settings.json", "out")
        if (self.path / ".lock").exists():
            self._keep_others_out()
            self.lock.close()
        if not config.resume:
            self._refuse_to_overwrite()
        elif not states_of(self.path):
            odd = "".join(f" ({shown(file.name)} is named otherwise: give it back its count of "
                          "images, as in 000000064.pt)" for file in self._states()[:1])
            raise ValueError(f"{self.path} holds no checkpoint to resume from{odd}: check out, or "
                             "start without resume in another folder")

    def _prepare(self) -> Path:
        config = self.config
        self.check()
        if config.resume:
            self._compare_settings()
        self.path.mkdir(parents=True, exist_ok=True)
        self._keep_others_out()
        if not config.resume:  # a run that died before its first checkpoint leaves a log
            (self.path / "log.jsonl").unlink(missing_ok=True)
        write_atomically(self.path / "settings.json", json.dumps(
            self.before | {"kind": self.kind, "settings": to_dict(config), "inputs": self.inputs,
                           "provenance": provenance(choose_device(config.device)), "job": job(),
                           "started_in": str(Path.cwd())}, indent=1).encode())
        if self.names:
            write_atomically(self.path / "data.json", json.dumps(self.names, indent=0).encode())
        if config.tensorboard:
            self.board = _summary_writer()(str(self.path / "tensorboard"))
        return self.path

    def _refuse_to_overwrite(self) -> None:
        """Only the rest of a run that died before its first checkpoint may be written over."""
        about, ours = read_about(self.path), ("settings.json", "log.jsonl", "data.json")
        if self._states():
            lost = "" if about else lost_settings(self.path)
            raise ValueError(lost or f"{self.path} already holds a run: go on with it (`gapkd "
                             f"resume {as_word(self.path)}`, or resume=True), or choose another "
                             "out")
        if any(self.path.glob("*.safetensors")):
            raise ValueError(f"{self.path} already holds networks: choose another out")
        if not {"kind", "settings", "inputs"} <= about.keys():
            there = [self.path / name for name in ours if (self.path / name).exists()]
            if there or (there := [*self.path.glob("grids/[0-9]*.png")]):
                raise ValueError(f"no run of gapkd wrote {there[0]}: choose another out, lest it "
                                 "be written over")

    def _keep_others_out(self) -> None:
        """Two trainings in one folder would spoil each other's files."""
        try:
            self.lock.enter_context(locked(self.path / ".lock"))
        except Timeout as error:
            raise ValueError(f"another process is training into {self.path}: wait for it, stop it, "
                             "or choose another out") from error

    def _states(self) -> list[Path]:
        """The files that hold a state, or did under their old name: copies and damaged ones too."""
        files = (self.path / "checkpoints").glob("*")
        return sorted(file for file in files if file.suffix in (".pt", ".damaged"))

    def _compare_settings(self) -> None:
        self.before = read_about(self.path)
        kind, settings, inputs = (self.before.get(key) for key in ("kind", "settings", "inputs"))
        if not (isinstance(settings, dict) and isinstance(inputs, dict)):
            raise ValueError(lost_settings(self.path))
        if kind != self.kind:
            raise ValueError(f"{self.path} holds a {shown(kind)} run, not a {self.kind} run: "
                             "choose another out")
        if other := differences(self.config, settings, self.inputs.keys() & inputs.keys()):
            why = ""
            if any(text.startswith("images=") for text in other):
                why = (" (the falling rate and the discriminator's beginning depend on the length: "
                       "begin a run that is to be lengthened with lr_end=1 and gan_from=0)")
            raise ValueError(f"cannot resume {self.path}: it was started with "
                             f"{'; '.join(other)}{why}; give the old values, or choose another out")
        reached = int(states_of(self.path)[-1].stem)
        if self.config.images <= reached - self.config.batch:  # or so says a name
            reached = self._newest_state().get("images", reached)
        if self.config.images <= reached - self.config.batch:
            raise ValueError(f"the run in {self.path} is already at image {reached}: give images "
                             "of at least that")
        for name, digest in self.inputs.items():
            if inputs.get(name, digest) != digest:  # what was not recorded cannot be told
                self._refuse_other_input(name, inputs[name])

    def _refuse_other_input(self, name: str, before: str) -> None:
        change = "another file" if name != "data" else self._change_of_data(before)
        if change:
            raise ValueError(
                f"cannot resume {self.path}: {name}={getattr(self.config, name)} is not what it "
                f"was when the run began ({change}); bring that back, say where it is now "
                f"(`gapkd resume {as_word(self.path)} --{name} PATH`), or choose another out")

    def _change_of_data(self, before: str) -> str:
        """How the images differ from those of a digest; empty where they are only spelt in another
        way, or where some were taken out, as broken ones are: the run goes on, that is said, and
        the names that it began with are kept, so that they may come back."""
        try:
            names, ours = json.loads((self.path / "data.json").read_text()), self.names
            if not any(CLASS in name for name in names):  # begun when classes were not kept
                ours = [name.rpartition(CLASS)[0] or name for name in ours]
            old, now = set(names), set(ours)
            known = digest_of(names) == before
        except (OSError, ValueError, TypeError):
            known = False
        if not known:
            return "other images"
        (then, were), (here, are) = _spelt_alike(names), _spelt_alike(ours)
        short, long = sorted((then, here), key=len)  # the folders that all lie in
        if sorted(were) == sorted(are) and long[len(long) - len(short):] == short:
            if were != are:
                warnings.warn("the images that the run began with are spelt in another way: they "
                              "come in another order from now on", stacklevel=2)
            return ""
        if new := sorted(now - old):
            return f"new: {_counted(new)}; gone: {_counted(sorted(old - now))}"
        if gone := sorted(old - now):
            warnings.warn(f"{_counted(gone)} of the {len(old):,} images that the run began with "
                          "are gone: it goes on with the others, which come in another order than "
                          "with all of them", stacklevel=2)
            self.names, self.inputs["data"] = names, before
        return ""

    def remember(self, name: str, find: Callable[[], object]) -> object:
        """What `find` gave when the run began: kept in settings.json, so that a resumed run asks no
        more. {} in all processes but the first."""
        if not self.writes:
            return {}
        about = read_about(self.path)
        if name not in about:
            about[name] = find()
            write_atomically(self.path / "settings.json", json.dumps(about, indent=1).encode())
        return about[name]

    def log(self, record: dict) -> None:
        """Append one line to log.jsonl."""
        if not self.writes:
            return
        try:
            with open(self.path / "log.jsonl", "a") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:
            raise OSError(error.errno, f"could not write {self.path / 'log.jsonl'} "
                                       f"({error.strerror}): free some space or make the folder "
                                       "writable, and resume the run") from error
        if self.board:
            for name, value in record.items():
                if name != "images" and isinstance(value, (int, float)):
                    self.board.add_scalar(name, value, record["images"])

    def cut_log(self, images: int) -> list[dict]:
        """Drop records later than `images` (written after the checkpoint that is resumed), and an
        unfinished last line; returns what stays: for the first process alone to call. Raises
        ValueError for a line that is no record."""
        file = self.path / "log.jsonl"
        lines = json_lines(file) if file.exists() else []
        if lines and lines[-1][1] is None:
            lines.pop()
        for number, record in lines:
            if not (isinstance(record, dict) and type(record.get("images")) is int):
                raise ValueError(f"{file}, line {number}, is not a record of the run: mend that "
                                 "line or take it out, and resume the run")
        kept = [record for _, record in lines if record["images"] <= images]
        write_atomically(file, "".join(json.dumps(record) + "\n" for record in kept).encode())
        return kept

    def save_grid(self, images: Tensor, count: int) -> None:
        """Write grids/<count>.png from images (N, 3, R, R): for the first process alone to call."""
        save_png(images, self.path / "grids" / f"{count:09d}.png")
        if self.board:
            self.board.add_images("samples", images.clamp(-1, 1) / 2 + 0.5, count)

    def save_network(self, network: StyleGenerator | Discriminator, name: str,
                     card: dict) -> None:
        """Write <name>.safetensors."""
        if self.writes:
            save_network(network, self.path / f"{name}.safetensors", card)

    def put_best_aside(self, log: Sequence[dict]) -> None:
        """Before best.safetensors is written over: if it was measured otherwise than the log's last
        record, or the log has lost its record, nobody can say that it was worse, and it is kept."""
        file = self.path / "best.safetensors"
        if not (self.writes and file.exists()):
            return
        try:
            measured = read_metadata(file)["provenance"].get("measured", {})
        except CheckpointError:  # damaged: nothing is lost
            return
        names = {name for name in measured if name.startswith("fid_")}
        known = any(all(record.get(name) == measured[name] for name in names | {"images"})
                    for record in log if "images" in measured)
        if not known or names.isdisjoint(log[-1]):
            aside = file.with_name(f"best-{measured.get('images', 0):09d}.safetensors")
            os.replace(file, aside)
            warnings.warn(f"{file} was the best by a measurement that cannot be compared with "
                          f"those in this run's log: it is kept as {aside.name}", stacklevel=2)

    def save_state(self, state: dict, best: dict | None) -> None:
        """Write checkpoints/<images>.pt, whole or not at all; then remove all but the newest
        two and the one of the best record."""
        if not self.writes:
            return
        buffer = io.BytesIO()
        torch.save(state | {"run": self.identity()}, buffer)
        write_atomically(self.path / "checkpoints" / f"{state['images']:09d}.pt", buffer.getvalue())
        for file in states_of(self.path)[:-KEPT_CHECKPOINTS]:
            if best is None or int(file.stem) != best["images"]:
                file.unlink(missing_ok=True)

    def identity(self) -> str:
        """A digest of what decides the numbers of this run: its kind, settings and inputs, wherever
        they lie. Of the data, `_compare_settings` knows more."""
        free = free_on_resume(self.config) | KNOWN_BY_CONTENT | OF_THE_START
        deciding = [{name: value for name, value in to_dict(self.config).items()
                     if name not in free},
                    {name: digest for name, digest in self.inputs.items() if name != "data"}]
        text = json.dumps([self.kind, *deciding], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def load_state(self) -> dict:
        """The newest whole checkpoint; nothing in it is executed. A damaged one is put aside, and
        said so. Raises CheckpointError when none is whole, or when it belongs to another run."""
        return parallel.from_first(self._newest_state)

    def _newest_state(self) -> dict:
        damaged = None
        for file in reversed(states_of(self.path)):
            try:
                state = read_state(file)
            except CheckpointError as error:
                damaged = error
                file.rename(file.with_suffix(".damaged"))
                warnings.warn(f"{error}; it is put aside as {file.with_suffix('.damaged').name}, "
                              "and the one before it is used", stacklevel=2)
                continue
            if not isinstance(state, dict) or state.get("run") != self.identity():
                raise CheckpointError(f"the newest checkpoint in {self.path / 'checkpoints'} "
                                      "belongs to another run, or settings.json was edited: bring "
                                      "this run's own checkpoints, or the old values in "
                                      "settings.json, back, or start it anew in another folder")
            return state
        raise CheckpointError(f"no checkpoint in {self.path / 'checkpoints'} is whole: start the "
                              "run anew in another folder") from damaged


def _spelt_alike(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The folders that all lie in, and the names below them: what may differ between a folder and a
    zip of it. How accents are composed, which systems do in two ways, makes no difference."""
    paths = [same_name(name).split("/") for name in names]
    shared = os.path.commonprefix([path[:-1] for path in paths])
    return shared, ["/".join(path[len(shared):]) for path in paths]


def _counted(names: Sequence[str]) -> str:
    """How many, and the first of them."""
    some = ", ".join(map(shown, names[:3]))
    more = ", ..." if len(names) > 3 else ""
    return f"{len(names):,} ({some}{more})" if names else "none"


def read_state(file: Path) -> dict:
    """What a checkpoint holds, on the CPU; nothing in it is executed. Raises CheckpointError unless
    it is whole."""
    try:
        with zipfile.ZipFile(file) as archive:  # torch.load does not compare the check sums
            if damaged := archive.testzip():
                raise ValueError(f"{damaged} is damaged")
        return torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged pickle can raise almost anything
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            raise OSError(errno.ENOMEM, f"there is too little memory to read {file}: close other "
                                        "programs") from error
        # EINVAL: offsets before its start
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):
            raise OSError(error.errno, f"cannot read {file} ({error.strerror}): the run is left as "
                                       "it is") from error
        raise CheckpointError(f"{file} is not a whole checkpoint of a run "
                              f"({type(error).__name__}): it is truncated, damaged or of another "
                              "kind") from error


def job() -> str:
    """The name that torchrun gives to a job and to its restarts; empty without torchrun."""
    return os.environ.get("TORCHELASTIC_RUN_ID", "")


def begun_by_this_job(folder: str | Path) -> bool:
    """Whether this very torchrun job began the run in a folder, before a restart, and saved a
    state."""
    return bool(states_of(Path(folder))) and read_about(folder).get("job") == job()


def _summary_writer() -> type:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard=True needs the extra `tensorboard`: pip install "
                         "'gapkd[tensorboard]'") from error
    return SummaryWriter
