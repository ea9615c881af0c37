"""``hpe app``: a page in the browser that shows what a network reads in photos, before a camera and in videos.

In reading order:

    server.py    the command, and what the page may ask for
    videos.py    one video at a time, in a thread
    page.html    the page, with its style
    page.js      its script

Python's own server, because all of it is for one person on one machine: gradio, which this was to be made with, asks
for an older Pillow than hpe is tested with, and its pages load fonts and scripts from other servers.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpe.app.server import app

__all__ = ["app"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from hpe.app import server

        return getattr(server, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
