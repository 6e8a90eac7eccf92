"""Executors of runs: processes of this machine, or the machines of a Ray cluster.

:mod:`~normkit.lab.executors.protocol` says what the lab asks of such a place. The default is
:class:`LocalPool`; :mod:`~normkit.lab.executors.ray_pool` needs Ray, so it is imported by those
who use it.
"""

from __future__ import annotations

from normkit.lab.executors.local import LocalPool
from normkit.lab.executors.protocol import EndedJob, Executor, Job

__all__ = ["EndedJob", "Executor", "Job", "LocalPool"]
