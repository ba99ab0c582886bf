"""Under torch.compile a recorded forward is observed as Python runs it; every other one is the graph it was.

`Watch` stands for GradScope here: it has the same hooks, and keeps copies of all it sees.
"""

from __future__ import annotations

import copy
import pickle
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
import torch._dynamo
import torch.nn.functional as F
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._pytree import tree_leaves
from torch.utils.checkpoint import checkpoint

from gradscope.hooks import _compiled, _dynamo
from gradscope.hooks._compiled import BetweenGraphs, Entrance, Exit, left_out, why_silent
from tests.cases import CASES, call, total

# After a graph break Dynamo asks tensors for `.grad` and hides the warning in a way that an error gets around.
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")


def has_compiled_code(model: nn.Module) -> bool:
    """Whether Dynamo holds compiled code of the model's forward."""
    return bool(torch._C._dynamo.eval_frame._debug_get_cache_entry_list(type(model).forward.__code__))


# ---------------------------------------------------------------------------------------------------------------------
# The observer


class OnModule(BetweenGraphs):
    __slots__ = ()

    breaks = False


class Watch:
    """Hooks before and after the root, after each module, on tensors and on parameters; an entrance on each module."""

    def __init__(self, model: nn.Module) -> None:
        self.recording = True
        self.forget()
        self._handles: list[Any] = []
        for name, module in model.named_modules():
            root = module is model
            before = BetweenGraphs(self._before) if root else OnModule(lambda *_: None)
            entrance, leave = Entrance(lambda: self.recording, breaks=root), Exit(breaks=root)
            returned = (BetweenGraphs if root else OnModule)(partial(self._returned, name))
            self._handles += [
                module.register_forward_pre_hook(before, with_kwargs=True),
                module.register_forward_pre_hook(entrance),
                module.register_forward_hook(returned, with_kwargs=True),
                *([module.register_forward_hook(BetweenGraphs(self._after), always_call=True)] if root else []),
                module.register_forward_hook(leave, always_call=True),
            ]
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                hook = BetweenGraphs(lambda _, name=name: self.accumulated.add(name))
                self._handles.append(parameter.register_post_accumulate_grad_hook(hook))

    def forget(self) -> None:
        self.order: list[str] = []
        self.activations: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self.accumulated: set[str] = set()

    def close(self) -> None:
        for handle in self._handles:
            handle.remove()

    def _before(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        self.order.append("begins")

    def _after(self, module: nn.Module, args: Any, output: Any) -> None:
        self.order.append("ends")

    def _returned(self, name: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        if not self.recording:
            return
        self.order.append(name)
        if torch._C._current_graph_task_id() != -1:  # a checkpoint's second run
            return
        for i, tensor in enumerate(tree_leaves(output)):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                site = f"{name}[{i}]#{self.order.count(name)}"
                self.activations[site] = tensor.detach().clone()
                if tensor.requires_grad:
                    tensor.register_hook(BetweenGraphs(partial(self._gradient, site)))

    def _gradient(self, site: str, gradient: Tensor) -> None:
        self.gradients[site] = gradient.clone()


# ---------------------------------------------------------------------------------------------------------------------
# What is observed


class Affine(nn.Module):
    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Block(nn.Module):
    """A graph that held the SiLU alone would change its input in place, and fail in the backward."""

    def __init__(self) -> None:
        super().__init__()
        self.affine, self.silu = Affine(4, 4), nn.SiLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return 2 * x + self.silu(self.affine(x))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(), Affine(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(self.block(x)))


ORDER = ["begins", "block.affine", "block.silu", "block", "head", "", "ends"]
WEIGHTS = {"block.affine.weight", "head.weight"}


def fresh(model: Callable[[], nn.Module] = Net) -> Any:
    torch.manual_seed(0)
    return model()


def train(function: Callable[..., Any], model: nn.Module, inputs: Any = None) -> list[Tensor]:
    """One step: the outputs, then each parameter's gradient."""
    model.zero_grad()
    torch.manual_seed(1)
    out = call(function, torch.randn(3, 4) if inputs is None else inputs())
    total(out).backward()
    outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
    return [*(t.detach() for t in outputs), *(p.grad for p in model.parameters() if p.grad is not None)]


def same(a: list[Tensor], b: list[Tensor]) -> bool:
    return len(a) == len(b) and all(torch.equal(x, y) for x, y in zip(a, b, strict=True))


def saw_the_same(a: Watch, b: Watch) -> bool:
    return a.order == b.order and all(
        x.keys() == y.keys() and all(torch.equal(x[k], y[k]) for k in x)
        for x, y in ((a.activations, b.activations), (a.gradients, b.gradients))
    )


def counter(backend: str = "eager") -> Any:
    return CompileCounterWithBackend(backend)


@pytest.fixture(autouse=True)
def _nothing_is_compiled() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.fixture(scope="module")
def plain() -> tuple[list[Tensor], Watch]:
    """A step of `Net` that was never compiled, and what was seen of it."""
    model = fresh()
    watch = Watch(model)
    return train(model, model), watch


def wrapped(model: nn.Module, **how: Any) -> Callable[..., Any]:
    return torch.compile(model, **how)


def in_place(model: nn.Module, **how: Any) -> Callable[..., Any]:
    model.compile(**how)
    return model


def function(model: nn.Module, **how: Any) -> Callable[..., Any]:
    return torch.compile(lambda x: model(x), **how)


MODULES = pytest.mark.parametrize("way", [wrapped, in_place])
WAYS = pytest.mark.parametrize("way", [wrapped, in_place, function])
FULL = pytest.mark.parametrize("fullgraph", [False, True], ids=["breaks", "fullgraph"])

# ---------------------------------------------------------------------------------------------------------------------
# A compiled model


@FULL
@MODULES
@pytest.mark.parametrize("late", [False, True], ids=["before", "late"])
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_recorded_steps_show_the_uncompiled_model_and_the_others_are_one_graph(
    way: Any, fullgraph: bool, late: bool, backend: str, plain: tuple[list[Tensor], Watch]
) -> None:
    model, graphs = fresh(), counter(backend)
    step = way(model, backend=graphs, fullgraph=fullgraph)
    if late:
        train(step, model)
    watch = Watch(model)
    for recording, compiled in ((True, late), (True, late), (False, 1), (True, 1), (False, 1)):
        watch.recording = recording
        watch.forget()
        assert same(train(step, model), plain[0])
        assert graphs.frame_count == compiled
        assert watch.order == (ORDER if recording else ["begins", "ends"])
        assert saw_the_same(watch, plain[1]) == recording
        assert watch.accumulated == WEIGHTS
    assert not any(reason == _compiled.INSIDE for reason in left_out(model).values())


NAMES = ("in-place relu on a view", "in-place residual on views", "reused layer", "tuple and dict outputs", "lstm")


@pytest.mark.parametrize("case", [c for c in CASES if c.name in NAMES], ids=str)
def test_awkward_models_show_the_same_compiled(case: Any) -> None:
    model = fresh(case.model)
    watch = Watch(model)
    expected = train(model, model, case.inputs)
    model = fresh(case.model)
    compiled = Watch(model)
    step = torch.compile(model, backend="aot_eager")
    assert same(train(step, model, case.inputs), expected)
    assert saw_the_same(compiled, watch)
    compiled.recording = False
    assert same(train(step, model, case.inputs), expected)


@pytest.mark.parametrize("reentrant", [False, True])
def test_a_checkpoint_runs_its_second_time_as_its_first(reentrant: bool, plain: tuple[list[Tensor], Watch]) -> None:
    class Again(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.tanh(checkpoint(self.block, x.requires_grad_(), use_reentrant=reentrant)))

    model, graphs = fresh(Again), counter("aot_eager")
    model.block.compile(backend=graphs)  # so that the second run, in the backward, is compiled too, or is not
    watch = Watch(model)
    for recording in (True, False, True):
        watch.recording = recording
        watch.forget()
        assert same(train(model, model), plain[0])
        assert ("block.silu" in watch.order) == recording


@FULL
@pytest.mark.parametrize("wrap", [False, True])
def test_modules_compiled_on_their_own_are_seen_in_an_uncompiled_model(
    wrap: bool, fullgraph: bool, plain: tuple[list[Tensor], Watch]
) -> None:
    model, graphs = fresh(), counter()
    if wrap:
        model.block = torch.compile(model.block, backend=graphs, fullgraph=fullgraph)
    else:
        model.block.compile(backend=graphs, fullgraph=fullgraph)
    watch = Watch(model)
    assert same(train(model, model), plain[0])
    seen = [name.replace("._orig_mod", "") for name in watch.order]
    assert seen == [*ORDER[:4], *(["block"] * wrap), *ORDER[4:]]  # the wrapper is a module too
    assert graphs.frame_count == 0
    watch.recording = False
    assert same(train(model, model), plain[0])
    assert graphs.frame_count == 1


@FULL
def test_a_part_of_the_model_that_is_compiled_and_called_alone_is_seen(fullgraph: bool) -> None:
    model = fresh()
    watch = Watch(model)
    torch.compile(model.block, backend="eager", fullgraph=fullgraph)(torch.randn(3, 4)).sum().backward()
    assert watch.order == ["block.affine", "block.silu", "block"]
    assert {site.split("[")[0] for site in watch.gradients} == set(watch.order)


@MODULES
@FULL
@pytest.mark.parametrize("model", [lambda: nn.Sequential(Affine(4, 4), nn.ReLU()), lambda: nn.Linear(4, 4)])
def test_torchs_own_modules_are_seen_unless_dynamo_wraps_a_full_graph_around_them(
    way: Any, model: Any, fullgraph: bool
) -> None:
    model = fresh(model)
    expected, watch = train(model, model), Watch(model)
    step = way(model, backend="eager", fullgraph=fullgraph)
    assert same(train(step, model), expected)
    if way is wrapped and fullgraph:  # a function of Dynamo's calls them: see below
        assert watch.order == []
        assert why_silent(model) == _dynamo.FULLGRAPH
    else:
        assert {name for name, _ in model.named_modules()} <= set(watch.order)
    watch.recording = False
    assert same(train(step, model), expected)


def test_validation_batch_sizes_and_threads_are_seen_too() -> None:
    model, graphs = fresh(), counter()
    watch, step = Watch(model), torch.compile(model, backend=graphs)
    for batch in (3, 5):
        watch.forget()
        step(torch.randn(batch, 4)).sum().backward()
        assert watch.order == ORDER
        assert {len(g) for g in watch.gradients.values()} == {batch}
    watch.forget()
    with torch.no_grad():
        step(torch.randn(3, 4))
    assert watch.order == ORDER
    watch.forget()
    thread = threading.Thread(target=train, args=(step, model))
    thread.start()
    thread.join()
    assert watch.order == ORDER
    assert graphs.frame_count == 0


@WAYS
def test_after_an_error_in_a_recorded_forward_compiling_goes_on(way: Any) -> None:
    class Picky(Net):
        def forward(self, x: Tensor) -> Tensor:
            if x.shape[0] == 1:
                raise ValueError("mine")
            return super().forward(x)

    model, graphs = fresh(Picky), counter()
    watch, step = Watch(model), way(model, backend=graphs)
    with pytest.raises(ValueError, match="mine"):
        step(torch.randn(1, 4))
    assert watch.order == ["begins", "ends"]
    assert _compiled._entered.modules == {}
    watch.recording = False
    train(step, model)
    assert graphs.frame_count == 1


@pytest.mark.skipif(shutil.which("g++") is None, reason="inductor needs a C++ compiler")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_inductor_is_not_used_in_recorded_steps_and_is_in_others() -> None:
    class Small(Affine):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).tanh()

    model = fresh(lambda: Small(4, 2))
    expected, watch = train(model, model), Watch(model)
    step = torch.compile(model)
    assert same(train(step, model), expected)
    assert watch.order == ["begins", "", "ends"]
    assert not has_compiled_code(model)
    watch.recording = False
    # float32: a sum of four products of values below 4, a tanh and their gradients round some 16 times by 6e-8 each.
    for a, b in zip(train(step, model), expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-5, atol=1e-5)
    assert has_compiled_code(model)


# ---------------------------------------------------------------------------------------------------------------------
# A compiled function that calls the model


def test_a_compiled_function_breaks_once_at_the_model(plain: tuple[list[Tensor], Watch]) -> None:
    model, graphs = fresh(), counter()
    watch = Watch(model)
    step = torch.compile(lambda x: model(x * 1.0) * 1.0, backend=graphs)
    # What lies before and after the call are two graphs, and the model a third where it is not recorded.
    for recording, compiled in ((True, 2), (True, 2), (False, 3), (True, 3), (False, 3)):
        watch.recording = recording
        watch.forget()
        assert same(train(step, model), plain[0])
        assert saw_the_same(watch, plain[1]) == recording
        assert graphs.frame_count == compiled


def test_a_compiled_training_step_is_seen(plain: tuple[list[Tensor], Watch]) -> None:
    model = fresh()
    watch = Watch(model)

    def step(x: Tensor) -> None:
        total(model(x)).backward()

    torch.manual_seed(1)
    torch.compile(step, backend="eager")(torch.randn(3, 4))
    assert saw_the_same(watch, plain[1])
    assert watch.accumulated == WEIGHTS


def test_a_break_within_nested_frames_calls_each_hook_once(plain: tuple[list[Tensor], Watch]) -> None:
    model = fresh()
    watch = Watch(model)
    with torch._dynamo.config.patch(nested_graph_breaks=True):
        step = function(model, backend="eager")
        assert same(train(step, model), plain[0])
        assert saw_the_same(watch, plain[1])
        watch.close()
        watch.forget()
        assert same(train(step, model), plain[0])
    assert watch.order == []


def test_within_a_full_graph_the_hooks_vanish_and_it_is_known(plain: tuple[list[Tensor], Watch]) -> None:
    model, graphs, before = fresh(), counter("aot_eager"), _compiled.LEFT_OUT.total()
    watch = Watch(model)
    assert same(train(function(model, backend=graphs, fullgraph=True), model), plain[0])
    assert graphs.frame_count == 1
    assert watch.order == []
    assert watch.accumulated == WEIGHTS, "parameters' hooks fire all the same"
    assert _compiled.LEFT_OUT.total() > before
    assert left_out(model) == {"": _dynamo.FULLGRAPH}
    assert "fullgraph=True" in why_silent(model)
    assert "probe()" in why_silent(model)


def test_where_a_break_is_an_error_the_hooks_vanish() -> None:
    model = fresh()
    watch = Watch(model)

    def forward(x: Tensor) -> Tensor:
        with torch._dynamo.error_on_graph_break(True):
            return model(x)

    torch.compile(forward, backend="eager")(torch.randn(3, 4))
    assert watch.order == []
    assert why_silent(model) == _dynamo.STRICT


def test_in_the_branches_of_a_condition_the_hooks_vanish() -> None:
    model = fresh(lambda: Affine(4, 4))
    watch = Watch(model)

    def forward(x: Tensor) -> Tensor:
        return torch.cond(x.sum() > 0, lambda x: model(x).sin(), lambda x: x * 2, (x,))

    torch.compile(forward, backend="eager")(torch.randn(3, 4))
    assert watch.order == []
    assert "torch.cond" in why_silent(model)


def test_a_function_compiled_within_the_model_is_named_as_the_reason() -> None:
    class Within(Net):
        def forward(self, x: Tensor) -> Tensor:
            return self.head(torch.compile(lambda x: self.block(x), backend="eager")(x))

    model = fresh(Within)
    watch = Watch(model)
    train(model, model)
    assert watch.order == ["begins", "head", "", "ends"]
    assert left_out(model) == dict.fromkeys(("block", "block.affine", "block.silu"), _compiled.INSIDE)


def test_a_function_compiled_before_the_scope_is_told_from_a_forward_called_directly() -> None:
    model = fresh()
    watch = Watch(model)
    train(model.forward, model)
    assert "" not in watch.order
    assert watch.accumulated == WEIGHTS, "gradients come though no forward was seen"
    assert not has_compiled_code(model)
    assert why_silent(model) == _compiled.PAST
    watch.close()
    step = function(model, backend="eager")
    train(step, model)
    watch = Watch(model)
    train(step, model)
    assert watch.order == []
    assert why_silent(model) == _compiled.LATE
    torch.compiler.reset()
    train(step, model)
    assert watch.order == ORDER


def test_with_an_unknown_dynamo_the_hooks_vanish_and_nothing_raises(
    monkeypatch: pytest.MonkeyPatch, plain: tuple[list[Tensor], Watch]
) -> None:
    def unknown(reader: Any) -> None:
        raise AttributeError("one_graph")

    monkeypatch.setattr(_dynamo, "_why_whole", unknown)
    model, graphs = fresh(), counter()
    watch = Watch(model)
    assert same(train(function(model, backend=graphs), model), plain[0])
    assert graphs.frame_count == 1
    assert watch.order == []


# ---------------------------------------------------------------------------------------------------------------------
# The backward, export


@FULL
def test_a_compiled_backward_calls_tensor_hooks_unless_it_is_a_full_graph(fullgraph: bool) -> None:
    model, before = fresh(lambda: Affine(4, 2)), _compiled.LEFT_OUT[_dynamo.BACKWARD]
    plain = Watch(model)
    expected = train(model, model)
    plain.close()
    watch = Watch(model)
    backward = torch.compile(backend="eager", fullgraph=fullgraph)

    torch.manual_seed(1)
    model.zero_grad()
    out = model(torch.randn(3, 4))
    with torch._dynamo.compiled_autograd._enable(backward):
        total(out).backward()
    assert torch.equal(model.weight.grad, expected[-1])
    if fullgraph:
        assert watch.gradients == {}
        assert _compiled.LEFT_OUT[_dynamo.BACKWARD] > before
    else:
        assert saw_the_same(watch, plain)
        assert watch.accumulated == {"weight"}


def test_export_neither_observes_nor_counts() -> None:
    model, before = fresh(), _compiled.LEFT_OUT.total()
    watch = Watch(model)
    for strict in (False, True):
        torch.export.export(model, (torch.randn(3, 4),), strict=strict)
        assert watch.order == []
    assert left_out(model) == {}
    assert _compiled.LEFT_OUT.total() == before


# ---------------------------------------------------------------------------------------------------------------------
# Closed, copied; what it costs


@WAYS
def test_after_close_the_compiled_code_is_right_and_calls_no_hook(way: Any, plain: tuple[list[Tensor], Watch]) -> None:
    model, graphs = fresh(), counter("aot_eager")
    watch = Watch(model)
    step = way(model, backend=graphs)
    watch.recording = False
    train(step, model)
    for _ in range(3):
        watch.close()
        watch.forget()
        assert same(train(step, model), plain[0])
        assert watch.order == []
        # Dynamo counts the hooks of a module that had some when it was compiled: without them it compiles once more,
        # and what it makes then does for models with hooks, too.
        assert graphs.frame_count == 2
        watch = Watch(model)
        watch.recording = False
        assert same(train(step, model), plain[0])
        assert graphs.frame_count == 2


def test_a_copy_is_compiled_without_reporting(plain: tuple[list[Tensor], Watch]) -> None:
    model, graphs = fresh(), counter()
    watch = Watch(model)
    train(torch.compile(model, backend="eager"), model)
    watch.forget()
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert same(train(torch.compile(twin, backend=graphs), twin), plain[0])
    assert watch.order == []
    assert graphs.frame_count == 1


def test_no_hook_is_compiled() -> None:
    # Each hook is an object of its own: compiled, a dozen would pass Dynamo's limit of eight variants of one code.
    model, graphs = fresh(lambda: nn.Sequential(*(Affine(4, 4) for _ in range(12)))), counter()
    for _ in range(2):
        watch = Watch(model)
        step = function(model, backend=graphs)
        for recording in (True, False):
            watch.recording = recording
            train(step, model)
        watch.close()
        torch.compiler.reset()  # takes back nothing of what Dynamo was told of hooks
    assert graphs.frame_count == 2, "one for each compilation"
    ours = (BetweenGraphs.__call__, Entrance.__call__, Exit.__call__, Watch._before, Watch._returned, Watch._gradient)
    assert not any(torch._dynamo.eval_frame._debug_get_cache_entry_list(f.__code__) for f in ours)


def test_the_hooks_do_not_import_dynamo() -> None:
    code = "import sys, gradscope.hooks._compiled; sys.exit('torch._dynamo' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
