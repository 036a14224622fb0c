"""A stand-in for a GPU: tensors that say they are on one, and count copies and waits.

Each has a tensor of the CPU, on which every operation is computed. Operations that mix both kinds,
which a GPU refuses, are listed. Copies from one to the other are counted, and so are operations for
which the CPU would wait until the GPU has computed everything before.
"""

from collections import Counter
from contextlib import contextmanager
from unittest import mock

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# autograd needs a GPU for tensors that say cuda
DEVICE = torch.device("meta")
aten = torch.ops.aten
# their results, or the shapes of their results, are numbers that the CPU needs
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten.repeat_interleave.Tensor,
    aten.bincount.default,
}


class Marked(torch.Tensor):
    """A tensor that says it is on a GPU."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=DEVICE,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner):
        self.inner = inner

    def __repr__(self):
        return f"Marked({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        # outside of `counted`
        return Traffic().__torch_dispatch__(func, types, args, kwargs)


class Traffic(TorchDispatchMode):
    """Computes with marked tensors, and counts."""

    def __init__(self):
        super().__init__()
        self.copies = Counter()  # by direction
        self.waits = Counter()  # by operation
        self.mixed = []  # operations that a GPU would refuse

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        flat = [
            leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)
        ]
        is_marked = any(isinstance(leaf, Marked) for leaf in flat)
        target = kwargs.get("device")
        if func is aten._to_copy.default and target is not None:
            return self._move(func, args, kwargs, torch.device(target).type == DEVICE.type)
        if func is aten.copy_.default and len(flat) == 2 and flat[0].ndim:
            if isinstance(flat[0], Marked) != isinstance(flat[1], Marked):
                self._count_copy(to_gpu=isinstance(flat[0], Marked))
            _unwrapped(func, args, kwargs)
            return args[0]
        if target is not None and torch.device(target).type == DEVICE.type:
            # made there: nothing is copied
            kwargs["device"] = torch.device("cpu")
            return _marked(_unwrapped(func, args, kwargs))
        if not is_marked:
            return func(*args, **kwargs)
        self._check_mixed(func, flat)
        if func in WAITING or (func in INDEXING and _has_mask(args[1])):
            self.waits[str(func)] += 1
        if func is aten._local_scalar_dense.default:
            return _unwrapped(func, args, kwargs)
        result = _unwrapped(func, args, kwargs)
        return _in_place(func, args, kwargs, result)

    def _move(self, func, args, kwargs, to_gpu):
        from_gpu = isinstance(args[0], Marked)
        if from_gpu != to_gpu:
            self._count_copy(to_gpu)
        kwargs["device"] = torch.device("cpu")
        result = _unwrapped(func, args, kwargs)
        return _marked(result) if to_gpu else result

    def _count_copy(self, to_gpu):
        self.copies["to the GPU" if to_gpu else "to the CPU"] += 1
        if not to_gpu:
            self.waits["copy to the CPU"] += 1

    def _check_mixed(self, func, flat):
        on_cpu = [leaf for leaf in flat if not isinstance(leaf, Marked) and leaf.ndim]
        # an index may be on the CPU, and is then copied
        if on_cpu and func in INDEXING:
            self.copies["to the GPU"] += len(on_cpu)
        elif on_cpu:
            self.mixed.append(str(func))


INDEXING = {
    aten.index.Tensor,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten.index_put.default,
}


def _has_mask(indices):
    return any(index is not None and index.dtype == torch.bool for index in indices)


def _inner(leaf):
    return leaf.inner if isinstance(leaf, Marked) else leaf


def _marked(value):
    return pytree.tree_map(
        lambda leaf: (
            Marked(leaf)
            if isinstance(leaf, torch.Tensor) and not isinstance(leaf, Marked)
            else leaf
        ),
        value,
    )


def _unwrapped(func, args, kwargs):
    args, kwargs = pytree.tree_map(_inner, (args, kwargs))
    return func(*args, **kwargs)


def _in_place(func, args, kwargs, result):
    """What an operation returns: one of its arguments, where it writes there."""
    if func._schema.is_mutable:
        written = [
            value
            for argument, value in zip(func._schema.arguments, args, strict=False)
            if argument.alias_info is not None and argument.alias_info.is_write
        ]
        if isinstance(result, torch.Tensor) and written:
            return written[0]
        if "out" in kwargs:
            return kwargs["out"]
    return _marked(result)


def to_gpu(tensor):
    """A marked copy of a tensor, which is not counted."""
    return Marked(tensor.detach().clone())


def move_module(module):
    """Mark all parameters and buffers of a module."""
    for owner in module.modules():
        for name, value in list(owner._parameters.items()):
            if value is not None:
                owner._parameters[name] = Marked(value.detach()).requires_grad_()
        for name, value in list(owner._buffers.items()):
            if value is not None:
                owner._buffers[name] = Marked(value)
    return module


@contextmanager
def counted():
    """Count copies and waits of what is computed with marked tensors meanwhile."""
    real = torch.autocast

    def autocast(device_type, *args, **kwargs):
        return real("cpu" if device_type == DEVICE.type else device_type, *args, **kwargs)

    with mock.patch.object(torch, "autocast", autocast), Traffic() as traffic:
        yield traffic
