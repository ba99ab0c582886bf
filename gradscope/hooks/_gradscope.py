"""`GradScope`: a transparent proxy around a model that records how its signals flow, step by step."""

from __future__ import annotations

import atexit
import copy
import os
import sys
import warnings
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import torch
from torch import nn

from gradscope.diagnosis import Finding, Findings, Limits, Watch, diagnose
from gradscope.hooks._alike_rows import AlikeRows
from gradscope.hooks._arguments import Arguments, check, facts_of
from gradscope.hooks._distributed import parallelism, parameters_at_rest, unwrapped
from gradscope.hooks._dump import kept
from gradscope.hooks._guard import guarded_call
from gradscope.hooks._merging import Merging
from gradscope.hooks._nonfinite import NonFinite, NonFiniteError, OnNonFinite
from gradscope.hooks._observer import Observer
from gradscope.hooks._optimizer_facts import OptimizerFacts
from gradscope.hooks._optimizer_hooks import hook_optimizers
from gradscope.hooks._optimizers import optimizers_of
from gradscope.hooks._outlet import Outlet
from gradscope.hooks._parameters import Parameters
from gradscope.hooks._ranks import Ranks
from gradscope.hooks._schedule import schedule
from gradscope.hooks._sites import SiteBook, SiteFilter, site_filter, unwrapped_name
from gradscope.hooks._stepper import SampleMode, Stepper
from gradscope.hooks._unobserved import Unobserved
from gradscope.hooks._validation import Validation
from gradscope.recording import SIGNALS, GradScopeWarning, Recording, Signal, step_table

_OWN = frozenset(
    {
        "model",
        "_book",
        "_observer",
        "_outlet",
        "_stepper",
        "_unobserved",
        "_validation",
        "_merging",
        "_handles",
        "_open",
    }
    | {"__weakref__"}
)


class GradScope:
    """Watch a model in training: per site and step, how large its signals are in both directions.

    The scope is a transparent proxy: `scope(x)` runs the model, attributes pass through, and the hooks sit on the
    model itself, so a loop that goes on using `model` is observed too. Observing changes nothing: outputs,
    gradients and trained parameters are bit-identical.

    A step is one optimizer update. It is closed by `scope.step()`, called anywhere after its last backward; or by
    the `optimizer` given; or, with neither, by the first forward pass after an optimizer of the loop has run (after
    a backward, where none ever runs). A closed step is written once it is known what the optimizer changed: at once,
    or when the next forward pass begins, the recording is read, or by `close()`. Forward passes without gradient
    (`torch.no_grad()`), and those that no backward follows, belong to no step.

    A model in DistributedDataParallel, or with `fully_shard` or tensor-parallel parameters, is recorded over all its
    ranks: each has to make the scope and to close it, every rank's recording holds the statistics of the global
    batch, and rank 0 writes `log`. A step is merged and written after the optimizer's next, where all ranks are. What
    is noted, and what `validation` records, is each rank's own.

    Args:
        model: the module to observe. Sites have the names of the plain model, also below a wrapper
            (DistributedDataParallel, torch.compile).
        optimizer: its `step()` then closes a step, and `weight_grad` is what it finds (after clipping, after
            averaging over ranks); without it `weight_grad` is what the last backward left, before any clipping.
            Of several each closes a step, or shares the one that the first has closed where no forward lies between.
        every: record each `every`-th step; None records each of the first 100 and then each tenth; "auto" the first
            20 and then as many as the `budget` allows, by what recording and training are measured to cost: each
            second at most, and with several ranks each third. It goes not with `on_nonfinite`.
        signals: which of `activation`, `activation_grad`, `weight`, `weight_grad`, `update` to record.
        sites: None for all; glob patterns over module names (`"layers.*"`); or a predicate on `Site`.
        histograms: also count the entries by their power of two; "sample" counts about 4,096 of a larger tensor.
        scaler: a `torch.amp.GradScaler`; its factor is divided out of the recorded gradients, and noted.
        log: path of the recording file; without it the recording lives in a temporary database.
        loggers: must be empty in this version.
        mode: "exact" reads every entry; "sample" estimates mean, std, zeros, subnormals and histogram of larger tensors
            from about 4,096 entries, others at each step, unless a few entries make most of the tensor. min, max, NaN
            and infinity are exact in both. On an accelerator nothing is sampled.
        budget: the share of the training time that recording may take where `every="auto"`, in (0, 1]. Of several
            ranks, that for which it costs most decides for all.
        functional: make functional activations (`F.relu`, `x.sigmoid()`, `scaled_dot_product_attention`) sites too,
            named `module:function`. Costs a Python call for every torch function that the model calls.
        validation: record forward passes without gradient apart, in `scope.validation`
            (`run.validation.gscope` beside `run.gscope`).
        on_nonfinite: watch every step for NaN and infinity, also those that are not due, and at the first one
            `"warn"`; or `"raise"` a `NonFiniteError` before the optimizer's step; or `"dump"` the batch to a file and
            warn. The steps since the last due one, 20 at most, are recorded then too. Every step costs what a recorded
            one costs, and the last two wait for the device at each. An overflow that a `scaler` skips is no alarm.
        on_finding: called with a `gradscope.diagnosis.Finding` while training: once when something is first found, and
            once more, its `cleared` set, when it is over. All rules are asked at the first recorded steps, then ever
            more rarely, at once and again soon where a step looks unlike those before, and a last time by `close`;
            what is open then stays so, and `diagnose()` tells it. An error in it is told as a warning, and it is called
            no more.
        process_group: over which ranks to merge: "auto" as said above, a `torch.distributed` group, or None for none.
        slow: take unit moments (silent, dead and saturated units, slopes, what samples and units have in common) of the
            activations in each tenth recorded step, the first included, and with `on_finding` in the three behind one
            that looks unlike those before. Of several ranks each has its own part's.

    Raises:
        TypeError, ValueError: an argument is not as above; the sentence names it.
        RecordingError: the recording file cannot be written.

    >>> net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
    >>> with GradScope(net) as scope:
    ...     scope(torch.ones(2, 4)).sum().backward()
    >>> [site.name for site in scope.recording.sites_of("activation_grad")]
    ['0', '1', '2']
    """

    model: nn.Module

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer] | None = None,
        every: int | Literal["auto"] | None = None,
        signals: Sequence[Signal] = SIGNALS,
        sites: str | Sequence[str] | SiteFilter | None = None,
        histograms: bool | Literal["sample"] = False,
        scaler: Any = None,
        log: str | os.PathLike[str] | None = None,
        loggers: Sequence[Any] = (),
        *,
        mode: SampleMode = "exact",
        budget: float = 0.02,
        functional: bool = False,
        validation: bool = False,
        on_nonfinite: OnNonFinite | None = None,
        on_finding: Callable[[Finding], Any] | None = None,
        process_group: Any = "auto",
        slow: bool = True,
    ) -> None:
        if not isinstance(model, nn.Module):
            raise TypeError(f"model is of type {type(model).__name__}; GradScope observes a torch.nn.Module")
        plain = unwrapped(model)
        optimizers = optimizers_of(optimizer)
        given = Arguments(
            plain,
            optimizers,
            every,
            signals,
            sites,
            scaler,
            log,
            loggers,
            on_nonfinite,
            mode,
            budget,
            histograms,
            slow,
            on_finding,
        )
        check(given)
        ranks = Ranks.of(model, process_group)
        unmerged = parallelism(model) if ranks is None else None
        self.model = model
        place = log if ranks is None or ranks.rank == 0 else None
        apart = (
            Recording.create(_apart(place), facts=facts_of(given) | {"source": "validation", "signals": ["activation"]})
            if validation
            else None
        )
        try:
            recording = Recording.create(place, facts=facts_of(given) | _rank_facts(ranks))
        except BaseException:
            _take_back(apart)
            raise
        self._book = _book(recording, signals, sites)
        self._unobserved = Unobserved()
        times = schedule(every, budget, together=ranks is not None)
        self._merging = None if ranks is None else Merging(ranks, self._book, log, times)
        self._outlet = Outlet(
            self._book,
            self._unobserved,
            on_nonfinite=on_nonfinite,
            ranks=self._merging,
            whole_model=sites is None and not (unmerged is not None and unmerged.sharded),
            watch=None if on_finding is None else Watch(on_finding),
        )
        parameters = Parameters(
            plain,
            self._book,
            self._unobserved,
            at_step=bool(optimizers),
            ranks=ranks,
        )
        self._stepper = Stepper(
            self._outlet,
            parameters,
            OptimizerFacts(partial(_names, plain), self._outlet.set_fact),
            AlikeRows(partial(_names, plain), self._outlet.set_fact),
            schedule=times,
            mode=mode,
            histograms=histograms,
            optimizers=len(optimizers),
            scaler=scaler,
            watch=on_nonfinite is not None,
            slow=slow,
        )
        self._validation = (
            None if apart is None else Validation(_book(apart, signals, sites), self._stepper, self._book)
        )
        self._observer = Observer(
            plain,
            self._book,
            self._stepper,
            parameters,
            self._unobserved,
            keep_batch=kept if on_nonfinite == "dump" else None,
            functional=functional,
            validation=self._validation,
            gradients_settle=ranks is not None or unmerged is not None,
            averaged_over=1 if ranks is None else ranks.averaged_over,
        )
        self._stepper.after_last_write = self._observer.end_step
        self._stepper.after_end = self._observer.resting.step_ended
        self._stepper.missed_calls = self._observer.resting.missed_calls
        self._stepper.in_step = ranks is None
        self._handles = hook_optimizers(optimizers, self._observer, self._stepper)
        self._open = True
        _OPEN.add(self)

    # What a user says

    def step(self, loss: Any = None) -> None:
        """Close the step in progress, before or after the optimizer's step; `loss` is noted with it.

        Not needed where an `optimizer` was given, whose step closes it; then only the loss is noted.

        Raises:
            NonFiniteError: something in the step is not finite, and `on_nonfinite="raise"`.
        """
        if loss is not None:
            self.note(loss=loss)
        guarded_call(self._observer, self._stepper.close_by_call)

    def note(self, **facts: Any) -> None:
        """Add facts (numbers, strings, one-entry tensors) to the step of the latest forward pass.

        Once that is written (`step()` was called after the optimizer's step), they belong to the next.
        """
        loss = facts.get("loss")
        if isinstance(loss, torch.Tensor):
            guarded_call(self._observer, partial(self._look_at_loss, loss))
        self._stepper.note({k: v.detach().clone() if isinstance(v, torch.Tensor) else v for k, v in facts.items()})

    def _look_at_loss(self, loss: torch.Tensor) -> None:
        step = self._stepper.latest
        if step is not None and step.due and (found := self._observer.loss_graph.of(loss)) is not None:
            self._outlet.set_fact("loss_graph", found)

    @property
    def recording(self) -> Recording:
        """What was recorded so far: every step that is complete."""
        if self._open and (self._merging is None or not self._merging.together):
            guarded_call(self._observer, self._write_what_is_sure)
        return self._book.recording

    def _write_what_is_sure(self) -> None:
        self._stepper.write_what_is_sure()
        self._outlet.flush(wait=True)

    def diagnose(self, limits: Limits | None = None) -> Findings:
        """What is wrong in what was recorded so far: `gradscope.diagnose(scope.recording)`."""
        return diagnose(self.recording, limits)

    @property
    def validation(self) -> Recording | None:
        """The forward passes without gradient, where `validation=True`.

        A step of it is all of those between two training steps; its number is how many of these had been made. It is
        there once training goes on, or by `close()`.
        """
        return None if self._validation is None else self._validation.book.recording

    @property
    def first_nonfinite(self) -> NonFinite | None:
        """Where the first NaN or infinity of a recorded (or watched) step appeared, None where none has."""
        return self._outlet.first

    @property
    def unobserved(self) -> dict[str, str]:
        """What could not be observed: name of a module, site or parameter -> why."""
        return dict(self._unobserved.reasons)

    def close(self) -> None:
        """Remove every hook and finish the recording; the step in progress is kept if its backward is done."""
        if not self._open:
            return
        self._open = False
        _OPEN.discard(self)
        self._observer.detach()
        for handle in self._handles:
            handle.remove()
        try:  # also after an error stopped the observing: what was complete before it is kept
            self._stepper.finish()
            self._outlet.end()
        except NonFiniteError:
            raise
        except Exception as error:
            warnings.warn(f"GradScope could not finish the recording: {error}", GradScopeWarning, stacklevel=2)
        finally:
            self._close_files()

    def _close_files(self) -> None:
        try:
            if self._validation is not None:
                self._validation.write()
                self._validation.book.recording.close()
            self._book.recording.close()
            if self._merging is not None:
                self._merging.close()
        except Exception as error:
            warnings.warn(f"GradScope could not finish the recording: {error}", GradScopeWarning, stacklevel=3)

    def __enter__(self) -> GradScope:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        if error is not None:
            self._hurry()
        try:
            self.close()
        except NonFiniteError:
            if error is None:
                raise
        return False

    def _hurry(self) -> None:
        if self._merging is not None:
            self._merging.hurry()

    def __str__(self) -> str:
        return step_table(self.recording)

    def __repr__(self) -> str:
        state = "observing" if self._open and not self._observer.detached else "closed"
        return f"<GradScope of {type(self.model).__name__}, {state}, {len(self._book.recording.steps)} steps recorded>"

    # The proxy

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        if name in _OWN:  # not yet set: no model to ask
            raise AttributeError(name)
        return getattr(self.model, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN:
            object.__setattr__(self, name, value)
        else:
            setattr(self.model, name, value)

    def __getitem__(self, index: Any) -> Any:
        return self.model[index]  # type: ignore[index]

    def __iter__(self) -> Iterator[Any]:
        return iter(self.model)  # type: ignore[call-overload, no-any-return]

    def __len__(self) -> int:
        return len(self.model)  # type: ignore[arg-type]

    def __bool__(self) -> bool:
        return True

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Module:
        """A copy of the model: the copy is not observed."""
        return copy.deepcopy(self.model, memo)

    def __reduce__(self) -> tuple[Callable[[nn.Module], nn.Module], tuple[nn.Module]]:
        return _itself, (self.model,)


def _itself(model: nn.Module) -> nn.Module:
    """What a pickled scope is when it comes back: its model."""
    return model


_OPEN: weakref.WeakSet[GradScope] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """A script that ends without `close()` loses nothing."""
    for scope in list(_OPEN):
        if getattr(sys, "last_value", None) is not None:  # an error has ended the program
            scope._hurry()
        try:
            scope.close()
        except NonFiniteError as error:
            warnings.warn(str(error), GradScopeWarning, stacklevel=1)


def _book(recording: Recording, signals: Sequence[Signal], sites: Any) -> SiteBook:
    return SiteBook(recording, frozenset(signals), site_filter(sites))


def _names(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    """The parameters as they are now, each once."""
    return ((unwrapped_name(name), parameter) for name, _, parameter in parameters_at_rest(model))


def _apart(log: str | os.PathLike[str] | None) -> Path | None:
    """Where the validation is recorded."""
    return None if log is None else Path(log).with_name(f"{Path(log).stem}.validation{Path(log).suffix}")


def _take_back(recording: Recording | None) -> None:
    """Leave nothing of a recording in which nothing is."""
    if recording is not None:
        recording.close()
        if recording.path is not None:
            recording.path.unlink(missing_ok=True)


def _rank_facts(ranks: Ranks | None) -> dict[str, Any]:
    if ranks is None:
        return {}
    return {"rank": ranks.rank, "ranks": ranks.size, "sharded": ranks.sharded}
