"""Runs in the face mesh's own interpreter (MediaPipe 0.10.21 needs protobuf < 7): pictures in, meshes out.

It imports nothing of hpe. Requests on stdin: ``<HHBB`` width, height, largest number of faces, views (1, 2 or 7),
then RGB bytes. Replies on the first standard output: ``<B`` faces, then for each face ``<B`` views (the mirrored
one second, its points in the mirror's order; absent views are filled with NaN) and float32 ``views × 468 × 3``
in pixels of the picture, z away from the viewer as MediaPipe gives it. The arguments, if any, are a .tflite file in
place of the package's face_landmark.tflite and an empty folder for links, which is removed at the end.
"""

import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np

REQUEST = struct.Struct("<HHBB")
POINTS = 468
VIEW_PIXELS = 320
CROPS = ((0.0, 1.6), (15.0, 1.8), (-15.0, 1.8), (0.0, 1.35), (0.0, 2.2))
"""Rotation in degrees and side as a multiple of the face's, of the views after the plain and the mirrored."""


def use_model(model: Path, root: Path) -> None:
    """Let MediaPipe read its modules from a folder of links, in which the mesh's model is the given file.

    The legacy solutions have no option for it, and set the folder themselves at every start.
    """
    import mediapipe  # pyright: ignore[reportMissingImports]
    from mediapipe.python import solution_base  # pyright: ignore[reportMissingImports]

    modules = Path(str(mediapipe.__file__)).parent / "modules"
    mesh = root / "mediapipe/modules/face_landmark"
    mesh.mkdir(parents=True)
    for module in modules.iterdir():
        if module.name != mesh.name:
            (mesh.parent / module.name).symlink_to(module)
    for file in (modules / mesh.name).iterdir():
        (mesh / file.name).symlink_to(model.resolve() if file.name == "face_landmark.tflite" else file)
    real = solution_base.resource_util.set_resource_dir
    solution_base.resource_util.set_resource_dir = lambda _: real(str(root))


class Mesh:
    """MediaPipe's mesh on whole pictures and on turned crops of them, with one detector per largest number of faces."""

    def __init__(self, kind) -> None:
        self._kind = kind
        self._meshes = {}

    def find(self, picture, faces):
        """Points of up to so many faces, x and y in pixels, z in the same scale."""
        if faces not in self._meshes:
            self._meshes[faces] = self._kind(static_image_mode=True, max_num_faces=faces, refine_landmarks=False)
        height, width = picture.shape[:2]
        found = self._meshes[faces].process(picture).multi_face_landmarks or []
        return [np.array([(p.x * width, p.y * height, p.z * width) for p in face.landmark][:POINTS]) for face in found]

    def find_mirrored(self, picture, faces):
        """Faces of the mirrored picture, x as in the picture, points in the mirror's order."""
        found = self.find(np.ascontiguousarray(picture[:, ::-1]), faces)
        for face in found:
            face[:, 0] = picture.shape[1] - face[:, 0]
        return found

    def find_in_crop(self, picture, face, degrees, factor):
        """The one face of a turned square around a face, in pixels of the picture; None where none is found."""
        import cv2

        low, high = face[:, :2].min(0), face[:, :2].max(0)
        centre, zoom = (low + high) / 2, VIEW_PIXELS / max(factor * (high - low).max(), 1.0)
        there = cv2.getRotationMatrix2D((float(centre[0]), float(centre[1])), degrees, zoom)
        there[:, 2] += VIEW_PIXELS / 2 - centre
        found = self.find(cv2.warpAffine(picture, there, (VIEW_PIXELS, VIEW_PIXELS), flags=cv2.INTER_LINEAR), 1)
        if not found:
            return None
        back = np.linalg.inv(np.vstack((there, (0, 0, 1))))
        flat = np.c_[found[0][:, :2], np.ones(POINTS)] @ back.T
        return np.c_[flat[:, :2], found[0][:, 2] / zoom]

    def views(self, picture, faces, count):
        """Of each face its views, ``count`` × points × 3; NaN where a view did not find it."""
        found = self.find(picture, faces)
        mirrored = self.find_mirrored(picture, faces) if found and count > 1 else []
        for face in found:
            seen = [face, near(face, mirrored)] if count > 1 else [face]
            if count > 2:
                crops = [self.find_in_crop(picture, face, degrees, factor) for degrees, factor in CROPS]
                seen += [near(face, [] if crop is None else [crop]) for crop in crops]
            yield [np.full((POINTS, 3), np.nan) if view is None else view for view in seen]


def near(face, others):
    """The other face whose centre is nearest, if it is within half the face's size; else None."""
    size = np.ptp(face[:, :2], axis=0).max()
    gaps = [np.linalg.norm(face[:, :2].mean(0) - other[:, :2].mean(0)) for other in others]
    return others[int(np.argmin(gaps))] if gaps and min(gaps) < size / 2 else None


def main() -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what MediaPipe prints must not reach the replies
    os.environ.setdefault("GLOG_minloglevel", "2")
    import cv2

    links = Path(sys.argv[2]) if sys.argv[2:] else None
    if links:
        use_model(Path(sys.argv[1]), links)
    # It exists only in the mesh's environment, and must be imported after use_model.
    from mediapipe.python.solutions.face_mesh import FaceMesh  # pyright: ignore[reportMissingImports]

    cv2.setNumThreads(1)
    mesh = Mesh(FaceMesh)
    while len(header := sys.stdin.buffer.read(REQUEST.size)) == REQUEST.size:
        width, height, faces, count = REQUEST.unpack(header)
        data = sys.stdin.buffer.read(width * height * 3)
        found = list(mesh.views(np.frombuffer(data, np.uint8).reshape(height, width, 3), faces, count))
        replies.write(struct.pack("<B", len(found)))
        for views in found:
            replies.write(struct.pack("<B", len(views)))
            replies.write(np.asarray(views, np.float32).tobytes())
        replies.flush()
    if links:  # the parent removes it too, unless it was killed
        shutil.rmtree(links, ignore_errors=True)


if __name__ == "__main__":
    main()
