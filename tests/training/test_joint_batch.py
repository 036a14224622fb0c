"""Processes have the loss and the gradient of one with the joint batch: every task and loss.

Batches are made once, one for each process; the joint batch is all of them, one after the other.
"""

import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed

from selfvox.models.build import build_encoder, plan_encoder
from selfvox.models.classifier import Classifier
from selfvox.models.segmenter import Segmenter
from selfvox.models.synchronised_norm import synchronise_norms
from selfvox.tasks import task_from_setting, task_names
from selfvox.training.augment import STRENGTHS, Augmentation
from selfvox.training.dropout import TrainingDropout
from selfvox.training.segmentation_objective import LOSSES, SegmentationObjective
from selfvox.training.whole_scan_task import WholeScanObjective

IMAGES = 3  # of each process
EDGE = 48
SCANS = [[0, 0, 1], [1, 2, 2], [3, 3, 4], [0, 5, 5]]
PRETEXT = {
    **{name: {"name": name} for name in task_names()},
    # blocks that the image's end cuts off: other numbers of hidden voxels
    "masked cut": {"name": "masked", "block": 10},
    "jigsaw few": {"name": "jigsaw", "shuffles": 2, "colour_jitter": False},
    "rotation versions": {"name": "rotation", "versions": 3},
    "simclr scans": {"name": "simclr", "mask_same_scan": True},
    "simclr tiles": {"name": "simclr", "grid": 2},
    "exemplar plain": {"name": "exemplar", "distance": "plain"},
    "exemplar bank": {"name": "exemplar", "bank": 8},
    "exemplar contrastive": {"name": "exemplar", "objective": "contrastive"},
    "exemplar both": {"name": "exemplar", "objective": "contrastive", "bank": 8},
    "cpc conv": {"name": "cpc", "context": "conv"},
    "cpc pairwise": {"name": "cpc", "objective": "pairwise"},
    "cpc batch": {"name": "cpc", "negatives": "batch"},
    "cpc both": {"name": "cpc", "negatives": "batch", "objective": "pairwise"},
    "joint": {"name": "masked+exemplar"},
    "batch norm": {"name": "rotation", "norm": "batch"},
    "batch norm contrastive": {"name": "simclr", "norm": "batch"},
}
SEGMENTATION = {
    f"{loss} {'regions' if regions else 'classes'}{' ignored' * ignored}": (loss, regions, ignored)
    for (loss, regions), ignored in itertools.product(LOSSES, (False, True))
}
OF_TWO = [*PRETEXT, *SEGMENTATION, "grades", "ordinal grades", "regions, batch norm"]


def images_of(rank):
    rng = torch.Generator().manual_seed(rank)
    return torch.randn(IMAGES, 1, EDGE, EDGE, generator=rng)


def encoder_of(norm="instance"):
    torch.manual_seed(0)
    spec = plan_encoder(
        {"name": "plain", "channels": [4, 8], "norm": norm}, (EDGE, EDGE), (1.0, 1.0)
    )
    return build_encoder(spec, 2, 1)


# that gather embeddings of all processes, or statistics
OF_FOUR = ["simclr scans", "batch norm contrastive"]


def pretext_case(name, processes):
    """A module of encoder and head, the batch of each process, and a loss of both."""
    setting = dict(PRETEXT[name])
    encoder = encoder_of(setting.pop("norm", "instance"))
    task = task_from_setting(setting).configure((EDGE, EDGE), (1.0, 1.0))
    module = torch.nn.ModuleList([encoder, task.head(encoder)])
    batches = [
        task.make_batch(
            images_of(rank), torch.Generator().manual_seed(7 + rank), torch.tensor(SCANS[rank])
        )
        for rank in range(processes)
    ]
    return module, batches, lambda batch: task.loss(*module, batch).loss


def downstream_case(name):
    """The same of a fine-tuning."""
    encoder = encoder_of("batch" if "batch norm" in name else "instance")
    augmentation = Augmentation(STRENGTHS["none"], ())
    batches = [{"image": images_of(rank), "spacing": torch.ones(IMAGES, 2)} for rank in range(2)]
    if "grades" in name:
        network = Classifier(encoder, 3, ordinal=name == "ordinal grades", linear=True)
        objective = WholeScanObjective(
            network, augmentation, 0, TrainingDropout(encoder, network.head, None)
        )
        for rank, batch in enumerate(batches):
            batch["answer"] = torch.tensor([[0, 1, 2], [2, 2, 0]][rank])
    else:
        loss, is_regions, is_ignoring = SEGMENTATION.get(name, ("log-dice", True, False))
        network = Segmenter(encoder, 3, "instance", linear=True)
        # region, label value; the value 3 is ignored
        membership = np.array([[0, 1, 1, 0], [0, 0, 1, 0], [1, 0, 0, 0]], bool)
        objective = SegmentationObjective(
            network,
            [0, 1, 2],
            loss,
            augmentation,
            0,
            TrainingDropout(encoder, network.decoder, None),
            membership if is_regions else None,
            (1.0, 2.0, 3.0),
            3 if is_ignoring else None,
        )
        for rank, batch in enumerate(batches):
            # one process has few voxels of a class, and more that are ignored
            shares = torch.tensor([[0.5, 0.4, 0.05, 0.05], [0.3, 0.1, 0.2, 0.4]][rank])
            shares[3] *= is_ignoring
            rng = torch.Generator().manual_seed(rank)
            drawn = torch.multinomial(shares, IMAGES * EDGE**2, replacement=True, generator=rng)
            batch["label"] = drawn.view(IMAGES, EDGE, EDGE).to(torch.uint8)
    return objective, batches, lambda batch: objective(batch, 0, torch.Generator()).loss


def case_of(name, processes):
    return pretext_case(name, processes) if name in PRETEXT else downstream_case(name)


def join(batches):
    """The joint batch; of views, the first ones of all processes come before the second ones."""
    joint = {}
    for key in batches[0]:
        values = [batch[key] for batch in batches]
        kind = key.rpartition("/")[2]
        if kind in ("views", "scan") and len(values[0]) % 2 == 0:
            halves = [value.chunk(2) for value in values]
            joint[key] = torch.cat([half[part] for part in (0, 1) for half in halves])
        elif kind == "other":
            joint[key] = torch.cat([value + rank * IMAGES for rank, value in enumerate(values)])
        elif kind == "corner" and values[0].ndim == 1:
            joint[key] = values[0]
        else:
            joint[key] = torch.cat(values)
    return joint


def result_of(module, loss):
    """The loss, and gradients and buffers by name, after a backward pass."""
    loss.backward()
    gradients = {
        name: torch.zeros_like(value) if value.grad is None else value.grad
        for name, value in module.named_parameters()
    }
    return {"loss": loss.detach(), **gradients, **dict(module.named_buffers())}


def work(rank, folder, processes):
    """One of the processes: what it computes of each case, gradients as DDP takes their mean."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=processes
    )
    results = {}
    for name in OF_TWO if processes == 2 else OF_FOUR:
        module, batches, loss_of = case_of(name, processes)
        synchronise_norms(module)
        result = result_of(module, loss_of(batches[rank]))
        for key in ["loss", *dict(module.named_parameters())]:
            torch.distributed.all_reduce(result[key])
            result[key] = result[key] / processes
        results[name] = result
    torch.save(results, f"{folder}/{rank}.pt")


def compute_together(folder, count):
    """By process, what all computed together."""
    processes = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(folder), str(count)])
        for rank in range(count)
    ]
    try:
        assert [process.wait(600) for process in processes] == [0] * count
    finally:
        for process in processes:
            process.kill()
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(count)]


@pytest.fixture(scope="module")
def of_two(tmp_path_factory):
    return compute_together(tmp_path_factory.mktemp("two"), 2)


@pytest.fixture(scope="module")
def of_four(tmp_path_factory):
    return compute_together(tmp_path_factory.mktemp("four"), 4)


@pytest.mark.fault(
    "G-eq", "losses, batch norms and negatives over two processes", "those of one joint batch"
)
@pytest.mark.parametrize("name", OF_TWO)
def test_two_processes_compute_the_loss_the_gradient_and_the_buffers_of_one(name, of_two):
    assert_same_as_of_one(name, of_two)


@pytest.mark.parametrize("name", OF_FOUR)
def test_four_processes_compute_the_loss_the_gradient_and_the_buffers_of_one(name, of_four):
    assert_same_as_of_one(name, of_four)


def assert_same_as_of_one(name, computed):
    module, batches, loss_of = case_of(name, len(computed))
    expected = result_of(module, loss_of(join(batches)))
    for results in computed:
        assert results[name].keys() == expected.keys()
        for key, value in expected.items():
            largest = float(value.float().abs().max())
            torch.testing.assert_close(
                results[name][key], value.detach(), rtol=1e-4, atol=1e-5 * max(largest, 0.1)
            )


if __name__ == "__main__":
    torch.set_num_threads(1)
    work(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
