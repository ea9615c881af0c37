"""Head-pose networks: how one is described, loaded, and checked against its description.

In reading order:

    spec.py        the description of a head-pose network: its YAML
    estimator.py   pictures in, angles and their uncertainty out
    load.py        an estimator from what the user names
    onnx.py        networks of ONNX Runtime
    weights.py     torch networks: Hopenet's, and our runs'
    landmarks.py   a landmark model behind the same interface
    probe.py       does an estimator match its description?
    diagnosis.py   names for systematic errors of angles
"""
