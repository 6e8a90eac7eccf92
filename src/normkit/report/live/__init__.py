"""Page on which a trained network with batch normalization runs in the browser.

Everything of it lies in this folder: its programs (``*.js``), its style, its texts in two languages
and the recording of the training.
"""

from __future__ import annotations

from normkit.report.live.page import render, write
from normkit.report.live.recording import Recording, load

__all__ = ["Recording", "load", "render", "write"]
