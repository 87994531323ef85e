"""Scripts that change a process before its pass begins."""

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
