"""Settings: what a sweep accepts, and that each mistake becomes one sentence with the way out of it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gradscope.experiments import SettingsError, SweepConfig
from gradscope.experiments._checks import SCHEMES

CONFIGS = Path(__file__).parent.parent / "configs"

MISTAKES = {
    "depht = 50": ["unknown key 'depht'", "allowed are init", "did you mean 'depth'?"],
    "zzz = 50": ["unknown key 'zzz'", "allowed are init", "device."],
    "[sweep]\ndepth = 50": ["unknown key 'sweep'", "allowed are"],
    "self = 1": ["unknown key 'self'", "allowed are"],
    "init = 'he_norml'": ["init must", "'he_norml'", "glorot_uniform", "did you mean 'he_normal'?"],
    "init = 'xavier_norml'": ["init must", "did you mean 'xavier_normal'?"],
    "init = ['he_normal', 3]": ["init must", "not 3"],
    "init = []": ["init must name at least one", "[]"],
    "init = ['he_normal', 'kaiming_normal']": ["init must name each once", "'he_normal' 2 times"],
    "init = 'delta_orthogonal'": [
        "init must not",
        "'delta_orthogonal'",
        "'mlp'",
        "did you mean 'orthogonal'?",
    ],
    "activation = 'rellu'": ["activation", "'rellu'", "gelu_tanh", "did you mean 'relu'?"],
    "activation = ['tanh', 'tanh(2)']": ["activation", "'tanh(2)'"],
    "activation = 7": ["activation must", "leaky_relu", "not 7"],
    "family = 'con'": ["family must be 'mlp' or 'conv'", "not 'con'", "did you mean 'conv'?"],
    "family = ['mlp']": ["family must be 'mlp' or 'conv'", "not ['mlp']"],
    "depth = 1": ["depth must be a whole number of at least 2", "not 1."],
    "depth = 50.0": ["depth must be a whole number", "not 50.0"],
    "depth = true": ["depth must be a whole number", "not True"],
    "depth = '50'": ["depth must be a whole number", "not '50'"],
    "depth = [10, 10]": ["depth must", "list of different ones", "[10, 10]"],
    "depth = []": ["depth must", "[]"],
    "width = [64, 0]": ["width must be a whole number of at least 1", "[64, 0]"],
    "batch = 0": ["batch must be a whole number of at least 1", "not 0"],
    "seeds = [1, 2]": ["seeds must be a whole number of at least 1", "not [1, 2]"],
    "seed = -1": ["seed must be a whole number of at least 0", "not -1"],
    "seed = 9223372036854775808": ["seed must", "9223372036854775808"],
    "device = 'gpu'": ["device must be 'cpu', 'cuda' or 'cuda:N'", "not 'gpu'", "did you mean 'cuda'?"],
    "device = 1979-05-27": ["device must", "1979"],
    "depth = fifty": ["not valid TOML", "line 1, column 9"],
    "depth = 1\ndepth = 2": ["not valid TOML", "overwrite"],
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_a_file_is_one_sentence_with_file_key_value_and_what_is_allowed(text: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(SettingsError) as caught:
        SweepConfig.from_toml(path)
    sentence = str(caught.value)
    assert sentence.startswith(f"{path}: ")
    assert "\n" not in sentence
    assert "pydantic" not in sentence
    assert sentence.endswith((".", "?"))
    for part in MISTAKES[text]:
        assert part in sentence


def test_a_mistake_by_hand_is_the_same_sentence_without_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text("depht = 50", encoding="utf-8")
    with pytest.raises(SettingsError) as from_file:
        SweepConfig.from_toml(path)
    with pytest.raises(SettingsError) as by_hand:
        SweepConfig(depht=50)
    assert str(from_file.value) == f"{path}: {by_hand.value}"
    assert isinstance(by_hand.value, ValueError)


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "glorot.toml").touch()
    with pytest.raises(SettingsError, match=r"gloro\.toml: there is no such .*; did you mean 'glorot\.toml'\?$"):
        SweepConfig.from_toml(tmp_path / "gloro.toml")
    with pytest.raises(SettingsError, match=r"there is no such settings file\.$"):
        SweepConfig.from_toml(tmp_path / "nowhere" / "glorot.toml")


def test_a_folder_or_a_picture_is_no_settings_file(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        SweepConfig.from_toml(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\r\n")
    with pytest.raises(SettingsError, match="not a text file in UTF-8"):
        SweepConfig.from_toml(tmp_path / "picture.png")


def test_one_value_and_a_list_of_one_are_the_same_setting() -> None:
    one = SweepConfig(init="he_normal", activation="relu", depth=20, width=64)
    assert one == SweepConfig(init=["he_normal"], activation=("relu",), depth=[20], width=(64,))
    assert (one.depth, one.width) == ((20,), (64,))


def test_names_become_canonical_and_parameters_stay() -> None:
    config = SweepConfig(
        init=["kaiming_normal", "Xavier_Uniform_"], activation=["swish", "logistic", "leaky_relu(0.2)"]
    )
    assert config.init == ("he_normal", "glorot_uniform")
    assert config.activation == ("silu", "sigmoid", "leaky_relu(0.2)")


def test_width_follows_the_family_unless_it_is_given() -> None:
    assert SweepConfig().width == (256,)
    assert SweepConfig().replace(family="conv").width == (64,)
    assert SweepConfig(width=32).replace(family="conv").width == (32,)
    assert SweepConfig(family="conv", init="delta_orthogonal").init == ("delta_orthogonal",)


def test_settings_cannot_be_changed_only_replaced_and_replacing_checks() -> None:
    config = SweepConfig(seeds=3)
    with pytest.raises(ValueError, match="frozen"):
        config.seeds = 4
    assert config.replace(depth=[5, 6]) == SweepConfig(seeds=3, depth=[5, 6])
    with pytest.raises(SettingsError, match="depth must"):
        config.replace(depth=0)


def test_the_default_file_says_what_the_defaults_are() -> None:
    assert SweepConfig.from_toml(CONFIGS / "default.toml") == SweepConfig()
    assert len(SweepConfig().init) == len(SweepConfig().activation) == 10


def test_the_torch_free_list_of_schemes_is_the_registry() -> None:
    from gradscope.init import scheme_names

    assert set(SCHEMES) - set(scheme_names()) == {"edge_of_chaos", "lsuv"}
    assert set(scheme_names()) <= set(SCHEMES)


def test_the_edge_of_chaos_is_refused_for_an_activation_that_has_none() -> None:
    with pytest.raises(SettingsError, match="must not name 'edge_of_chaos' where activation is 'sigmoid'"):
        SweepConfig(init=["he_normal", "edge_of_chaos"], activation=["tanh", "sigmoid"])
    with pytest.raises(SettingsError, match="'lsuv' where activation is 'softmax', which is not elementwise"):
        SweepConfig(init="lsuv", activation="softmax")


def test_settings_are_read_without_torch() -> None:
    code = (
        "import sys; from gradscope import SweepConfig; "
        f"SweepConfig.from_toml({str(CONFIGS / 'selu.toml')!r}); print('torch' in sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ran.stdout.strip() == "False"


_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=2),
    max_leaves=5,
)


@given(key=st.sampled_from(sorted(SweepConfig.model_fields)) | st.text(max_size=8), value=_values)
def test_whatever_the_value_the_answer_is_settings_or_one_sentence(key: str, value: object) -> None:
    sentence, config = "", None
    try:
        config = SweepConfig(**{key: value})
    except SettingsError as error:
        sentence = str(error)
    if config is None:
        assert key in sentence or repr(key) in sentence
        assert sentence.endswith((".", "?"))
    else:
        assert SweepConfig(**config.model_dump()) == config
