"""Plugin: what one test has compiled does not count against the limits of the next."""

from __future__ import annotations

import sys


def pytest_runtest_setup() -> None:
    # Dynamo compiles one function, such as Sequential.forward, a few times only, whatever the
    # model; entries of models that are gone stay until Python collects them.
    if "torch._dynamo.utils" in sys.modules:
        import torch

        counters = torch._dynamo.utils.counters
        if counters["frames"]:
            torch._dynamo.reset()
            counters.clear()
