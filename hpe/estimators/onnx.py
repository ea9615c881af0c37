"""ONNX head-pose networks through ONNX Runtime, on CUDA or the CPU."""

import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor

from hpe.core.distributed import Ranks
from hpe.core.errors import UserError
from hpe.core.labels import ANGLES
from hpe.estimators.spec import HEAD_VALUES, VALUES, EstimatorSpec, OutputSpec

_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_WAY_OUT: Final = (
    "put its GPU build in its place (pip uninstall -y onnxruntime, then pip install --force-reinstall --no-deps "
    "onnxruntime-gpu)"
)
_FLOAT: Final = "tensor(float)"
_NUMBERS: Final = (_FLOAT, "tensor(float16)", "tensor(double)")


class OnnxNetwork:
    """A session that takes and gives tensors of its device.

    On a CPU a call uses one thread, so that results do not depend on the machine's number of cores; the
    pass runs several calls side by side.
    """

    def __init__(self, session: Any, image: str, outputs: list[str], device: torch.device) -> None:
        self.session, self.image, self.outputs, self.device = session, image, outputs, device

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.device.type == "cpu":
            found = self.session.run(self.outputs, {self.image: images.numpy()})
            return tuple(torch.from_numpy(array) for array in found)
        binding = self.session.io_binding()
        index = self.device.index or 0
        binding.bind_input(self.image, "cuda", index, np.float32, tuple(images.shape), images.data_ptr())
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        torch.cuda.current_stream(self.device).synchronize()  # ORT has a stream of its own
        self.session.run_with_iobinding(binding)
        return tuple(torch.from_numpy(array) for array in binding.copy_outputs_to_cpu())


def load_onnx(path: Path, spec: EstimatorSpec, device: torch.device, *, fall_back: bool = False) -> OnnxNetwork:
    """The network of a file, checked against the inputs, outputs and shapes in its YAML.

    With ``fall_back`` it runs on the CPU, with a message, where ONNX Runtime cannot use the GPU.

    Raises:
        UserError: not an ONNX graph, or not as in the YAML, or the GPU cannot be used.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    providers: list[Any] = [_CPU]
    why = None
    if device.type == "cuda":
        if _CUDA in onnxruntime.get_available_providers():
            with suppress(Exception):  # CUDA and cuDNN that came with wheels; without them it takes the system's
                onnxruntime.preload_dlls()
            providers.insert(0, (_CUDA, {"device_id": device.index or 0}))
        else:
            why = "this ONNX Runtime is built without CUDA"
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime's errors have no common base
        raise UserError(f"{path}: not an ONNX network: {str(error).splitlines()[0][:200]}") from error
    if device.type == "cuda" and why is None and _CUDA not in session.get_providers():
        why = "this ONNX Runtime cannot load its CUDA libraries"
    if why is not None:
        if not fall_back:
            raise UserError(f"{path}: {why}; {_WAY_OUT}, or run with --device cpu")
        if Ranks.from_environment().main:
            print(f"hpe: {path.name} runs on the CPU: {why}; for the GPU {_WAY_OUT}", file=sys.stderr, flush=True)
        device = torch.device("cpu")
    image = _image_input(path, session.get_inputs(), spec)
    nodes = session.get_outputs()
    outputs = [] if spec.output is None else _outputs(path, nodes, spec.output)
    return OnnxNetwork(session, image, outputs + _further(path, nodes, spec), device)


def _image_input(path: Path, inputs: Sequence[Any], spec: EstimatorSpec) -> str:
    names = [node.name for node in inputs]
    wanted = spec.input.name or (names[0] if len(names) == 1 else None)
    if wanted not in names or len(names) != 1:
        raise UserError(
            f"{path}: input.name is {wanted!r}; the graph has the inputs {', '.join(names) or '(none)'}; expected "
            "one input, the image"
        )
    node = inputs[0]
    size = spec.input.size
    fits = len(node.shape) == 4 and all(
        not isinstance(found, int) or found == expected
        for found, expected in zip(node.shape[1:], (3, size, size), strict=True)
    )
    if not fits or node.type != _FLOAT:
        raise UserError(
            f"{path}: input {node.name!r} is {node.type} {node.shape}; expected float [batch, 3, {size}, {size}] "
            "(the YAML's input.size)"
        )
    if isinstance(node.shape[0], int):
        raise UserError(
            f"{path}: input {node.name!r} has a fixed batch of {node.shape[0]}; export with a dynamic batch"
        )
    return node.name


def _further(path: Path, nodes: Sequence[Any], spec: EstimatorSpec) -> list[str]:
    """The outputs behind those of the pose: its deviations, then the other heads."""
    expected = {} if spec.output is None or spec.output.deviations is None else {spec.output.deviations: len(ANGLES)}
    expected |= {name: HEAD_VALUES[head] for head, name in spec.heads.named.items()}
    shapes = {node.name: node.shape for node in nodes}
    for name, values in expected.items():
        if name not in shapes or list(shapes[name][1:]) != [values]:
            found = f"is {shapes[name]}" if name in shapes else "is not in the graph"
            raise UserError(f"{path}: output {name!r} {found}; by the YAML it should be [batch, {values}]")
    return list(expected)


def _outputs(path: Path, nodes: Sequence[Any], spec: OutputSpec) -> list[str]:
    shapes = {node.name: node.shape for node in nodes}
    names = spec.names or list(shapes)
    if missing := [name for name in names if name not in shapes]:
        raise UserError(
            f"{path}: output.names: the graph has no output {', '.join(map(repr, missing))}; it has "
            f"{', '.join(f'{name} {shape}' for name, shape in shapes.items())}"
        )
    if len(names) not in (1, 3):
        raise UserError(
            f"{path}: the graph has {len(names)} outputs ({', '.join(names)}); name the one or three of the pose in "
            "output.names"
        )
    values = torch.Size(VALUES[spec.kind]).numel()
    if len(names) == 3 and spec.kind in ("sixd", "matrix"):
        raise UserError(f"{path}: output.kind {spec.kind} is one output, output.names gives three")
    kinds = {node.name: node.type for node in nodes}
    for name in names:
        if kinds[name] not in _NUMBERS:
            raise UserError(f"{path}: output {name!r} is {kinds[name]}; expected {', '.join(_NUMBERS)}")
        known = [size for size in shapes[name][1:] if isinstance(size, int)]
        expected = values // len(names)
        if len(known) == len(shapes[name]) - 1 and int(np.prod(known)) != expected:
            raise UserError(
                f"{path}: output {name!r} is {shapes[name]}: {int(np.prod(known))} values per face; output.kind "
                f"{spec.kind} over {len(names)} output(s) has {expected}"
            )
    return names
