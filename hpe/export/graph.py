"""From torch to ONNX: the graph, what its metadata say, and int8."""

import json
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from hpe.core.errors import UserError
from hpe.export.deployed import Deployed

OPSET: Final = 18
"""The newest that ONNX Runtime has read since 1.14, and the oldest that torch's exporter writes."""
INPUT: Final = "images"
_LARGEST_BATCH: Final = 1 << 16


def write_graph(network: Deployed, size: int, path: Path) -> list[str]:
    """Write a network as an ONNX graph with one input, ``images`` float [batch, 3, size, size], of any batch.

    Returns:
        The names of its outputs.

    Raises:
        UserError: the extra ``export`` is not installed, or torch cannot export a layer of the network.
    """
    _require()
    images = torch.zeros(2, 3, size, size)
    names = list(network.named(images))
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of torch's own use of onnxscript
            program = torch.onnx.export(
                network, (images,), dynamo=True, dynamic_shapes=({0: batch},), opset_version=OPSET, verbose=False,
                input_names=[INPUT], output_names=names, custom_translation_table=_translations(),
            )  # fmt: skip
        assert program is not None
        program.save(path, external_data=False)
    except Exception as error:  # what the exporter raises has no common base
        raise UserError(
            f"torch {torch.__version__} cannot export this network to ONNX: {_last_line(error)}; "
            "another model.backbone, or a newer torch, may help"
        ) from error
    return names


def _translations() -> dict[Any, Any]:
    """``hypot``, for which the exporter has no translation; 6D poses need it."""
    from onnxscript import opset18 as op

    def hypot(x: Any, y: Any) -> Any:
        return op.Sqrt(op.Add(op.Mul(x, x), op.Mul(y, y)))

    return {torch.ops.prims.hypot.default: hypot, torch.ops.aten.hypot.default: hypot}


def describe(path: Path, metadata: Mapping[str, Any]) -> None:
    """Replace the metadata of a graph by ours, one JSON value per name, in place.

    What the exporter writes beside every node (the call stack, with the paths of this machine) is removed: it says
    where the exporting user's files lie, and makes two exports of the same weights differ.
    """
    import onnx

    model = onnx.load(path)
    for node in model.graph.node:
        del node.metadata_props[:]
        node.ClearField("doc_string")
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output, *model.graph.initializer):
        value.ClearField("doc_string")
        if hasattr(value, "metadata_props"):
            del value.metadata_props[:]
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    onnx.helper.set_model_props(
        model, {f"hpe.{name}": json.dumps(value, ensure_ascii=False) for name, value in metadata.items()}
    )
    onnx.checker.check_model(model)
    onnx.save(model, path)


def quantise(source: Path, target: Path, images: Iterator[np.ndarray]) -> None:
    """Static int8 (QDQ) of the layers that take the time; what follows the network's raw outputs stays fp32.

    Args:
        source: the fp32 graph.
        target: the int8 graph.
        images: float [batch, 3, size, size] of 0 to 255, from which the ranges of the activations are taken.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.calibrate import CalibrationDataReader
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):
        def get_next(self) -> dict[str, np.ndarray] | None:
            batch = next(images, None)
            return None if batch is None else {INPUT: batch}

    prepared = source.with_name("prepared.onnx")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        # Folds constants and batch norms, so that ranges are taken where int8 arithmetic will be.
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared), str(target), Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            op_types_to_quantize=["Conv", "Gemm", "MatMul"], activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8, calibrate_method=CalibrationMethod.MinMax,
        )  # fmt: skip


def _require() -> None:
    try:
        import onnx  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"hpe export needs the package {error.name}; pip install 'hpe[export]'") from error


def _last_line(error: BaseException) -> str:
    lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()]
    return lines[-1][:200] if lines else type(error).__name__
