"""A Ray cluster of several nodes on this machine, of which some are lost."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from medray.benchmarks.processes import family
from medray.benchmarks.victim import Training
from medray.cluster import prepare_environment


class Nodes:
    """Nodes of one CPU each, and a head without any that no worker is placed on."""

    def __init__(self, cluster: Any) -> None:
        self._cluster = cluster
        self.environment = {"RAY_ADDRESS": cluster.address, "RAY_AUTH_MODE": "disabled"}
        """Of a command that works on it."""

    def strike(self, run: Training) -> None:  # noqa: ARG002
        """End all processes of a node on which a worker is training, as a power cut does."""
        self._cluster.remove_node(next(node for node in self._cluster.worker_nodes if _trains(node)), False)


def _trains(node: Any) -> bool:
    (raylet,) = node.all_processes["raylet"]
    return any("RayTrainWorker" in member.name for member in family(raylet.process.pid))


@contextmanager
def nodes(count: int) -> Iterator[Nodes]:
    """While the block runs there is a cluster of `count` nodes."""
    prepare_environment()
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
    try:
        for _ in range(count):
            cluster.add_node(num_cpus=1)
        yield Nodes(cluster)
    finally:
        cluster.shutdown()
