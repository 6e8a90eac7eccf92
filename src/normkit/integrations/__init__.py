"""Other libraries: how their layers behave, and callbacks for their loops.

Which layers are known is a matter of names: nothing is imported. A callback is imported by who
needs it.
"""

from normkit.integrations import inplace_abn, sync_batchnorm, timm

__all__ = ["inplace_abn", "sync_batchnorm", "timm"]
