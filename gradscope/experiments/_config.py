"""The settings of a sweep, from keywords or from a TOML file: a mistake becomes one clear sentence.

Torch-free: a wrong settings file is reported before torch, which costs seconds, is imported.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from gradscope import activations
from gradscope.experiments import _checks as checks


class SettingsError(ValueError):
    """A setting is wrong: one sentence names the key, its value, what is allowed and the nearest match."""


_Schemes = Annotated[tuple[str, ...], BeforeValidator(checks.several(checks.scheme))]
_Activations = Annotated[tuple[str, ...], BeforeValidator(checks.several(checks.activation))]
_Family = Annotated[Literal["mlp", "conv"], BeforeValidator(checks.one_of("mlp", "conv"))]
_AtLeast2 = Annotated[tuple[int, ...], BeforeValidator(checks.wholes(2))]
_AtLeast1 = Annotated[tuple[int, ...], BeforeValidator(checks.wholes(1))]
_Count = Annotated[int, BeforeValidator(checks.whole(1))]
_Seed = Annotated[int, BeforeValidator(checks.whole(0))]
_Device = Annotated[str, BeforeValidator(checks.device)]

_DEFAULT_INIT = (
    *("glorot_normal", "glorot_uniform", "he_normal", "he_uniform", "lecun_normal", "lecun_uniform"),
    *("orthogonal", "identity", "torch_default", "naive_normal"),
)
_DEFAULT_ACTIVATION = (
    *("identity", "tanh", "sigmoid", "softmax", "relu"),
    *("leaky_relu", "elu", "selu", "gelu", "silu"),
)


class SweepConfig(BaseModel):
    """Which plain networks a sweep measures: every combination of init, activation, depth and width.

    A plain network is `depth` square layers of `width` units (family `conv`: 3×3 convolutions of `width`
    channels on 16×16, circular padding) with the activation between them and no bias; its inputs are N(0, 1),
    each sample scaled to rms 1, and a gradient N(0, 1) is put in at its output.

    Attributes:
        init: scheme names of `gradscope.init` (`he_normal`; `kaiming_normal` is its alias).
        activation: names that `gradscope.activations.get` knows, parametrised ones too (`leaky_relu(0.2)`).
        family: `mlp` or `conv`.
        depth: number of linear layers, one number or several, each at least 2 (one layer has no slope).
        width: units, or channels, of every layer; 256 for `mlp` and 64 for `conv` where it is not given.
        batch: samples per network.
        seeds: how many networks a cell has.
        seed: where their random numbers start; the same seed gives the same networks.
        device: `cpu`, `cuda` or `cuda:N`.

    Raises:
        SettingsError: a key is unknown or a value impossible; one sentence says which, and what is allowed.

    >>> SweepConfig(init="kaiming_normal", activation=["relu", "swish"], depth=[20, 50]).activation
    ('relu', 'silu')
    >>> SweepConfig(depth=0)
    Traceback (most recent call last):
    gradscope.experiments._config.SettingsError: depth must be a whole number of at least 2, or a list of \
different ones, not 0.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    init: _Schemes = _DEFAULT_INIT
    activation: _Activations = _DEFAULT_ACTIVATION
    family: _Family = "mlp"
    depth: _AtLeast2 = (50,)
    width: _AtLeast1 = Field(default_factory=lambda settings: (64,) if settings["family"] == "conv" else (256,))
    batch: _Count = 64
    seeds: _Count = 5
    seed: _Seed = 0
    device: _Device = "cpu"

    def __init__(self, /, **settings: Any) -> None:
        try:
            super().__init__(**settings)
        except ValidationError as error:
            raise SettingsError(_sentence(error)) from None

    @model_validator(mode="after")
    def _scheme_fits_family(self) -> Self:
        if self.family == "mlp" and "delta_orthogonal" in self.init:
            raise ValueError(
                "init must not name 'delta_orthogonal', made for convolutions, where family is 'mlp'; "
                "did you mean 'orthogonal'?"
            )
        return self

    @model_validator(mode="after")
    def _schemes_fit_activations(self) -> Self:
        for scheme in (name for name in ("edge_of_chaos", "lsuv") if name in self.init):
            from gradscope.theory import critical_at  # which a mistake elsewhere need not wait for

            for name in self.activation:
                found = activations.get(name)
                if not found.elementwise or (scheme == "edge_of_chaos" and critical_at(found) is None):
                    what = "has no critical point at q = 1" if found.elementwise else "is not elementwise"
                    raise ValueError(f"init must not name {scheme!r} where activation is {name!r}, which {what}")
        return self

    @classmethod
    def from_toml(cls, path: str | Path) -> SweepConfig:
        """The settings in a TOML file; its keys are this class' attributes, and each may be left out.

        Raises:
            SettingsError: the file is missing, unreadable or not TOML, or a setting is wrong.
        """
        path = Path(path)
        try:
            return cls(**tomllib.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            siblings = [sibling.name for sibling in path.parent.glob("*.toml")]
            hint = checks.nearest(path.name, siblings) or "."
            raise SettingsError(f"{path}: there is no such settings file{hint}") from None
        except OSError as error:
            raise SettingsError(f"{path}: this file cannot be read: {error.strerror}.") from None
        except UnicodeDecodeError:
            raise SettingsError(f"{path}: this is not a text file in UTF-8, as TOML must be.") from None
        except tomllib.TOMLDecodeError as error:
            raise SettingsError(f"{path}: this is not valid TOML: {error}.") from None
        except SettingsError as error:
            raise SettingsError(f"{path}: {error}") from None

    def replace(self, **changes: Any) -> SweepConfig:
        """A copy with some settings changed and checked; a width that was never given follows the family."""
        return SweepConfig(**{name: getattr(self, name) for name in self.model_fields_set} | changes)


def _sentence(error: ValidationError) -> str:
    """The first of pydantic's errors as one sentence that begins with the key."""
    first = error.errors(include_url=False)[0]
    key, message = str(first["loc"][0]) if first["loc"] else "", first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        allowed = list(SweepConfig.model_fields)
        message = f"unknown key {key!r}, allowed are {', '.join(allowed)}{checks.nearest(key, allowed)}"
    elif not message.startswith(key):
        message = f"{key} {message}"
    return message if message.endswith(("?", ".")) else f"{message}."
