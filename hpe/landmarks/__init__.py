"""Head pose from face points: a mesh, features from rotations, and the best of ten regressors.

Points are in picture axes: x right, y down, z towards the viewer, all in pixels. Angles are yaw, pitch, roll
in degrees (``hpe.core.geometry``).

In reading order:

    topology.py      sets of face points: which point is which
    mesh.py          the face mesh in a process of its own, behind a pipe
    mesh_worker.py   what runs in the mesh's own interpreter
    extract.py       ``hpe landmarks extract``
    table.py         faces as arrays: points, and angles that are known
    align.py         rotations from points
    features.py      from points to what a regressor reads, and back
    regress.py       the regressors
    pnp.py           the geometric route
    seed.py          the original project's method, with its faults
    scores.py        errors with intervals
    compare.py       ``hpe landmarks compare``: nested cross-validation
    report.py        a comparison to read
    model.py         a fitted regressor on disk
    estimator.py     pictures to angles by mesh and regressor
    draw.py          axes on pictures
    video.py         axes on videos, smoothed
    disk.py          error messages for files
    commands.py      ``hpe landmarks …``: the command line
"""
