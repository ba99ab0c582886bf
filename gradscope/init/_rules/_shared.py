"""One set of weights in several layers: copies of a layer, one layer under several names, one tensor in two layers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator

import torch
from torch import nn

from gradscope.diagnosis import Finding
from gradscope.init._audit_weight import Weight
from gradscope.init._audited import Audited, audit_rule
from gradscope.init._layer_fans import is_layer, weight_blocks
from gradscope.init._rules._words import count, names, paths

_TABLES = (nn.Embedding, nn.EmbeddingBag)
_LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


@audit_rule("identical-layers", of_scale=False)
def identical_layers(audited: Audited) -> Iterator[Finding]:
    """Random weights that are the same in several layers: copies of one layer."""
    by_content: dict[tuple[object, ...], list[Weight]] = defaultdict(list)
    for weight in audited.weights:
        if weight.value.numel() > 8 and not _is_a_pattern(weight) and _is_trained(weight.module):
            flat = weight.value.reshape(-1)
            key = (tuple(weight.value.shape), *flat[:8].double().tolist(), float(flat.double().sum()))
            by_content[key].append(weight)
    groups = [
        group
        for group in by_content.values()
        if len(group) > 1 and all(torch.equal(group[0].value, w.value) for w in group)
    ]
    if groups:
        all_of_them = [w for group in groups for w in group]
        yield Finding(
            "identical-layers",
            "warning",
            f"{len(all_of_them)} weights are copies of {len(groups)}: layers that were made by copying one begin as "
            "the same function. They learn apart in time, but the first steps train fewer layers than there are, and "
            "no theory of random layers holds.",
            _drawn_anew(audited, [w for group in groups for w in group[1:]]),
            "pytorch#72253, pytorch#86274",
            sites=names(all_of_them),
            value=float(len(all_of_them)),
            unit="weights",
            expected=float(len(groups)),
        )


def _is_trained(module: nn.Module) -> bool:
    """A frozen copy is a teacher or a target, and meant."""
    return any(parameter.requires_grad for parameter in module.parameters(recurse=False))


def _is_a_pattern(weight: Weight) -> bool:
    """Whether it was set and not drawn: a constant, an identity, a Dirac kernel."""
    entries = weight.value.reshape(-1)[:4096]
    return len(entries.unique()) <= max(2, len(entries) // 8)


def _drawn_anew(audited: Audited, copies: list[Weight]) -> str:
    if any(isinstance(w.module, _TABLES) for w in copies):  # which initialize leaves as they are
        squares = {w.path: w.square for w in copies}
        stds = [(path, float(f"{squares[path] ** 0.5:.4g}")) for path in paths(copies)]
        return f"for name, std in {stds!r}: nn.init.normal_(model.get_parameter(name), std=std)"
    return f"{audited.initialize}  # or make each layer anew"


@audit_rule("shared-layer", of_scale=False)
def shared_layer(audited: Audited) -> Iterator[Finding]:
    """`[layer] * 6`: one layer under several names, which is meant in few models."""
    under: dict[int, list[str]] = defaultdict(list)
    modules: dict[int, nn.Module] = {}
    for name, module in audited.model.named_modules(remove_duplicate=False):
        under[id(module)].append(name)
        modules[id(module)] = module
    several = [places for key, places in under.items() if len(places) > 1 and _holds_a_layer(modules[key])]
    repeated = {name for places in several for name in places[1:]}
    # A layer within a repeated block is repeated with it: the block alone is named.
    groups = [places for places in several if not all(name.rpartition(".")[0] in repeated for name in places[1:])]
    if groups:
        again = [name for places in groups for name in places[1:]]
        yield Finding(
            "shared-layer",
            "warning" if any(_are_in_a_list(audited.model, places) for places in groups) else "note",
            f"{len(again) + len(groups)} places hold {count(len(groups), 'layer')}: {groups[0][0]} stands under "
            f"{', '.join(groups[0][1:4])} too, with the same weights. Where that is not meant ([layer] * n makes a "
            "list of one layer), the model has fewer parameters than it seems to.",
            f"[model.set_submodule(name, copy.deepcopy(model.get_submodule(name))) for name in {again!r}]; "
            f"{audited.initialize}",
            "Lan et al. (2020) share on purpose",
            sites=tuple(name for places in groups for name in places),
            value=float(len(groups)),
            unit="layers",
            expected=float(len(again) + len(groups)),
        )


def _holds_a_layer(module: nn.Module) -> bool:
    return any(is_layer(part) and not isinstance(part, _TABLES) for part in module.modules())


def _are_in_a_list(model: nn.Module, places: list[str]) -> bool:
    parents = [name.rpartition(".")[0] for name in places]
    twice = [parent for parent in parents if parents.count(parent) > 1]
    return any(isinstance(model.get_submodule(parent), _LISTS) for parent in twice)


@audit_rule("shared-weight", of_scale=False)
def shared_weight(audited: Audited) -> Iterator[Finding]:
    """One tensor as the weight of two layers, neither of which is an embedding."""
    by_tensor: dict[int, list[tuple[str, str]]] = defaultdict(list)
    tables: set[int] = set()
    for slot in audited.slots:
        if slot.name in (weight_blocks(slot.module) or {}) and slot.parametrization is None:
            by_tensor[id(slot.originals[0])].append((slot.module_name, slot.name))
            if isinstance(slot.module, _TABLES):
                tables.add(id(slot.originals[0]))
    groups = [places for key, places in by_tensor.items() if len(places) > 1 and key not in tables]
    if groups:
        again = [place for places in groups for place in places[1:]]
        own = "nn.Parameter(model.get_submodule(m).get_parameter(p).detach().clone())"
        yield Finding(
            "shared-weight",
            "note",
            f"One tensor is the weight of {len(groups[0])} layers, {' and '.join(m for m, _ in groups[0][:2])}: they "
            "compute the same product, and each step adds up the gradients of all. Where that is not meant, give each "
            "its own.",
            f"[setattr(model.get_submodule(m), p, {own}) for m, p in {again!r}]; {audited.initialize}",
            "Press & Wolf (2017) tie on purpose, an embedding and the output",
            sites=tuple(f"{m}.{p}".lstrip(".") for places in groups for m, p in places),
            value=float(len(groups)),
            unit="tensors",
            expected=float(len(again) + len(groups)),
        )
