"""Which findings a column or a picture of a signal shows, and at which of its sites.

Forward findings belong to the activation, backward ones to its gradient, both to both; what a rule reads off updates
belongs to these. A finding names modules' outputs or parameters: a parameter is shown at the output of its module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradscope.diagnosis import RULES, Finding, Findings
from gradscope.recording import Recording, Signal, Site

DEPTH_RULES = ("vanishing-gradient", "exploding-gradient", "vanishing-activation", "exploding-activation")
"""Those that say of a profile that it leaves its band."""

_WAYS: dict[Signal, tuple[str, str]] = {"activation": ("forward", "both"), "activation_grad": ("backward", "both")}


@dataclass(frozen=True)
class Verdict:
    """A finding at one signal.

    Attributes:
        finding: that is shown.
        site: the first sick one of the signal, in the direction the finding flows.
    """

    finding: Finding
    site: Site

    @property
    def label(self) -> str:
        """The site and what it suffers from: `layers.3 (vanishing-gradient)`."""
        return f"{self.site.name} ({self.finding.rule})"

    @property
    def since(self) -> int | None:
        """The step from which on it holds; None for that which was so from the start."""
        return self.finding.steps[0] if self.finding.steps else None

    @property
    def sentence(self) -> str:
        """With depth and step."""
        when = "" if self.since is None else f", since step {self.since}"
        return f"first sick site: {self.label}, depth {self.site.depth}{when}"


def verdicts(findings: Findings | None, recording: Recording, signal: Signal) -> tuple[Verdict, ...]:
    """The findings of a signal that are worse than a note, worst first, each at its first site of the signal."""
    place, found = _places(recording, signal), []
    for one in _about(findings, signal):
        front = () if one.frontier is None else (one.frontier.name,)
        site = next((place[name] for name in (*front, *one.sites) if name in place), None)
        if site is not None:
            found.append(Verdict(one, site))
    return tuple(found)


def sick_sites(findings: Findings | None, recording: Recording, signal: Signal) -> frozenset[str]:
    """Names of the sites of a signal that findings worse than a note are about."""
    place = _places(recording, signal)
    return frozenset(
        place[name].name
        for one in _about(findings, signal)
        for name in (*one.sites, *(() if one.frontier is None else (one.frontier.name,)))
        if name in place
    )


def _about(findings: Findings | None, signal: Signal) -> Iterator[Finding]:
    for one in findings or ():
        needs = RULES[one.rule].needs if one.rule in RULES else ()
        read_off_parameters = "update" in needs or signal not in _WAYS
        if one.severity != "note" and (signal in needs if read_off_parameters else one.direction in _WAYS[signal]):
            yield one


def _places(recording: Recording, signal: Signal) -> dict[str, Site]:
    """By name; a parameter that has none is at the first output of its module, a module at its first weight."""
    found: dict[str, Site] = {}
    first: dict[str, Site] = {}
    for site in recording.sites_of(signal):
        found[site.name] = site
        first.setdefault(site.module, site)
    for site in recording.sites:
        if site.module in first:
            found.setdefault(site.name, first[site.module])
    return found
