"""Hooks of mkdocs: patterns in the navigation, and links to files that are not pages of the site.

A guide that is read in the repository may link to `../benchmarks/x.json`. The site has no such
page, and the repository has no address that the site could name, so there the text stays and the
path of the file stands behind it.

A page without a Chinese form is shown in English on the Chinese site. Its links there lead to
Chinese pages, whose headings have Chinese anchors, in the order of the English ones.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
SWITCH = re.compile(r"^\[(?:中文|English)\]\([^)\s]+\)(?: · )?", re.MULTILINE)
"""The link from a page to the same in another language, for which the site has a menu."""
LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(((?:\.\./)+[^)#\s]+)\)")

ANCHOR = re.compile(r"(?<=\]\()([^)#\s:]+)\.md#([^)\s]+)")
FENCE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> list[str]:
    """Return the anchors of a page's headings, in their order."""
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", page.read_text("utf-8")), re.MULTILINE)
    plain = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings)
    return [re.sub(r"[^\w\- ]", "", each.strip().lower()).replace(" ", "-") for each in plain]


def in_chinese(markdown: str, folder: Path) -> str:
    """Let links to a place in a page lead to that place in the Chinese page, if there is one."""

    def place(link: re.Match[str]) -> str:
        english, chinese = (folder / f"{link[1]}{ending}" for ending in (".md", ".zh.md"))
        if english.exists() and chinese.exists():
            places = dict(zip(anchors(english), anchors(chinese), strict=True))
            return f"{link[1]}.md#{places.get(link[2], link[2])}"
        return link[0]

    return ANCHOR.sub(place, markdown)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Replace links that leave docs/ by their text and the path of the file."""
    if config["theme"]["language"] == "zh" and not page.file.src_uri.endswith(".zh.md"):
        markdown = in_chinese(markdown, Path(page.file.abs_src_path).parent)
    folder = posixpath.dirname(f"docs/{page.file.src_uri}")

    def outside(link: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, link[2]))
        if path.startswith("docs/") or not (ROOT / path).exists():
            return link[0]  # a page, or a mistake that mkdocs reports
        return f"{link[1]} (`{path}`)" if link[1].strip("`") != path else link[1]

    return LINK.sub(outside, SWITCH.sub("", markdown))


def on_config(config: Any) -> None:
    """Expand entries of the navigation with a `*`; the Chinese pages come with the English ones."""
    folder, listed = Path(config["docs_dir"]), set()

    def matching(pattern: str) -> list[str]:
        if "*" not in pattern:
            return [pattern]
        files = (path.relative_to(folder).as_posix() for path in sorted(folder.glob(pattern)))
        return [file for file in files if ".zh." not in file and file not in listed]

    def expand(entries: list[Any]) -> list[Any]:
        expanded: list[Any] = []
        for entry in entries:
            title, what = next(iter(entry.items())) if isinstance(entry, dict) else (None, entry)
            found = expand(what) if isinstance(what, list) else matching(what)
            listed.update(each for each in found if isinstance(each, str))
            if isinstance(what, list):
                expanded += [{title: found}] if found else []
            else:
                expanded += [{title: file} if title else file for file in found]
        return expanded

    config["nav"] = expand(config["nav"])
