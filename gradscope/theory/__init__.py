"""What the signal should do: mean-field theory of plain networks, in numpy alone.

    q_1 = σ_w²·mean x² + σ_b²,   q_{l+1} = σ_w²·E[f(√q_l z)²] + σ_b²            pre-activations, forward
    p_l = p_{l+1}·(fan_out/fan_in)·σ_w²·E[f'(√q_l z)²]                          their gradients, backward

with z ~ N(0, 1) and σ_w² = fan_in·weight_variance (Poole et al. 2016, Schoenholz et al. 2017), and how far
one network of finite width strays from them (Hanin & Nica 2020).
"""

from __future__ import annotations

from gradscope.theory._batch import BatchExpectation, propagate_batch
from gradscope.theory._budget import DepthBudget, depth_budget
from gradscope.theory._callable import activation_of
from gradscope.theory._card import Card, card
from gradscope.theory._card_curves import CardCurves, FateCurve, card_curves
from gradscope.theory._chain_spread import ChainLayer, ChainSpread, chain_spread, spread_band
from gradscope.theory._correlation_curves import CorrelationCurve, CorrelationCurves, correlation_curves
from gradscope.theory._critical import CriticalPoint, attracts_from, critical_at, critical_points, phase
from gradscope.theory._expectation import Expectation
from gradscope.theory._gain import gain, second_moment, slope_moment
from gradscope.theory._gain_table import GainRow, GainTable, gain_row, gain_table
from gradscope.theory._mean_field import DepthScales, FixedPoint, MeanField
from gradscope.theory._one_step import OneStep, one_step
from gradscope.theory._pair import expect_pair
from gradscope.theory._phase_diagram import CriticalLine, PhaseDiagram, phase_diagram
from gradscope.theory._propagate import propagate
from gradscope.theory._quadrature import expect
from gradscope.theory._sampled_spectrum import SampledSpectrum, sampled_spectrum
from gradscope.theory._spectrum import JacobianMoments, jacobian_density, jacobian_moments

__all__ = [
    "BatchExpectation",
    "Card",
    "CardCurves",
    "ChainLayer",
    "ChainSpread",
    "CorrelationCurve",
    "CorrelationCurves",
    "CriticalLine",
    "CriticalPoint",
    "DepthBudget",
    "DepthScales",
    "Expectation",
    "FateCurve",
    "FixedPoint",
    "GainRow",
    "GainTable",
    "JacobianMoments",
    "MeanField",
    "OneStep",
    "PhaseDiagram",
    "SampledSpectrum",
    "activation_of",
    "attracts_from",
    "card",
    "card_curves",
    "chain_spread",
    "correlation_curves",
    "critical_at",
    "critical_points",
    "depth_budget",
    "expect",
    "expect_pair",
    "gain",
    "gain_row",
    "gain_table",
    "jacobian_density",
    "jacobian_moments",
    "one_step",
    "phase",
    "phase_diagram",
    "propagate",
    "propagate_batch",
    "sampled_spectrum",
    "second_moment",
    "slope_moment",
    "spread_band",
]
