"""Sites where a gradient should have been seen, and was not: without a value, but with a place on the axis of depth."""

from __future__ import annotations

from collections.abc import Collection

from gradscope.diagnosis import Findings
from gradscope.recording import Recording, Signal, Site
from gradscope.report._verdicts import sick_places


def silent_sites(
    recording: Recording,
    signal: Signal,
    seen: Collection[str],
    findings: Findings | None = None,
    now: Collection[str] | None = None,
) -> tuple[Site, ...]:
    """In order of execution, the sites of a gradient that had none; of other signals none.

    Those are outputs that require a gradient, trained parameters to which none has ever come, and all that a finding
    says of parameters without a gradient.

    Args:
        recording: of any number of steps.
        signal: `activation_grad` or `weight_grad`; of the others every site has a value.
        seen: names of the sites that have a value in the steps that are shown.
        findings: what `diagnose` gave.
        now: those with a value in the last of these steps: of what findings are about only that counts.
    """
    found: dict[str, Site] = {}
    if signal == "activation_grad":
        found = {site.name: site for site in recording.sites_of(signal) if site.output == 0}
    elif signal == "weight_grad":
        known = {site.name for site in recording.sites_of(signal)}
        found = {s.name: s for s in recording.sites_of("weight") if s.trainable and s.name not in known}
    else:
        return ()
    about = [one for one in findings or () if one.rule == "no-gradient"]
    silent = {name: site for name, site in found.items() if name not in seen}
    for site in sick_places(Findings(about), recording, signal):
        if site.name not in (seen if now is None else now):
            silent[site.name] = site
    return tuple(sorted(silent.values(), key=lambda site: site.depth))
