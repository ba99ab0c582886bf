"""How every picture looks: one palette, one set of sizes, whatever the user's matplotlibrc says.

The colours are Okabe & Ito's (2008), told apart by the colour-blind; what they say is always said a second
time by a line style, a marker or a printed number, so that a grey print loses nothing. The diverging map is
linear in Oklab lightness (Ottosson 2020): a step of the value is the same step to the eye on both arms.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import Colormap, ListedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

INK = "#1a1a1a"
SOFT = "#5c5c5c"
FAINT = "#d9d9d9"
BLUE = "#0072B2"
VERMILION = "#D55E00"
GREEN = "#009E73"
ORANGE = "#E69F00"
PURPLE = "#CC79A7"
HEALTHY = "#d9efe6"  # the green, thinned with white: a fill without alpha draws faster and prints lighter

DPI = 110

_RC: dict[str, Any] = {
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib: the same letters on every machine
    "font.size": 9.5,
    "figure.dpi": DPI,
    "savefig.dpi": DPI,
    "savefig.bbox": None,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": SOFT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.grid": False,
    "axes.unicode_minus": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.solid_capstyle": "round",
    "hatch.linewidth": 0.6,
}

P = ParamSpec("P")
R = TypeVar("R")


def style() -> Any:
    """Matplotlib's own defaults with ours on top, so that a picture's bytes do not depend on a matplotlibrc."""
    defaults: dict[str, Any] = dict(matplotlib.rcParamsDefault)  # type: ignore[arg-type]
    base = {key: value for key, value in defaults.items() if not key.startswith(_KEPT)}
    return {**base, **_RC}


_KEPT = ("backend", "datapath", "date.", "interactive", "toolbar", "timezone", "webagg.", "animation.", "keymap.")


def styled(draw: Callable[P, R]) -> Callable[P, R]:
    """Run a figure function in GradScope's style and leave the caller's style as it was."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        with matplotlib.rc_context(style()):
            return draw(*args, **kwargs)

    return wrapper


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of fixed size (inches) on the Agg canvas; pyplot is never involved."""
    figure = Figure(figsize=(width, height), dpi=DPI, facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def _oklab_to_srgb(lab: NDArray[np.float64]) -> NDArray[np.float64]:
    """Oklab `(n, 3)` to sRGB in [0, 1]; the two matrices are Ottosson's (2020)."""
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.2914855480]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.7076147010],
        ]
    )
    linear = np.clip((lab @ to_lms.T) ** 3 @ to_rgb.T, 0, 1)
    return np.asarray(np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055))


@functools.cache
def diverging() -> Colormap:
    """Blue (shrinks) over near-white (keeps) to orange-brown (grows), with even steps of lightness."""
    t = np.linspace(-1, 1, 257)[:, None]
    white, blue, orange = np.array([0.985, 0, 0]), np.array([0.46, -0.045, -0.125]), np.array([0.56, 0.105, 0.095])
    end = np.where(t < 0, blue, orange)
    colours = _oklab_to_srgb(white + np.abs(t) * (end - white))
    return ListedColormap(colours, name="gradscope_diverging").with_extremes(bad="#bdbdbd")
