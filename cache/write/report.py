"""Report of a pass: counts of images, and seconds by stage."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields


@dataclass(frozen=True, kw_only=True)
class PassReport:
    """Counts and seconds of a pass, so far or at its end.

    The stages run at the same time, so their seconds do not add up to `wall_s`. Each stage counts for itself; the pass
    puts the counts together.

    Attributes:
        num_pictures: images that this pass tried.
        num_embedded: those that were embedded.
        failed: images that this pass could not read or decode, by status.
        num_copied: images with the bytes of an earlier one of their chunk; the tower saw only the first.
        num_died: decoding processes that died and were replaced.
        wall_s: seconds from start to end.
        read_s: seconds spent reading images, summed over the decoding processes.
        decode_s: seconds spent decoding them, summed over the decoding processes.
        wait_s: seconds the pass waited for decoded images.
        others_s: seconds it waited for other processes: for a worker to come, or for the ranks of `torchrun`.
        transfer_s: seconds in which pixels moved to the device and were normalized.
        forward_s: seconds in which the tower computed.
        tower_s: seconds the pass waited for the tower.
        write_s: seconds spent writing, in a thread beside the tower.
        write_wait_s: seconds the pass waited for that thread.
    """

    num_pictures: int = 0
    num_embedded: int = 0
    failed: Mapping[str, int] = field(default_factory=dict)
    num_copied: int = 0
    num_died: int = 0
    wall_s: float = 0.0
    read_s: float = 0.0
    decode_s: float = 0.0
    wait_s: float = 0.0
    others_s: float = 0.0
    transfer_s: float = 0.0
    forward_s: float = 0.0
    tower_s: float = 0.0
    write_s: float = 0.0
    write_wait_s: float = 0.0

    def __add__(self, other: "PassReport") -> "PassReport":
        """What two parts of a pass have done together.

        >>> (PassReport(num_pictures=2, failed={"missing": 1}) + PassReport(failed={"missing": 2}, tower_s=1.5)).failed
        {'missing': 3}
        """
        numbers = [each.name for each in fields(self) if each.name != "failed"]
        sums = {name: getattr(self, name) + getattr(other, name) for name in numbers}
        return PassReport(failed=dict(Counter(self.failed) + Counter(other.failed)), **sums)

    @property
    def bottleneck(self) -> str:
        """The stage that the pass waited for longest.

        >>> PassReport(wait_s=1, tower_s=5, write_s=9, write_wait_s=2).bottleneck
        'the tower'
        >>> PassReport(wait_s=3, read_s=8, decode_s=2, tower_s=1).bottleneck
        'reading'
        """
        waits = {
            "the transfer to the device" if self.transfer_s > self.forward_s else "the tower": self.tower_s,
            "reading" if self.read_s > self.decode_s else "decoding": self.wait_s,
            "writing": self.write_wait_s,
            "other workers": self.others_s,
        }
        return max(waits, key=waits.__getitem__)
