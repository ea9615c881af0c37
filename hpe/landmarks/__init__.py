"""Head pose from face points: a mesh, features from rotations, and the best of ten regressors.

Points are in picture axes: x right, y down, z towards the viewer, all in pixels. Angles are yaw, pitch, roll
in degrees (``hpe.geometry``).
"""
