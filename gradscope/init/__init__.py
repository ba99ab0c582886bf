"""Initial weights: choose the scheme that a layer's activation asks for, and apply it with the true fans.

`initialize(model)` does both for a whole model and returns the table of it; `plan(model)` only tells. With a batch both
also ask theory whether that choice keeps the signal, and scale it where it does not.
The schemes are in-place functions with PyTorch's trailing underscore (`he_normal_`), named in a registry
(`scheme_names()`), and take the layer's true fans where `torch.nn.init` takes a shape's.
"""

from gradscope.init._audit import audit
from gradscope.init._choice import SchemeLike
from gradscope.init._fans import Fans
from gradscope.init._initialize import initialize, plan
from gradscope.init._layer_fans import fans
from gradscope.init._matrices import (
    delta_orthogonal_,
    hadamard_,
    identity_,
    orthogonal_,
    scaled_orthogonal_,
)
from gradscope.init._model_schemes import (
    GPT2,
    IRNN,
    LSUV,
    MODEL_ALIASES,
    Chrono,
    DeepNorm,
    EdgeOfChaos,
    Fixup,
    ForgetBias,
    Mimetic,
    ModelScheme,
    MuP,
    Propagate,
    ScaledBranches,
    Siren,
    TFixup,
    ZeroBranches,
    model_scheme_names,
)
from gradscope.init._named import (
    glorot_normal_,
    glorot_uniform_,
    he_normal_,
    he_uniform_,
    kaiming_normal_,
    kaiming_uniform_,
    lecun_normal_,
    lecun_uniform_,
    xavier_normal_,
    xavier_uniform_,
)
from gradscope.init._plan import InitPlan, PlanRow
from gradscope.init._registry import ALIASES, get_scheme, recommend, scheme_names
from gradscope.init._scheme import Scheme
from gradscope.init._sparse import martens_sparse_
from gradscope.init._variance_scaling import VarianceScaling
from gradscope.theory import gain

__all__ = [
    "ALIASES",
    "GPT2",
    "IRNN",
    "LSUV",
    "MODEL_ALIASES",
    "Chrono",
    "DeepNorm",
    "EdgeOfChaos",
    "Fans",
    "Fixup",
    "ForgetBias",
    "InitPlan",
    "Mimetic",
    "ModelScheme",
    "MuP",
    "PlanRow",
    "Propagate",
    "ScaledBranches",
    "Scheme",
    "SchemeLike",
    "Siren",
    "TFixup",
    "VarianceScaling",
    "ZeroBranches",
    "audit",
    "delta_orthogonal_",
    "fans",
    "gain",
    "get_scheme",
    "glorot_normal_",
    "glorot_uniform_",
    "hadamard_",
    "he_normal_",
    "he_uniform_",
    "identity_",
    "initialize",
    "kaiming_normal_",
    "kaiming_uniform_",
    "lecun_normal_",
    "lecun_uniform_",
    "martens_sparse_",
    "model_scheme_names",
    "orthogonal_",
    "plan",
    "recommend",
    "scaled_orthogonal_",
    "scheme_names",
    "xavier_normal_",
    "xavier_uniform_",
]
