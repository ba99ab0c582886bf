"""Which findings a column or a picture of a signal shows, and at which of its sites.

Forward findings belong to the activation, backward ones to its gradient, both to both; what a rule reads off updates
belongs to these. A finding names modules' outputs or parameters: a parameter is shown at the output of its module.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from gradscope.diagnosis import RULES, Finding, Findings
from gradscope.recording import SIGNALS, Recording, Signal, Site

DEPTH_RULES = ("vanishing-gradient", "exploding-gradient", "vanishing-activation", "exploding-activation")
"""Those that say of a profile that it leaves its band."""

_WAYS: dict[Signal, tuple[str, str]] = {"activation": ("forward", "both"), "activation_grad": ("backward", "both")}
_OF: dict[Signal, Signal] = {"activation_grad": "activation", "weight_grad": "weight"}


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
    found = []
    for one in _about(findings, signal):
        place = _places(recording, signal, one.rule)
        front = () if one.frontier is None else (one.frontier.name,)
        site = next((place[name] for name in (*front, *one.sites) if name in place), None)
        if site is not None:
            found.append(Verdict(one, site))
    return tuple(found)


def sick_sites(findings: Findings | None, recording: Recording, signal: Signal) -> frozenset[str]:
    """Names of the sites of a signal that findings worse than a note are about."""
    return frozenset(site.name for site in sick_places(findings, recording, signal))


def sick_places(findings: Findings | None, recording: Recording, signal: Signal) -> frozenset[Site]:
    """As `sick_sites`, the sites themselves; where no gradient came, that of what the gradient would be of."""
    found: set[Site] = set()
    for one in _about(findings, signal):
        place = _places(recording, signal, one.rule)
        names = (*one.sites, *(() if one.frontier is None else (one.frontier.name,)))
        found |= {place[name] for name in names if name in place}
    return frozenset(found)


def moments(findings: Findings | None, recording: Recording, signal: Signal) -> tuple[Finding, ...]:
    """Findings worse than a note that a rule reads off a signal and that have a step, but no site on any picture."""
    return tuple(
        one
        for one in findings or ()
        if one.severity != "note" and one.steps and one.rule in RULES and signal in RULES[one.rule].needs
        if not any(verdicts(Findings([one]), recording, any_signal) for any_signal in SIGNALS)
    )


def elsewhere(findings: Findings | None, recording: Recording, signal: Signal) -> tuple[str, ...]:
    """The rules of findings worse than a note that a picture of this signal does not show, worst first."""
    shown = [one.finding for one in verdicts(findings, recording, signal)]
    return tuple(dict.fromkeys(f.rule for f in findings or () if f.severity != "note" and f not in shown))


def _about(findings: Findings | None, signal: Signal) -> Iterator[Finding]:
    for one in findings or ():
        needs = RULES[one.rule].needs if one.rule in RULES else ()
        read_off_parameters = "update" in needs or signal not in _WAYS
        if one.severity != "note" and (signal in needs if read_off_parameters else one.direction in _WAYS[signal]):
            yield one


def _places(recording: Recording, signal: Signal, rule: str) -> dict[str, Site]:
    """By name; a parameter that has none is at the first output of its module, a module at its first weight.

    Where a rule says that no gradient came, at what the gradient would be of.
    """
    found: dict[str, Site] = {}
    first: dict[str, Site] = {}
    there = recording.sites_of(signal)
    of = _OF.get(signal) if rule == "no-gradient" else None
    for site in (*there, *(recording.sites_of(of) if there and of else ())):
        found.setdefault(site.name, site)
        first.setdefault(site.module, site)
    for site in recording.sites:
        if site.module in first:
            found.setdefault(site.name, first[site.module])
    return found
