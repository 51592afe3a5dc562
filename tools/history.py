"""How a network was trained, from the provenance in its file: the runs behind it, as commands."""

from __future__ import annotations

from gapkd.settings import DistillConfig, TrainConfig, command_line


def stages(card: dict) -> list[dict]:
    """The provenance of a run and of every run that it started from, the oldest first."""
    found = [card]
    while card := card.get("started_from"):
        found.append(card)
    return found[::-1]


def stage_lines(card: dict) -> list[str]:
    """A network's training as a Markdown list, a line a run, in the order in which to run them."""
    command, config = "gapkd teacher", TrainConfig
    if card["settings"].get("teacher"):
        command, config = "gapkd distill", DistillConfig
    lines = []
    for n, stage in enumerate(stages(card), 1):
        settings = stage["settings"] | {"images": stage["images"]}  # it may have been stopped early
        if n > 1:
            settings["start_from"] = f"runs/stage{n - 1}"
        words = command_line(command, config, settings)
        hours = stage["seconds"] / 3600
        lines.append(f"- stage {n}: `{words} --out runs/stage{n}`, {hours:.1f} hours, "
                     f"commit {stage['commit']}, {stage['hardware']}")
    return lines
