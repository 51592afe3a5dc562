"""The commands that make a generator ready for others: export, demo, share."""

from __future__ import annotations

import shlex
from dataclasses import dataclass

import tyro

from gapkd.files.checkpoints import load_generator
from gapkd.sharing import export as exporting
from gapkd.sharing.export import ExportConfig
from gapkd.sharing.hub import ready, save_pretrained
from gapkd.sharing.origins import provenance_of
from gapkd.sharing.web import DemoConfig, write_demo


@dataclass(frozen=True)
class ShareConfig:
    """Write a generator as a folder that can be uploaded to a model hub: weights, config.json,
    model card, samples. Wherever a network is named, such a folder can be named too."""

    generator: tyro.conf.Positional[str]
    """Its file, a folder of this kind, or the name of an embedded one."""
    out: str
    """Folder to write; an existing one is not overwritten."""
    license: str = ""
    """Licence of the weights: "mit", "cc-by-nc-4.0"...; empty: what their file says, if it does."""
    name: str = ""
    """Title of the card; empty: the folder's name."""
    teacher: str = ""
    """Teacher to compare with, in cost and, with --evaluate, at the same z; empty: none."""
    evaluate: bool = False
    """Measure it first, as `gapkd evaluate` does, and put the figures on the card."""
    samples: int = 5000
    """With --evaluate: images a set."""
    data: str = "toyfaces"
    """With --evaluate: real images, "toyfaces", or the path of a folder or zip."""
    features: str = "toyfaces"
    """With --evaluate: feature space, as of `gapkd evaluate`."""
    seed: int = 0
    """With --evaluate: of latents and real images."""
    device: str = "auto"
    """With --evaluate: "auto", "cpu", "cuda", "cuda:1"..."""
    truncation: float = 1.0
    """Of the sheet of samples; 1: none."""


def export(config: ExportConfig) -> None:
    print("\n".join(map(str, exporting.export(config))))


def demo(config: DemoConfig) -> None:
    out = write_demo(config)
    print(
        f"written to {out}: run python -m http.server --directory {out}, "
        "and open the address that it prints"
    )
    if config.space:
        name, path = shlex.quote(out.absolute().name), shlex.quote(str(out))
        print(
            "to publish it, with your hub's client: "
            f"hf upload YOUR-NAME/{name} {path} --repo-type space"
        )


def share(config: ShareConfig) -> None:
    measuring = ("samples", "data", "features", "seed", "device")
    measuring = {name: getattr(config, name) for name in measuring}
    for name, value in measuring.items():
        if not config.evaluate and value != getattr(ShareConfig, name):
            raise ValueError(f"{name} says how to measure: add --evaluate, or leave {name} out")
    # to complain before it measures, not after
    ready(config.out, config.name, config.license, config.truncation)
    G = load_generator(config.generator)
    teacher = load_generator(config.teacher) if config.teacher else None
    record = None
    if config.evaluate:
        from gapkd.cli.measure import EvaluateConfig, measure

        record = measure(EvaluateConfig(config.generator, config.teacher, **measuring))
    folder = save_pretrained(
        G, config.out, provenance_of(config.generator), name=config.name, license=config.license,
        evaluation=record, teacher=teacher, truncation=config.truncation,
    )
    print(f"written to {folder}: {', '.join(sorted(file.name for file in folder.iterdir()))}")
    name, path = shlex.quote(folder.absolute().name), shlex.quote(str(folder))
    print(
        f"read {folder / 'README.md'} before you show it to anybody; to publish it, "
        f"with your hub's client: hf upload YOUR-NAME/{name} {path}"
    )
