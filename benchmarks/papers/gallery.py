"""The papers, in the order of the page: one module each, with a citation, its rows and its picture."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from benchmarks.papers import (
    dong2021,
    glorot2010,
    hanin2018,
    he2015,
    jozefowicz2015,
    klambauer2017,
    le2015,
    mishkin2016,
    pascanu2013,
    pennington2017,
    schoenholz2017,
    yang2019,
    zhang2019,
)
from benchmarks.papers.row import Row


@dataclass(frozen=True)
class Paper:
    """One of them.

    Attributes:
        name: first author and year, as in `glorot2010`.
        citation: authors, year, title, venue.
        reproduce: its rows; `reproduce(True)` measures at a reduced size, in seconds.
        figure: its picture, of the same measurements.
    """

    name: str
    citation: str
    reproduce: Callable[[bool], list[Row]]
    figure: Callable[[bool], Figure]


_MODULES = (
    glorot2010,
    pascanu2013,
    he2015,
    le2015,
    jozefowicz2015,
    mishkin2016,
    pennington2017,
    schoenholz2017,
    klambauer2017,
    hanin2018,
    yang2019,
    zhang2019,
    dong2021,
)

PAPERS = {
    paper.name: paper
    for paper in (
        Paper(module.__name__.rpartition(".")[2], module.CITATION, module.reproduce, module.figure)
        for module in _MODULES
    )
}
