"""What a pass did and where its time went."""

from dataclasses import dataclass


@dataclass(kw_only=True)
class PassReport:
    """Counts and seconds of a pass. Its stages run at the same time, so their seconds are no parts of a whole.

    Attributes:
        num_pictures: images that this pass tried.
        num_embedded: of these, the embedded ones.
        num_copied: images whose bytes stood in their chunk already, which the tower did not see again.
        num_died: decoding processes that died and were replaced.
        wall_s: seconds from start to end.
        read_s: seconds spent reading images, summed over the workers.
        decode_s: seconds spent decoding, summed over the workers.
        wait_s: seconds the pass waited for decoded images.
        others_s: seconds it waited because other workers were at all that was left.
        transfer_s: seconds in which pixels moved to the device and were normalized.
        forward_s: seconds in which the tower computed.
        tower_s: seconds the pass waited for the tower.
        write_s: seconds spent writing, in a thread beside the tower.
        write_wait_s: seconds the pass waited for that thread.
    """

    num_pictures: int = 0
    num_embedded: int = 0
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

    @property
    def bottleneck(self) -> str:
        """The stage that the pass waited for longest.

        >>> PassReport(wait_s=1, tower_s=5, write_s=9, write_wait_s=2).bottleneck
        'the tower'
        >>> PassReport(wait_s=3, read_s=8, decode_s=2, tower_s=1).bottleneck
        'reading'
        """
        stages = {
            "the transfer to the device" if self.transfer_s > self.forward_s else "the tower": self.tower_s,
            "reading" if self.read_s > self.decode_s else "decoding": self.wait_s,
            "writing": self.write_wait_s,
            "other workers": self.others_s,
        }
        return max(stages, key=stages.__getitem__)
