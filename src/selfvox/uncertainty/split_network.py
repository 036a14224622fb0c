"""Split a network in two: before and after layers that change every time."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import fx, nn


def split_network(
    network: nn.Module, layer_after: Mapping[nn.Module, nn.Module]
) -> tuple[fx.GraphModule, fx.GraphModule] | None:
    """Insert a layer after some modules, and separate what none of these precedes from the rest.

    Args:
        network: of one input.
        layer_after: by a module of the network, the layer that its output goes through.

    Returns:
        `early`, from the input to a tuple of tensors, and `late`, from these to the network's
        output; both use the network's own layers. None where torch.fx cannot trace the network, or
        the late part would write into what is shared.
    """
    try:
        tracer = _Tracer(layer_after)
        traced = fx.GraphModule(network, tracer.trace(network))
    except Exception:  # whatever the network's own code does with the tracer's proxy of its input
        return None
    late = _insert(traced, layer_after)
    for node in traced.graph.nodes:
        depends_on_late = any(source in late for source in node.all_input_nodes)
        if node.op == "output" or depends_on_late:
            late.add(node)
    for node in late:
        target = _written_value(node)
        # a shared value would differ for the next pass
        if target is not None and target not in late:
            return None
    return _separate(traced, late)


class _Tracer(fx.Tracer):
    """Traces a network, but not into the given modules."""

    def __init__(self, leaves: Collection[nn.Module]):
        super().__init__()
        self.leaves = leaves

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether `m` is one call; torch.fx traces into all modules that are not torch's own."""
        return m in self.leaves or super().is_leaf_module(m, module_qualified_name)


def _insert(traced: fx.GraphModule, layer_after: Mapping[nn.Module, nn.Module]) -> set[fx.Node]:
    """Insert the layers; returns their calls."""
    modules = dict(traced.named_modules())
    inserted = set()
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or modules[str(node.target)] not in layer_after:
            continue
        name = f"after_{node.name}"
        traced.add_submodule(name, layer_after[modules[str(node.target)]])
        with traced.graph.inserting_after(node):
            changed = traced.graph.call_module(name, (node,))
        # all users but the new call itself
        node.replace_all_uses_with(
            changed, delete_user_cb=lambda user, changed=changed: user is not changed
        )
        inserted.add(changed)
    return inserted


def _written_value(node: fx.Node) -> object:
    """The value that a node changes in place; once it is traced, `+=` makes a new one."""
    return node.args[0] if node.op == "call_method" and str(node.target).endswith("_") else None


def _separate(
    traced: fx.GraphModule, late: Collection[fx.Node]
) -> tuple[fx.GraphModule, fx.GraphModule]:
    """The early nodes as a graph that gives what the late ones use; and the late nodes."""
    nodes = list(traced.graph.nodes)
    constants = {node for node in nodes if node.op == "get_attr"}  # both parts read their own
    shared = [
        node
        for node in nodes
        if node not in late and node not in constants and any(user in late for user in node.users)
    ]
    early_graph = fx.Graph()
    late_graph = fx.Graph()
    early_nodes: dict[fx.Node, fx.Node] = {}
    late_nodes = {node: late_graph.placeholder(node.name) for node in shared}
    for node in nodes:
        if node not in late:
            early_nodes[node] = early_graph.node_copy(node, early_nodes.__getitem__)
        if node in late or node in constants:
            late_nodes[node] = late_graph.node_copy(node, late_nodes.__getitem__)
    early_graph.output(tuple(early_nodes[node] for node in shared))
    return fx.GraphModule(traced, early_graph), fx.GraphModule(traced, late_graph)
