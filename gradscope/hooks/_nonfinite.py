"""The first NaN or infinity: where it appeared, on which way, and whether it was made there or only carried.

All rows of a step reach the host together, so finding it costs nothing while training. The order is that of the
computation: weights, activations as they ran, gradients as the backward reached them, weight gradients, updates.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

from gradscope.hooks._step import Forward, Step
from gradscope.recording import Signal, Site, StepRecord

OnNonFinite = Literal["warn", "raise", "dump"]
Direction = Literal["forward", "backward", "parameter"]
ON_NONFINITE: tuple[OnNonFinite, ...] = ("warn", "raise", "dump")


class NonFiniteError(FloatingPointError):
    """Raised by `GradScope(..., on_nonfinite="raise")`, before the optimizer's step where there is one.

    Attributes:
        first: the `NonFinite` that was found.
    """

    def __init__(self, first: NonFinite) -> None:
        super().__init__(first.sentence)
        self.first = first


@dataclass(frozen=True)
class NonFinite:
    """The first entry that is NaN or infinite in one step.

    Attributes:
        step: number of the step.
        micro_step: which of its forward passes, from 0.
        signal: what was not finite first.
        direction: the way the signal flows there; `parameter` for weights, their gradients and updates.
        site: name of the site.
        producer: True where what the site was computed from was still finite, so that it was made there;
            False where it came with the input (a batch, or a loss, that is not finite); None where unknown.
        source: what it came from or was made between: a site's name, `<input>`, `<loss>`, `<rank>` (another
            rank), or "".
        nans: NaN entries at the site.
        infs: infinite ones.
        entries: all of them.
    """

    step: int
    micro_step: int
    signal: Signal
    direction: Direction
    site: str
    producer: bool | None
    source: str
    nans: int
    infs: int
    entries: int

    @property
    def sentence(self) -> str:
        """In words."""
        found = " and ".join(f"{n} {kind}" for n, kind in ((self.nans, "NaN"), (self.infs, "infinite")) if n)
        return f"step {self.step}: {found} of {self.entries} entries in the {self.signal} of {self.site!r}, {self._why}"

    @property
    def _why(self) -> str:
        if self.source == "<rank>":
            return "on another rank"
        if self.signal == "activation":
            if self.site == "<input>":
                return "the batch itself"
            return {
                True: "whose own input and weights were finite: it is made there",
                False: "carried: its input, or a weight, was not finite"
                + (f", though the value of {self.source!r} before it was" if self.source else ""),
                None: "the first in the forward pass",
            }[self.producer]
        if self.signal == "activation_grad":
            if self.source == "<loss>":
                return "the first the backward pass reached: it comes from the loss"
            return f"made on the way back from {self.source!r}, whose gradient was finite"
        return {
            "weight": "before the forward pass: the update before, or what was loaded, made it",
            "weight_grad": "though every gradient that was backpropagated was finite: it is made there",
            "update": "though all gradients were finite: the optimizer makes it",
        }[self.signal]

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self) | {"sentence": self.sentence}


def first_nonfinite(step: Step, sites: Mapping[int, Site]) -> NonFinite | None:
    """The first in the order of the computation, None where all is finite (after the rows came to the host)."""
    search = _Search(step, sites)
    return search.weights() or search.passes() or search.rest()


def first_elsewhere(record: StepRecord, sites: Mapping[int, Site]) -> NonFinite | None:
    """The first in a record that other ranks have merged theirs into, None where all is finite."""
    for signal in ORDER:
        ids, moments = record.moments.get(signal, (None, None))
        if ids is None or moments is None:
            continue
        bad = [i for i in range(len(moments)) if moments.nans[i] or moments.infs[i]]
        if bad:
            backward = signal == "activation_grad"
            at = min(bad, key=lambda i: sites[int(ids[i])].depth * (-1 if backward else 1))
            direction: Direction = {"activation": "forward", "activation_grad": "backward"}.get(signal, "parameter")  # type: ignore[assignment]
            counts = int(moments.nans[at]), int(moments.infs[at]), int(moments.count[at])
            return NonFinite(record.step, 0, signal, direction, sites[int(ids[at])].name, None, "<rank>", *counts)
    return None


ORDER: tuple[Signal, ...] = ("weight", "activation", "activation_grad", "weight_grad", "update")
"""That of the computation."""


class _Search:
    def __init__(self, step: Step, sites: Mapping[int, Site]) -> None:
        self._step, self._sites = step, sites

    def weights(self) -> NonFinite | None:
        found = self._first(self._step.weights)
        return found and self._make(*found, 0, "parameter", None, "")

    def passes(self) -> NonFinite | None:
        for number, forward in enumerate(self._step.forwards):  # also one that no backward has followed
            found = self._activation(number, forward) or self._gradient(number, forward)
            if found is not None:
                return found
        return None

    def rest(self) -> NonFinite | None:
        forwards = self._step.forwards
        for number, forward in enumerate(forwards):
            if found := self._first(forward.weight_grads.items()):
                return self._make(*found, number, "parameter", True, "")
        found = self._first(self._step.updates)
        return found and self._make(*found, max(len(forwards) - 1, 0), "parameter", True, "")

    def _activation(self, number: int, forward: Forward) -> NonFinite | None:
        found = self._first(forward.activations)
        if found is None:
            return None
        site, _, _, _ = found
        inputs = forward.input_rows.get(site)
        carried = inputs is not None and any(self._counts(inputs)[:2])
        if self._sites[site].module == "<input>":
            return self._make(*found, number, "forward", False, "<input>")
        before = forward.activations.sites[: forward.activations.sites.index(site)]
        source = self._sites[before[-1]].name if carried and before else ""
        return self._make(*found, number, "forward", not carried if inputs is not None else None, source)

    def _gradient(self, number: int, forward: Forward) -> NonFinite | None:
        found = self._first(forward.gradients.items())
        if found is None:
            return None
        reached = list(forward.gradients)
        at = reached.index(found[0])
        source = self._sites[reached[at - 1]].name if at else "<loss>"
        return self._make(*found, number, "backward", bool(at), source)

    def _first(self, pairs: Iterable[tuple[int, int]]) -> tuple[int, int, int, int] | None:
        for site, row in pairs:
            nans, infs, entries = self._counts([row])
            if nans or infs:
                return site, nans, infs, entries
        return None

    def _counts(self, rows: Iterable[int]) -> tuple[int, int, int]:
        return self._step.arena.host.nonfinite(rows)

    def _make(
        self,
        site: int,
        nans: int,
        infs: int,
        entries: int,
        micro_step: int,
        direction: Direction,
        producer: bool | None,
        source: str,
    ) -> NonFinite:
        where = self._sites[site]
        return NonFinite(
            self._step.number, micro_step, where.signal, direction, where.name, producer, source, nans, infs, entries
        )
