"""The families of generators that the package knows: a new one is a module of its own and a line
here."""

from __future__ import annotations

from torch import nn

from gapkd.networks.base import StyleGenerator
from gapkd.networks.mobile import MobileGenerator
from gapkd.networks.stylegan2 import Discriminator, Generator
from gapkd.networks.stylegan3 import AliasFreeGenerator

FAMILIES: tuple[type[StyleGenerator], ...] = (Generator, AliasFreeGenerator, MobileGenerator)
"""Every kind of generator that is trained, distilled, measured, saved and exported."""

STUDENT_KINDS: dict[str, type[StyleGenerator] | None] = {"same": None, "mobile": MobileGenerator}
"""Families that a student can be of, None for its teacher's."""

NETWORKS: dict[str, type[nn.Module]] = {cls.kind: cls for cls in (*FAMILIES, Discriminator)}
"""What a network's file may hold, by the name that it has there."""


def build(kind: str, architecture: dict) -> nn.Module:
    """A network with fresh weights. Raises KeyError for a kind that is not known, TypeError or
    ValueError for arguments that do not fit."""
    return NETWORKS[kind](**architecture)
