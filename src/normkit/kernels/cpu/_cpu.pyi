"""The compiled extension: glue.cpp over kernels.cpp."""

torch_version: str
"""The torch it was built for, without a local part such as ``+cpu``."""

builds: tuple[str, ...]
"""Those that this machine can run, best first."""

def use(name: str) -> None:
    """Compute with the named build from now on."""

def assume_cache(bytes: int) -> int:
    """Compute as if the last cache had so many bytes; how many it was taken to have. For tests."""

def in_use() -> str: ...
def normalize(*args: object) -> object: ...
def layer(*args: object) -> object: ...
def moments(*args: object) -> object: ...
