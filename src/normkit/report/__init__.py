"""One HTML page from the findings of the lab: readable anywhere, without a network.

>>> from normkit.report import write
>>> import pathlib, tempfile
>>> with tempfile.TemporaryDirectory() as folder:
...     page = write([], pathlib.Path(folder) / "report.html", about={"date": "2024-05-01"})
...     "normkit lab run" in page.read_text(encoding="utf-8")
True
"""

from __future__ import annotations

from normkit.report.page import check_target, write

__all__ = ["check_target", "write"]
