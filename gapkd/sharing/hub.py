"""A generator as a folder for a model hub: weights, config.json, model card, sheet of samples.

    gapkd share student.safetensors --out my-student    or gapkd.save_pretrained(G, "my-student")
    gapkd.load_generator("my-student")                  reads it back
    gapkd.push_to_hub(G, "user/my-student")             and gapkd.load_generator("user/my-student")

The card (card.md, a template) is written from what is known and from nothing else: the provenance
that the weights carry, what was counted, and what was measured. Text that comes from a file is
shown as code, never as Markdown.
"""

from __future__ import annotations

import copy
import importlib.metadata
import json
import re
import tempfile
import unicodedata
from collections.abc import Mapping
from importlib.resources import files
from pathlib import Path

from PIL import Image

from gapkd import __version__
from gapkd.data.images import png, tile
from gapkd.files.checkpoints import CONFIG, FOLDER_FORMAT, WEIGHTS, network_bytes
from gapkd.files.download import REPOSITORY, network_errors, reason
from gapkd.files.storage import data_folder, new_folder, write_folder
from gapkd.metrics.cost import macs, parameters
from gapkd.metrics.sampling import SHEET, draw_sheet
from gapkd.networks.base import StyleGenerator
from gapkd.settings import FEATURE_SPACES, LOSS_WEIGHTS, DistillConfig
from gapkd.sharing.origins import as_dict, command_of, named, numbers, public, runs_of

LICENCES = frozenset(
    "afl-3.0 agpl-3.0 apache-2.0 bsd-2-clause bsd-3-clause cc-by-4.0 cc-by-nc-4.0 cc-by-nc-nd-4.0 "
    "cc-by-nc-sa-4.0 cc-by-sa-4.0 cc0-1.0 gpl-2.0 gpl-3.0 isc lgpl-3.0 mit mpl-2.0 openrail "
    "unlicense zlib".split())
"""Hubs know these by their identifiers; any other goes into the card's data as "other", named."""


def save_pretrained(G: StyleGenerator, folder: str | Path, provenance: Mapping | None = None, *,
                    license: str = "", evaluation: Mapping | None = None,
                    teacher: StyleGenerator | None = None, config: Mapping | None = None,
                    repo_id: str | None = None) -> Path:
    """Write a generator as a new folder: model.safetensors, config.json, README.md, samples.png.

    Args:
        folder: new or empty; is there whole afterwards, or not at all. Nothing is overwritten.
        provenance: where the weights come from; `gapkd.sharing.origins.provenance_of` reads it from
            a network's file. What belongs to one machine (folders, device) is left out.
        license: "mit", "cc-by-nc-4.0"...; empty: that of the provenance, and if it has none, the
            card says so.
        evaluation: the record that `gapkd evaluate --out` writes, about this generator.
        teacher: whose cost the card compares with.
        config: what config.json is to say; it says G.architecture() anyway, and no other will do.
        repo_id: "user/name", if that is where the folder will lie; the card then says so.
    Returns: the folder.
    Raises: ValueError for what cannot be written so, OSError when the disk fails.
    """
    folder = ready(folder, license, repo_id)
    if not isinstance(G, StyleGenerator):
        raise ValueError(f"a generator is what can be shared, not a {type(G).__name__}")
    if not all(bool(t.isfinite().all()) for t in G.state_dict().values() if t.is_floating_point()):
        raise ValueError("the generator has weights that are not finite: its training diverged, "
                         "share an earlier one")
    known = {"library_name": "gapkd", "gapkd_format": FOLDER_FORMAT, "gapkd_version": __version__,
             "kind": G.kind, **G.architecture()}
    if config is not None and not (isinstance(config, Mapping) and config.items() <= known.items()):
        raise ValueError("config is not what this network is: leave it out, or give "
                         "G.architecture()")
    provenance = public(provenance or {})
    if license:
        provenance["license"] = license
    if evaluation is not None:
        if not _rows(evaluation):
            raise ValueError("evaluation must be a record as `gapkd evaluate --out` writes it, "
                             "with the table's rows")
        files_ = ("generator", "teacher", "data", "features")
        names = {key: named(str(evaluation[key])) for key in files_ if evaluation.get(key)}
        provenance["evaluation"] = {**evaluation, **names}
    G = _still(G)
    weights = network_bytes(G, provenance)
    cost = _cost(G) | {"size of model.safetensors (float32)": f"{len(weights) / 1e6:.2f} MB"}
    sheet, description = _samples(G)
    card = _card(G, provenance, folder.absolute().name, sheet=description, cost=cost,
                 repo=repo_id if "/" in (repo_id or "") else "",
                 teacher_cost=_cost(_still(teacher)) if teacher else None)
    return write_folder(folder, {
        WEIGHTS: weights, CONFIG: f"{json.dumps(known, indent=2)}\n".encode(),
        "README.md": card.encode(), "samples.png": png(sheet)})


def push_to_hub(shared: StyleGenerator | str | Path, repo_id: str, *, private: bool | None = None,
                token: str | bool | None = None, branch: str | None = None,
                revision: str | None = None, commit_message: str = "Upload by gapkd",
                create_pr: bool | None = None, allow_patterns: list[str] | str | None = None,
                ignore_patterns: list[str] | str | None = None,
                delete_patterns: list[str] | str | None = None, **card: object) -> str:
    """Upload a generator, or a folder of `save_pretrained` as it is, to a hub's repository, which
    is made if it is not there.

    Args:
        repo_id: "user/name"; "name": of the user who is logged in.
        private, token, commit_message...: as huggingface_hub's mixin has them; revision: branch.
        card: of a generator, what `save_pretrained` takes beside the folder.
    Returns: the commit's address.
    Raises: ValueError, in one sentence.
    """
    from huggingface_hub import HfApi

    check_repository(repo_id)
    is_network = isinstance(shared, StyleGenerator)
    if card and not is_network:
        raise TypeError(f"{', '.join(card)}: goes with a generator; the card of a folder is "
                        "written already")
    if not is_network and not (isinstance(shared, (str, Path)) and Path(shared, WEIGHTS).is_file()):
        raise ValueError(f"{str(shared)[:80]!r} is no folder with {WEIGHTS} in it: give one that "
                         "gapkd.save_pretrained wrote, or a generator")
    branch = branch or revision
    with tempfile.TemporaryDirectory() as aside:
        folder = shared
        if is_network:
            folder = save_pretrained(shared, Path(aside, repo_id), repo_id=repo_id, **card)
        try:
            api = HfApi(token=token)
            full = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
            if is_network and full != repo_id:  # the hub has told whose it is
                folder = save_pretrained(shared, Path(aside, full), repo_id=full, **card)
            return api.upload_folder(
                repo_id=full, folder_path=folder, commit_message=commit_message, revision=branch,
                create_pr=create_pr, allow_patterns=allow_patterns,
                ignore_patterns=ignore_patterns, delete_patterns=delete_patterns)
        except (*network_errors(), ValueError) as error:
            raise ValueError(f"nothing was uploaded to {repo_id} ({reason(error)}): check the name"
                             f"{', the branch' if branch else ''} and the connection, and "
                             "log in with `hf auth login`") from error


def check_repository(repo_id: str) -> None:
    """Raise ValueError unless it is "user/name" or "name"."""
    if not REPOSITORY.fullmatch(repo_id if "/" in repo_id else f"user/{repo_id}"):
        raise ValueError(f"{repo_id[:80]!r} names no repository: give user/name, in letters, "
                         "digits, -, _ and .")


def repository_name(folder: Path) -> str:
    """The folder's name as far as hubs allow it for a repository; never empty."""
    plain = unicodedata.normalize("NFKD", folder.absolute().name).encode("ascii", "ignore").decode()
    name = re.sub(r"([.-])[.-]+", r"\1", re.sub(r"[^\w.-]+", "-", plain))[:90]
    return name.strip("._-").removesuffix(".git") or "gapkd"


def ready(folder: str | Path, license: str, repo_id: str | None = None) -> Path:
    """The folder. Raises ValueError where `save_pretrained` would refuse one of these."""
    if license:
        licence_fields(license)
    if repo_id:
        check_repository(repo_id)
    return new_folder(folder)


def licence_fields(licence: str) -> dict[str, str]:
    """A licence as a card's data. Raises ValueError for what names none."""
    plain = "-".join(licence.lower().split())
    if not licence.isprintable() or not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{1,63}", plain):
        raise ValueError(f"{licence[:80]!r} names no licence: give an identifier such as mit, "
                         "apache-2.0 or cc-by-nc-4.0")
    return {"license": plain} if plain in LICENCES else {"license": "other", "license_name": plain}


def _still(G: StyleGenerator) -> StyleGenerator:
    """A copy on the CPU: counting and drawing in training mode would change a StyleGAN3."""
    return copy.deepcopy(G).cpu().eval().requires_grad_(False)


def _cost(G: StyleGenerator) -> dict[str, str]:
    return {"parameters": f"{parameters(G):,}",
            "multiply-accumulates an image, as executed": f"{macs(G):,}"}


def _samples(G: StyleGenerator) -> tuple[Image.Image, dict]:
    """The sheet of samples, small images enlarged, and what the card says of it."""
    count, larger = 32 if G.resolution <= 256 else 8, max(1, 96 // G.resolution)
    sheet = tile(draw_sheet(G, count, SHEET), columns=min(8, count // 2))
    sheet = sheet.resize((sheet.width * larger, sheet.height * larger), Image.Resampling.NEAREST)
    return sheet, {"count": count, "enlarged": larger, "seed": SHEET}


# ------------------------------------------------------------------------------- the card


def _card(G: StyleGenerator, provenance: dict, name: str, **more: object) -> str:
    """README.md of a folder of that name; more: sheet, cost, teacher_cost and repo, for the
    template."""
    from huggingface_hub import ModelCard, ModelCardData

    runs, source = runs_of(provenance)
    made = runs[-1] if runs else {"settings": {}}
    settings = made["settings"]
    licence = provenance.get("license") or made.get("license")
    licence = licence if isinstance(licence, str) else ""
    teacher = str(settings.get("teacher", "")) if made.get("command") == "distill" else ""
    embedded = bool(re.fullmatch(r"\w{1,64}", teacher)) and (
        data_folder() / f"{teacher}.safetensors").is_file()
    seen = {str(run["settings"].get("data")) for run in runs}
    rendered = seen == {"toyfaces"} and (embedded or not teacher)
    trained_on = code(settings["data"]) if settings.get("data") else ""
    measured = _measured(provenance, made)
    results = _results(measured, "conditional" if G.c_dim else "unconditional")
    at_hub = re.fullmatch(r"hf://([^/]+/[^/@]+).*", teacher)
    try:
        fields = licence_fields(licence) if licence else {}
    except ValueError as error:
        raise ValueError(f"of the provenance in the network's file {error}; --license overrides it"
                         ) from error
    data = ModelCardData(
        **fields, library_name="gapkd",
        base_model=at_hub[1] if at_hub else None,  # hubs know no file, and no embedded network
        datasets=sorted(_slug(name) for name in seen - {"None"}) or None,
        metrics=sorted({result.metric_type for result in results}) or None,
        pipeline_tag=None if G.c_dim else "unconditional-image-generation",
        tags=["gapkd", G.kind.removesuffix("-generator"), "gan", "image-generation",
              *["class-conditional"] * bool(G.c_dim), *["knowledge-distillation"] * bool(teacher)],
        eval_results=results or None, model_name=name if results else None)
    card = ModelCard.from_template(
        data, template_str=(files("gapkd.sharing") / "card.md").read_text("utf-8"), code=code,
        repr=repr, title=re.sub(r"([<*`[])", r"\\\1", name), folder=name, kind=G.kind,
        a=G.architecture(), family=type(G).__name__, module=type(G).__module__,
        version=__version__, home=_home(), licence=licence, stages=_stages(runs),
        source=source if "file" in source else {}, teacher=code(teacher) if teacher else "",
        embedded=embedded, rendered=rendered, **measured, **more,
        taught=any(settings.get(name, getattr(DistillConfig, name)) for name in LOSS_WEIGHTS[1:]),
        data="rendered toy faces" if rendered else trained_on,
        compared=any(score.startswith(("l1", "agree_")) for score in measured["scores"]),
        judged_by_its_loss=settings.get("perceptual_weight")
        and measured["judge"] == settings.get("perceptual"))
    return f"{str(card).rstrip()}\n"


def _stages(runs: list[dict]) -> list[str]:
    """A line a run: the command that repeats it, and what else is known about it."""
    lines = []
    for n, run in enumerate(runs, 1):
        if command := command_of(run, n):
            known, words = numbers(run), [code(command)]
            if "images" in known:
                words.append(f"{known['images']:,.0f} images")
            if "seconds" in known:
                words.append(f"{known['seconds'] / 3600:.2f} hours")
            lines.append(", ".join(words) + _facts(run, "hardware", "torch", "commit", "date"))
    return lines


def _facts(record: Mapping, *names: str) -> str:
    return "".join(f", {name} {code(record[name])}" for name in names if name in record)


def _rows(record: Mapping) -> list[dict]:
    """The rows of a record of `gapkd evaluate`; [] where it is none."""
    rows = record.get("rows")
    fit = isinstance(rows, list) and all(isinstance(row, dict) and "name" in row for row in rows)
    return rows if fit else []


def _measured(provenance: dict, made: dict) -> dict:
    """What the card says of an evaluation: `scores`, number's name -> one cell a column, `columns`,
    `how`, `dataset`, and which network was the `judge`; empty: not known."""
    record = as_dict(provenance.get("evaluation")) or as_dict(made.get("evaluation"))
    rows, metrics = _rows(record), as_dict(made.get("metrics"))
    dataset, judge = str(record.get("data", "")), str(record.get("features", ""))
    if rows:
        samples, seed = (code(record.get(key, "unknown")) for key in ("samples", "seed"))
        how = (f"{samples} images a set, from latents of seed {seed}, without truncation and with "
               f"the noise maps as stored, against as many of {code(dataset)}, by `gapkd evaluate`"
               f"{_facts(record, 'commit', 'hardware', 'date')}.")
    elif "real" in metrics:  # as tools/data_card.py writes them
        rows = [{"name": name, **as_dict(row)} for name, row in metrics.items()]
        dataset = judge = "toyfaces"
        how = "By the maintainers of gapkd, against rendered toy faces."
    else:
        return {"scores": {}, "columns": [], "how": "", "dataset": "", "judge": ""}
    names = {"real": "real images, against other real ones"}
    if record.get("teacher"):
        names["teacher"] = f"the teacher, {code(record['teacher'])}"
    columns = [names.get(str(row["name"]), code(row["name"])) for row in rows[:-1]]
    return {"scores": _scores([numbers(row) for row in rows]), "how": how, "dataset": dataset,
            "columns": [*columns, "this network"],
            "judge": "toyfaces" if judge in FEATURE_SPACES else judge}


def _scores(rows: list[dict[str, float]]) -> dict[str, list[str]]:
    """Name of a number of this network, the last row -> what every row says of it. Chance levels
    stand in brackets; agreement on single factors is left out."""
    scores, own = {}, rows[-1]
    for name in own:
        single = name.startswith("agree_") and not name.startswith("agree_mean_")
        if name.endswith("_chance") or single:
            continue
        scores[name] = [_short(row[name]) if name in row else "-" for row in rows]
        if f"{name}_chance" in own:
            scores[name][-1] += f" ({_short(own[f'{name}_chance'])})"
    return scores


def _results(measured: dict, task: str) -> list:
    """The scores as hubs read them; none where nobody knows on which data."""
    from huggingface_hub import EvalResult

    results, dataset = [], measured["dataset"]
    for name, cells in measured["scores"].items() if dataset else ():
        kind = re.sub(r"_[\d.]+k?$", "", name)  # fid_toyfaces_5k is a fid_toyfaces, no fid
        if kind == "perceptual" or kind.startswith("agree_"):
            kind = f"{kind}_{_slug(measured['judge'])}"
        results.append(EvalResult(
            task_type=f"{task}-image-generation", dataset_name=dataset,
            dataset_type=_slug(dataset), metric_name=name, metric_type=kind,
            metric_value=float(cells[-1].split()[0])))
    return results


def _slug(name: str) -> str:
    """A name as hubs' identifiers are written."""
    return re.sub(r"[^a-z0-9]+", "-", named(name).lower()).strip("-") or "unknown"


def _short(value: float) -> str:
    """Four significant digits; what rounding has left of a 0 is 0."""
    return f"{value:.4g}" if abs(value) > 1e-9 else "0"


def code(value: object) -> str:
    """Text of a file or reader as Markdown code, which ends neither the code nor a table's cell,
    and commands no terminal."""
    text = " ".join(str(value).split())[:1500].replace("`", "'").replace("|", "/")
    text = "".join(c if c.isprintable() else "?" for c in text)
    return f"`{text or ' '}`"


def _home() -> str:
    """Where gapkd is to be had, by its own metadata; empty as long as those name no owner."""
    try:
        addresses = importlib.metadata.metadata("gapkd").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    home = dict(line.split(", ", 1) for line in addresses).get("Repository", "")
    return "" if "/OWNER/" in home else home
