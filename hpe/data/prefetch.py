"""Work done by threads ahead of whoever uses its results."""

import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Final, TypeVar

Given = TypeVar("Given")
Made = TypeVar("Made")
_POLL_SECONDS: Final = 0.1


@contextmanager
def ahead(
    function: Callable[[Given], Made], items: Iterable[Given], *, threads: int, depth: int
) -> Iterator[Iterator[Made]]:
    """``map(function, items)`` in order, computed by threads, at most ``depth`` items ahead of the consumer.

    ``items`` is iterated in a thread of its own. An exception of either ends the iteration with that exception.
    """
    waiting: queue.Queue[Future[Made] | BaseException | None] = queue.Queue(depth)
    stop = threading.Event()

    def put(thing: "Future[Made] | BaseException | None") -> None:
        # A consumer that leaves early reads no more: a put without a timeout would then wait forever on a full queue.
        while not stop.is_set():
            try:
                waiting.put(thing, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return

    def submit_all() -> None:
        try:
            for item in items:
                if stop.is_set():
                    return
                put(pool.submit(function, item))
            put(None)
        except BaseException as error:
            put(error)

    def results() -> Iterator[Made]:
        while (thing := waiting.get()) is not None:
            if isinstance(thing, BaseException):
                raise thing
            yield thing.result()

    with ThreadPoolExecutor(threads, "faces", initializer=one_thread) as pool:
        submitting = threading.Thread(target=submit_all, name="submit", daemon=True)
        submitting.start()
        try:
            yield results()
        finally:
            stop.set()
            submitting.join()
            pool.shutdown(cancel_futures=True)


def one_thread() -> None:
    """Let this thread of a pool compute alone: the pool fills the cores by itself.

    Results then do not depend on the number of cores either: torch's convolutions give other last digits with other
    numbers of threads.
    """
    import torch

    torch.set_num_threads(1)
