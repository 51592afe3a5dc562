"""Where numbers and files come from: the commit, the machine, the versions, the day."""

from __future__ import annotations

import platform
import subprocess
import time
from pathlib import Path

import torch

from gapkd.files.storage import ROOT


def provenance(device: torch.device | str = "cpu") -> dict:
    """Where and when: commit (with + when the tree had changes), hardware of the device, versions,
    date."""
    commit = "unknown"
    if _git("rev-parse", "--show-toplevel") == str(ROOT):  # else it is somebody else's repository
        changed = "+" if _git("status", "--porcelain", "--untracked-files=no") else ""
        commit = (_git("rev-parse", "--short=12", "HEAD") or "unknown") + changed
    return {"commit": commit, "hardware": hardware(device), "threads": torch.get_num_threads(),
            "torch": torch.__version__, "python": platform.python_version(),
            "date": time.strftime("%Y-%m-%d")}


def _git(*arguments: str) -> str:
    """What git answers about this clone; nothing where there is no git or no clone."""
    try:
        return subprocess.run(["git", *arguments], capture_output=True, text=True, timeout=10,
                              cwd=ROOT, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""


def hardware(device: torch.device | str = "cpu") -> str:
    """Name of that GPU, or of the processor."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":")[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration, IndexError):
        return platform.processor() or platform.machine()
