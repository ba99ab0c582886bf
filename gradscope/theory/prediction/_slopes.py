"""How a gradient changes on its way from a value to its root, and to a site between them."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from gradscope.theory.prediction._alike import Alike
from gradscope.theory.prediction._grid import Pair
from gradscope.theory.prediction._places import Places
from gradscope.theory.prediction._value import Value


def slopes_of(value: Value, slope: Tensor, square: float) -> Alike:
    """Mean products of the slopes of a value towards its root, of this mean square."""
    root, pair, positions = value.root, Pair(slope), value.count("position")
    assert root is not None
    own = root.places_of(positions)
    if value.sizes is None or own is None:
        return Alike(square, pair.at(root.position), pair.at(root.input), pair.at(root.both))
    same = np.full(len(own.sizes), square)
    found = Places(own.sizes, same, *(pair.table(one) for one in own.tables[1:]))
    return Alike.of(found if value.gain is None else found.scaled(value.gain))


def between_places(gradient: Alike, value: Value, site: Value) -> float:
    """What multiplies a site's gradient, squared, as positions differ in their gain between it and the value."""
    if value.gain is None and site.gain is None:
        return 1.0
    places = gradient.by_position(value.count("position"))
    ones = np.ones(len(places.sizes))
    ours, theirs = (ones if one.gain is None else one.gain for one in (value, site))
    if not len(ours) == len(theirs) == len(ones):
        return 1.0
    gain = ours / np.maximum(theirs, 1e-300)
    return float((places.sizes * places.same) @ gain) / places.count / gradient.same
