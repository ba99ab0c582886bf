"""What could not be observed, and why: said in the recording, never shown as zero."""

from __future__ import annotations


class Unobserved:
    """Module, site or parameter name -> one reason; the first that was found stands."""

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self.changed = False

    def add(self, name: str, reason: str) -> None:
        """Note a reason, once for each name."""
        if name not in self.reasons:
            self.reasons[name] = reason
            self.changed = True

    def drop(self, name: str) -> None:
        """It was observed after all."""
        if self.reasons.pop(name, None) is not None:
            self.changed = True
