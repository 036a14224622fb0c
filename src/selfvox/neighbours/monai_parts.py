"""What MONAI bundles call: scans are read, predicted and written as by `selfvox predict`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import MapTransform
from monai.utils import convert_to_dst_type
from torch import Tensor, nn

from selfvox.data.formats.image import Image, write_label
from selfvox.data.preparation.prepare_case import read_case
from selfvox.data.sources import Case, find_dataset
from selfvox.errors import DataError
from selfvox.prediction.load_model import load_segmenter
from selfvox.prediction.scan_loop import all_cases
from selfvox.prediction.segment import predict_image
from selfvox.runs.device import make_fabric


class ScanNetwork(nn.Module):
    """A trained segmenter as a module that takes whole scans, as they are stored.

    It has no parameters for MONAI to load: its weights come from the run.

    Args:
        run: the folder with `network/`.
    """

    def __init__(self, run: str):
        super().__init__()
        self.model = load_segmenter(Path(run))

    def forward(self, scans: Tensor) -> Tensor:
        """(1, channel, *space), with its affine -> class numbers (1, 1, *space).

        Raises:
            DataError: the scan does not fit the recipe of the network.
        """
        affine = getattr(scans, "affine", None)
        if affine is None or len(scans) != 1:
            raise DataError("image: needs its affine and a batch of 1; read it by ReadScand")
        data = torch.as_tensor(scans[0]).cpu().numpy()
        fabric = make_fabric(scans.device.type, 1, "auto")
        image = Image(data, _first_affine(affine), "image")
        label = predict_image(self.model, image, probabilities=False, fabric=fabric).label
        predicted: Tensor
        predicted, *_ = convert_to_dst_type(label.astype(np.float32)[None, None], scans)
        return predicted


class LabelWriter:
    """Writes labels as `selfvox predict` does, for MONAI's `SaveImaged`.

    MONAI's own writer fails where the axes of a scan are stored in another order (1.6.1).
    """

    def __init__(self, **_: Any):
        self._label = np.zeros(())
        self._affine = np.eye(4)

    def set_data_array(self, data_array: Tensor, **_: Any) -> None:
        """Class numbers (1, *space)."""
        self._label = torch.as_tensor(data_array[0]).cpu().numpy().astype(np.uint16)

    def set_metadata(self, meta_dict: Mapping[str, Any], **_: Any) -> None:
        """The affine of the scan."""
        self._affine = _first_affine(meta_dict["affine"])

    def write(self, filename: str, **_: Any) -> None:
        """Write the label, on the grid of its scan."""
        like = Image(self._label[None], self._affine, "label")
        write_label(Path(filename), self._label, like)


class ReadScand(MapTransform):  # type: ignore[misc]  # of a library without types
    """Reads scans as `selfvox predict` reads them: a case, or the path of one.

    Args:
        keys: of the scans among the data.
        network: knows the number of channels.
    """

    def __init__(self, keys: Any, network: ScanNetwork):
        super().__init__(keys)
        self.channels = len(network.model.recipe.channel_names)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """Each scan as (channel, *space) with its affine.

        Raises:
            DataError: a file cannot be used.
        """
        read = dict(data)
        for key in self.key_iterator(read):
            case = read[key] if isinstance(read[key], Case) else _only_case(Path(read[key]))
            image = read_case(case, self.channels)
            voxels = torch.from_numpy(np.asarray(image.data, np.float32))
            affine = torch.from_numpy(np.asarray(image.affine, np.float64))
            # what `SaveImaged` names the label after
            meta = {"filename_or_obj": f"{case.id}.nii.gz"}
            read[key] = MetaTensor(voxels, affine=affine, meta=meta)
        return read


def list_scans(folder: str, out: str, network: ScanNetwork) -> list[dict[str, Case]]:
    """The scans of a folder, by the rules of `selfvox predict`.

    Raises:
        DataError: there is none, or they have other channels than the network.
        UsageError: the predictions would be written among them.
    """
    recipe = network.model.recipe
    cases = all_cases(Path(folder), "auto", Path(out), recipe, "the network was trained on")
    return [{"image": case} for case in cases]


def _first_affine(affine: Tensor) -> np.ndarray:
    """(4, 4): of a batch, the affine of its first scan."""
    first: np.ndarray = np.asarray(torch.as_tensor(affine).cpu(), np.float64).reshape(-1, 4, 4)[0]
    return first


def _only_case(path: Path) -> Case:
    cases = find_dataset(path).cases
    if len(cases) != 1:
        raise DataError(f"{path}: has {len(cases)} scans; name one of them")
    return cases[0]
