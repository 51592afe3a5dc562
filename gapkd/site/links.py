"""Looks through built HTML: is every file and anchor there that a page points to, and is nothing loaded from afar?"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED_RELS = {"stylesheet", "icon", "preload", "modulepreload", "prefetch", "preconnect", "dns-prefetch", "manifest"}
CSS_ADDRESS = re.compile(r"""(?:url\(|@import)\s*["']?([^"')\s;]+)""")


@dataclass(frozen=True)
class Report:
    """What `check` found, sorted; each entry reads "page: address"."""

    dead: list[str]
    """A file or an anchor that is not there."""
    fetched: list[str]
    """Pictures, scripts, fonts that a browser would fetch from another host by itself."""
    external: list[str]
    """Bare addresses on other hosts that a reader may click; not contacted."""


class Page(HTMLParser):
    """The anchors of a page, and what it points to: (address, whether a browser fetches it unasked)."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors: set[str] = set()
        self.targets: list[tuple[str, bool]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.anchors |= {found["id"]} if "id" in found else set()
        self.anchors |= {found["name"]} if tag == "a" and "name" in found else set()
        if "href" in found:
            rels = set(found.get("rel", "").split())
            self.targets.append((found["href"], tag == "link" and bool(rels & FETCHED_RELS)))
        if "src" in found:
            self.targets.append((found["src"], True))
        for candidate in re.findall(r"[^\s,]\S*[^\s,](?=\s|,|$)", found.get("srcset", "")):
            if not re.fullmatch(r"[\d.]+[wx]", candidate):
                self.targets.append((candidate, True))
        self._styles(found.get("style", ""))

    handle_startendtag = handle_starttag

    def handle_data(self, data: str) -> None:
        if self.cdata_elem == "style":
            self._styles(data)

    def _styles(self, css: str) -> None:
        self.targets += [(address, True) for address in CSS_ADDRESS.findall(css)]


def check(folder: str | Path) -> Report:
    """Everything that the .html and .css files below a folder point to.

    Raises ValueError when the folder holds no page.
    """
    folder = Path(folder).resolve()
    files = [path for path in sorted(folder.rglob("*.html")) if "_static" not in path.parts]  # a theme's templates
    pages = {path: Page(path.read_text(encoding="utf-8")) for path in files}
    if not pages:
        raise ValueError(f"{folder} holds no .html file: build the site first")
    dead, fetched, external = set(), set(), set()
    for path, address, unasked in _targets(folder, pages):
        where = f"{path.relative_to(folder)}: {address}"
        parts = urlsplit(address)
        if parts.scheme in ("data", "mailto", "javascript"):
            continue
        if parts.scheme in ("http", "https") or parts.netloc:
            external.add(address)
            if unasked:
                fetched.add(where)
        elif not _exists(folder, pages, path, parts.scheme, unquote(parts.path), unquote(parts.fragment)):
            dead.add(where)
    return Report(sorted(dead), sorted(fetched), sorted(external))


def _targets(folder: Path, pages: dict[Path, Page]) -> Iterator[tuple[Path, str, bool]]:
    for path, page in pages.items():
        for address, unasked in page.targets:
            yield path, address, unasked
    for path in sorted(folder.rglob("*.css")):
        for address in CSS_ADDRESS.findall(path.read_text(encoding="utf-8")):
            yield path, address, True


def _exists(folder: Path, pages: dict[Path, Page], path: Path, scheme: str, name: str, anchor: str) -> bool:
    if scheme or name.startswith("/"):  # file://, or a path that holds only at the root of a host
        return False
    target = Path(os.path.normpath(path.parent / name)) if name else path
    if target.is_dir():
        target /= "index.html"
    if not target.is_file() or not target.is_relative_to(folder):
        return False
    return anchor in ("", "top") or target not in pages or anchor in pages[target].anchors
