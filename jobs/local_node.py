"""One more Ray node on this machine, for proofs: its raylet may be killed as a lost machine would be.

    python jobs/local_node.py 127.0.0.1:6379 1          (join that cluster with one CPU, until ended)

`ray start --address` refuses a cluster that keeps to loopback; this is what `ray.cluster_utils.Cluster` does instead.
"""

import sys
import threading

from ray._private.node import Node
from ray._private.parameter import RayParams


def main(address: str, num_cpus: int) -> None:
    """Join a cluster and stay until this process is ended or the raylet dies.

    Args:
        address: Of the cluster's head, "127.0.0.1:port".
        num_cpus: Logical CPUs offered.
    """
    params = RayParams(
        gcs_address=address,
        node_ip_address="127.0.0.1",
        num_cpus=num_cpus,
        object_store_memory=80_000_000,
        min_worker_port=0,
        max_worker_port=0,
    )
    Node(params, head=False, shutdown_at_exit=True, spawn_reaper=True, connect_only=False)
    threading.Event().wait()


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
