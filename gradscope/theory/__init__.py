"""What the signal should do: mean-field theory of plain networks, in numpy alone.

    q_1 = σ_w²·mean x² + σ_b²,   q_{l+1} = σ_w²·E[f(√q_l z)²] + σ_b²            pre-activations, forward
    p_l = p_{l+1}·(fan_out/fan_in)·σ_w²·E[f'(√q_l z)²]                          their gradients, backward

with z ~ N(0, 1) and σ_w² = fan_in·weight_variance (Poole et al. 2016, Schoenholz et al. 2017), and how far
one network of finite width strays from them (Hanin & Nica 2020).
"""

from __future__ import annotations

from gradscope.theory._expectation import Expectation
from gradscope.theory._gain import gain, second_moment, slope_moment
from gradscope.theory._propagate import propagate
from gradscope.theory._quadrature import expect

__all__ = ["Expectation", "expect", "gain", "propagate", "second_moment", "slope_moment"]
