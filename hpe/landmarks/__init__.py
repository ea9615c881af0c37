"""Head pose from face points: a mesh, features that know what a rotation is, and the best of ten regressors.

Points are in picture axes: x right, y down, z towards the viewer, all in pixels. Angles are yaw, pitch, roll
in degrees (``hpe.geometry``).
"""
