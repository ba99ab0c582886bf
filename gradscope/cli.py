"""`gradscope-report`: sweep, show, probe, predict, audit, diff, rules, activation, export, merge, verify.

Thin: a command reads its options, calls one experiment and one report, and prints. Nothing heavy is imported
before a command runs, so that `--help` and a mistake cost a fraction of a second.

Exit codes: 0 fine; 1 a finding as severe as `--fail-on` says (of `show`, `probe` and `predict` an error, of `audit` a
warning, unless it says otherwise), of `diff` a difference; 2 wrong usage or unreadable input, with one sentence on
stderr; 3 an internal error; 130 interrupted. (A sweep contains sick pairs by design: they are no findings.)
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gradscope._cli_output import Mistake, Output

if TYPE_CHECKING:
    from gradscope.diagnosis import Findings
    from gradscope.recording import Recording

NAME = "gradscope-report"
OK, FINDINGS, USAGE, INTERNAL, INTERRUPTED = 0, 1, 2, 3, 130
_ROOT_OPTIONS = ("--help", "--version", "--install-completion", "--show-completion")
_MOST_WORKERS = 4

# typer ≥ 0.2x carries its own copy of click; the base of its exported error is the right class with either.
_UsageError: type[Any] = typer.BadParameter.__mro__[2]

app = typer.Typer(
    name=NAME,
    help="How the signal grows or shrinks with depth in a neural network, forward and backward.",
    epilog="Alone, it runs `sweep` with the defaults.",
    pretty_exceptions_enable=False,
)


def _schemes() -> list[str]:
    from gradscope.experiments._checks import SCHEMES

    return list(SCHEMES)


def _activations() -> list[str]:
    from gradscope.activations import names

    return list(names())


def _version(wanted: bool) -> None:
    if wanted:
        from gradscope import __version__

        print(f"{NAME} {__version__}")
        raise typer.Exit


Out = Annotated[Path, typer.Option(help="Directory for pictures and index.json.", file_okay=False)]
Json = Annotated[bool, typer.Option("--json", help="Print index.json instead of text.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print no text and no progress.")]
Run = Annotated[Path, typer.Argument(metavar="RUN.gscope", help="A recording.", show_default=False)]
ExpectedRun = Annotated[
    Path | None,
    typer.Option("--expected", metavar="THEORY.gscope", help="A saved prediction of the same model, drawn beside it."),
]
Version = Annotated[bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")]
Config = Annotated[Path | None, typer.Argument(metavar="CONFIG.toml", help="Settings; the options override them.")]
Init = Annotated[list[str] | None, typer.Option(help="Scheme; repeatable.", autocompletion=_schemes)]
Activation = Annotated[list[str] | None, typer.Option(help="Activation; repeatable.", autocompletion=_activations)]
Depth = Annotated[list[int] | None, typer.Option(help="Number of linear layers; repeatable.")]
Width = Annotated[list[int] | None, typer.Option(help="Units or channels of each layer; repeatable.")]
Seeds = Annotated[int | None, typer.Option(help="How many networks a pair has.")]
Family = Annotated[str | None, typer.Option(help="mlp or conv.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or cuda:N.")]
Factory = Annotated[
    str,
    typer.Argument(
        metavar="package.module:factory",
        help="Returns a model or (model, inputs[, target[, loss_fn]]).",
        show_default=False,
    ),
]
Scheme = Annotated[
    str | None,
    typer.Option(help="A scheme, or auto, in place of the weights that the model has.", autocompletion=_schemes),
]
Batch = Annotated[
    str | None,
    typer.Option(metavar="package.module:function", help="Returns the inputs: a tensor, a tuple or a dict."),
]
Names = Annotated[
    list[str],
    typer.Argument(
        metavar="NAME...",
        help="As in sweep, with a parameter too: leaky_relu(0.2).",
        show_default=False,
        autocompletion=_activations,
    ),
]
To = Annotated[str, typer.Option(help="csv or npz.", show_default=False)]
ExportOut = Annotated[Path, typer.Option(help="Directory, or a file that ends in .csv or .npz.")]
Runs = Annotated[
    list[Path],
    typer.Argument(metavar="RUN.gscope...", help="The recordings of the ranks of one run.", show_default=False),
]
MergeOut = Annotated[Path, typer.Option(help="The file to write.", dir_okay=False, metavar="MERGED.gscope")]
FailOn = Annotated[
    str, typer.Option(metavar="[warning|error|never]", help="Exit with 1 where a finding is at least that severe.")
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace a recording that is there.")]
Compared = Annotated[
    list[str],
    typer.Argument(
        metavar="EXPECTED OBTAINED",
        help="Recordings or baselines; with --rev one package.module:factory.",
        show_default=False,
    ),
]
Rev = Annotated[
    list[str] | None,
    typer.Option(metavar="REVISION", help="Twice: probe the factory as it is at each git revision, in a worktree."),
]
Rtol = Annotated[float | None, typer.Option(help="Relative tolerance of every size; 1e-3 if not given.")]
Markdown = Annotated[bool, typer.Option("--markdown", help="Print Markdown instead of text.")]
Pictures = Annotated[
    Path | None, typer.Option(help="Directory for a picture of each profile that differs.", file_okay=False)
]
_REPORTS = Path("reports")


@app.callback()
def _root(version: Version = False) -> None:
    pass


@app.command()
def sweep(
    config: Config = None,
    init: Init = None,
    activation: Activation = None,
    depth: Depth = None,
    width: Width = None,
    seeds: Seeds = None,
    family: Family = None,
    device: Device = None,
    out: Out = _REPORTS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Measure every init with every activation in plain networks, beside the theory; ranks of torchrun share them."""
    from gradscope.experiments import SweepConfig
    from gradscope.experiments._launch import launch

    settings = SweepConfig() if config is None else SweepConfig.from_toml(config)
    several = {"init": init, "activation": activation, "depth": depth, "width": width}
    single = {"seeds": seeds, "family": family, "device": device}
    given = {key: value for key, value in (several | single).items() if value not in (None, [])}
    settings = settings.replace(**given)
    here = launch()
    output = Output(out, json, quiet or here.rank != 0)
    if here.rank == 0:
        output.make_directory()
    from gradscope.experiments._shared import shared_sweep
    from gradscope.report import write_sweep_report
    from gradscope.report._terminal import sweep_text

    with output.progress() as phase:
        result = shared_sweep(settings, here, progress=phase("measuring"))
        if result is None:  # rank 0 has it, and it alone writes
            return
        workers = min(_MOST_WORKERS, os.cpu_count() or 1)
        report = write_sweep_report(result, out, workers=workers, progress=phase("drawing"))
    output.print_report(report, lambda: sweep_text(result))


@app.command()
def show(
    run: Run,
    expected: ExpectedRun = None,
    fail_on: FailOn = "error",
    out: Out = _REPORTS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What is wrong in a recorded run, where and why; draws profiles, depth against step, update-to-weight ratio."""
    limit = _severities(fail_on)
    from gradscope.recording import Recording

    recording = Recording.load(run)
    theory = None if expected is None else Recording.load(expected)
    if theory is not None and theory.facts.get("source") != "theory":
        raise Mistake(f"--expected {expected} is no prediction; gradscope.predict(model, inputs).save(path) makes one")
    _report_run(recording, Output(out, json, quiet), limit, theory)


@app.command()
def probe(
    factory: Factory,
    batch: Batch = None,
    fail_on: FailOn = "error",
    out: Out = _REPORTS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """One forward and one backward of your own model on one batch: what is wrong, where and why."""
    limit = _severities(fail_on)
    from gradscope import _user_model

    user = _user_model.load(factory, batch)
    recording, note = _user_model.probe(user), ""
    expected: Recording | None = None
    try:
        expected = _user_model.predict(user, None)
    except Mistake as error:
        note = f"No theory is drawn: {str(error).rstrip('.')}."
    _report_run(recording, Output(out, json, quiet), limit, expected, note)


@app.command()
def predict(
    factory: Factory,
    init: Scheme = None,
    batch: Batch = None,
    fail_on: FailOn = "error",
    out: Out = _REPORTS,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """What theory expects of your own model, on the meta device too: no step, no memory for its weights."""
    limit = _severities(fail_on)
    from gradscope import _user_model

    recording = _user_model.predict(_user_model.load(factory, batch), init)
    note = "A gradient of rms 1 enters at the output, whatever the loss: a run's own may be larger or smaller."
    _report_run(recording, Output(out, json, quiet), limit, note=note)


@app.command()
def audit(
    factory: Factory, batch: Batch = None, fail_on: FailOn = "warning", json: Json = False, quiet: Quiet = False
) -> None:
    """What is wrong with the initial weights of your own model; exit code 1 where something is worse than a note."""
    limit = _severities(fail_on)
    from gradscope import _user_model

    found = _user_model.audit(_user_model.load(factory, batch, needs_batch=False))
    from gradscope.report._findings_text import findings_text

    document = {"schema": 1, "kind": "audit", "findings": found.as_list()}
    Output(_REPORTS, json, quiet).print_rich(document, lambda: [findings_text(found)])
    _fail(found, limit)


@app.command()
def diff(
    compared: Compared,
    rev: Rev = None,
    rtol: Rtol = None,
    out: Pictures = None,
    json: Json = False,
    markdown: Markdown = False,
    quiet: Quiet = False,
) -> None:
    """What differs between two runs: sites by name, sizes within a tolerance; exit code 1 where something does."""
    from gradscope import _revisions

    if json and markdown:
        raise Mistake("--json and --markdown exclude each other")
    expected, obtained = _revisions.at_revisions(compared, rev) if rev else _revisions.of_files(compared)
    found, bands = _revisions.compared(expected, obtained, rtol)
    output = Output(_REPORTS if out is None else out, json, quiet)
    if out is not None:
        output.make_directory()
        from gradscope.recording._common_steps import at_common_steps
        from gradscope.report import write_comparison_report

        write_comparison_report(*at_common_steps(expected, obtained)[:2], found, out, bands=bands)
    output.print_document(found.as_dict(), found.to_markdown().rstrip() if markdown else str(found))
    if not found.same:
        raise typer.Exit(FINDINGS)


@app.command()
def rules(json: Json = False, quiet: Quiet = False) -> None:
    """The rules by which recordings are judged: what each finds, how its limit is derived, its reference."""
    from gradscope.report._rules_text import rules_document, rules_text

    Output(_REPORTS, json, quiet).print_rich(rules_document(), lambda: [rules_text()])


@app.command()
def activation(names: Names, out: Out = _REPORTS, json: Json = False, quiet: Quiet = False) -> None:
    """Draw activations: function, slope, where they saturate, and what mean-field theory says of each."""
    from gradscope.activations import get

    try:
        chosen = list(dict.fromkeys(get(name).name for name in names))
    except ValueError as error:
        raise Mistake(str(error)) from None
    output = Output(out, json, quiet)
    output.make_directory()
    from gradscope.report import write_activation_report
    from gradscope.report._terminal import activation_text

    report = write_activation_report(chosen, out, theory=True)
    output.print_report(report, lambda: activation_text(chosen, cards=True))


@app.command()
def export(run: Run, to: To, out: ExportOut = _REPORTS, json: Json = False, quiet: Quiet = False) -> None:
    """Write a recording for other programs: one CSV table, or numpy arrays."""
    from gradscope.recording import Recording, export_csv, export_npz

    writers = {"csv": export_csv, "npz": export_npz}
    if to not in writers:
        raise Mistake(f"--to must be csv or npz, not {to!r}")
    if out.suffix in {f".{other}" for other in writers if other != to}:
        raise Mistake(f"--out is {str(out)!r} and --to is {to}: give a directory or a file that ends in .{to}")
    path = out if out.suffix == f".{to}" else out / f"{run.stem}.{to}"
    recording = Recording.load(run)
    output = Output(out, json, quiet)
    output.make_directory(path.parent)
    writers[to](recording, path)
    text = f"{len(recording.steps)} steps of {len(recording.sites)} sites in {path}"
    output.print_document({"schema": 1, "kind": "export", "file": str(path)}, text)


@app.command()
def merge(runs: Runs, out: MergeOut, overwrite: Overwrite = False, json: Json = False, quiet: Quiet = False) -> None:
    """Merge the recordings that the ranks of a distributed run had to write one by one."""
    from gradscope.recording import merge_recordings

    output = Output(out, json, quiet)
    output.make_directory(out.parent)
    try:
        merged = merge_recordings(runs, out, overwrite=overwrite)
    except ValueError as error:
        raise Mistake(str(error)) from None
    steps, ranks = len(merged.steps), int(merged.facts["ranks"])
    whole = int((merged.notes("ranks_merged") == ranks).sum())
    text = f"{steps} steps of {len(merged.sites)} sites in {out}: {whole} of them merged over all {ranks} ranks"
    document = {"schema": 1, "kind": "merge", "file": str(out), "ranks": ranks, "steps": steps, "steps_of_all": whole}
    output.print_document(document, text)


@app.command()
def verify(run: Run, json: Json = False, quiet: Quiet = False) -> None:
    """Read a whole recording and compare every row with its checksum."""
    from gradscope.recording import Recording

    recording = Recording.load(run)
    recording.verify()
    steps, sites, output = len(recording.steps), len(recording.sites), Output(_REPORTS, json, quiet)
    document = {"schema": 1, "kind": "verify", "file": str(run), "steps": steps, "complete": recording.complete}
    output.print_document(document, f"{run} is whole: {steps} steps of {sites} sites")


def _severities(fail_on: str) -> tuple[str, ...]:
    """Those of a finding that give exit code 1."""
    allowed = {"warning": ("error", "warning"), "error": ("error",), "never": ()}
    if fail_on not in allowed:
        raise Mistake(f"--fail-on must be warning, error or never, not {fail_on!r}")
    return allowed[fail_on]


def _fail(found: Findings, severities: tuple[str, ...]) -> None:
    if found.worst in severities:
        raise typer.Exit(FINDINGS)


def _report_run(
    recording: Recording,
    output: Output,
    severities: tuple[str, ...],
    expected: Recording | None = None,
    note: str = "",
) -> None:
    output.make_directory()
    from gradscope.diagnosis import diagnose
    from gradscope.report import write_run_report
    from gradscope.report._expected_curve import has_common_sites
    from gradscope.report._run_terminal import run_text

    if expected is not None and not has_common_sites(recording, expected):
        note = "No theory is drawn: the prediction has no site of this recording."
    found = diagnose(recording)
    report = write_run_report(recording, output.out, expected=expected, findings=found)
    output.print_report(report, lambda: run_text(recording, note, found))
    _fail(found, severities)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; nothing is raised, neither for a mistake nor for a bug."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if not arguments or (arguments[0].startswith("-") and arguments[0].split("=")[0] not in _ROOT_OPTIONS):
        arguments.insert(0, "sweep")
    try:
        code = app(arguments, prog_name=NAME, standalone_mode=False)
        return _say("interrupted", INTERRUPTED) if code == INTERRUPTED else int(code or OK)
    except (typer.Abort, KeyboardInterrupt):  # a typer that does not turn it into exit code 130
        return _say("interrupted", INTERRUPTED)
    except SystemExit:  # typer's way out when the reader of a pipe has seen enough: `gradscope-report … | head`
        return OK
    except _UsageError as error:
        return _say(error.format_message(), USAGE)
    except Exception as error:
        if isinstance(error, (Mistake, *_mistakes())):
            return _say(str(error), USAGE)
        if _is_memory(error):
            return _say(f"not enough memory ({error}): choose a smaller width, depth, batch or number of seeds", USAGE)
        bug = f"internal error: {type(error).__name__}: {error}; please report it to the project's issue tracker"
        return _say(f"{bug} (GRADSCOPE_DEBUG=1 shows the traceback)", INTERNAL)


def _is_memory(error: Exception) -> bool:
    """torch raises a RuntimeError on the CPU and an OutOfMemoryError, a kind of it, on a GPU."""
    return isinstance(error, MemoryError) or "allocate" in str(error)


def _mistakes() -> tuple[type[BaseException], ...]:
    """The rooms' errors that are the user's to mend; of loaded rooms only, for no other can have raised."""
    places = {
        "gradscope.experiments._config": "SettingsError",
        "gradscope.experiments._shared": "RankError",
        "gradscope.recording": "RecordingError",
        "gradscope.testing._baseline_file": "BaselineError",
    }
    return tuple(getattr(sys.modules[room], name) for room, name in places.items() if room in sys.modules)


def _say(sentence: str, code: int) -> int:
    if os.environ.get("GRADSCOPE_DEBUG") == "1":
        import traceback

        traceback.print_exc()
    print(f"{NAME}: {' '.join(sentence.split())}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
