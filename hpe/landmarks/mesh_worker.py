"""Runs in the face mesh's own interpreter (MediaPipe 0.10.21 needs protobuf < 7): pictures in, meshes out.

It imports nothing of hpe. Requests on stdin: ``<HHBB`` width, height, largest number of faces, views (1, 2 or 7),
then RGB bytes. Replies on the first standard output: ``<B`` faces, then for each face ``<B`` views (the mirrored
one second, its points in the mirror's order; absent views are filled with NaN) and float32 ``views × points × 3``
in pixels of the picture, z away from the viewer as MediaPipe gives it. The arguments are the number of points (468,
or 478 with both irises), ``insist`` (a face is known to be there) or ``once``, and, if any, a .tflite file in place
of the package's face_landmark.tflite and an empty folder for links, which is removed at the end.
"""

import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np

REQUEST = struct.Struct("<HHBB")
MESH_POINTS = 468
VIEW_PIXELS = 320
CROPS = ((0.0, 1.6), (15.0, 1.8), (-15.0, 1.8), (0.0, 1.35), (0.0, 2.2))
"""Rotation in degrees and side as a multiple of the face's, of the views after the plain and the mirrored."""
INSISTENT = ((0.0, 1.5), (0.0, 1.25), (15.0, 1.25), (-15.0, 1.25), (0.0, 0.75), (0.0, 2.0))
"""Rotation in degrees and enlargement about the middle, of further looks for a face that was not found."""
CONFIDENCE, INSISTENT_CONFIDENCE = 0.5, 0.1
"""Of the detector, from which it takes a face for one: MediaPipe's own, and where one is known to be there."""


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


def main() -> None:
    replies = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what MediaPipe prints must not reach the replies
    os.environ.setdefault("GLOG_minloglevel", "2")
    import cv2

    points, insist = int(sys.argv[1]), sys.argv[2] == "insist"
    links = Path(sys.argv[4]) if sys.argv[4:] else None
    if links:
        use_model(Path(sys.argv[3]), links)
    from mediapipe.python.solutions.face_mesh import FaceMesh  # pyright: ignore[reportMissingImports] (it lies in another environment)

    cv2.setNumThreads(1)
    meshes = {}

    def mesh(faces):
        if faces not in meshes:
            meshes[faces] = FaceMesh(
                static_image_mode=True,
                max_num_faces=faces,
                refine_landmarks=points > MESH_POINTS,
                min_detection_confidence=INSISTENT_CONFIDENCE if insist else CONFIDENCE,
            )
        return meshes[faces]

    def find(picture, faces):
        height, width = picture.shape[:2]
        found = mesh(faces).process(picture).multi_face_landmarks or []
        return [np.array([(p.x * width, p.y * height, p.z * width) for p in face.landmark][:points]) for face in found]

    def crop(picture, face, degrees, factor):
        low, high = face[:, :2].min(0), face[:, :2].max(0)
        centre, zoom = (low + high) / 2, VIEW_PIXELS / max(factor * (high - low).max(), 1.0)
        there = cv2.getRotationMatrix2D((float(centre[0]), float(centre[1])), degrees, zoom)
        there[:, 2] += VIEW_PIXELS / 2 - centre
        return find_in_view(picture, there, zoom, (VIEW_PIXELS, VIEW_PIXELS))

    def find_in_view(picture, there, zoom, size):
        found = find(cv2.warpAffine(picture, there, size, flags=cv2.INTER_LINEAR), 1)
        if not found:
            return None
        back = np.linalg.inv(np.vstack((there, (0, 0, 1))))
        flat = np.c_[found[0][:, :2], np.ones(points)] @ back.T
        return np.c_[flat[:, :2], found[0][:, 2] / zoom]

    def look_again(picture):
        height, width = picture.shape[:2]
        for degrees, zoom in INSISTENT:
            there = cv2.getRotationMatrix2D((width / 2, height / 2), degrees, zoom)
            face = find_in_view(picture, there, zoom, (width, height))
            if face is not None:
                return [face]
        return []

    def near(face, others):
        size = np.ptp(face[:, :2], axis=0).max()
        gaps = [np.linalg.norm(face[:, :2].mean(0) - other[:, :2].mean(0)) for other in others]
        return others[int(np.argmin(gaps))] if gaps and min(gaps) < size / 2 else None

    while len(header := sys.stdin.buffer.read(REQUEST.size)) == REQUEST.size:
        width, height, faces, views = REQUEST.unpack(header)
        data = sys.stdin.buffer.read(width * height * 3)
        picture = np.frombuffer(data, np.uint8).reshape(height, width, 3)
        found = find(picture, faces) or (look_again(picture) if insist else [])
        mirrored = []
        if found and views > 1:
            mirrored = find(np.ascontiguousarray(picture[:, ::-1]), faces)
            for face in mirrored:
                face[:, 0] = width - face[:, 0]
        replies.write(struct.pack("<B", len(found)))
        for face in found:
            seen = [face, near(face, mirrored)] if views > 1 else [face]
            if views > 2:
                seen += [
                    near(face, [other] if other is not None else [])
                    for other in (crop(picture, face, degrees, factor) for degrees, factor in CROPS)
                ]
            filled = [np.full((points, 3), np.nan) if view is None else view for view in seen]
            replies.write(struct.pack("<B", len(filled)))
            replies.write(np.asarray(filled, np.float32).tobytes())
        replies.flush()
    if links:  # the parent removes it too, unless it was killed
        shutil.rmtree(links, ignore_errors=True)


if __name__ == "__main__":
    main()
