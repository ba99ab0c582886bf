"""`gradscope-report`: what it writes and prints, its exit codes, and how it answers to mistakes."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import gradscope
from gradscope.cli import main
from gradscope.diagnosis import RULES, diagnose
from tests.reporting import saved, trained

ROOT = Path(__file__).parents[1]
TINY = ["--init", "he_normal", "--activation", "relu", "--depth", "4", "--width", "8", "--seeds", "2"]

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for name in ("GRADSCOPE_DEBUG", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)


def refused(capsys: Capture, *argv: str, code: int = 2) -> str:
    """The one sentence on stderr of a command that must fail with this exit code."""
    assert main(argv) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "Traceback" not in err
    assert err.startswith("gradscope-report: ")
    assert err.count("\n") == 1
    return err.removeprefix("gradscope-report: ").rstrip("\n")


@pytest.fixture
def write_module(tmp_path: Path) -> Callable[[str], str]:
    """Writes a user's module into the current folder under a name of its own, which it returns."""

    def write(code: str) -> str:
        name = f"user_{tmp_path.name}_{len(list(tmp_path.glob('user_*.py')))}".replace("-", "_")
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        return name

    return write


# -- sweep ----------------------------------------------------------------------------------------------------


def test_a_sweep_prints_its_table_and_leaves_pictures_in_reports(capsys: Capture) -> None:
    assert main(["sweep", *TINY]) == 0
    out, err = capsys.readouterr()
    assert "Forward: decades per layer" in out
    assert "3 pictures and index.json in reports/; start with reports/overview.png" in out
    assert err == ""
    assert {p.name for p in Path("reports").iterdir()} == {
        "activation__relu.png",
        "index.json",
        "overview.png",
        "signal_vs_depth__he_normal__relu.png",
    }


def test_without_a_command_it_sweeps() -> None:
    assert main([*TINY, "--quiet", "--out", "here"]) == 0
    assert Path("here/overview.png").exists()


def test_json_prints_the_index_and_nothing_else(capsys: Capture) -> None:
    assert main(["sweep", *TINY, "--json"]) == 0
    out, err = capsys.readouterr()
    assert json.loads(out) == json.loads(Path("reports/index.json").read_text(encoding="utf-8"))
    assert json.loads(out)["schema"] == 1
    assert err == ""


def test_quiet_prints_nothing(capsys: Capture) -> None:
    assert main(["sweep", *TINY, "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_options_of_several_values_repeat_and_override_the_settings_file(capsys: Capture) -> None:
    Path("mine.toml").write_text('init = "he_normal"\nactivation = ["relu", "tanh"]\nwidth = 8\nseeds = 1\n')
    argv = ["sweep", "mine.toml", "--init", "xavier_uniform", "--init", "orthogonal", "--depth", "3", "--depth", "4"]
    assert main([*argv, "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["config"]["init"] == ["glorot_uniform", "orthogonal"]
    assert document["config"]["activation"] == ["relu", "tanh"]
    assert document["config"]["depth"] == [3, 4]
    assert "signal_vs_depth__orthogonal__tanh__d4_w8.png" in {p["file"] for p in document["pictures"]}


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--init", "he_norml"], "did you mean 'he_normal'?"),
        (["--activation", "rleu"], "did you mean 'relu'?"),
        (["--depth", "1"], "depth must be a whole number of at least 2"),
        (["--depth", "deep"], "Invalid value for '--depth'"),
        (["--seeds", "0"], "seeds must be"),
        (["--device", "gpu"], "device must be 'cpu', 'cuda' or 'cuda:N'"),
        (["--family", "cnn"], "family must be 'mlp' or 'conv'"),
        (["--inits", "he_normal"], "No such option"),
        (["absent.toml"], "absent.toml: there is no such settings file"),
    ],
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_wrong_setting_is_one_sentence_and_exit_2(argv: list[str], sentence: str, capsys: Capture) -> None:
    assert sentence in refused(capsys, "sweep", *argv)
    assert not Path("reports").exists()


def test_a_settings_file_that_is_wrong_is_named(capsys: Capture) -> None:
    Path("wrong.toml").write_text("depht = 5\n")
    said = refused(capsys, "sweep", "wrong.toml")
    assert said.startswith("wrong.toml: unknown key 'depht'")
    assert "did you mean 'depth'?" in said
    Path("wrong.toml").write_text("depth = \n")
    assert "wrong.toml: this is not valid TOML" in refused(capsys, "sweep", "wrong.toml")


def test_an_output_directory_that_cannot_be_made_is_a_mistake(capsys: Capture) -> None:
    Path("file").write_text("")
    assert "file" in refused(capsys, "sweep", *TINY, "--out", "file")
    assert "--out file/sub cannot be written" in refused(capsys, "sweep", *TINY, "--out", "file/sub")


def test_a_command_that_is_not_there_is_answered_with_the_nearest() -> None:
    done = subprocess.run([sys.executable, "-m", "gradscope", "swep"], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2
    assert done.stderr == "gradscope-report: No such command 'swep'. Did you mean 'sweep'?\n"


# -- activation -----------------------------------------------------------------------------------------------


def test_activation_draws_each_once_and_says_why_gradients_die(capsys: Capture) -> None:
    assert main(["activation", "logistic", "sigmoid", "leaky_relu(0.2)"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "one factor is almost 0, and so is the gradient that a logistic unit passes back" in out
    kinds, names = ("activation", "card", "phase", "cmap", "spectrum"), ("sigmoid", "leaky_relu_0.2")
    expected = {"gains.png", *(f"{kind}__{name}.png" for kind in kinds for name in names)}
    assert {p.name for p in Path("reports").glob("*.png")} == expected


def test_activation_refuses_an_unknown_name_and_no_name(capsys: Capture) -> None:
    assert "did you mean 'tanh'?" in refused(capsys, "activation", "tanhh")
    assert "Missing argument 'NAME...'" in refused(capsys, "activation")
    assert not Path("reports").exists()


# -- show and export ------------------------------------------------------------------------------------------


def test_show_says_first_what_is_wrong_where_why_and_what_to_do(capsys: Capture, tmp_path: Path) -> None:
    recording = trained()
    run = saved(recording, tmp_path / "run.gscope")
    assert main(["show", str(run), "--out", "shown"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    found = diagnose(recording)[0]
    assert out.startswith(
        f"1 warning WARNING {found.rule} what {found.explanation} where first at {found.frontier.name} ("
    )
    assert f"why {found.causes[0]} what to do {found.remedy} " in out
    assert out.index(found.remedy) < out.index("rms at each site")
    assert "11 pictures and index.json in shown/" in out


@pytest.mark.parametrize(
    ("scheme", "layers", "fail_on", "code"),
    [
        ("glorot_normal", 6, None, 0),  # a warning
        ("glorot_normal", 6, "warning", 1),
        ("glorot_normal", 6, "error", 0),
        ("naive_normal", 16, None, 1),  # an error
        ("naive_normal", 16, "warning", 1),
        ("naive_normal", 16, "never", 0),
        ("he_normal", 3, "warning", 0),  # nothing
    ],
)
def test_show_exits_1_where_a_finding_is_as_severe_as_fail_on_says(
    scheme: str, layers: int, fail_on: str | None, code: int, capsys: Capture, tmp_path: Path
) -> None:
    recording = trained(scheme, layers)
    worst = {"glorot_normal": "warning", "naive_normal": "error", "he_normal": None}[scheme]
    assert diagnose(recording).worst == worst
    run = saved(recording, tmp_path / "run.gscope")
    option = [] if fail_on is None else ["--fail-on", fail_on]
    assert main(["show", str(run), *option]) == code
    assert "index.json in reports/" in capsys.readouterr().out
    assert main(["show", str(run), *option, "--json"]) == code
    document = json.loads(capsys.readouterr().out)
    assert [one["severity"] for one in document["findings"][:1]] == ([] if worst is None else [worst])
    assert document["summary"].startswith("healthy: " if worst is None else document["findings"][0]["rule"])


@pytest.mark.parametrize("command", ["show", "probe", "predict", "audit"])
def test_a_fail_on_that_is_none_is_one_sentence_and_exit_2_before_anything_runs(command: str, capsys: Capture) -> None:
    said = refused(capsys, command, "absent", "--fail-on", "errors")
    assert said == "--fail-on must be warning, error or never, not 'errors'"
    assert not Path("reports").exists()


def test_a_sweep_has_no_fail_on(capsys: Capture) -> None:
    assert "No such option" in refused(capsys, "sweep", *TINY, "--fail-on", "never")


def test_show_refuses_what_is_no_recording(capsys: Capture, tmp_path: Path) -> None:
    assert "there is no recording at" in refused(capsys, "show", "absent.gscope")
    Path("foreign.gscope").write_bytes(b"PK\x03\x04" + bytes(100))
    assert "is a zip archive, not a recording" in refused(capsys, "show", "foreign.gscope")
    cut = saved(trained(), tmp_path / "cut.gscope")
    cut.write_bytes(cut.read_bytes()[:5000])
    assert "cut" in refused(capsys, "show", str(cut))
    assert not Path("reports").exists()


def test_verify_tells_a_whole_recording_from_a_damaged_one(capsys: Capture, tmp_path: Path) -> None:
    path = saved(trained(), tmp_path / "run.gscope")
    assert main(["verify", str(path)]) == 0
    assert " is whole: " in capsys.readouterr().out
    assert main(["verify", str(path), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["kind"] == "verify"
    assert document["steps"] > 0
    data = path.read_bytes()
    assert b"Linear" in data
    path.write_bytes(data.replace(b"Linear", b"Linexr", 1))
    assert "checksum" in refused(capsys, "verify", str(path))


def test_export_writes_csv_and_npz_that_hold_the_recordings_values(capsys: Capture, tmp_path: Path) -> None:
    recording = trained()
    run = str(saved(recording, tmp_path / "run.gscope"))
    assert main(["export", run, "--to", "csv"]) == 0
    assert "5 steps of" in capsys.readouterr().out
    with open("reports/run.csv", encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["signal"] == "activation"]
    rms = recording.values("activation", "rms")
    np.testing.assert_array_equal([float(row["rms"]) for row in rows], rms.ravel())
    assert main(["export", run, "--to", "npz", "--out", "deep/er.npz", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"schema": 1, "kind": "export", "file": "deep/er.npz"}
    with np.load("deep/er.npz", allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["activation/rms"], rms)


def test_export_refuses_an_unknown_format(capsys: Capture) -> None:
    assert refused(capsys, "export", "run.gscope", "--to", "xlsx") == "--to must be csv or npz, not 'xlsx'"
    assert "Missing option '--to'" in refused(capsys, "export", "run.gscope")


# -- probe ----------------------------------------------------------------------------------------------------

MODEL = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))

def with_inputs():
    return model(), torch.ones(3, 4)

def with_loss():
    return model(), torch.ones(3, 4), torch.zeros(3, dtype=torch.long), nn.CrossEntropyLoss()

def batch():
    return torch.full((5, 4), 2.0)

def wrong_batch():
    return torch.ones(3, 7)

def fails():
    raise RuntimeError("no GPU today\\nand a second line")

def no_model():
    return "a string"

def leaves():
    raise SystemExit("bye")

def on_meta():
    with torch.device("meta"):
        return model(), torch.ones(3, 4)

number = 3
"""

AUDITED = """
import torch
from torch import nn

import gradscope

def deep():
    torch.manual_seed(0)
    return nn.Sequential(*(m for _ in range(20) for m in (nn.Linear(64, 64), nn.ReLU())))

def sound():
    model = deep()
    gradscope.init.initialize(model)
    return model

def half_open():
    return nn.LSTM(64, 64)

class Functional(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(64, 64) for _ in range(20))

    def forward(self, x):
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x

def functional():
    torch.manual_seed(0)
    return Functional()

def deep_on_a_batch():
    return functional(), batch()

def batch():
    return torch.ones(2, 64)

def random_batch():
    torch.manual_seed(1)
    return torch.randn(32, 64)

def wrong_batch():
    return torch.ones(2, 7)

def on_meta():
    with torch.device("meta"):
        return deep()
"""


def test_probe_and_predict_exit_1_on_a_deep_network_of_torchs_default_weights(
    write_module: Callable[[str], str], capsys: Capture
) -> None:
    module = write_module(AUDITED)
    for command in ("probe", "predict"):
        for options, code in (([], 1), (["--fail-on", "never"], 0)):
            assert main([command, f"{module}:deep", "--batch", f"{module}:random_batch", *options]) == code
            out = capsys.readouterr().out
            assert out.startswith("1 error")
            assert "ERROR vanishing-gradient" in out
        assert main([command, f"{module}:sound", "--batch", f"{module}:random_batch", "--fail-on", "warning"]) == 0
        out = " ".join(capsys.readouterr().out.split())
        assert out.startswith("No fault found: the activation changes by ")
        assert "Not judged: " in out
        assert "✕" not in out


@pytest.mark.parametrize("factory", ["with_inputs", "with_loss"])
def test_probe_finds_a_factory_in_the_current_folder(
    factory: str, write_module: Callable[[str], str], capsys: Capture
) -> None:
    assert main(["probe", f"{write_module(MODEL)}:{factory}"]) == 0
    out = capsys.readouterr().out
    assert "Step 0: rms at each site" in out
    assert Path("reports/profile__activation_grad.png").exists()
    assert not list(Path("reports").glob("heatmap*"))  # one step has no time axis


def test_probe_takes_the_batch_of_a_function(write_module: Callable[[str], str], capsys: Capture) -> None:
    module = write_module(MODEL)
    assert main(["probe", f"{module}:model", "--batch", f"{module}:batch", "--json"]) == 0
    pictures = {p["file"]: p["data"] for p in json.loads(capsys.readouterr().out)["pictures"]}
    line = pictures["profile__activation.png"]["lines"][0]
    assert line["log10_rms"][line["sites"].index("<input>")] == pytest.approx(np.log10(2.0))


@pytest.mark.parametrize(
    ("factory", "sentence"),
    [
        ("model", "gave a model but no batch: let it return (model, inputs)"),
        ("fails", "failed: RuntimeError: no GPU today"),
        ("leaves", "failed: SystemExit: bye"),
        ("no_model", "returned str; allowed are a torch.nn.Module and (model, inputs[, target[, loss_fn]])"),
        ("number", "is int, which cannot be called"),
        ("absent", "cannot be imported: AttributeError"),
    ],
)
def test_a_factory_that_will_not_do_is_explained_in_one_sentence(
    factory: str, sentence: str, write_module: Callable[[str], str], capsys: Capture
) -> None:
    target = f"{write_module(MODEL)}:{factory}"
    said = refused(capsys, "probe", target)
    assert said.startswith(f"{target} {sentence}")
    assert "second line" not in said


def test_a_model_that_cannot_take_its_batch_is_the_users_mistake(
    write_module: Callable[[str], str], capsys: Capture
) -> None:
    module = write_module(MODEL)
    said = refused(capsys, "probe", f"{module}:model", "--batch", f"{module}:wrong_batch")
    assert said.startswith(f"{module}:model cannot be probed: RuntimeError: ")


def test_a_module_that_cannot_be_imported_is_explained(write_module: Callable[[str], str], capsys: Capture) -> None:
    assert "cannot be imported: ModuleNotFoundError: No module named 'absent'" in refused(capsys, "probe", "absent:f")
    assert "cannot be imported: SyntaxError" in refused(capsys, "probe", f"{write_module('def f(:')}:f")
    assert "does not name a factory: write package.module:function" in refused(capsys, "probe", "model.py")


# -- the program ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments", [["with_inputs"], ["with_loss"], ["with_inputs", "--init", "auto"], ["on_meta", "--init", "he_normal"]]
)
def test_predict_draws_what_theory_expects(
    arguments: list[str], write_module: Callable[[str], str], capsys: Capture
) -> None:
    factory, *options = arguments
    assert main(["predict", f"{write_module(MODEL)}:{factory}", *options]) == 0
    assert "Step 0: rms at each site" in capsys.readouterr().out
    assert Path("reports/profile__activation_grad.png").exists()


def test_predict_explains_a_model_without_values_and_a_scheme_that_is_none(
    write_module: Callable[[str], str], capsys: Capture
) -> None:
    module = write_module(MODEL)
    said = refused(capsys, "predict", f"{module}:on_meta")
    assert said.startswith(f"{module}:on_meta cannot be predicted: ValueError: parameters has no moments of '0.weight'")
    said = refused(capsys, "predict", f"{module}:with_inputs", "--init", "he_norml")
    assert "he_norml" in said
    assert "he_normal" in said


@pytest.mark.parametrize(("factory", "code"), [("deep", 1), ("deep_on_a_batch", 1), ("half_open", 0), ("sound", 0)])
def test_audit_prints_what_it_finds_and_exits_1_where_it_is_worse_than_a_note(
    factory: str, code: int, write_module: Callable[[str], str], capsys: Capture
) -> None:
    assert main(["audit", f"{write_module(AUDITED)}:{factory}"]) == code
    out, err = capsys.readouterr()
    assert err == ""
    first = {"half_open": "1 note note forget-bias what ", "sound": "No fault found."}
    said = " ".join(out.split())
    assert said.startswith(first.get(factory, "1 error ERROR default-init what 20 layers have torch's default weights"))
    if code:
        assert f"where {'layers.0' if factory == 'deep_on_a_batch' else '0'}.weight, " in said
        assert "what to do gradscope.init.initialize(model" in said
    assert not Path("reports").exists()


@pytest.mark.parametrize(("fail_on", "code"), [("error", 1), ("warning", 1), ("never", 0)])
def test_audit_takes_fail_on(fail_on: str, code: int, write_module: Callable[[str], str]) -> None:
    assert main(["audit", f"{write_module(AUDITED)}:deep", "--quiet", "--fail-on", fail_on]) == code


def test_rules_lists_every_rule_with_what_it_finds_its_limit_and_its_reference(capsys: Capture) -> None:
    assert main(["rules"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 100
    said = " ".join(out.split())
    for one in RULES.values():
        about, limit = " ".join(one.about.split()), " ".join(one.limit.split())
        assert f"{one.name} {about} limit: {limit} {one.reference}".strip() in said


def test_rules_as_json_and_quiet(capsys: Capture) -> None:
    assert main(["rules", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["kind"]) == (1, "rules")
    assert [one["rule"] for one in document["rules"]] == list(RULES)
    assert {one["rule"]: one["needs"] for one in document["rules"]}["vanishing-gradient"] == ["activation_grad"]
    assert all(one["finds"] and one["limit"] for one in document["rules"])
    assert main(["rules", "--quiet"]) == 0
    assert capsys.readouterr() == ("", "")


def test_audit_prints_json_or_nothing_with_the_same_exit_code(
    write_module: Callable[[str], str], capsys: Capture
) -> None:
    module = write_module(AUDITED)
    assert main(["audit", f"{module}:deep", "--json"]) == 1
    document = json.loads(capsys.readouterr().out)
    assert (document["schema"], document["kind"]) == (1, "audit")
    (found,) = document["findings"]
    assert (found["rule"], found["severity"], len(found["sites"])) == ("default-init", "error", 20)
    assert found["expected"] == pytest.approx(2.0)
    assert main(["audit", f"{module}:sound", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["findings"] == []
    assert main(["audit", f"{module}:deep", "--quiet"]) == 1
    assert capsys.readouterr() == ("", "")


def test_audit_takes_the_batch_of_a_function_and_sees_functions_with_it(
    write_module: Callable[[str], str], capsys: Capture
) -> None:
    module = write_module(AUDITED)
    assert main(["audit", f"{module}:functional"]) == 0
    assert main(["audit", f"{module}:functional", "--batch", f"{module}:batch"]) == 1
    assert "inputs=inputs" in capsys.readouterr().out


def test_audit_answers_a_mistake_with_exit_2(write_module: Callable[[str], str], capsys: Capture) -> None:
    module = write_module(AUDITED)
    said = refused(capsys, "audit", f"{module}:on_meta")
    assert said.startswith(f"{module}:on_meta cannot be audited: ValueError: 0.weight is on the meta device")
    said = refused(capsys, "audit", f"{module}:functional", "--batch", f"{module}:wrong_batch")
    assert said.startswith(f"{module}:functional cannot be audited: RuntimeError: ")
    assert "Missing argument" in refused(capsys, "audit")
    assert "No such option" in refused(capsys, "audit", f"{module}:deep", "--init", "auto")


def test_help_and_version_import_neither_torch_nor_matplotlib_nor_numpy() -> None:
    code = (
        "import sys; from gradscope.cli import main\n"
        "assert main(['--help']) == main(['sweep', '--help']) == main(['--version']) == 0\n"
        "assert not {'torch', 'matplotlib', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert all(
        name in done.stdout for name in ("sweep", "show", "probe", "predict", "audit", "rules", "activation", "export")
    )
    assert f"gradscope-report {gradscope.__version__}" in done.stdout


def test_showing_a_recording_does_not_import_torch(tmp_path: Path) -> None:
    run = saved(trained(), tmp_path / "run.gscope")
    code = (
        "import sys; from gradscope.cli import main\n"
        f"assert main(['show', {str(run)!r}, '--json', '--out', {str(tmp_path / 'out')!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, capture_output=True, text=True)
    assert json.loads(done.stdout)["kind"] == "recording"


def test_a_sweep_from_end_to_end_in_a_process_of_its_own(tmp_path: Path) -> None:
    environment = {**os.environ, "NO_COLOR": "1", "PYTHONPATH": str(ROOT)}
    argv = [sys.executable, "-m", "gradscope", *TINY, "--activation", "gelu", "--activation", "sin"]
    for name in ("glorot_normal", "lecun_normal", "naive_normal"):  # enough pictures for two processes
        argv += ["--init", name]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert "16 pictures and index.json in reports/" in done.stdout
    assert "\x1b" not in done.stdout
    assert len(list((tmp_path / "reports").glob("*.png"))) == 16


def test_an_internal_error_is_one_sentence_and_exit_3(capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: object, signal: str) -> None:
        raise ZeroDivisionError("division by zero")

    monkeypatch.setattr(gradscope.Recording, "sites_of", broken)
    said = refused(capsys, "show", str(saved(trained(), Path("run.gscope"))), code=3)
    assert said.startswith("internal error: ZeroDivisionError: division by zero; please report it to the project's")
    monkeypatch.setenv("GRADSCOPE_DEBUG", "1")
    assert main(["show", "run.gscope"]) == 3
    assert "Traceback" in capsys.readouterr().err


def test_an_interrupt_is_said_and_exits_130(capsys: Capture, write_module: Callable[[str], str]) -> None:
    target = f"{write_module('def f():' + chr(10) + '    raise KeyboardInterrupt')}:f"
    assert refused(capsys, "probe", target, code=130) == "interrupted"


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    command = f"{sys.executable} -m gradscope activation relu --json --out {tmp_path} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stderr) == (0, "")


def test_completion_offers_schemes_and_activations() -> None:
    from gradscope.cli import _activations, _schemes

    assert "he_normal" in _schemes()
    assert _activations() == list(gradscope.activations.names())
