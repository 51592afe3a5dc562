"""Builds the site: `python -m gapkd.site`, with the extra `docs`."""

from __future__ import annotations

import shutil
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import tyro

from gapkd.chapters import ROOT, short
from gapkd.site.links import check
from gapkd.site.pages import ICON, write_pages

MARK = ".buildinfo"  # sphinx leaves it in what it builds


@dataclass(frozen=True)
class SiteConfig:
    """Build the course as static pages and check their links."""

    out: str = str(ROOT / "runs" / "site")
    """Folder of the site; one that an earlier build wrote is replaced."""
    links: Literal["offline", "online"] = "offline"
    """online: also ask other hosts whether what the pages link to is there."""


def build(config: SiteConfig, root: Path = ROOT) -> Path:
    """The site of a clone.

    Returns: its folder.
    Raises ValueError when the extra is missing, something else is in the way, or a page or a link is at fault.
    """
    out = Path(config.out).resolve()
    work = out.with_name(f"{out.name}-build")
    for folder in (out, work):
        if folder.exists() and not (folder / MARK).exists():
            raise ValueError(f"{folder} exists and is not from an earlier build: remove it or choose another out")
    if find_spec("sphinx") is None or find_spec("myst_nb") is None:
        raise ValueError("sphinx and myst-nb are missing: use `make site`, or pip install -e '.[docs]'")
    from sphinx.cmd.build import build_main

    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / MARK).touch()
    write_pages(root, work / "pages")
    html = work / "html"
    common = ["-q", "-c", str(Path(__file__).parent), "-d", str(work / "doctrees"),
              "-D", f"html_favicon={work / 'pages' / ICON}", str(work / "pages")]
    if build_main(["-b", "html", "-W", "--keep-going", *common, str(html)]):
        raise ValueError("the site has faults: mend what is listed above")
    report = check(html)
    (work / "external.txt").write_text("\n".join(report.external) + "\n", encoding="utf-8")
    for kind, entries in (("leads nowhere", report.dead), ("would be fetched from another host", report.fetched)):
        for entry in entries:
            print(f"{kind}: {entry}", file=sys.stderr)
    if report.dead or report.fetched:
        raise ValueError(f"{len(report.dead) + len(report.fetched)} links are at fault: mend what is listed above")
    for unread in html.rglob("*.map"):  # for those who debug the theme's scripts
        unread.unlink()
    shutil.rmtree(out, ignore_errors=True)
    html.rename(out)
    pages, size = len(list(out.rglob("*.html"))), sum(f.stat().st_size for f in out.rglob("*") if f.is_file())
    print(f"site: {pages} pages, {size / 1e6:.1f} MB, in {short(out)}; every internal link leads somewhere")
    print(f"{len(report.external)} external addresses, {'asked next' if config.links == 'online' else 'not asked'}: "
          f"{short(work / 'external.txt')}")
    print(f"look at it: {short(Path(sys.executable))} -m http.server --directory {short(out)} --bind 127.0.0.1 8000, "
          "then http://127.0.0.1:8000")
    if config.links == "online" and build_main(["-b", "linkcheck", *common, str(work / "linkcheck")]):
        raise ValueError(f"some external addresses do not answer: see {short(work / 'linkcheck' / 'output.txt')}")
    return out


def main(arguments: list[str] | None = None) -> int:
    """Entry point. Returns the exit status: 0, 2 for bad input."""
    try:
        build(tyro.cli(SiteConfig, prog="python -m gapkd.site", args=arguments))
    except (ValueError, OSError) as error:
        print(f"gapkd: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
