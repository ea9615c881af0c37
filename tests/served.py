"""A folder behind an HTTP server on loopback, and what was asked of it."""

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any


@dataclass
class Served:
    url: str = ""
    asked: list[str] = field(default_factory=list)

    @property
    def tars(self) -> list[str]:
        return [path for path in self.asked if path.endswith(".tar")]


@contextmanager
def served(folder: Path) -> Iterator[Served]:
    found = Served()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, format: str, *_: Any) -> None:  # noqa: A002
            pass

        def do_GET(self) -> None:
            found.asked.append(self.path)
            super().do_GET()

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        found.url = f"http://127.0.0.1:{server.server_address[1]}"
        try:
            yield found
        finally:
            server.shutdown()
            thread.join()
