"""A probe that tries to cheat: it sees only the borders of tiles, or other cues."""

import itertools

import numpy as np
import pytest
import torch


@pytest.fixture
def probe():
    """Accuracy, on half of the samples, of a linear probe that was fitted to the other half."""

    def accuracy(cues, answer, answers):
        """`seen` (sample, cue); `answer` (sample,)."""
        cues = torch.cat([cues, torch.ones(len(cues), 1)], 1).double().numpy()
        truth = np.eye(answers)[answer.numpy()]
        half = len(cues) // 2
        weights = np.linalg.lstsq(cues[:half], truth[:half], rcond=None)[0]
        return float(((cues[half:] @ weights).argmax(1) == truth[half:].argmax(1)).mean())

    return accuracy


@pytest.fixture
def border_accuracy(probe):
    """Accuracy of a probe of the borders of tiles."""

    def accuracy(tiles, answer, answers):
        """`tiles` (sample, tile, edge, edge) as shown; cues: border voxels, and how they match."""
        inside = torch.zeros(tiles.shape[2:], dtype=torch.bool)
        inside[1:-1, 1:-1] = True
        sides = {
            (axis, end): tiles.select(axis, end * (tiles.shape[axis] - 1))
            for axis in (2, 3)
            for end in (0, 1)
        }
        match = [
            (sides[axis, end][:, a] * sides[axis, 1 - end][:, b]).mean(1)
            for a, b in itertools.permutations(range(tiles.shape[1]), 2)
            for axis, end in sides
        ]
        return probe(
            torch.cat([tiles[:, :, ~inside].flatten(1), torch.stack(match, 1)], 1), answer, answers
        )

    return accuracy


@pytest.fixture
def smooth_noise():
    """Noise (4000, 1, 32, 32): a voxel depends on its neighbours, and on none two away."""
    noise = torch.randn(4000, 1, 33, 33, generator=torch.Generator().manual_seed(0))
    return noise[..., 1:, 1:] + noise[..., :-1, 1:] + noise[..., 1:, :-1] + noise[..., :-1, :-1]
