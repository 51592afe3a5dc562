"""The command of the course: chapter."""

from __future__ import annotations

from dataclasses import dataclass

import tyro


@dataclass(frozen=True)
class ChapterConfig:
    """Run a chapter's notebook with papermill, with other parameters if you like.

    Chapters: 00 meet the teacher, 01 discrepancy, 02 mapping, 03 latent-direction loss, 04 full
    distillation, 05 StyleGAN3, 06 comparison of methods, 07 use the student, 08 bring your own."""

    notebook: tyro.conf.Positional[str] = "04_full_distillation"
    """Name of the chapter, or its number."""
    parameters: tuple[str, ...] = ()
    """name=value pairs for the notebook's parameters cell; of chapter 04, for every option of
    `gapkd distill`, too (ld_weight=30)."""
    out: str = ""
    """Folder of the executed notebook; empty: the next free runs/<chapter>-NNN."""


def chapter(config: ChapterConfig) -> None:
    from gapkd.chapters import run_chapter

    run_chapter(config.notebook, config.parameters, config.out)
