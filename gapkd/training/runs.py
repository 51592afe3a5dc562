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
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from torch import Tensor

from gapkd import parallel
from gapkd.data.images import save_png
from gapkd.files.checkpoints import CheckpointError, find_checkpoint, save_network
from gapkd.files.provenance import provenance
from gapkd.files.storage import check_place, write_atomically
from gapkd.networks.base import StyleGenerator
from gapkd.networks.stylegan2 import Discriminator
from gapkd.settings import RunConfig, to_dict

KEPT_CHECKPOINTS = 2
"""The newest checkpoints that stay on the disk."""


FREE = {"out", "resume", "progress", "log_every", "grid_every", "checkpoint_every", "probe_every",
        "fid_every", "fid_samples", "fid_features", "tensorboard", "device", "precision",
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
    if config.lr_end == config.r1_end == 1.0 and not getattr(config, "gan_from", 0.0):
        return FREE | {"images"}
    return FREE


def digest_of(names: Sequence[str]) -> str:
    """The checksum of a list of images."""
    return hashlib.sha256("\0".join(names).encode(errors="surrogateescape")).hexdigest()


def remembered(folder: str | Path, name: str) -> dict:
    """What a run has put down in its settings.json under a name; {} if nothing."""
    try:
        found = json.loads((Path(folder) / "settings.json").read_text()).get(name)
    except (OSError, ValueError, AttributeError):
        return {}
    return found if isinstance(found, dict) else {}


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
    Raises ValueError naming those that are not there any more.
    """
    used = {"data": settings["data"] != "toyfaces", "teacher": "teacher" in settings,
            "perceptual": settings.get("perceptual_weight")
            and settings["perceptual"] not in ("toyfaces", "lpips"),
            "fid_features": settings["fid_every"]
            and settings["fid_features"] not in ("toyfaces", "inception")}
    wanted = [name for name, needed in used.items() if needed and name not in given]
    places = {name: _place(settings[name], started_in, name) for name in wanted}
    if missing := [name for name, place in places.items() if place is None]:
        named = ", ".join(f"{name}={settings[name]}" for name in missing)
        options = " ".join(f"--{name.replace('_', '-')} PATH" for name in missing)
        raise ValueError(f"what the run in {settings['out']} needs is not there any more: {named}; "
                         f"say where it is now, `gapkd resume {settings['out']} {options}`")
    return places


def _place(value: str, started_in: str, name: str) -> str | None:
    for path in (Path(started_in, value), Path(value)):
        if path.exists():
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
        self.board = self.lock = None

    def __enter__(self) -> RunFolder:
        try:
            self.path = Path(parallel.from_first(lambda: str(self._prepare())))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exception: object) -> None:
        if self.lock:
            self.lock.release()
            self.lock = None
        if self.board:
            self.board.close()

    def check(self) -> None:
        """What can be said of the folder before the networks are made. Raises ValueError."""
        config = self.config
        if config.tensorboard:
            _summary_writer()
        self.path = Path(config.out) if config.out else next_run_folder(self.kind)
        if (self.path / ".lock").exists():
            self._keep_others_out()
            self.__exit__()
        self._refuse_to_overwrite()
        if config.resume and not self.checkpoints():
            raise ValueError(f"{self.path} holds no checkpoint to resume from: check out, or start "
                             "without resume")
        check_place(self.path / "settings.json", "out")

    def _prepare(self) -> Path:
        config = self.config
        self.check()
        writer = _summary_writer() if config.tensorboard else None
        if config.resume:
            self._compare_settings()
        self.path.mkdir(parents=True, exist_ok=True)
        self._keep_others_out()
        # A run that died before its first checkpoint leaves a log: start it anew
        if not config.resume:
            (self.path / "log.jsonl").unlink(missing_ok=True)
        write_atomically(self.path / "settings.json", json.dumps(
            self.before | {"kind": self.kind, "settings": to_dict(config), "inputs": self.inputs,
                           "provenance": provenance(), "job": job(),
                           "started_in": str(Path.cwd())}, indent=1).encode())
        if self.names:
            write_atomically(self.path / "data.json", json.dumps(self.names, indent=0).encode())
        if writer:
            self.board = writer(str(self.path / "tensorboard"))
        return self.path

    def _refuse_to_overwrite(self) -> None:
        """Only the rest of a run that died before its first checkpoint may be written over."""
        if self.config.resume:
            return
        if self.checkpoints():
            raise ValueError(f"{self.path} already holds a run: go on with it (`gapkd resume "
                             f"{self.path}`, or resume=True), or choose another out")
        if any(self.path.glob("*.safetensors")):
            raise ValueError(f"{self.path} already holds networks: choose another out")
        if (self.path / "settings.json").exists() or (self.path / "log.jsonl").exists():
            try:
                json.loads((self.path / "settings.json").read_text())["kind"]
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{self.path} holds files that no run of gapkd wrote: choose "
                                 "another out") from error

    def _keep_others_out(self) -> None:
        """Two trainings in one folder would spoil each other's files."""
        lock = FileLock(self.path / ".lock")
        try:
            lock.acquire(blocking=False)
        except Timeout as error:
            raise ValueError(f"another process is training into {self.path}: wait for it, stop it, "
                             "or choose another out") from error
        except (OSError, NotImplementedError):  # a file system without locks
            return
        self.lock = lock

    def checkpoints(self) -> list[Path]:
        """The files that hold a state of the run, oldest first."""
        return sorted((self.path / "checkpoints").glob("[0-9]*.pt"))

    def _compare_settings(self) -> None:
        try:
            self.before = json.loads((self.path / "settings.json").read_text())
            kind, settings = self.before["kind"], self.before["settings"]
            inputs = self.before["inputs"]
        except (OSError, ValueError, KeyError) as error:
            raise ValueError(f"{self.path / 'settings.json'} cannot be read ({error}): this run "
                             "cannot be resumed") from error
        if kind != self.kind:
            raise ValueError(f"{self.path} holds a {kind} run, not a {self.kind} run: choose "
                             "another out")
        free, differences = free_on_resume(self.config) | OF_THE_START, []
        free |= KNOWN_BY_CONTENT & self.inputs.keys() & inputs.keys()
        for name, value in to_dict(self.config).items():
            if name not in settings:
                raise ValueError(f"cannot resume {self.path}: an older gapkd, without the setting "
                                 f"{name}, started it; start the run anew in another folder")
            if name not in free and settings[name] != value:
                differences.append(f"{name}={settings[name]!r}, not {value!r}")
        if differences:
            why = ""
            if any(text.startswith("images=") for text in differences):
                why = (" (the falling rate and the discriminator's beginning depend on the length: "
                       "a longer run is another one)")
            raise ValueError(f"cannot resume {self.path}: it was started with "
                             f"{'; '.join(differences)}{why}; give the old values, or choose "
                             "another out")
        reached = int(self.checkpoints()[-1].stem)
        if self.config.images <= reached - self.config.batch:
            raise ValueError(f"the run in {self.path} is already at image {reached}: give images "
                             "of at least that")
        for name, digest in self.inputs.items():
            if inputs.get(name) == digest:
                continue
            change = "another file" if name != "data" else self._change_of_data(inputs["data"])
            if change:
                raise ValueError(
                    f"cannot resume {self.path}: {name}={getattr(self.config, name)} is not what "
                    f"it was when the run began ({change}); bring that back, say where it is now "
                    f"(`gapkd resume {self.path} --{name} PATH`), or choose another out")

    def _change_of_data(self, before: str) -> str:
        """How the images differ from those of a digest; empty where some were only taken out, as
        broken ones are: the run goes on, and that is said."""
        try:
            names = json.loads((self.path / "data.json").read_text())
            old, now = set(names), set(self.names)
            known = digest_of(names) == before
        except (OSError, ValueError, TypeError):
            known = False
        if not known:
            return "other images"
        if new := sorted(now - old):
            return f"new: {_counted(new)}; gone: {_counted(sorted(old - now))}"
        warnings.warn(f"{_counted(sorted(old - now))} of the {len(old):,} images that the run "
                      "began with are gone: it goes on with the others, which come in another "
                      "order from now on", stacklevel=2)
        return ""

    def remember(self, name: str, find: Callable[[], dict]) -> dict:
        """What `find` gave when the run began: kept in settings.json, so that a resumed run asks no
        more."""
        if not self.writes:
            return {}
        file = self.path / "settings.json"
        content = json.loads(file.read_text())
        if name not in content:
            content[name] = find()
            write_atomically(file, json.dumps(content, indent=1).encode())
        return content[name]

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

    def read_log(self) -> list[dict]:
        """All records of the log; an unfinished last line is left out."""
        records = []
        file = self.path / "log.jsonl"
        for line in file.read_text().splitlines() if file.exists() else []:
            try:
                records.append(json.loads(line))
            except ValueError:
                break
        return records

    def cut_log(self, images: int) -> list[dict]:
        """Drop records later than `images` (written after the checkpoint that is resumed); returns
        what stays."""
        kept = [r for r in self.read_log() if r["images"] <= images]
        if self.writes:
            text = "".join(json.dumps(record) + "\n" for record in kept)
            write_atomically(self.path / "log.jsonl", text.encode())
        return kept

    def save_grid(self, images: Tensor, count: int) -> None:
        """Write grids/<count>.png from images (N, 3, R, R)."""
        if self.writes:
            save_png(images, self.path / "grids" / f"{count:09d}.png")
        if self.board:
            self.board.add_images("samples", images.clamp(-1, 1) / 2 + 0.5, count)

    def save_network(self, network: StyleGenerator | Discriminator, name: str,
                     card: dict) -> None:
        """Write <name>.safetensors."""
        if self.writes:
            save_network(network, self.path / f"{name}.safetensors", card)

    def save_state(self, state: dict, best: int | None = None) -> None:
        """Write checkpoints/<images>.pt, whole or not at all; then remove all but the newest
        two and the one of `best` images."""
        if not self.writes:
            return
        buffer = io.BytesIO()
        torch.save(state | {"run": self.identity()}, buffer)
        write_atomically(self.path / "checkpoints" / f"{state['images']:09d}.pt", buffer.getvalue())
        for file in self.checkpoints()[:-KEPT_CHECKPOINTS]:
            if best is None or file.stem != f"{best:09d}":
                file.unlink(missing_ok=True)

    def identity(self) -> str:
        """A digest of what decides the numbers of this run: its kind, settings and inputs, wherever
        they lie. Of the data, `_compare_settings` knows more."""
        free = free_on_resume(self.config) | KNOWN_BY_CONTENT | OF_THE_START
        inputs = {name: digest for name, digest in self.inputs.items() if name != "data"}
        return _digest(self.kind, to_dict(self.config), free, inputs)

    def former_identity(self) -> str:
        """The digest that checkpoints bore when paths were a part of it."""
        free = free_on_resume(self.config) - {"precision", "cuda_graphs"}
        return _digest(self.kind, self.before["settings"], free, self.before["inputs"])

    def load_state(self) -> dict:
        """The newest whole checkpoint; nothing in it is executed. A damaged one is put aside, and
        said so.

        Raises CheckpointError when none is whole, or when it belongs to another run.
        """
        return parallel.from_first(self._own_state)

    def _own_state(self) -> dict:
        state = self._newest_state()
        own = self.identity(), self.former_identity()
        if not isinstance(state, dict) or state.get("run") not in own:
            raise CheckpointError(f"the newest checkpoint in {self.path / 'checkpoints'} belongs "
                                  "to another run or an older gapkd: bring this run's own ones "
                                  "back, or start it anew in another folder")
        return state

    def _newest_state(self) -> dict:
        damaged = None
        for file in reversed(self.checkpoints()):
            try:
                state = read_state(file)
            except CheckpointError as error:
                damaged = error
                file.rename(file.with_suffix(".damaged"))
                warnings.warn(f"{error}; it is put aside as {file.with_suffix('.damaged').name}, "
                              "and the one before it is used", stacklevel=2)
            else:
                return state
        raise CheckpointError(f"no checkpoint in {self.path / 'checkpoints'} is whole: start the "
                              "run anew in another folder") from damaged


def _digest(kind: str, settings: dict, free: set[str], inputs: dict[str, str]) -> str:
    deciding = {name: value for name, value in settings.items() if name not in free}
    return hashlib.sha256(json.dumps([kind, deciding, inputs], sort_keys=True).encode()).hexdigest()


def _counted(names: Sequence[str]) -> str:
    """How many, and the first of them."""
    some = ", ".join(name if name.isprintable() else ascii(name) for name in names[:3])
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


def belongs_to_this_job(folder: str | Path) -> bool:
    """Whether the run in a folder was begun by this very torchrun job, before a restart."""
    try:
        return json.loads((Path(folder) / "settings.json").read_text())["job"] == job()
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _summary_writer() -> type:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ValueError("tensorboard=True needs the extra `tensorboard`: pip install "
                         "'gapkd[tensorboard]'") from error
    return SummaryWriter
