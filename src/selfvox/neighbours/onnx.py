"""ONNX: the network of a run for other runtimes, and a JSON file with what a prediction needs."""

from __future__ import annotations

import warnings
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from selfvox.errors import NumericalError, UsageError
from selfvox.prediction.load_model import load_model
from selfvox.prediction.scan_segmenter import OVERLAP
from selfvox.prediction.trained_model import (
    TrainedClassifier,
    TrainedModel,
    TrainedRegressor,
    TrainedSegmenter,
)
from selfvox.runs.atomic_files import atomic_write, sha256, write_json

INPUT = "image"
OUTPUTS = {
    TrainedSegmenter: "logits",
    TrainedClassifier: "probabilities",
    TrainedRegressor: "target",
}
RESIZE = "linear, to the size of the input"
TOLERANCE = 1e-4  # between torch and onnxruntime, as a share of the largest output above 1
# two, since the exporter would take a batch of one for a constant
EXAMPLE_BATCH = 2


class _WholeScanNetwork(nn.Module):
    """A classifier with probabilities as its output, ordered classes or not; or a regressor."""

    def __init__(self, model: TrainedClassifier | TrainedRegressor):
        super().__init__()
        self.network = model.network

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channel, *space) -> (batch, class), or (batch, 1)."""
        output: Tensor = self.network.probabilities(self.network(images))
        return output


def check_installed() -> None:
    """Refuse to go on without the libraries of ONNX.

    Raises:
        UsageError: one is not installed.
    """
    try:
        # only here: the three are optional, and take seconds
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"to: onnx needs {error.name}; install it with `pip install selfvox[onnx]`"
        ) from None


def write_onnx(run: Path, out: Path) -> Path:
    """Write the network as ONNX, and next to it as JSON what else a prediction needs.

    The network takes windows, or resized scans of a classifier, in batches of any size. Outputs are
    compared with torch's before anything is written.

    Args:
        run: a fine-tuning run.
        out: the file, `.onnx`; the other one ends in `.json`.

    Raises:
        UsageError: a library is missing, or ONNX cannot express the network.
        WeightsError: the run has no intact network.
        NumericalError: the outputs differ from torch's.
    """
    check_installed()
    model = load_model(run)
    network = model.network if isinstance(model, TrainedSegmenter) else _WholeScanNetwork(model)
    network.eval()
    output = OUTPUTS[type(model)]
    shape = (len(model.recipe.channel_names), *_edges(model))
    example = torch.randn(EXAMPLE_BATCH, *shape, generator=torch.Generator().manual_seed(0))
    content = _convert(network, example, output, str(run))
    _compare(network, content, example[:1], str(run))
    description = out.with_suffix(".json")
    with atomic_write(out) as temporary:
        temporary.write_bytes(content)
        entries: dict[str, Any] = {"file": out.name, "file_sha256": sha256(temporary)}
        # of the size that the network has for any input
        entries["output"] = {"name": output, "shape": ["batch", *_output_shape(model)]}
        # if it fails, the network is not written either
        write_json(description, entries | describe(model))
    return out


def describe(model: TrainedModel) -> dict[str, Any]:
    """What a program needs for predictions with a network, and nothing of the people.

    Args:
        model: of the run.
    """
    entries: dict[str, Any] = {
        "selfvox": version("selfvox"),
        "weights_sha256": model.sha256,
        "input": {
            "name": INPUT,
            "type": "float32",
            "shape": ["batch", len(model.recipe.channel_names), *_edges(model)],
        },
        "recipe": model.recipe.to_dict(),
        # of space, for the mean over all mirror images of a scan
        "mirror_axes": list(model.mirror_axes),
        "left_out": [
            "the preparation of a scan by the recipe, and the way back to its grid",
            "Monte-Carlo dropout",
            "the mean over mirror images",
        ],
    }
    if isinstance(model, TrainedRegressor):
        return entries | {"predicts": "number of a scan", "resize": RESIZE}
    if isinstance(model, TrainedClassifier):
        return entries | {
            "predicts": "class of a scan",
            "classes": list(model.classes),
            "names": list(model.names),
            "ordered": model.network.ordinal,
            "resize": RESIZE,
        }
    entries["left_out"].append("the mean over windows")
    return entries | {
        "predicts": "class of each voxel",
        "classes": {str(value): name for value, name in sorted(model.classes.items())},
        "activation": "sigmoid" if model.trained_on_regions else "softmax",
        "outputs": [{"name": name, "classes": list(values)} for name, values in model.outputs],
        # of regions: the class number that is written for each of them, later ones on top
        "region_labels": None if model.region_labels is None else list(model.region_labels),
        "window": {
            "size": list(model.window),
            "overlap": OVERLAP,
            "mean_of": "logits",
            "weights": "gaussian, as monai.data.utils.compute_importance_map",
            "smaller_scans": "mirrored at their edges, edge voxels included",
            "slice_axis": model.slice_axis,
        },
    }


def _edges(model: TrainedModel) -> tuple[int, ...]:
    return model.window if isinstance(model, TrainedSegmenter) else model.input_size


def _output_shape(model: TrainedModel) -> list[int]:
    if isinstance(model, TrainedRegressor):
        return [1]
    if isinstance(model, TrainedClassifier):
        return [len(model.classes)]
    return [len(model.outputs), *model.window]


def _convert(network: nn.Module, example: Tensor, output: str, origin: str) -> bytes:
    """The network as an ONNX file, with batches of any size."""
    batch = torch.export.Dim("batch", min=1)
    # the exporter warns of its own deprecations
    with warnings.catch_warnings(action="ignore"):
        try:
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[output],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            reason = str(error.__cause__ or error).partition("\n")[0]
            raise UsageError(
                f"{origin}: its network cannot be written as ONNX ({reason}); take --network plain "
                "or residual"
            ) from None
    assert program is not None
    return _without_traces(program.model_proto)


def _without_traces(model: Any) -> bytes:
    """The model without the exporter's notes, which name folders of this computer.

    Raises:
        UsageError: it is too large for one file.
    """
    import onnx  # only here: it is optional

    graph = model.graph
    values = [*graph.input, *graph.output, *graph.value_info, *graph.initializer]
    for item in [model, graph, *values, *graph.node, *model.functions]:
        del item.metadata_props[:]
        item.doc_string = ""
    for function in model.functions:
        for node in function.node:
            del node.metadata_props[:]
    if model.ByteSize() >= onnx.checker.MAXIMUM_PROTOBUF:
        raise UsageError("to: the network has over 2 GB, more than one ONNX file may have")
    onnx.checker.check_model(model)
    content: bytes = model.SerializeToString()
    return content


def _compare(network: nn.Module, content: bytes, images: Tensor, origin: str) -> None:
    """Refuse a file with other outputs than torch's."""
    import onnxruntime  # only here: it is optional

    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    (actual,) = session.run(None, {INPUT: images.numpy()})
    with torch.no_grad():
        expected = network(images).numpy()
    limit = TOLERANCE * max(1.0, float(np.abs(expected).max()))
    difference = float(np.abs(actual - expected).max())
    # also where it is not a number
    if not difference <= limit:
        raise NumericalError(
            f"{origin}: onnxruntime differs from torch by {difference:.2g}, and {limit:.2g} is the "
            "limit; nothing is written; update onnx, onnxruntime and onnxscript"
        )
