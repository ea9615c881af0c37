"""ONNX head-pose networks through ONNX Runtime, on CUDA or the CPU."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from hpe.core.console import say
from hpe.core.errors import UserError
from hpe.core.labels import ANGLES
from hpe.core.ranks import Ranks
from hpe.estimators.spec import HEAD_VALUES, VALUES, EstimatorSpec, Layout, OutputSpec

_CPU: Final = "CPUExecutionProvider"
_CUDA: Final = "CUDAExecutionProvider"
_WAY_OUT: Final = (
    "put its GPU build in its place (pip uninstall -y onnxruntime, then pip install --force-reinstall --no-deps "
    "onnxruntime-gpu)"
)
_NUMBERS: Final = {"tensor(float)": torch.float32, "tensor(float16)": torch.float16, "tensor(double)": torch.float64}
_ELEMENTS: Final = {torch.float32: np.float32, torch.float16: np.float16, torch.float64: np.float64}


@dataclass(frozen=True, slots=True)
class ImageInput:
    """The input of a graph.

    Attributes:
        dtype: of its numbers.
        layout: order of its dimensions.
        batch: the number of pictures that every call takes; None: any.
    """

    name: str
    dtype: torch.dtype
    layout: Layout
    batch: int | None

    def prepared(self, images: Float[Tensor, "batch 3 size size"]) -> Tensor:
        """Pictures in the graph's layout and type."""
        if self.layout == "nhwc":
            images = images.permute(0, 2, 3, 1)
        return images.to(self.dtype).contiguous()


class OnnxNetwork:
    """A session that takes and gives tensors of its device.

    On a CPU a call uses one thread, so that results do not depend on the machine's number of cores; the
    pass runs several calls side by side.
    """

    def __init__(self, path: Path, session: Any, image: ImageInput, outputs: list[str], device: torch.device) -> None:
        self.path, self.session, self.image, self.outputs, self.device = path, session, image, outputs, device

    @property
    def precision(self) -> str | None:
        """What ``hpe export`` has written into the file: ``fp32``, ``fp16`` or ``int8``; None: the file states none."""
        stated = self.session.get_modelmeta().custom_metadata_map.get("hpe.precision", "").strip('"')
        return stated if stated in ("fp32", "fp16", "int8") else None

    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        images = self.image.prepared(images)
        if self.image.batch is None:
            return self._run(images)
        size, count = self.image.batch, len(images)
        # The last pictures of a graph with a fixed batch are filled up with black ones, whose outputs are cut off.
        filled = torch.cat((images, images.new_zeros((-count % size, *images.shape[1:]))))
        parts = [self._run(part.contiguous()) for part in filled.split(size)]
        return tuple(torch.cat(of_output)[:count] for of_output in zip(*parts, strict=True))

    def _run(self, images: Tensor) -> tuple[Tensor, ...]:
        if self.device.type == "cpu":
            try:
                found = self.session.run(self.outputs, {self.image.name: images.numpy()})
            except Exception as error:  # ONNX Runtime's errors have no common base
                raise UserError(f"{self.path}: fails on {len(images)} pictures: {_first_line(error)}") from error
            return tuple(torch.from_numpy(array) for array in found)
        binding = self.session.io_binding()
        index, element = self.device.index or 0, _ELEMENTS[self.image.dtype]
        binding.bind_input(self.image.name, "cuda", index, element, tuple(images.shape), images.data_ptr())
        for name in self.outputs:
            binding.bind_output(name, "cpu")
        torch.cuda.current_stream(self.device).synchronize()  # ORT has a stream of its own
        self.session.run_with_iobinding(binding)
        return tuple(torch.from_numpy(array) for array in binding.copy_outputs_to_cpu())


def one_thread() -> Any:
    """Options of a session that runs a call on one thread, so that results do not depend on the number of cores."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return options


def load_onnx(path: Path, spec: EstimatorSpec, device: torch.device, *, fall_back: bool = False) -> OnnxNetwork:
    """The network of a file, checked against the inputs, outputs and shapes in its YAML.

    With ``fall_back`` it runs on the CPU, with a message, where ONNX Runtime cannot use the GPU.

    Raises:
        UserError: not an ONNX graph, or not as in the YAML, or the GPU cannot be used.
    """
    import onnxruntime

    options = one_thread()
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
        version = onnxruntime.__version__
        why = _first_line(error)
        raise UserError(
            f"{path}: not an ONNX network that ONNX Runtime {version} reads: {why}; a file of {path.stat().st_size:,} "
            "bytes, which is damaged, or no ONNX network, or of a newer version: get it again, or export it anew"
        ) from error
    if device.type == "cuda" and why is None and _CUDA not in session.get_providers():
        why = "this ONNX Runtime cannot load its CUDA libraries"
    if why is not None:
        if not fall_back:
            raise UserError(f"{path}: {why}; {_WAY_OUT}, or run with --device cpu")
        if Ranks.from_environment().main:
            say(f"hpe: {path.name} runs on the CPU: {why}; for the GPU {_WAY_OUT}")
        device = torch.device("cpu")
    image = _image_input(path, session.get_inputs(), spec)
    nodes = session.get_outputs()
    outputs = [] if spec.output is None else _outputs(path, nodes, spec.output)
    return OnnxNetwork(path, session, image, outputs + _further(path, nodes, spec), device)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


def _image_input(path: Path, inputs: Sequence[Any], spec: EstimatorSpec) -> ImageInput:
    """The graph's one input, checked against the YAML.

    Raises:
        UserError: it does not fit; the message has its type, layout and shape, and the lines of the YAML that would.
    """
    names = [node.name for node in inputs]
    wanted = spec.input.name or (names[0] if len(names) == 1 else None)
    if wanted not in names or len(names) != 1:
        listed = ", ".join(f"{node.name!r} ({_described(node)})" for node in inputs) or "(none)"
        raise UserError(
            f"{path}: input.name is {wanted!r}; the graph has {len(names)} inputs: {listed}; expected one input, the "
            "image: name it in the YAML, or export the network with the others as constants"
        )
    node = inputs[0]
    size, layout = spec.input.size, spec.input.layout
    if node.type not in _NUMBERS or not _fits(node.shape, layout, size):
        raise UserError(
            f"{path}: input {node.name!r} is {_described(node)}; the YAML describes float "
            f"[batch, {', '.join(map(str, _dimensions(layout, size)))}] (input.layout {layout}, input.size {size}); "
            f"{_way_out(node, size)}"
        )
    batch = node.shape[0]
    return ImageInput(node.name, _NUMBERS[node.type], layout, batch if isinstance(batch, int) else None)


def _dimensions(layout: Layout, size: int) -> tuple[int, int, int]:
    return (3, size, size) if layout == "nchw" else (size, size, 3)


def _fits(shape: Sequence[Any], layout: Layout, size: int) -> bool:
    """Whether pictures of a layout and size go into an input; dimensions that are no numbers take any."""
    return len(shape) == 4 and all(
        not isinstance(found, int) or found == expected
        for found, expected in zip(shape[1:], _dimensions(layout, size), strict=True)
    )


def _described(node: Any) -> str:
    """An input in words: type, shape and, where the channels show it, layout."""
    shape = node.shape
    layout = "" if len(shape) != 4 else " (NCHW)" if shape[1] in (1, 3) else " (NHWC)" if shape[3] in (1, 3) else ""
    return f"{node.type.removeprefix('tensor(').removesuffix(')')} {shape}{layout}"


def _way_out(node: Any, size: int) -> str:
    """What would make an input fit; ``size`` is that of the YAML, for a graph that takes any."""
    if node.type not in _NUMBERS:
        kinds = ", ".join(kind.removeprefix("tensor(").removesuffix(")") for kind in _NUMBERS)
        return f"export it with an input of {kinds}"
    if len(node.shape) == 4 and 1 in (node.shape[1], node.shape[3]):
        return "export it with an input of three channels (`colour: grey` gives the same grey in all three)"
    sides = {side for side in node.shape[1:] if isinstance(side, int)} - {3} or {size}
    for layout in get_args(Layout):
        if len(sides) == 1 and _fits(node.shape, layout, min(sides)):
            return f"set input.layout: {layout} and input.size: {min(sides)}"
    return "export it with pictures of three channels and one side, in four dimensions"


def _further(path: Path, nodes: Sequence[Any], spec: EstimatorSpec) -> list[str]:
    """The outputs behind those of the pose: its deviations, then the other heads."""
    expected = {} if spec.output is None or spec.output.deviations is None else {spec.output.deviations: len(ANGLES)}
    expected |= {name: HEAD_VALUES[head] for head, name in spec.heads.named.items()}
    shapes = {node.name: node.shape for node in nodes}
    for name, values in expected.items():
        if name not in shapes or list(shapes[name][1:]) != [values]:
            found = f"is {shapes[name]}" if name in shapes else "is not in the graph"
            raise UserError(f"{path}: output {name!r} {found}; by the YAML it should be [batch, {values}]")
        _refuse_other_numbers(path, next(node for node in nodes if node.name == name))
    return list(expected)


def _refuse_other_numbers(path: Path, output: Any) -> None:
    if output.type not in _NUMBERS:
        raise UserError(f"{path}: output {output.name!r} is {output.type}; expected {', '.join(_NUMBERS)}")


def _kind_for(values: int) -> str:
    """The way out where the outputs of a pose hold so many values in all, and the YAML's kind has others."""
    fitting = [kind for kind, shape in VALUES.items() if torch.Size(shape).numel() == values]
    ways = f"set output.kind to {' or '.join(fitting)}" if fitting else f"hpe reads {', '.join(VALUES)}"
    return f"{ways}, name other outputs in output.names, or use the weights that the YAML is for"


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
    by_name = {node.name: node for node in nodes}
    for name in names:
        _refuse_other_numbers(path, by_name[name])
        known = [size for size in shapes[name][1:] if isinstance(size, int)]
        expected = values // len(names)
        if len(known) == len(shapes[name]) - 1 and int(np.prod(known)) != expected:
            raise UserError(
                f"{path}: output {name!r} is {shapes[name]}: {int(np.prod(known))} values per face; output.kind "
                f"{spec.kind} over {len(names)} output(s) has {expected}; {_kind_for(int(np.prod(known)) * len(names))}"
            )
    return names
