"""Say what a file is that is no checkpoint, and what to do about it."""

from __future__ import annotations

import zipfile
from pathlib import Path

from normkit.cli.checkpoint_classes import classes_in, how_to_trust

__all__ = ["why_unreadable"]

_ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".safetensors", ".tar")
_SHOWN = 5


def why_unreadable(path: Path, error: Exception) -> tuple[str, str]:
    """Return what stands at ``path``, and what to do, where ``torch.load`` raised ``error``."""
    if not path.exists():
        return f"no file {path}", "name an existing file" + _others(path.parent)
    if path.is_dir():
        return f"{path}, {_folder(path)[0]}", _folder(path)[1]
    try:
        with path.open("rb") as file:
            start = file.read(64)
    except OSError as reason:
        return f"{path}: {reason.strerror or reason}", "name a file that this user may read"
    if not start:
        return f"{path}, which is empty", "save it again, or name another file"
    kind, fix = _kind(path, start, error)
    return f"{path}, {kind}", fix


def _folder(path: Path) -> tuple[str, str]:
    if (path / ".metadata").exists():
        return (
            "a folder of torch.distributed.checkpoint",
            "make one file of it: python -m torch.distributed.checkpoint.format_utils "
            f"dcp_to_torch {path} state.pt",
        )
    if any(path.glob("*.index.json")):
        return (
            "a folder of a checkpoint in several parts",
            "load the model from it, and save model.state_dict() in one file",
        )
    return "a folder", "name a file" + (_others(path) or ", not a folder")


def _others(folder: Path) -> str:
    """List the files in a folder that may be meant."""
    try:
        names = sorted(p for p in folder.iterdir() if p.suffix in _ENDINGS)
    except OSError:
        return ""
    shown = ", ".join(str(p) for p in names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f": there are {shown}{more}" if names else ""


def _kind(path: Path, start: bytes, error: Exception) -> tuple[str, str]:
    """Describe a file by its first bytes, and say what to do."""
    torch_save = "save the state dict with torch.save(model.state_dict(), 'state.pt')"
    if start.startswith(b"version https://git-lfs"):
        return "a pointer of Git LFS to the file itself", "fetch it: git lfs pull"
    if path.suffix == ".safetensors" or (start[7:8] == b"\0" and start[8:9] == b"{"):
        loaded = f"safetensors.torch.load_file({path.name!r})"
        return "a file of safetensors", f"torch.save({loaded}, 'state.pt'), and name that file"
    if start.startswith(b"PK"):
        if not zipfile.is_zipfile(path):
            return "a checkpoint that is cut off", "copy or save it again: its end is missing"
        with zipfile.ZipFile(path) as archive:
            names = [name.rpartition("/")[2] for name in archive.namelist()]
        if "constants.pkl" in names:
            return (
                "a TorchScript model",
                f"torch.save(torch.jit.load({path.name!r}).state_dict(), 'state.pt'), "
                "and name that file",
            )
        if "data.pkl" not in names:
            return "a zip archive that torch.save did not write", torch_save
    elif start[:2] == b"\x1f\x8b":
        return "a compressed file", "unpack it first: gunzip or tar -xzf"
    elif start.lstrip()[:1] == b"<":
        return "a web page", "download the file itself"
    elif start[:1] != b"\x80":
        return "which torch.save did not write", torch_save
    if isinstance(error, EOFError):
        return "a checkpoint that is cut off", "copy or save it again: its end is missing"
    names = classes_in(path, str(error))
    if not names:
        return "which torch.load cannot read", torch_save
    shown = ", ".join(names[:_SHOWN])
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    trust = how_to_trust(names)
    loaded = f"torch.load({path.name!r}, weights_only=False)"
    if any(name.startswith("torch.nn.modules.") for name in names):
        fix = f"torch.save({loaded}.state_dict(), 'state.pt'), and name that file"
        return "a whole model", f"if you trust the file, which can run code, {fix}"
    alone = f"torch.save({loaded}['state_dict'], 'state.pt'), and name that file"
    return (
        f"which also holds {shown}{more}",
        f"if you trust the file, add {trust}; or {alone}"
        if trust
        else f"if you trust the file, which can run code, {alone}",
    )
