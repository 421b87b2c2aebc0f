"""Run Ray clusters of several raylets on this machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Raylets:
    """Hold a cluster of raylets with one processor each; the first one also holds the cluster's state.

    Args:
        count: How many raylets.
    """

    def __init__(self, count: int) -> None:
        from ray.cluster_utils import Cluster

        options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": 100_000_000}
        self._options = options
        self._cluster: Any = Cluster(initialize_head=True, head_node_args=options)
        self._others = [self._cluster.add_node(**options) for _ in range(count - 1)]
        self.address: str = self._cluster.address

    def kill_one(self) -> None:
        """Kill the last raylet with its workers, and start another one."""
        self._cluster.remove_node(self._others.pop(), allow_graceful=False)
        self._others.append(self._cluster.add_node(**self._options))

    def close(self) -> None:
        """End all of them."""
        self._cluster.shutdown()


@contextmanager
def raylets(count: int) -> Iterator[Raylets]:
    """Yield a cluster that ends with the block."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    cluster = Raylets(count)
    try:
        yield cluster
    finally:
        cluster.close()
