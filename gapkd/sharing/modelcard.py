"""The model card of a shared generator: README.md, with the front matter that model hubs read.

It says what the weights' provenance says, what was counted and what was measured; what nobody knows, it says nobody
knows. Text that comes from a file is shown as code, never as Markdown.
"""

from __future__ import annotations

import importlib.metadata
import json
import re
from dataclasses import dataclass

import yaml

from gapkd.files.history import stage_lines
from gapkd.settings import DistillConfig, command_line
from gapkd.sharing.origins import Figures, Origin, code, numbers

LICENCES = frozenset("""
    afl-3.0 agpl-3.0 apache-2.0 artistic-2.0 bigcode-openrail-m bigscience-openrail-m bsd bsd-2-clause bsd-3-clause
    bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0
    cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0
    cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m ecl-2.0 epl-1.0
    epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 gfdl gpl gpl-2.0 gpl-3.0 isc lgpl lgpl-2.1 lgpl-3.0 mit mpl-2.0 ms-pl ncsa
    odbl odc-by ofl-1.1 openrail openrail++ osl-3.0 pddl postgresql unlicense wtfpl zlib""".split())
"""What hubs know by its identifier; anything else goes into the front matter as "other", with its name beside it."""

LESSONS = ("rgb_weight", "perceptual_weight", "feature_weight", "ld_weight")
SETTINGS = {
    "teacher": "the teacher", "data": "real images (`toyfaces`: rendered by gapkd)",
    "recipe": "method, from which settings come that were not given",
    "keep": "fraction of the teacher's channels that stay",
    "mapping": "what became of the teacher's mapping network",
    "synthesis": "what the synthesis network started from",
    "images": "length, in images", "batch": "images a step", "lr": "learning rate", "seed": "seed",
    "gan_weight": "weight of the adversarial loss", "rgb_weight": "weight of the image difference",
    "perceptual_weight": "weight of the perceptual distance", "perceptual": "network of the perceptual distance",
    "feature_weight": "weight of the feature regression", "ld_weight": "weight of the latent-direction loss",
    "ld_balance": "its strength against the image difference's, in place of that weight",
    "ld_queue": "batches whose images it compares with as well", "ld_eigenvalues": "its steps follow the eigenvalues"}
"""Settings of a distillation that the card shows, and what it calls them."""
RARE = ("ld_balance", "ld_queue", "ld_eigenvalues")
"""Of these, the ones that are shown only where they are in use."""
SCORE = re.compile(r"(fid_to_teacher|fid|kid|precision|recall|density|coverage|ppl)_.+")


@dataclass(frozen=True)
class Cost:
    """Of one network. paper_macs: by the convention of the published tables, None where there is none. size: of its
    file in bytes, None where there is no file."""

    parameters: int
    macs: int
    paper_macs: int | None
    size: int | None


@dataclass(frozen=True)
class Sheet:
    """How samples.png was drawn, by `gapkd.metrics.evaluation.draw_sheet`."""

    count: int
    seed: int
    truncation: float
    enlarged: int


def licence_fields(licence: str) -> dict[str, str]:
    """A licence as front matter. Raises ValueError for what names none."""
    plain = "-".join(licence.lower().split())
    if not licence.isprintable() or not re.fullmatch(r"[a-z0-9][a-z0-9.+-]{1,63}", plain):
        raise ValueError(f"{licence[:80]!r} names no licence: give an identifier such as mit, apache-2.0 or "
                         "cc-by-nc-4.0")
    return {"license": plain} if plain in LICENCES else {"license": "other", "license_name": plain}


@dataclass(frozen=True)
class Card:
    """What is to be said.

    Args:
        name: the title. folder: what the folder is called.
        kind, architecture: as in the file of the weights.
        origin: of the weights; their provenance must be fit to be shown (`gapkd.sharing.origins.public`).
    """

    name: str
    folder: str
    kind: str
    architecture: dict
    origin: Origin
    sheet: Sheet
    cost: Cost
    teacher_cost: Cost | None = None

    def text(self) -> str:
        """The whole page."""
        front = yaml.safe_dump(self.front_matter(), sort_keys=False, allow_unicode=True)
        title = re.sub(r"([<*`[])", r"\\\1", self.name)
        parts = [f"---\n{front}---", f"# {title}", self._what(), self._picture(),
                 "## Load it and draw", *self._use(), "## Where it comes from", *self._origin(),
                 "## How good it is", *self._figures(), "## What it costs", self._costs(),
                 "## Intended use and limits", self._limits(), "## Licence", self._licence()]
        return "\n\n".join(parts) + "\n"

    def front_matter(self) -> dict:
        """What stands between the lines of dashes, in the terms of the hubs."""
        o = self.origin
        style = self.kind.removesuffix("-generator")
        conditional = bool(self.architecture["c_dim"])
        task = "conditional-image-generation" if conditional else "unconditional-image-generation"
        front: dict = licence_fields(o.licence) if o.licence else {}
        front |= {"library_name": "gapkd"} | ({} if conditional else {"pipeline_tag": task})
        front["tags"] = ["gapkd", style, "gan", "image-generation", *["class-conditional"] * conditional,
                         *["knowledge-distillation"] * bool(o.teacher)]
        if o.measured and o.measured.own and (data := o.measured.dataset):
            scores = [{"type": match[1] if (match := SCORE.fullmatch(name)) else name, "name": name,
                       "value": float(_short(value))} for name, value in _shown(o.measured.own).items()]
            front["model-index"] = [{"name": self.name, "results": [{
                "task": {"type": task}, "dataset": {"type": re.sub(r"[^a-z0-9]+", "-", data.lower()), "name": data},
                "metrics": scores}]}]
        return front

    def _what(self) -> str:
        a, o = self.architecture, self.origin
        style = "StyleGAN2" if self.kind == "stylegan2-generator" else (
            f"StyleGAN3 (configuration {'R' if a['radial'] else 'T'})")
        classes = f" and one of {a['c_dim']} classes" if a["c_dim"] else ""
        text = (f"A {style} generator: it draws images of {a['resolution']} x {a['resolution']} pixels from "
                f"{a['z_dim']} random numbers (z){classes}.")
        if o.teacher and any(o.settings.get(name, getattr(DistillConfig, name)) for name in LESSONS):
            return (f"{text} It is a student: distilled from the generator {self._teacher()}, so that from the same "
                    "z it draws, as nearly as it can, what its teacher draws.")
        if o.teacher:
            return (f"{text} It has the size of a student of {self._teacher()}, but was trained with the adversarial "
                    "loss alone.")
        if o.made.get("command") == "teacher" and (data := o.settings.get("data")):
            return f"{text} It was trained from scratch on {'rendered toy faces' if o.rendered else code(data)}."
        return text

    def _teacher(self) -> str:
        own = " (one of the networks that come with gapkd)" if self.origin.teacher_is_embedded else ""
        return code(self.origin.teacher) + own

    def _picture(self) -> str:
        s = self.sheet
        how = "no truncation" if s.truncation == 1 else f"truncation {s.truncation:g}"
        classes = ", the classes in turn" if self.architecture["c_dim"] else ""
        larger = f", every pixel drawn {s.enlarged} x {s.enlarged}" if s.enlarged > 1 else ""
        return (f"![{s.count} images of the first latents of seed {s.seed}, {how}](samples.png)\n\n"
                f"The first {s.count} latents of seed {s.seed}{classes}, {how}{larger}; none was picked or left out.")

    def _use(self) -> list[str]:
        a, folder = self.architecture, json.dumps(self.folder, ensure_ascii=False)
        home = f" (<{_home()}>)" if _home() else ""
        labels = "\nc = torch.eye(G.c_dim)[torch.arange(8) % G.c_dim]     # the classes, one-hot" if a["c_dim"] else ""
        call = "z, c, truncation=0.7" if a["c_dim"] else "z, truncation=0.7"
        size = a["resolution"]
        lines = ("import gapkd\nimport torch\nfrom gapkd.data.images import save_png\n\n"
                 f"G = gapkd.load_generator({folder})\n"
                 f"z = torch.randn(8, G.z_dim, generator=torch.Generator().manual_seed(1)){labels}\n"
                 f"images = G({call})     # (8, 3, {size}, {size}), about [-1, 1]\n"
                 'save_png(images, "eight.png")')
        more = "\n".join([
            f"- {code(f'gapkd sample --generator {self.folder} --out sheet.png')} draws a sheet.",
            f"- {code(f'gapkd distill --teacher {self.folder} --data ...')} makes it the teacher of a smaller one."
            if not a["c_dim"] else "- It is to draw from: `gapkd distill` takes no conditional teacher.",
            "- `gapkd.files.checkpoints.read_metadata(folder)` gives all that the weights carry: architecture, "
            "settings, origin."])
        return [f"It takes the Python package `gapkd`{home}, version {_version()} or later. Fetch this folder with "
                f"your hub's client as {code(self.folder)}, and run where that lies:", f"```python\n{lines}\n```",
                "Truncation 1 leaves the images as varied as they are, 0 gives the average image. Nothing in the "
                "folder is executed when it is loaded.", more]

    def _origin(self) -> list[str]:
        o, parts = self.origin, []
        if "file" in o.source:
            source = f" ({code(o.source['source'])})" if "source" in o.source else ""
            parts.append(f"The weights are those of the file {code(o.source['file'])}{source}, taken over into "
                         f"gapkd's format. SHA-256 of that file: {code(o.source.get('sha256', 'not recorded'))}.")
        if o.teacher:
            table = ["| setting | | value |", "|---|---|---|"]
            table += [f"| {code(name)} | {says} | {code(o.settings[name])} |" for name, says in SETTINGS.items()
                      if name in o.settings and (o.settings[name] or name not in RARE)]
            again = f"The same again: {_command(o.settings)}. " if _command(o.settings) else ""
            parts += [f"Distilled with `gapkd distill`{self._run()}", "\n".join(table),
                      f"{again}What a setting means, `gapkd distill --help` tells; the others are in the metadata of "
                      "model.safetensors."]
        elif o.made.get("command") == "teacher":
            stages = _stages(o.made)
            parts.append("Trained from scratch with `gapkd teacher`" + (":" if stages else self._run()))
            parts += ["\n".join(stages)] if stages else []
        elif not o.source or "settings" in o.source:
            parts.append("The weights carry no record of how they were made: what they were trained on, by whom and "
                         "with which settings is not known to this card.")
        else:
            parts.append("What it was trained on, and how, that file does not tell.")
        return parts

    def _run(self) -> str:
        """Length, machine and date of the run, as far as they are known, up to the full stop."""
        o = self.origin
        images, seconds = (numbers(o.made).get(name) for name in ("images", "seconds"))
        words = [f"{images:,.0f} images" if images else "", f"{seconds / 3600:.2f} hours" if seconds else ""]
        words += [code(o.made["hardware"])] if "hardware" in o.made else []
        words += [f"{name} {code(o.made[name])}" for name in ("torch", "commit", "date") if name in o.made]
        return f": {', '.join(filter(None, words))}." if any(words) else "."

    def _figures(self) -> list[str]:
        m, settings = self.origin.measured, self.origin.settings
        if not m or not m.own:
            return ["Nothing has been measured."]
        columns = {**m.scale, "this network": m.own}
        lines = ["| | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
        for name in _shown(m.own):
            cells = [_short(figures[name]) if name in figures else "-" for figures in columns.values()]
            if (chance := m.own.get(f"{name}_chance")) is not None:
                cells[-1] += f" ({_short(chance)})"
            lines.append(f"| {_title(name)} {code(name)} | " + " | ".join(cells) + " |")
        how = list(m.how)
        if m.judge and m.judge == settings.get("perceptual") and settings.get("perceptual_weight"):
            how.append("The network that reads the images here is the one whose perceptual distance this network was "
                       "trained with: its figures may be better than what the eye sees.")
        return ["\n".join(lines), "\n".join(f"- {line}" for line in how)]

    def _costs(self) -> str:
        columns = {"this network": self.cost} | ({"teacher": self.teacher_cost} if self.teacher_cost else {})
        rows = {"parameters": "parameters", "multiply-accumulates an image, as executed": "macs",
                "the same by the convention of the published tables": "paper_macs"}
        lines = ["| | " + " | ".join(columns) + " |", "|---|" + "--:|" * len(columns)]
        for says, name in rows.items():
            values = [getattr(cost, name) for cost in columns.values()]
            if values[0] is not None:
                lines.append(f"| {says} | " + " | ".join("-" if v is None else f"{v:,}" for v in values) + " |")
        lines.append(f"| size of model.safetensors (float32) | {self.cost.size / 1e6:.2f} MB |"
                     + " - |" * bool(self.teacher_cost))
        return "\n".join(lines)

    def _limits(self) -> str:
        o = self.origin
        size = self.architecture["resolution"]
        more = "" if self.architecture["c_dim"] else ", to edit and to distil further"
        lines = [f"It is meant for learning and research: to draw from, to compare with its teacher or students{more}.",
                 f"It draws {size} x {size} pixels and nothing else; there is no input but z"
                 + (" and the class." if self.architecture["c_dim"] else ".")]
        if o.rendered:
            lines.append("It was trained on rendered toy faces, not on photographs: its images show nobody, and say "
                         "nothing about how the network or method would do on photographs.")
        elif data := o.settings.get("data"):
            lines.append(f"What it draws resembles its training images, {code(data)}: who or what they show, how they "
                         "were chosen and on which terms, this card does not know. If they show people, an image may "
                         "look like a photograph of somebody: do not pass it off as one.")
        else:
            lines.append("What it draws resembles its training images, which this card does not know. If they show "
                         "people, an image may look like a photograph of somebody: do not pass it off as one.")
        if o.teacher and not (o.measured and "l1" in o.measured.own):
            lines.append("How far it agrees with its teacher has not been measured.")
        recall = any(name.startswith("recall") for name in (o.measured.own if o.measured else ()))
        lines.append("Not examined: whether it repeats training images, and what of their variety it leaves out"
                     + (", beyond the recall above." if recall else "."))
        return "\n".join(f"- {line}" for line in lines)

    def _licence(self) -> str:
        o = self.origin
        file = o.source.get("file")
        if o.licence:
            allowed = f" It has to be one that the licence of {code(file)} allows." if file else ""
            return f"{code(o.licence)}, as stated by whoever shared these weights.{allowed}"
        held = f" The licence of {code(file)}, which this card does not know, holds for them too." if file else ""
        return ("No licence has been chosen for these weights: until their owner chooses one, nobody else has been "
                f"given the right to use them or to pass them on.{held}")


def _shown(own: Figures) -> Figures:
    """Without chance levels and without the agreement on single factors; in the order of the results tables."""
    kept = {k: v for k, v in own.items() if not k.endswith("_chance")
            and (not k.startswith("agree_") or k.startswith("agree_mean_"))}
    order = list(_titles())
    return dict(sorted(kept.items(), key=lambda item: next(
        (n for n, pattern in enumerate(order) if re.fullmatch(pattern, item[0])), len(order))))


def _titles() -> dict[str, str]:
    """Pattern of a figure's name -> its title, as in the results tables."""
    from gapkd.experiments.results import COLUMNS, SET_COLUMNS

    return COLUMNS | {pattern: title for pattern, title in SET_COLUMNS.items() if pattern not in COLUMNS}


def _title(name: str) -> str:
    return next((title for pattern, title in _titles().items() if re.fullmatch(pattern, name)), "")


def _short(value: float) -> str:
    """Four significant digits; what rounding has left of a 0 is 0."""
    return f"{value:.4g}" if abs(value) > 1e-9 else "0"


def _command(settings: dict) -> str:
    try:
        return code(command_line("gapkd distill", DistillConfig, settings))
    except (TypeError, AttributeError):  # settings that no run had
        return ""


def _stages(made: dict) -> list[str]:
    try:
        return stage_lines(_tamed(made))
    except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError):  # not as runs of today write it
        return []


def _tamed(value: object) -> object:
    """A provenance whose texts hold nothing that Markdown would take up."""
    if isinstance(value, dict):
        return {k: _tamed(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_tamed(v) for v in value]
    return re.sub(r"[^\w .,:;+()/=-]", "", value) if isinstance(value, str) else value


def _version() -> str:
    from gapkd import __version__

    return __version__


def _home() -> str:
    """Where gapkd is to be had, as its own metadata has it; empty as long as those name no owner."""
    try:
        addresses = importlib.metadata.metadata("gapkd").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return ""
    found = next((line.partition(", ")[2] for line in addresses if line.startswith("Repository, ")), "")
    return "" if "/OWNER/" in found else found
