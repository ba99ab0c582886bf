"""Which module's call uses a parameter: its own, or that of one around it which reads it without calling its module.

An attention computes with its `out_proj` and never calls it, a function may read `fc.weight`, a list of parameters is
called by nobody, a parametrization belongs to the layer whose weight it makes, and an encoder's fast path calls nothing
within it.
"""

from __future__ import annotations

from gradscope.diagnosis._evidence import Evidence
from gradscope.recording import Site
from gradscope.recording._site import NEVER_CALLED

ROOT = "<root>"
_PARAMETRIZATION = ".parametrizations."


class Users:
    """Of the parameters of a recording.

    Args:
        evidence: whose activation sites are the calls, and whose facts tell what was never called.

    Attributes:
        known: calls were recorded.
    """

    def __init__(self, evidence: Evidence) -> None:
        self._depth: dict[str, int] = {}
        self._last: dict[str, str] = {}
        for site in (*evidence.sites("activation"), *evidence.sites("activation_grad")):
            self._depth.setdefault(site.module, site.depth)
        for module in sorted(self._depth, key=self._depth.__getitem__):
            for around in _around(module):
                self._last[around] = module
        reasons = evidence.facts.get("unobserved") or {}
        self._never = frozenset(name for name, why in reasons.items() if why == NEVER_CALLED)
        self.known = bool(self._depth)

    def called(self, site: Site) -> bool:
        """Whether the module itself has a recorded call."""
        return owner(site) in self._depth

    def never_called(self, site: Site) -> bool:
        """Whether the recorder has seen no use of it."""
        return owner(site) in self._never

    def place(self, site: Site) -> tuple[str, int]:
        """The nearest recorded call that may use a parameter, and its depth; its own where only the root is around it.

        A module that hands on what its last child returns has no site but that child's.
        """
        module = owner(site)
        for user in (module, *_around(module)):
            found = user if user in self._depth else self._last.get(user)
            if found is not None:
                return found, self._depth[found]
        return module, site.depth


def owner(site: Site) -> str:
    """The module that a parameter belongs to: of a parametrization the layer whose weight it makes.

    >>> made = "fc.parametrizations.weight"
    >>> owner(Site("weight", f"{made}.original", made, "ParametrizationList", param="original"))
    'fc'
    """
    return f".{site.module}".partition(_PARAMETRIZATION)[0].removeprefix(".") or ROOT


def _around(module: str) -> list[str]:
    """The modules around one, from the nearest, without the root.

    >>> _around("a.b.c")
    ['a.b', 'a']
    """
    parts = module.split(".")
    return [".".join(parts[:i]) for i in range(len(parts) - 1, 0, -1)]
