"""One function over many items by several processes, results in the items' order.

The processes are forks of the caller: they come in milliseconds with all that it holds, so that function and items can be of any
kind and nothing is imported anew, and take the next item whenever they are done with one, as the caller itself does.
"""

import gc
import multiprocessing
import os
import pickle
import signal
import sys
import warnings
from collections.abc import Callable, Generator, Iterable
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from thingstuff.errors import ConfigError, EvaluationError

AHEAD = 64  # results that the caller holds before it leaves work to the others; more of theirs come while one takes long

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_order(function: Callable[[Item], Result], items: Iterable[Item], processes: int = 1) -> Generator[Result, None, None]:
    """`function` of each item, in their order, by so many processes, the caller's own among them.

    What goes wrong is raised where its result would come. Whoever stops early, and Ctrl-C, ends the other processes. They must
    leave GPUs alone, which do not outlive a fork. Of more than one process the items are listed first, so let them be small.

    Raises:
        ConfigError: less than one process, or more where none can be started: the system can't fork (Windows), or the caller is
            itself such a process, or a worker of a DataLoader.
        EvaluationError: a process came to an end, which the system may bring about when memory is short.
    """
    if processes < 1:
        raise ConfigError(f"processes must be 1 or more, got {processes}")
    if processes == 1:
        yield from map(function, items)
        return
    if not hasattr(os, "fork"):
        raise ConfigError("several processes are forks of the first one, which this system has not; leave processes at 1")
    if multiprocessing.current_process().daemon:
        raise ConfigError("this is a process of another one's, which may start none of its own; leave processes at 1")
    listed = list(items)
    context = multiprocessing.get_context("fork")
    taken = context.Value("q", 0)
    helpers: list[Any] = []
    readers: list[Connection] = []
    ready: dict[int, tuple[Any, Exception | None]] = {}  # of each place the result, or what went wrong
    try:
        for _ in range(min(processes, len(listed)) - 1):
            reader, writer = context.Pipe(duplex=False)
            helper = context.Process(target=_help, args=(function, listed, taken, reader, writer), daemon=True)
            with warnings.catch_warnings():
                # of other threads: a fork has none of them; NumPy needs none there, and torch is told to do without
                warnings.filterwarnings("ignore", message=".*fork", category=DeprecationWarning)
                helper.start()
            writer.close()  # so that the helper's end is the end of the pipe
            helpers.append(helper)
            readers.append(reader)
        for place in range(len(listed)):
            while place not in ready:
                # what lies there is fetched first; own work comes next; only when there is none left, or too much done, it waits
                mine = _next(taken) if len(ready) < AHEAD and not wait(readers, 0) else len(listed)
                if mine < len(listed):
                    ready[mine] = _tried(function, listed[mine])
                else:
                    _fetch(readers, ready)
            result, error = ready.pop(place)
            if error is not None:
                raise error
            yield result
    finally:
        for helper in helpers:
            helper.kill()
            helper.join()
        for reader in readers:
            reader.close()


def _help(function: Callable[[Any], Any], items: list[Any], taken: Any, reader: Connection, writer: Connection) -> None:
    """What a fork does: it takes places, and sends their results, until there are none left."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller hears Ctrl-C, and ends its helpers
    gc.freeze()  # a collection writes to every object there is, and a fork has a copy made of what is written to
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)  # those of the caller's are not there, and torch would wait for them without end
    reader.close()  # so that the caller's end is the end of the pipe
    while (place := _next(taken)) < len(items):
        found = _tried(function, items[place])
        try:
            if found[1] is not None:
                pickle.loads(pickle.dumps(found[1]))  # some errors come apart and don't go together again
            writer.send((place, found))
        except BrokenPipeError:  # the caller has gone
            return
        except Exception as error:
            what = f"a result ({error})" if found[1] is None else f"an error ({type(found[1]).__name__}: {found[1]})"
            writer.send((place, (None, EvaluationError(f"what a process found can't be sent to another: {what}"))))


def _next(taken: Any) -> int:
    """The first place that nobody has taken."""
    with taken.get_lock():
        taken.value += 1
        return taken.value - 1


def _tried(function: Callable[[Any], Any], item: Any) -> tuple[Any, Exception | None]:
    try:
        return function(item), None
    except Exception as error:
        return None, error


def _fetch(readers: list[Connection], ready: dict[int, tuple[Any, Exception | None]]) -> None:
    """Wait for results, and fetch all that lie there; the pipes of helpers that are done are put away."""
    for reader in wait(readers):
        assert isinstance(reader, Connection)
        try:
            place, found = reader.recv()
            ready[place] = found
        except EOFError:
            readers.remove(reader)
            reader.close()
    if not readers:
        raise EvaluationError("a process has ended before its work was done, perhaps for want of memory; try fewer processes")
