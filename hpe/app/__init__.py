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

from hpe.core.handed_on import handed_on

if TYPE_CHECKING:
    from hpe.app.server import app

__all__ = ["app"]
__getattr__ = handed_on(__name__, dict.fromkeys(__all__, "server"))
