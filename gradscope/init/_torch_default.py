"""What torch's own `reset_parameters` draws, module by module: always U(±limit), or zeros.

Linear and convolutions: kaiming_uniform_(a=√5), which is U(±1/√fan_in) with the fans that torch takes
(swapped for transposed convolutions); their bias has the same limit. RNN, LSTM, GRU and their cells:
1/√hidden for every weight and bias. Bilinear: 1/√in1. MultiheadAttention: xavier_uniform_ on the packed
q, k, v as one matrix, and zeros for the biases.
"""

from __future__ import annotations

import math
from typing import cast

from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torch.nn.utils.parametrize import is_parametrized

from gradscope.init._fans import tensor_fans
from gradscope.init._named import GLOROT_UNIFORM
from gradscope.init._registry import torch_default_limit
from gradscope.init._slots import Slot


def default_limit(module: nn.Module, name: str, value: Tensor, is_bias: bool) -> float:
    """The limit of the uniform distribution that torch gives the parameter `name`; 0 stands for zeros."""
    if isinstance(module, nn.MultiheadAttention):
        return 0.0 if is_bias else math.sqrt(3.0) * GLOROT_UNIFORM.std(tensor_fans(value))
    if isinstance(module, NonDynamicallyQuantizableLinear) and is_bias:  # an attention's out_proj, and only that
        return 0.0
    if isinstance(module, nn.RNNBase | nn.RNNCellBase):
        return 1.0 / math.sqrt(module.hidden_size)
    if isinstance(module, nn.Bilinear):
        return 1.0 / math.sqrt(module.in1_features)
    if not is_bias:
        return torch_default_limit(tensor_fans(value).fan_in)
    weight = Slot("", module, "weight").read() if is_parametrized(module, "weight") else module.weight
    return 1.0 / math.sqrt(tensor_fans(cast(Tensor, weight)).fan_in)
