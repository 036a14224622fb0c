"""Checks of an encoder: its maps, its embeddings, and its weights in a segmenter."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from selfvox.models.build import build_encoder
from selfvox.models.encoder import Encoder
from selfvox.models.segmenter import Segmenter
from selfvox.runs.weights import state_tensors
from selfvox.testing.require import require

ENCODER_EDGE = 32  # voxels
# embeddings of different images must differ by this share of their length
MIN_EMBEDDING_DISTANCE = 0.15

MakeEncoder = Callable[[int, int], nn.Module]  # from spatial_dims and in_channels


def make_encoder(make: MakeEncoder, spatial_dims: int, in_channels: int = 1) -> Encoder:
    """The encoder of a seed; a module that returns feature maps is wrapped."""
    torch.manual_seed(0)
    return build_encoder(make(spatial_dims, in_channels), spatial_dims, in_channels)


def smooth_images(spatial_dims: int, count: int = 6) -> Tensor:
    """Images (count, 1, *space) that differ as anatomy does: in where things are."""
    rng = torch.Generator().manual_seed(0)
    coarse = torch.randn(count, 1, *(4,) * spatial_dims, generator=rng)
    mode = "trilinear" if spatial_dims == 3 else "bilinear"
    return F.interpolate(coarse, size=(ENCODER_EDGE,) * spatial_dims, mode=mode)


def relative_distance(vectors: Tensor) -> float:
    """Mean distance between vectors (n, width), as a share of their mean length."""
    return float(torch.pdist(vectors).mean() / vectors.norm(dim=1).mean())


def channels_and_strides_are_true(make: MakeEncoder, spatial_dims: int) -> None:
    """`channels` and `strides` are those of the maps, finest first."""
    encoder = make_encoder(make, spatial_dims)
    maps = encoder(smooth_images(spatial_dims))
    channels = tuple(level.shape[1] for level in maps)
    require(channels == tuple(encoder.channels), f"the maps have {channels} channels")
    for level, strides in zip(maps, encoder.strides, strict=True):
        expected = tuple(ENCODER_EDGE // stride for stride in strides)
        size = tuple(level.shape[2:])
        require(size == expected, f"a map of stride {strides} has {size} voxels, not {expected}")
    require(list(encoder.strides) == sorted(encoder.strides), "the maps are not finest first")


def embeddings_have_the_width(make: MakeEncoder, spatial_dims: int) -> None:
    """`embed` gives (batch, width)."""
    encoder = make_encoder(make, spatial_dims)
    images = smooth_images(spatial_dims)
    shape = tuple(encoder.embed(images).shape)
    expected = (len(images), encoder.width)
    require(shape == expected, f"an embedding has the shape {shape}, not {expected}")


def different_images_have_different_embeddings(make: MakeEncoder, spatial_dims: int) -> None:
    """Untrained embeddings of different images are apart: pooling has not averaged them away."""
    encoder = make_encoder(make, spatial_dims)
    distance = relative_distance(encoder.embed(smooth_images(spatial_dims)).detach())
    require(
        distance > MIN_EMBEDDING_DISTANCE,
        f"embeddings of different images differ by {distance:.3f} of their length; a mean after an "
        "instance norm is the same for all images",
    )


def a_segmenter_trains_every_weight(make: MakeEncoder, spatial_dims: int) -> None:
    """A segmenter of it gives logits of the input's size, and a gradient to every weight."""
    network = Segmenter(make_encoder(make, spatial_dims), 3)
    # of unequal edges: swapped axes would show
    shape = (*(ENCODER_EDGE,) * (spatial_dims - 1), 2 * ENCODER_EDGE)
    logits = network(torch.randn(2, 1, *shape))
    require(tuple(logits.shape) == (2, 3, *shape), f"logits have the shape {tuple(logits.shape)}")
    logits.square().mean().backward()
    for name, weight in network.named_parameters():
        require(weight.grad is not None, f"{name} has no gradient in a segmenter")
        assert weight.grad is not None
        require(weight.ndim == 1 or weight.grad.any(), f"the gradient of {name} is zero")


def the_embedding_trains_every_weight(make: MakeEncoder, spatial_dims: int) -> None:
    """An embedding has a gradient to every weight."""
    encoder = make_encoder(make, spatial_dims)
    loss = encoder.embed(smooth_images(spatial_dims)).square().mean()
    loss.backward()  # type: ignore[no-untyped-call]
    unused = [name for name, weight in encoder.named_parameters() if weight.grad is None]
    require(not unused, f"no gradient from the embedding: {', '.join(unused)}")


def the_state_has_every_tensor_once(make: MakeEncoder, spatial_dims: int) -> None:
    """The saved state of a segmenter has all tensors once, the encoder's by its name."""
    network = Segmenter(make_encoder(make, spatial_dims), 2)
    state = state_tensors(network)
    # by their memory: a tensor may have two names
    addresses = [tensor.data_ptr() for tensor in state.values()]
    require(len(addresses) == len(set(addresses)), "a tensor is in the state twice")
    complete = {tensor.data_ptr() for tensor in network.state_dict().values()}
    require(set(addresses) == complete, "a tensor is missing from the state")
    of_encoder = sum(name.startswith("encoder.") for name in state)
    expected = len(state_tensors(network.encoder))
    require(of_encoder == expected, f"{of_encoder} tensors are called encoder., not {expected}")


def three_channels_go_in(make: MakeEncoder, spatial_dims: int) -> None:
    """It takes images of several channels."""
    encoder = make_encoder(make, spatial_dims, 3)
    images = torch.randn(2, 3, *(ENCODER_EDGE,) * spatial_dims)
    shape = tuple(encoder.embed(images).shape)
    require(shape == (2, encoder.width), f"three channels give an embedding of the shape {shape}")
