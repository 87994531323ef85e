"""Settings of commands whose work a Dask cluster can share."""

from typing import Annotated, Protocol

from ...distill.settings import require

LOCAL = "local"
Scheduler = Annotated[
    str | None, "work on a Dask cluster: the address of its scheduler, e.g. tcp://node1:8786, or local"
]
NumLocal = Annotated[int | None, "workers of --scheduler local (default: one per GPU)"]


class ClusterSettings(Protocol):
    """Settings of a command, as far as they name a cluster."""

    @property
    def scheduler(self) -> str | None:
        """Address or file of a scheduler, or `LOCAL`."""

    @property
    def num_local(self) -> int | None:
        """Workers of a local cluster; by default one per GPU."""


def require_cluster(settings: ClusterSettings) -> None:
    """Refuse a number of workers that there cannot be, or that is not of a local cluster.

    Raises:
        DistillError: names the flag.
    """
    num_local = settings.num_local
    require(num_local is None or num_local >= 1, f"--num-local {num_local}: must be at least 1")
    require(num_local is None or settings.scheduler == LOCAL, "--num-local is for --scheduler local: pass that, too")
