"""``hpe predict``: what a network predicts for the faces in images, folders, globs and shards.

In reading order:

    read_faces.py     the command: one row per face
    options.py        the command's options
    inputs.py         the images of the command line: files, folders, globs, shards
    whole_photos.py   do images that are used whole look like whole photos?
    face_finders.py   where the faces are: the whole image, a dataset's labels, or a detector
    mesh_finder.py    a landmark model finds the faces and gives their angles
    network.py        loads a run or an estimator and runs it
    faces.py          the answers: `hpe.Face`, and `hpe.Faces` of an image
    output.py         their rows as JSON lines, CSV or Parquet
    given.py          the images of a Python program: paths, PIL images, arrays, tensors
    face_reader.py    the same in Python: `hpe.load(run)(image)`
    tracks.py         faces followed and smoothed over the frames of a video
    video.py          `hpe predict` on videos and cameras: one row per face and frame, the video annotated
"""

from typing import TYPE_CHECKING

from hpe.core.handed_on import handed_on

if TYPE_CHECKING:
    from hpe.predict.read_faces import predict

__all__ = ["predict"]
__getattr__ = handed_on(__name__, dict.fromkeys(__all__, "read_faces"))
