"""``normkit recalibrate`` from a user's own folder, on a LeNet that was really trained."""

from __future__ import annotations

import importlib.util
import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel
from typer.testing import CliRunner

import normkit as nk
from normkit.cli.app import app
from tests import forked

NORMKIT = ("-m", "normkit.cli.main", "recalibrate")
MINE = ("--model", "mine:lenet", "--batches", "mine:loader")
SOURCE = Path(__file__).with_name("a_users_module.py")
MOMENTS = {
    f"{i}.{what}"
    for i in (1, 5, 10)
    for what in ("running_mean", "running_var", "num_batches_tracked")
}


@pytest.fixture(scope="module")
def user() -> Any:
    spec = importlib.util.spec_from_file_location("a_users_module", SOURCE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def checkpoint(user: Any) -> dict[str, Any]:
    """As people save one: after thirty steps."""
    steps = itertools.islice(itertools.cycle(user.loader()), 30)
    torch.manual_seed(0)
    model = user.lenet()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.3, momentum=0.9)
    for x, y in steps:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), y).backward()
        optimizer.step()
    return {
        "epoch": 3,
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "best": torch.tensor(0.5),
    }


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copy(SOURCE, tmp_path / "mine.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    return tmp_path


def recalibrate(*arguments: str, code: int = 0) -> Any:
    done = CliRunner().invoke(app, ["recalibrate", *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    return done


def refused(*arguments: str) -> str:
    done = recalibrate(*arguments, code=2)
    said = " ".join(done.output.replace("│", " ").split())
    assert "Traceback" not in said
    return said


def bits(value: Any) -> Any:
    """For comparing trees of tensors to the last bit."""
    if isinstance(value, torch.Tensor):
        return (value.dtype, tuple(value.shape), value.contiguous().numpy().tobytes())
    if isinstance(value, dict):
        return [(key, bits(each)) for key, each in value.items()]
    if isinstance(value, (list, tuple)):
        return [bits(each) for each in value]
    return value


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def test_end_to_end_in_user_folder(tmp_path: Path, user: Any, checkpoint: dict[str, Any]) -> None:
    shutil.copy(SOURCE, tmp_path / "mine.py")
    torch.save(checkpoint, tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    done = forked.python(*NORMKIT, "last.pt", *MINE, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "recalibrate: 3 layers from 2,000 samples, 20 batches" in done.stdout
    assert "Read last.pt (at state_dict), wrote last.recalibrated.pt" in done.stdout
    assert (tmp_path / "last.pt").read_bytes() == before

    new = load(tmp_path / "last.recalibrated.pt")
    state, old = new.pop("state_dict"), checkpoint["state_dict"]
    assert bits(new) == bits({k: v for k, v in checkpoint.items() if k != "state_dict"})
    assert list(state) == list(old)
    assert {k for k in old if bits(state[k]) != bits(old[k])} == MOMENTS
    # The same as from Python, on the same batches.
    model = user.lenet()
    model.load_state_dict(old)
    nk.recalibrate(model, user.loader())
    assert bits(dict(state)) == bits(dict(model.state_dict()))
    assert state._metadata == old._metadata


def test_json_is_the_only_standard_output(tmp_path: Path, checkpoint: dict[str, Any]) -> None:
    shutil.copy(SOURCE, tmp_path / "mine.py")
    torch.save(checkpoint, tmp_path / "last.pt")
    options = ("--json", "--samples", "450", "--layerwise")
    done = forked.python(*NORMKIT, "last.pt", *MINE, *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["path"] == "last.recalibrated.pt"
    assert found["key"] == "state_dict"
    assert found["samples"] == 500
    assert found["passes"] > 1
    assert [row["layer"] for row in found["layers"]] == ["1", "5", "10"]


@pytest.mark.skipif(os.name != "posix", reason="Ctrl-C is sent as a signal")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_leaves_no_file(
    number: signal.Signals, tmp_path: Path, checkpoint: dict[str, Any]
) -> None:
    shutil.copy(SOURCE, tmp_path / "mine.py")
    torch.save(checkpoint, tmp_path / "last.pt")
    before = (tmp_path / "last.pt").read_bytes()
    process = subprocess.Popen(
        [sys.executable, *NORMKIT, "last.pt", "--model", "mine:lenet", "--batches", "mine:slow"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )
    try:
        deadline = time.monotonic() + 90
        while not (tmp_path / "begun").exists():
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        process.send_signal(number)
        out, error = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
    assert process.returncode == 130, error
    assert "Stopped; nothing was written." in error
    assert "Traceback" not in out + error
    assert sorted(p.name for p in tmp_path.iterdir()) == ["begun", "last.pt", "mine.py"]
    assert (tmp_path / "last.pt").read_bytes() == before


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_interrupted_write_leaves_no_file(
    error: type[BaseException], checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(checkpoint, "last.pt")

    def breaks(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise error("no space left on device")

    monkeypatch.setattr(torch, "save", breaks)
    code = 130 if error is KeyboardInterrupt else 2
    done = recalibrate("last.pt", *MINE, code=code)
    assert ("nothing was written" if code == 130 else "no space left") in done.output
    assert sorted(p.name for p in Path().iterdir()) == ["last.pt", "mine.py"]


def wrapped(kind: str, state: dict[str, Any]) -> Any:
    """What various tools make of a state dict."""
    if kind == "the state dict itself":
        return state
    if kind == "averaged":
        return {
            "swa": {"n_averaged": torch.tensor(7), **{f"module.{k}": v for k, v in state.items()}}
        }
    if kind == "parallel":
        return {"model": {f"module.{k}": v for k, v in state.items()}}
    if kind == "compiled, in parallel":
        return {f"module._orig_mod.{k}": v for k, v in state.items()}
    if kind == "lightning":
        inner = {f"net.{k}": v for k, v in state.items()}
        return {"state_dict": {**inner, "loss.weight": torch.ones(10)}, "callbacks": {"a": 1}}
    if kind == "of an old torch":
        return {k: v for k, v in state.items() if "num_batches" not in k}
    return {"a": {"b": {"c": state}}}


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("kind", "path", "prefix"),
    [
        ("the state dict itself", (), ""),
        ("averaged", ("swa",), "module."),
        ("parallel", ("model",), "module."),
        ("compiled, in parallel", (), "module._orig_mod."),
        ("lightning", ("state_dict",), "net."),
        ("of an old torch", (), ""),
        ("deep", ("a", "b", "c"), ""),
    ],
)
def test_state_dict_is_located(
    kind: str, path: tuple[str, ...], prefix: str, checkpoint: dict[str, Any]
) -> None:
    content = wrapped(kind, checkpoint["state_dict"])
    torch.save(content, "last.ckpt")
    done = recalibrate("last.ckpt", *MINE, "--samples", "300", "--json")
    new = load(Path("last.recalibrated.ckpt"))
    found = json.loads(done.stdout)
    assert found["key"] == ".".join((*path, prefix.rstrip("."))).strip(".")
    old = content
    for key in path:
        new, old = new[key], old[key]
    changed = {k for k in old if bits(new[k]) != bits(old[k])}
    assert changed == {prefix + k for k in MOMENTS if prefix + k in old}
    assert len(changed) == (6 if kind == "of an old torch" else 9)
    # 300 samples, from which averages that count continue.
    assert all(int(new[k]) == 3 for k in changed if k.endswith("tracked"))


def test_averaged_model_checkpoint(folder: Path, user: Any, checkpoint: dict[str, Any]) -> None:
    averaged = AveragedModel(user.lenet())
    averaged.module.load_state_dict(checkpoint["state_dict"])
    torch.save(averaged.state_dict(), "swa.pt")
    recalibrate("swa.pt", *MINE, "--out", "new.pt")
    averaged.load_state_dict(load(folder / "new.pt"))


@pytest.mark.usefixtures("folder")
def test_key_selects_among_fitting_parts(checkpoint: dict[str, Any]) -> None:
    state = checkpoint["state_dict"]
    # One mapping under two names is two: the other stays as it was.
    content = {"model": state, "ema": state, "teacher": {f"net.{k}": v for k, v in state.items()}}
    torch.save(content, "last.pt")
    said = refused("last.pt", *MINE)
    assert "several: model, ema, teacher.net" in said
    recalibrate("last.pt", *MINE, "--key", "ema", "--samples", "300")
    new = load(Path("last.recalibrated.pt"))
    assert bits(new["model"]) == bits(content["model"])
    assert bits(new["teacher"]) == bits(content["teacher"])
    assert {k for k in state if bits(new["ema"][k]) != bits(state[k])} == MOMENTS
    recalibrate("last.pt", *MINE, "--key", "teacher", "--samples", "300", "--out", "t.pt")
    new = load(Path("t.pt"))
    assert bits(new["ema"]) == bits(content["ema"])
    assert bits(new["teacher"]) != bits(content["teacher"])
    assert "there are: model, ema, teacher" in refused(
        "last.pt", *MINE, "--key", "student", "--out", "s.pt"
    )


@pytest.mark.usefixtures("folder")
def test_dtypes_and_shared_storage_are_kept(checkpoint: dict[str, Any], tmp_path: Path) -> None:
    Path("tied.py").write_text(
        "import torch\nfrom torch import nn\n"
        "norm = nn.BatchNorm1d(3)\n"
        "model = nn.Sequential(norm, nn.Linear(3, 3), norm)\n"
        "batches = list(torch.linspace(-1, 1, 300).view(-1, 3).split(50))\n"
        "large = [1e5 * (1 + x) for x in batches]\n"
    )
    state = nn.Sequential(norm := nn.BatchNorm1d(3), nn.Linear(3, 3), norm).half().state_dict()
    torch.save(state, "half.pt")
    tied = ("--model", "tied:model", "--batches")
    recalibrate("half.pt", *tied, "tied:batches")
    new = load(Path("half.recalibrated.pt"))
    assert {v.dtype for k, v in new.items() if "num" not in k} == {torch.float16}
    assert new["0.running_mean"].data_ptr() == new["2.running_mean"].data_ptr()
    assert new["0.running_mean"].data_ptr() != new["0.running_var"].data_ptr()
    said = refused("half.pt", *tied, "tied:large", "--force")
    assert "for torch.float16" in said
    assert bits(load(Path("half.recalibrated.pt"))) == bits(new)


@pytest.mark.usefixtures("folder")
def test_checkpoint_of_another_model(checkpoint: dict[str, Any]) -> None:
    torch.save(checkpoint, "last.pt")
    batches = ("--batches", "mine:loader")
    said = refused("last.pt", "--model", "mine:wider", *batches)
    assert "of another shape 13.weight (10×120 for 20×120), 13.bias (10 for 20)" in said
    state = dict(checkpoint["state_dict"])
    del state["5.running_var"]
    state["extra.weight"] = torch.ones(1)
    torch.save(state, "other.pt")
    said = refused("other.pt", "--model", "mine:lenet", *batches)
    assert "missing 5.running_var; unexpected extra.weight" in said
    said = refused("last.pt", "--model", "mine:other", *batches)
    assert "entries fit the model" in said
    torch.save({"epoch": 3}, "none.pt")
    said = refused("none.pt", "--model", "mine:lenet", *batches)
    assert "received a dict with epoch" in said
    assert not list(Path().glob("*recalibrated*"))


class Whole(nn.Linear):
    """Of a class that no safe reader knows."""


@pytest.mark.usefixtures("folder")
def test_file_with_code_is_rejected(tmp_path: Path) -> None:
    torch.save(Whole(1, 1), "whole.pt")
    said = refused("whole.pt", *MINE)
    assert "which also holds " in said and "Whole" in said
    assert "torch.load('whole.pt', weights_only=False)['state_dict']" in said
    Path("text.pt").write_text("no checkpoint")
    assert "text.pt, which torch.save did not write" in refused("text.pt", *MINE)
    Path("empty.pt").touch()
    assert "empty.pt, which is empty" in refused("empty.pt", *MINE)


@pytest.mark.usefixtures("folder")
def test_missing_checkpoint_is_named() -> None:
    for name, received in (("nowhere.pt", "no file nowhere.pt"), (".", "., a folder")):
        said = refused(name, *MINE)
        assert "Expected a checkpoint by torch.save" in said
        assert f"received {received}. Fix: name " in said
        assert "weights_only" not in said


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "lenet"), "package.module:attribute for --model"),
        (("--model", "mein:lenet"), "there is no mein"),
        (
            ("--model", "mine.py:lenet"),
            "a file. Fix: pass --model mine:lenet, without .py",
        ),
        (("--model", "mine:LeNet"), "mine has no LeNet. Fix: choose one of: lenet"),
        (("--model", "mine:number"), "a torch.nn.Module for --model"),
        (("--model", "mine:needs"), "which needs arguments"),
        (("--model", "mine:loader"), "which returns a list"),
        (("--model", "mine:without", "--key", "state_dict"), "entries fit the model"),
        (("--batches", "mine:number"), "an iterable of batches, such as a DataLoader"),
        (("--batches", "mine:nothing"), "at least one batch"),
        (("--batches", "mine:lenet"), "received a Sequential. Fix: pass the batches of data"),
        (("--samples", "many"), "--samples as a number or 'all'"),
        (("--samples", "0"), "samples of at least 1"),
        (("--tolerance", "-1"), "tolerance as a relative standard error"),
        (("--device", "cuda:99"), "--device as a device that torch can use here"),
        (("--device", "moon"), "--device as a device that torch can use here"),
        (("--layerwise", "--batches", "mine:slow"), "re-iterable batches for layerwise=True"),
        (("--out", "last.pt"), "another file than the checkpoint itself"),
        (("--out", "linked.pt", "--force"), "another file than the checkpoint itself"),
        (("--out", "there.pt"), "or add --force"),
        (("--out", "nowhere/new.pt"), "a folder that exists and is writable"),
        (("--out", "."), "a folder that exists and is writable"),
    ],
)
def test_wrong_options_write_nothing(
    arguments: tuple[str, ...], message: str, checkpoint: dict[str, Any]
) -> None:
    torch.save(checkpoint, "last.pt")
    Path("linked.pt").symlink_to("last.pt")
    Path("there.pt").write_text("somebody's")
    before = {p: p.read_bytes() for p in Path().iterdir()}
    # Of an option given twice the last counts.
    assert message in refused("last.pt", *MINE, *arguments)
    assert {p: p.read_bytes() for p in Path().iterdir()} == before


@pytest.mark.usefixtures("folder")
def test_target_is_checked_first(
    checkpoint: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(checkpoint, "last.pt")
    Path("last.recalibrated.pt").write_text("somebody's")
    monkeypatch.setattr(torch, "load", None)
    assert "add --force" in refused("last.pt", *MINE)
    monkeypatch.undo()


def test_force_overwrites_and_instance_is_accepted(
    folder: Path, checkpoint: dict[str, Any]
) -> None:
    torch.save(checkpoint, "last.pt")
    Path("new.pt").write_text("an older one")
    instance = ("--model", "mine:instance", "--batches", "mine:loader", "--samples", "all")
    done = recalibrate("last.pt", *instance, "--out", "new.pt", "--force", "--tolerance", "0.5")
    assert "3 layers from 800 samples" in done.output
    assert set(load(folder / "new.pt")) == set(checkpoint)


def test_errors_in_user_module_are_not_wrapped(folder: Path, checkpoint: dict[str, Any]) -> None:
    torch.save(checkpoint, "last.pt")
    Path("broken.py").write_text("import a_package_that_is_not_there\n")
    done = CliRunner().invoke(
        app, ["recalibrate", "last.pt", "--model", "broken:x", "--batches", "mine:loader"]
    )
    assert isinstance(done.exception, ModuleNotFoundError)
    assert done.exception.name == "a_package_that_is_not_there"


def test_warnings_are_plain_lines(folder: Path, checkpoint: dict[str, Any]) -> None:
    """Of two samples hardly anything is known: said in one line, without a place in the code."""
    torch.save(checkpoint, "last.pt")
    Path("few.py").write_text("import mine\nbatches = [mine.loader()[0][0][:2]]\n")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        done = recalibrate("last.pt", "--model", "mine:lenet", "--batches", "few:batches")
    (line,) = [line for line in done.stderr.splitlines() if "2 samples" in line]
    assert line.startswith("normkit: running statistics replaced by those of 2 samples")
    assert "±" in line and "UserWarning" not in done.stderr and (folder / "few.py").exists()


def test_batches_that_a_callable_object_returns(folder: Path, checkpoint: dict[str, Any]) -> None:
    """A partial, or any object that is no iterable of batches itself."""
    torch.save(checkpoint, "last.pt")
    Path("calls.py").write_text(
        "import functools, mine\n"
        "class Make:\n"
        "    def __call__(self): return mine.loader()\n"
        "class Both(list):\n"
        "    def __call__(self): raise RuntimeError\n"
        "partial, instance, both = functools.partial(mine.loader), Make(), Both(mine.loader())\n"
    )
    for name in ("partial", "instance", "both"):
        done = recalibrate("last.pt", "--model", "mine:lenet", "--batches", f"calls:{name}",
                           "--force")  # fmt: skip
        assert done.exit_code == 0 and "3 layers" in done.output
    assert (folder / "last.recalibrated.pt").exists()
