"""Best weights of a run, by mean recall on the held-out pairs, and early stopping."""

from typing import Any

from .. import distributed
from .final import Weights
from .run_folder import mean_recall
from .student import Student


class BestWeights:
    """Weights of the best validation so far: the highest mean recall, the first of equal ones.

    Attributes:
        validation: metrics of that validation; None before the first.
        num_since: validations since then.
        weights: that it measured, in the main process.
    """

    def __init__(self, patience: int | None = None, content: str = "") -> None:
        """Begin before the first validation.

        Args:
            patience: validations in a row without a better one after which the run stops; None for no such end.
            content: name of the held-out pairs (`provenance.content_id`); recall on others does not compare.
        """
        self._patience, self._content = patience, content
        self.validation: dict[str, Any] | None = None
        self.num_since = 0
        self.weights: Weights | None = None

    @property
    def is_exhausted(self) -> bool:
        """Whether patience has run out."""
        return self._patience is not None and self.num_since >= self._patience

    def update(self, validation: dict[str, Any], student: Student) -> None:
        """Take in a validation; keep the weights if it is the best.

        Args:
            validation: its metrics, `step` among them.
            student: that was validated.
        """
        if self.validation is not None and mean_recall(validation) <= mean_recall(self.validation):
            self.num_since += 1
            return
        self.validation, self.num_since = validation, 0
        if distributed.is_main_process():
            self.weights = Weights.of(student, validation["step"])

    def state(self) -> dict[str, Any]:
        """Plain values and tensors for a checkpoint."""
        weights = vars(self.weights) if self.weights else None
        state = {"validation": self.validation, "num_since": self.num_since, "weights": weights}
        return state | {"content": self._content}

    def load(self, state: dict[str, Any]) -> None:
        """Restore a state that `state` returned; one of other held-out pairs is left, and the search begins anew."""
        if state["content"] != self._content:
            return
        self.validation, self.num_since = state["validation"], state["num_since"]
        if distributed.is_main_process() and state["weights"]:
            self.weights = Weights(**state["weights"])
