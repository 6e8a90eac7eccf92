"""Fold normalization into neighbouring layers: found by the values of an example, and checked.

``recording`` follows the values of a pass, ``norms`` says what a layer scales and shifts,
``operations`` what lets that pass, ``hosts`` which layers take it and how, ``plan`` where it goes,
``steps`` changes and restores, ``checks`` and ``trial`` test it.
"""

from normkit.surgery.fold.fold import fold

__all__ = ["fold"]
