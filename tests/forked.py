"""Run Python programs in processes forked from one that has imported torch.

Starting Python and importing torch takes two seconds of processor time; a fork takes none. Each
process of pytest starts one server, when it first needs it.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[1]
TIMEOUT = 300

_server: subprocess.Popen[str] | None = None


def python(
    *args: str, cwd: Path | None = None, env: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run ``python -W ignore *args``, where ``args`` begin with ``-c`` or ``-m``.

    What Python reads from the environment before its first line is not read again, but for
    ``PYTHONPATH``.
    """
    server = _started()
    assert server.stdin is not None and server.stdout is not None
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / name for name in ("out", "err")]
        request = {
            "args": args, "cwd": str(cwd or Path.cwd()), "outputs": list(map(str, outputs)),
            "env": dict(os.environ if env is None else env),
        }  # fmt: skip
        server.stdin.write(json.dumps(request) + "\n")
        server.stdin.flush()
        code = int(server.stdout.readline())
        out, err = (path.read_text() for path in outputs)
    return subprocess.CompletedProcess(args, code, out, err)


def _started() -> subprocess.Popen[str]:
    global _server
    if _server is None:
        code = (
            f"import sys; sys.path.append({str(ROOT)!r}); from tests import forked; forked.serve()"
        )
        _server = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", code],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"},
        )  # fmt: skip
        atexit.register(_stop, _server)
    return _server


def _stop(server: subprocess.Popen[str]) -> None:
    server.communicate()  # which closes its input


def serve() -> None:
    """Fork a process for each line of standard input, and print how it ended."""
    import torch  # noqa: F401

    sys.path.remove(str(ROOT))
    for name in [name for name in sys.modules if name.partition(".")[0] == "tests"]:
        del sys.modules[name]
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _end(_code_of(json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)


def _code_of(request: dict[str, Any]) -> int:
    """Run a request; return the exit code, with a traceback printed where one is due."""
    try:
        _run(request)
    except SystemExit as ended:
        if ended.code is None or isinstance(ended.code, int):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


def _end(code: int) -> NoReturn:
    """End as Python does, but for freeing what torch holds, which takes seconds of copied pages."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _run(request: dict[str, Any]) -> None:
    import runpy

    signal.alarm(TIMEOUT)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for stream, path in zip((1, 2), request["outputs"], strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["cwd"])
    sys.path[1:1] = [p for p in os.environ.get("PYTHONPATH", "").split(os.pathsep) if p]
    option, program, *sys.argv[1:] = request["args"]
    if option == "-m":
        runpy.run_module(program, run_name="__main__", alter_sys=True)
    else:
        exec(compile(program, "<string>", "exec"), {"__name__": "__main__"})
