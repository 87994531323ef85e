"""Scripts that change a process before its work begins."""

SLOW = """
from clipglot.encoders.image_tower import ImageTower
forward = ImageTower.forward
ImageTower.forward = lambda tower, x: time.sleep({}) or forward(tower, x)
"""
"""Each batch takes so many seconds longer."""

GATED = """
from pathlib import Path
from clipglot.encoders.image_tower import ImageTower
forward = ImageTower.forward
def wait_and_forward(tower, x):
    while not Path({!r}).exists():
        time.sleep(0.01)
    return forward(tower, x)
ImageTower.forward = wait_and_forward
"""
"""No batch is embedded until a file exists."""

ELSEWHERE = """
from pathlib import Path
import clipglot.jobs.dask_cluster as dask_cluster
Cache = dask_cluster.Cache
dask_cluster.Cache = lambda path, read_only: Cache(Path({!r}), read_only=read_only)
"""
"""A Dask worker finds another cache under the path of the driver's."""
