"""The versioned run directory: a store keyed by content, and runs that point into it."""

from clmoe.runs.commit import Workspace
from clmoe.runs.freshness import NodeState
from clmoe.runs.layout import Layout
from clmoe.runs.maintenance import Unreferenced, remove, unreferenced
from clmoe.runs.manifest import Manifest
from clmoe.runs.plan import Node, Plan, node_command, order_tasks
from clmoe.runs.pointers import Change
from clmoe.runs.run import Run

__all__ = [
    "Change",
    "Layout",
    "Manifest",
    "Node",
    "NodeState",
    "Plan",
    "Run",
    "Unreferenced",
    "Workspace",
    "node_command",
    "order_tasks",
    "remove",
    "unreferenced",
]
