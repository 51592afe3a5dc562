"""torch in the build that fits the machine, before the rest is installed: `make` asks for it.

On Linux the package index serves torch with CUDA, 2.7 GB of downloads, which a machine without an
NVIDIA driver cannot use. There, this takes the CPU build (0.2 GB): from where pip finds one, or
from the index of PyTorch, whose address `uv` knows.

    python tools/torch_build.py              what fits this machine
    TORCH=cuda python tools/torch_build.py   the build with CUDA (TORCH=cpu: without)
    TORCH_INDEX=ADDRESS python ...           from an index of your own

It needs nothing but Python with pip, installs into that Python's environment, and what it cannot do
it leaves to pip.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parents[1] / "constraints.txt"
CHOICES = ("auto", "cpu", "cuda")
NO_CPU_BUILD = """\
torch's CPU build is not to be had from here, so pip takes what its index has: on Linux that is the
build with CUDA, 2.7 GB of downloads. To fetch less, stop this (Ctrl-C) and name an index with the
CPU build, which PyTorch's page on installing it shows: make TORCH_INDEX=ADDRESS ..."""


def pinned() -> str:
    """The line of constraints.txt that says which torch is tested."""
    lines = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    return next(line for line in lines if line.startswith("torch=="))


def has_nvidia_driver() -> bool:
    """Whether a GPU of NVIDIA's can be used here."""
    return bool(shutil.which("nvidia-smi")) or Path("/proc/driver/nvidia/version").exists()


def pip(*arguments: str, **options: object) -> subprocess.CompletedProcess:
    """Run this Python's pip."""
    command = [sys.executable, "-m", "pip", *arguments, "--disable-pip-version-check"]
    return subprocess.run(command, **options)


def brings_cuda() -> bool:
    """Whether the torch that pip would take comes with CUDA. (An old pip cannot say: it does.)"""
    done = pip("install", "--dry-run", "--quiet", "--no-deps", "--report", "-", pinned(),
               capture_output=True, text=True)
    try:
        about = json.loads(done.stdout)["install"][0]["metadata"]
    except (ValueError, KeyError, IndexError):
        return True
    needs = " ".join(about.get("requires_dist", ()))
    return "nvidia" in needs or "cuda" in needs


def install_cpu_build() -> bool:
    """Take torch's CPU build from where uv knows it to be; whether it worked."""
    print("no NVIDIA driver here: taking torch's CPU build, 0.2 GB (with CUDA: make clean, then "
          "make TORCH=cuda setup)", flush=True)
    if pip("install", "--quiet", "uv").returncode:
        return False
    command = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable,
               "--torch-backend", "cpu", "--no-deps", pinned()]
    return subprocess.run(command).returncode == 0


def main() -> int:
    """Returns the exit status: not 0 for a mistake, 0 also where the choice is left to pip."""
    choice, index = os.environ.get("TORCH") or "auto", os.environ.get("TORCH_INDEX")
    if choice not in CHOICES:
        print(f"gapkd: TORCH must be one of {', '.join(CHOICES)}, not {choice}", file=sys.stderr)
        return 1
    if find_spec("torch"):
        return 0
    if index:
        print(f"torch from {index}", flush=True)
        return pip("install", "--no-deps", "--index-url", index, pinned()).returncode
    wanted = choice == "cpu" or choice == "auto" and not has_nvidia_driver()
    if platform.system() != "Linux" or not brings_cuda():
        print("torch as pip finds it: a CPU build, 0.2 GB", flush=True)
    elif not wanted:
        print("torch with CUDA: 2.7 GB of downloads (without: make clean, then make TORCH=cpu "
              "setup)", flush=True)
    elif not install_cpu_build():
        print(NO_CPU_BUILD, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
