"""Fold normalization into neighbouring layers: found by the values of an example, and checked.

``recording`` follows the ``values`` of a pass, ``norms`` says what a layer scales and shifts,
``operations`` what lets that pass, ``hosts`` which layers take it and how, ``plan`` where it goes,
``steps`` changes and restores, ``checks``, ``passes`` and ``trial`` test it; ``deploy`` adds the
rest of the way into production.
"""

from normkit.surgery.fold.deploy import Deployment, deploy
from normkit.surgery.fold.fold import fold
from normkit.surgery.fold.loading import load_folded

__all__ = ["Deployment", "deploy", "fold", "load_folded"]
