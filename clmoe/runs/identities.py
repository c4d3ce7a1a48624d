"""Which nodes of several plans are the same work, before any of it is done.

A fingerprint needs the digests of what a node reads, which exist once its inputs were made. An
identity takes their identities in place of digests: it is the hash of the stage, its part of the
recipe, and the identities of its inputs. Equal identities mean equal fingerprints; different ones
may still turn out equal, where different inputs come out the same, so counts are upper bounds.
"""

from __future__ import annotations

from clmoe.recipe.fingerprint import fingerprint
from clmoe.runs.plan import STAGE_VERSIONS, Node, Plan, Read


def identities(plan: Plan) -> dict[str, str]:
    """The identity of every node of a plan but the report, by its label."""
    found: dict[str, str] = {}

    def of(read: Read) -> str:
        node = read.node
        if node.stage == "merge" and node.position == 1 and read.output == "adapter":
            return found[plan.train(1).label]  # theta_1 = phi_1: nothing is merged yet
        return found[node.label]

    for node in plan.nodes():
        if node.stage != "report":
            found[node.label] = fingerprint(
                {
                    "stage": node.stage,
                    "version": STAGE_VERSIONS[node.stage],
                    "recipe": plan.part(node),
                    "reads": [[read.role, read.output, of(read)] for read in plan.reads(node)],
                }
            )
    return found


def trainings(plan: Plan) -> list[Node]:
    """The trainings of a plan, in order."""
    return [node for node in plan.nodes() if node.stage == "train"]
