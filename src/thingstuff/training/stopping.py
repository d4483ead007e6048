"""What stops a run from outside: Ctrl-C and SIGTERM, heard at once, obeyed after the step, or an image of a validation."""

import contextlib
import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

import torch
from accelerate import Accelerator

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_HEARD = b"\nthingstuff: stopping after this step, or image of a validation, and saving; a second time stops at once\n"


class Stopped(KeyboardInterrupt):
    """A run was stopped by a signal after a step or in the validation that follows, and saved."""

    def __init__(self, words: str, number: int):
        super().__init__(words)
        self.exit_code = 128 + number  # as shells tell it


class StopSignals:
    """Within its block the first SIGINT and the first SIGTERM are noted; the second of a kind does what it did before.

    Of a kind, since torchrun hands Ctrl-C on as SIGTERM to processes that have heard it already. Elsewhere than in the main
    thread, which alone hears signals, nothing is noted; nor is a signal that the program ignores, as nohup has it.
    """

    def __init__(self) -> None:
        self.heard: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # None: of a library, which can't be put back
                    self._before[number] = before  # first, since the signal may come at once
                    signal.signal(number, self._hear)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)
        self._before = {}

    def _hear(self, number: int, _: FrameType | None) -> None:
        signal.signal(number, self._before[number])
        if os.getpid() != self._process:  # a process that was forked from this one
            signal.raise_signal(number)
        elif self.heard is None:
            self.heard = number
            with contextlib.suppress(OSError):  # nobody reads it; that stops no run from being saved
                os.write(2, _HEARD)  # a stream may be amid a write of its own

    def agreed(self, accelerator: Accelerator) -> int | None:
        """The signal that any process of the run has heard: all of them stop after the same step."""
        if accelerator.num_processes == 1:
            return self.heard
        heard = torch.tensor([self.heard or 0], device=accelerator.device)
        return int(accelerator.gather(heard).max()) or None  # pyright: ignore[reportAttributeAccessIssue]
