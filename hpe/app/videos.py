"""The videos of the page: one is read at a time, in a thread; its results stay until the next one."""

import json
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from hpe.data.video import Video, annotated
from hpe.predict.face_reader import FaceReader
from hpe.predict.faces import MARKERS
from hpe.predict.tracks import FaceTracks
from hpe.predict.video import seen


class VideoJob:
    """A video that is read in a thread.

    Args:
        source: the uploaded file; removed at the end.
        out: the annotated video, whole or absent.
        table: its rows as JSON lines.
    """

    def __init__(self, reader: FaceReader, source: Path, out: Path, table: Path, max_pixels: int) -> None:
        self.out, self.table = out, table
        self._reader, self._source, self._max_pixels = reader, source, max_pixels
        self._state: dict[str, Any] = {"frames": 0, "of": None, "done": False, "problems": [], "error": None}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="video", daemon=True)
        self._thread.start()

    def state(self) -> dict[str, Any]:
        """What the page shows: frames so far and in all, tracks, problems, an error."""
        return dict(self._state)

    def stop(self) -> None:
        """End it and wait for the end; then there is no annotated video."""
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        try:
            self._read(self._state.update)
        except _StoppedError:
            self._state["error"] = "stopped"
        except Exception as error:  # whatever it is, the page must not take the video for finished
            self._state["error"] = one_line(error).replace(str(self._source), "this file")
        finally:
            self._state["done"] = True
            with suppress(OSError):
                self._source.unlink()

    def _read(self, tell: Callable[..., None]) -> None:
        tracks = FaceTracks()
        frames = with_face = 0
        with Video(self._source, max_pixels=self._max_pixels) as video:
            tell(of=video.frames)
            with (
                self.table.open("w", encoding="utf-8") as table,
                annotated(video, self.out) as write,
                seen(video, self._reader, tracks, MARKERS["axes"]) as read,
            ):
                for one in read:
                    if self._stop.is_set():
                        raise _StoppedError
                    assert one.drawn is not None
                    write(one.drawn, one.frame.seconds)
                    table.writelines(json.dumps(row, allow_nan=False) + "\n" for row in one.rows("video"))
                    frames, with_face = frames + 1, with_face + bool(one.faces)
                    tell(frames=frames, with_face=with_face, tracks=tracks.count)
            problems = [text.replace(str(self._source), "this file") for text in video.problems()]
            tell(problems=problems)


def one_line(error: Exception) -> str:
    """What an error says; without words, its name."""
    return " ".join(str(error).split()) or type(error).__name__


class _StoppedError(Exception):
    """The page does not want the video any more."""
