"""An executor of all processes that ``torchrun`` started, which train one run after another.

Rank 0 is the lab: it has the store, prints, judges and reports, and treats the other ranks as an
executor of one run at a time. The others run :func:`worker_loop`: they receive the next run, train
their share of it, and write nothing.

The others wait for the share of a process that fails, so it ends all of them, and the run is stored
as failed with the error of the process that failed first.
"""

from __future__ import annotations

import contextlib
import signal
import time
import traceback
from collections.abc import Callable
from types import FrameType

from normkit.errors import NormkitError, message
from normkit.lab import worker
from normkit.lab.building import build_model
from normkit.lab.config import RunConfig
from normkit.lab.data import Dataset
from normkit.lab.executors.process_group import Processes
from normkit.lab.executors.protocol import EndedJob
from normkit.lab.leases import LeaseLostError
from normkit.lab.placement import Placement, why_single_process
from normkit.lab.trainer import Outcome, SilentLog
from normkit.lab.training import train

__all__ = ["Torchrun", "worker_loop"]


class Torchrun:
    """An executor of one run at a time, trained by all processes together. For rank 0.

    A run whose batches they cannot share is trained by rank 0 alone, while the others wait:
    :func:`normkit.lab.placement.why_single_process`.
    """

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._waiting: list[str] = []
        self._ended: list[EndedJob] = []
        self._signalled = self._raised = False
        self._broken = ""  # why the processes cannot continue together
        # All processes of a training must end at the same step, so Ctrl-C and SIGTERM during it are
        # noted, and raised when it has ended.
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signalled = True

    @property
    def free(self) -> int:
        """0 while a run waits or is trained, else 1."""
        return 0 if self._waiting or self._ended else 1

    @property
    def busy(self) -> int:
        """1 while a run waits or is trained, else 0."""
        return len(self._waiting) + len(self._ended)

    def submit(self, argument: str) -> None:
        """Queue the run; it is trained in :meth:`wait`."""
        self._waiting.append(argument)

    def wait(self, seconds: float) -> list[EndedJob]:
        """Train the submitted run to its end.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM came meanwhile.
            NormkitError: one process failed, so they cannot continue together.
        """
        if self._broken and not self._ended:
            raise NormkitError(
                message(
                    "all processes to continue together",
                    self._broken,
                    "fix the cause, and run the same command again",
                )
            )
        if self._waiting and not self._ended:
            argument = self._waiting.pop()
            result = worker.carry_out(argument, self._stopping, self._lead, self._where)
            self._ended.append(EndedJob(argument, result))
        elif not self._ended:
            time.sleep(seconds)
        if self._signalled and not self._raised:
            self._raised = True
            raise KeyboardInterrupt
        ended, self._ended = self._ended, []
        return ended

    def stop(self) -> None:
        """End the current run, and any submitted later, at its next step."""
        self._signalled = self._raised = True

    def close(self) -> None:
        """Stop the other ranks."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if not self._broken:
            self._broken = "the end of the study"
            # A process killed while rank 0 trained alone, or waited, cannot be reached any more.
            with contextlib.suppress(RuntimeError):
                self._processes.broadcast(None)
                self._processes.leave()

    def __enter__(self) -> Torchrun:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        # After an error of rank 0 alone, the others do not listen to broadcasts.
        if kind is not None and issubclass(kind, Exception):
            self._broken = self._broken or f"an error of the first one ({kind.__name__})"
        self.stop()
        self.close()

    def _stopping(self) -> bool:
        return self._signalled

    def _where(self, config: RunConfig) -> str:
        return str(
            self._processes.single_placement
            if self._alone(config)
            else self._processes.shared_placement
        )

    def _alone(self, config: RunConfig) -> str:
        try:
            # Which layers it has depends on neither the channels of its images nor its classes.
            model = build_model(config, in_channels=3, classes=10)
        except Exception as error:
            return f"it cannot be built: {error}"  # as will be stored when it is tried
        return why_single_process(config, model)

    def _lead(
        self,
        config: RunConfig,
        dataset: Dataset,
        log: worker.RunLog,
        *,
        resume: bytes | None,
        stopping: Callable[[], bool],
    ) -> Outcome:
        placement: Placement = self._processes.single_placement
        if not self._alone(config):
            self._processes.broadcast((config.to_json(), resume))
            placement = self._processes.shared_placement
        try:
            return train(
                config, dataset, log, resume=resume, stopping=stopping, placement=placement
            )
        except Exception as error:
            if placement.size == 1:
                raise
            cause = self._processes.published_error()
            self._processes.publish_error(traceback.format_exc())
            self._broken = (
                "a run that another process took over while this one was held up"
                if isinstance(error, LeaseLostError)
                else "one that failed, with the error that is stored with its run"
            )
            if not cause:
                raise
            raise NormkitError(f"Another process failed. {cause}") from error


def worker_loop(processes: Processes) -> bool:
    """Train along with rank 0 until it has no more runs.

    Returns:
        Whether all went well; what did not is printed, or known to the process that failed.
    """
    # The first process answers Ctrl-C and SIGTERM, and takes this one along.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    try:
        while (task := processes.broadcast()) is not None:
            text, resume = task
            config = RunConfig.from_json(text)
            dataset = worker.require_edition(config, worker.load(config.data))
            train(config, dataset, SilentLog(), resume=resume, placement=processes.shared_placement)
    except Exception:
        processes.publish_error(traceback.format_exc())
        return False
    processes.leave()
    return True
