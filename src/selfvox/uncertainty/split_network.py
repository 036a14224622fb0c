"""A network cut in two: what follows from its input alone, and what comes behind places that are changed each time."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

from torch import fx, nn


def split_network(
    network: nn.Module, behind: Mapping[nn.Module, nn.Module]
) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """Put a module behind each of some modules, and part what none of these precedes from the rest.

    Args:
        network: of one input.
        behind: by a module of the network, what its output goes through.

    Returns:
        `early`, from the input to a tuple of tensors, and `late`, from these to the network's output; both hold the
        network's own layers. None where torch.fx cannot follow the network, or the rest would write into what is
        shared.
    """
    try:
        tracer = _Tracer(behind)
        traced = fx.GraphModule(network, tracer.trace(network))
    except Exception:  # whatever a network's own code makes of the stand-in for its input
        return None
    layers = dict(traced.named_modules())
    late = set()
    for node in list(traced.graph.nodes):
        if node.op == "call_module" and layers[str(node.target)] in behind:
            name = f"behind_{node.name}"
            traced.add_submodule(name, behind[layers[str(node.target)]])
            with traced.graph.inserting_after(node):
                changed = traced.graph.call_module(name, (node,))
            node.replace_all_uses_with(
                changed, delete_user_cb=lambda user, changed=changed: user is not changed
            )
            late.add(changed)
    for node in traced.graph.nodes:
        if node.op == "output" or any(each in late for each in node.all_input_nodes):
            late.add(node)
    if any(_writes_into(node) not in late for node in late if _writes_into(node) is not None):
        return None
    return _parts(traced, late)


class _Tracer(fx.Tracer):
    """Follows a network, but not into the modules that something is put behind."""

    def __init__(self, whole: Collection[nn.Module]):
        super().__init__()
        self.whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` is one call; torch.fx goes into all that torch does not bring along."""
        return m in self.whole or super().is_leaf_module(m, module_qualified_name)


def _writes_into(node: fx.Node) -> object:
    """The value that a node changes in place, or None; `+=` does not, once it is traced."""
    return node.args[0] if node.op == "call_method" and str(node.target).endswith("_") else None


def _parts(
    traced: fx.GraphModule, late: Iterable[fx.Node]
) -> tuple[fx.GraphModule, fx.GraphModule]:
    nodes = list(traced.graph.nodes)
    constants = [node for node in nodes if node.op == "get_attr"]
    shared = [
        node
        for node in nodes
        if node not in late and node not in constants and set(node.users) & set(late)
    ]
    early, rest = fx.Graph(), fx.Graph()
    ours: dict[fx.Node, fx.Node] = {}
    theirs = {node: rest.placeholder(node.name) for node in shared}
    for node in nodes:
        if node not in late:
            ours[node] = early.node_copy(node, ours.__getitem__)
        if node in late or node in constants:
            theirs[node] = rest.node_copy(node, theirs.__getitem__)
    early.output(tuple(ours[node] for node in shared))
    return fx.GraphModule(traced, early), fx.GraphModule(traced, rest)
