"""Rules that keep jobs off nodes, and their words."""

from collections.abc import Mapping

from tunesmith_jobs.needs import Need
from tunesmith_jobs.room import Room, misfit

MESSAGES = {
    "NO_NODES": "no node has registered; start an agent with `tunesmith serve agent`",
    "UNSATISFIABLE": "no node of the fleet could take it, busy or not",
    "NODE_NOT_READY": "the nodes that would fit cannot be reached",
    "NODE_CORDONED": "the nodes that would fit are cordoned",
    "OTHER_NODE": "spec.resources.node names another node",
    "LABELS": "the labels of spec.resources.node_labels are missing",
    "MEMORY": "it has less memory than spec.resources.memory_bytes",
    "GPUS": "it has fewer GPUs than spec.resources.gpus_per_node",
    "NO_FREE_SLOT": "every fitting node is busy; the job starts when one is free",
    "NO_FREE_GPU": "no fitting node has enough free GPUs",
    "ROOM_HELD": "the free room is kept for a job before it",
    "ROOM_PROMISED": "a node is being vacated for it",
    "GANG": "too few nodes are free",
    "QUOTA": "the project's quota is used up",
}
# The same of one node.
OF_NODE = {
    **MESSAGES,
    "NO_FREE_SLOT": "its slots are taken",
    "NO_FREE_GPU": "it has too few free GPUs",
    "ROOM_HELD": "its free room is kept for a job before this one",
    "NODE_NOT_READY": "it cannot be reached",
    "NODE_CORDONED": "it is cordoned",
}
# Rules by which a node takes nothing new.
CLOSED = ("NODE_CORDONED", "NODE_NOT_READY")
# What an idle node lacks, from what is nearest to fitting to what is farthest.
_SHORTFALL = {
    "NO_FREE_SLOT": "no node has a slot",
    "GPUS": "no node has the GPUs of spec.resources.gpus_per_node",
    "MEMORY": "no node has the memory of spec.resources.memory_bytes",
    "LABELS": "no node carries the labels of spec.resources.node_labels",
    "OTHER_NODE": "the node named by spec.resources.node is not in the fleet",
}


def why(room: Room, need: Need, num_fitting: int) -> tuple[str, str]:
    """Returns the reason and the sentence for a need that does not fit now."""
    if not room.nodes:
        return "NO_NODES", MESSAGES["NO_NODES"]
    rules = room.rules(need)
    if rules[""] < need.num_nodes:
        return _never(need, rules)
    if num_fitting:
        return "GANG", f"{num_fitting} of {need.num_nodes} nodes are free; all are reserved at once"
    reason = "NO_FREE_SLOT"
    if any(room.is_kept(need, node_id) for node_id in room.kept):
        reason = "ROOM_HELD"
    elif room.has_slot(need):
        reason = "NO_FREE_GPU"
    return reason, MESSAGES[reason]


def _never(need: Need, rules: Mapping[str, int]) -> tuple[str, str]:
    """The reason where too few nodes could take the job even if all were idle."""
    could = sum(rules.get(rule, 0) for rule in ("", *CLOSED))
    if could >= need.num_nodes:
        reason = next(rule for rule in CLOSED if rules.get(rule))
        return reason, MESSAGES[reason]
    if could:
        return "UNSATISFIABLE", f"it needs {need.num_nodes} nodes and {could} of the fleet fit"
    nearest = next(rule for rule in _SHORTFALL if rules.get(rule))
    return "UNSATISFIABLE", f"{MESSAGES['UNSATISFIABLE']}: {_SHORTFALL[nearest]}"


def of_node(room: Room, need: Need, node_id: str) -> str:
    """Returns the rule that keeps a job off a node; empty if it fits."""
    node = room.nodes[node_id]
    if rule := misfit(need, node) or node.closed:
        return rule
    if room.fits(need, node_id):
        return ""
    if room.is_kept(need, node_id):
        return "ROOM_HELD"
    return "NO_FREE_GPU" if room.left[node_id].slots >= 1 else "NO_FREE_SLOT"
