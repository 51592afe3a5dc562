"""The commands that make a generator ready for others: export, demo, share."""

from __future__ import annotations

from dataclasses import dataclass, field

from gapkd.cli import say
from gapkd.cli.measure import EvaluateConfig, measure
from gapkd.files.checkpoints import load_generator
from gapkd.settings import as_word
from gapkd.sharing import export as exporting
from gapkd.sharing.export import ExportConfig
from gapkd.sharing.hub import ready, repository_name, save_pretrained
from gapkd.sharing.origins import provenance_of
from gapkd.sharing.web import DemoConfig, write_demo


@dataclass(frozen=True)
class ShareConfig(EvaluateConfig):
    """Write a generator as a folder that can be uploaded to a model hub: weights, config.json,
    model card, samples. Wherever a network is named, such a folder can be named too.

    The card compares costs with those of --teacher. With --evaluate it has figures, too, for which
    --data, --features, --device, --samples and --seed are there."""

    out: str = field(kw_only=True)
    """Folder to write; an existing one is not overwritten."""
    license: str = ""
    """Licence of the weights: "mit", "cc-by-nc-4.0"...; empty: what their file says, if it does."""
    evaluate: bool = False
    """Measure it first, as `gapkd evaluate` does, and put the figures on the card."""


def export(config: ExportConfig) -> None:
    say("\n".join(map(str, exporting.export(config))))


def demo(config: DemoConfig) -> None:
    out = write_demo(config)
    path = as_word(out)
    say(f"written to {out}: run python -m http.server --bind 127.0.0.1 --directory {path}, "
          "and open the address that it prints")
    if config.space:
        say("to publish it, with your hub's client: "
              f"hf upload YOUR-NAME/{repository_name(out)} {path} --repo-type space")


def share(config: ShareConfig) -> None:
    for name in ("data", "features", "device", "samples", "seed"):
        if not config.evaluate and getattr(config, name) != getattr(EvaluateConfig, name):
            raise ValueError(f"{name} says how to measure: add --evaluate, or leave {name} out")
    ready(config.out, config.license)  # to complain before it measures, not after
    G = load_generator(config.generator)
    teacher = load_generator(config.teacher) if config.teacher else None
    record = measure(config) if config.evaluate else None
    folder = save_pretrained(G, config.out, provenance_of(config.generator),
                             license=config.license, evaluation=record, teacher=teacher)
    say(f"written to {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    say(f"read {folder / 'README.md'} before you show it to anybody; to publish it, with your "
        f"hub's client: hf upload YOUR-NAME/{repository_name(folder)} {as_word(folder)}")
