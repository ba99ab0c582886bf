"""The parameters that can be read as they lie, all together: values, gradients, updates, a few entries."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from gradscope.hooks._batch import Batch, Room
from gradscope.hooks._clipping import Few
from gradscope.hooks._moments import Arena
from gradscope.hooks._parameter_list import Watched
from gradscope.recording import Signal

_UNKNOWN = -1

SiteOf = Callable[[Watched, Signal], int | None]


class Together:
    """Parameters that are read together.

    Args:
        watched: each `readable`.
        site_of: tells the site of a signal of one of them, None where it is not observed.
    """

    def __init__(self, watched: Sequence[Watched], site_of: SiteOf) -> None:
        self.watched = watched
        self.parameters = [w.parameter for w in watched]
        self._batch = Batch(self.parameters)
        self._site_of = site_of
        self._sites: dict[Signal, list[int | None]] = {}
        self._trainable: list[bool] = []
        self._addresses: list[int] = []
        self._kinds = _kinds(self.parameters)
        self._rooms: list[Room] = []
        self.rounding = np.array([torch.finfo(parameter.dtype).eps for parameter in self.parameters])
        self._ids = {id(parameter) for parameter in self.parameters}

    def ready(self) -> bool:
        """Whether they still are what they were; `parameter.data = …` makes it another tensor."""
        if _kinds(self.parameters) != self._kinds:
            return False
        now = [parameter.data_ptr() for parameter in self.parameters]
        if now != self._addresses:
            if not all(self._batch.fits(i, parameter) for i, parameter in enumerate(self.parameters)):
                return False
            self._addresses = now
        return True

    def holds(self, parameter: Tensor) -> bool:
        """Whether it is one of them."""
        return id(parameter) in self._ids

    def within(self, ids: set[int]) -> bool:
        """Whether all of them are among these."""
        return self._ids <= ids

    def sites(self, signal: Signal, places: Sequence[int]) -> list[int | None]:
        """The sites of a signal of those at these places."""
        trainable = [parameter.requires_grad for parameter in self.parameters]
        if trainable != self._trainable:
            self._sites, self._trainable = {}, trainable
        known = self._sites.setdefault(signal, [_UNKNOWN] * len(self.watched))
        for i in places:
            if known[i] == _UNKNOWN:
                known[i] = self._site_of(self.watched[i], signal)
        return [known[i] for i in places]

    def read_weights(self, arena: Arena, *, copied: bool) -> tuple[list[int], list[int], Copies | None]:
        """Weight sites and rows; and, where wanted, copies of what an optimizer may change, made on the way."""
        every = range(len(self.watched))
        copies = self._copies() if copied else None
        sites = self.sites("weight", every)
        wanted = set() if copies is None else set(copies.places)
        read = [i for i in every if sites[i] is not None or i in wanted]
        if not read:
            return [], [], copies
        to = None if copies is None else (copies.room, copies.places)
        rows = self._batch.reduce(arena, [self.parameters[i] for i in read], read, to=to)
        taken = [(sites[i], row) for i, row in zip(read, rows, strict=True)]
        return *_known(taken), copies

    def copies(self) -> Copies | None:
        """Copies of what an optimizer may change."""
        copies = self._copies()
        if copies is not None:
            with torch.no_grad():
                torch._foreach_copy_(
                    [copies.room.tensors[i] for i in copies.places], [self.parameters[i] for i in copies.places]
                )
        return copies

    def _copies(self) -> Copies | None:
        trained = [i for i, p in enumerate(self.parameters) if p.requires_grad and p.is_leaf]
        sites = self.sites("update", trained)
        places = [i for i, site in zip(trained, sites, strict=True) if site is not None]
        if not places:
            return None
        room = next((room for room in self._rooms if not room.taken), None)
        if room is None:
            room = Room(self.parameters)
            self._rooms.append(room)
        room.taken = True
        return Copies(self, room, places, [site for site in sites if site is not None])

    def read_updates(self, arena: Arena, copies: Copies) -> list[int]:
        """Rows of what was added to each of those that were copied.

        The last is read first: the optimizer has come to it last, and the next forward pass comes to it last.
        """
        places = copies.places[::-1]
        rows = self._batch.reduce(arena, [self.parameters[i] for i in places], places, minus=copies.room)
        return rows[::-1]

    def gradients(self, only: Container[int] | None) -> Gradients:
        """Those of all parameters, or of those whose id is given."""
        found = Gradients()
        entries = self._batch.entries
        for i, parameter in enumerate(self.parameters):
            gradient = parameter.grad
            if gradient is None or (only is not None and id(parameter) not in only):
                continue
            if (  # torch sees to it that it is on the parameter's device
                type(gradient) is Tensor
                and gradient.numel() == entries[i]
                and gradient.dtype is parameter.dtype
                and gradient.layout is torch.strided
                and gradient.is_contiguous()
                and not gradient.is_neg()
            ):
                found.places.append(i)
                found.tensors.append(gradient)
            else:
                found.others.append(self.watched[i])
        return found

    def read_gradients(self, arena: Arena, gradients: Gradients, unit: float) -> tuple[list[int], list[int]]:
        """Gradient sites and rows."""
        sites = self.sites("weight_grad", gradients.places)
        rows = self._batch.reduce(arena, gradients.tensors, gradients.places, unit=unit)
        return _known(list(zip(sites, rows, strict=True)))

    def some_gradients(self, few: Few | None, gradients: Gradients) -> Few:
        """Up to eight entries of each gradient, beside those that were read before."""
        if few is None or few.of is not self:
            few = Few(self, len(self.watched))
        few.put(gradients.places, self._batch.some_entries(gradients.tensors, gradients.places))
        return few


@dataclass
class Gradients:
    """Gradients of some parameters: places and tensors of those that can be read as they lie; and the others."""

    places: list[int] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    others: list[Watched] = field(default_factory=list)


class Copies:
    """Copies of some of the parameters that are read together.

    Attributes:
        of: the parameters.
        room: where the copies lie.
        places: which of the parameters were copied.
        sites: of their updates.
    """

    def __init__(self, of: Together, room: Room, places: list[int], sites: list[int]) -> None:
        self.of, self.room, self.places, self.sites = of, room, places, sites

    def one_by_one(self) -> list[tuple[int, Tensor, Tensor]]:
        """Update site, parameter and copy of each."""
        tensors, parameters = self.room.tensors, self.of.parameters
        return [(site, parameters[i], tensors[i]) for site, i in zip(self.sites, self.places, strict=True)]


def _kinds(tensors: Sequence[Tensor]) -> list[tuple[int, torch.dtype, bool, bool]]:
    """What of each may change while it stays where it is."""
    return [(t.numel(), t.dtype, t.is_contiguous(), t.is_neg()) for t in tensors]


def _known(pairs: Sequence[tuple[int | None, int]]) -> tuple[list[int], list[int]]:
    """Without those that have no site."""
    known = [(site, row) for site, row in pairs if site is not None]
    return [site for site, _ in known], [row for _, row in known]
