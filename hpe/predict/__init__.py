"""``hpe predict``: what a network reads of the faces in pictures, folders, globs and shards.

In reading order:

    read_faces.py     the command: one row per face
    inputs.py         what the user named: files, folders, globs, shards
    face_finders.py   the whole picture, or the faces a detector finds
    mesh_finder.py    a landmark model finds faces and angles itself
    network.py        loads a run or an estimator and asks it
    face_reader.py    the same in Python: `hpe.load(run).read(image)`
    output.py         the rows as JSON lines, CSV or Parquet
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpe.predict.read_faces import predict

__all__ = ["predict"]


def __getattr__(name: str) -> object:
    # Late, so that a file of this room can be imported without all that its command stands on.
    if name in __all__:
        from hpe.predict import read_faces

        return getattr(read_faces, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
