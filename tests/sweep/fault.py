"""A promise that did not hold, and the key by which two finds are the same."""

from __future__ import annotations

import re

__all__ = ["Fault"]


class Fault(AssertionError):  # noqa: N818
    """A find: the tool, the promise that it broke, and how."""

    def __init__(self, tool: str, kind: str, detail: str) -> None:
        super().__init__(f"{tool}: {kind}: {detail}")
        self.tool, self.kind, self.detail = tool, kind, detail

    @property
    def key(self) -> tuple[str, str, str]:
        """Equal for finds that one mend would mend: names and numbers do not count."""
        if self.kind.startswith("prints"):
            return self.tool, self.kind, ""
        first = self.detail.split("\n")[0]
        words = re.sub(r"[\"'].*?[\"']|\b[\w.\[\]]*\d[\w.\[\]+-]*", "#", first)
        return self.tool, self.kind, re.sub(r"#([\s,.]*#)*", "#", words)[:100]
