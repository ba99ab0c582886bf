"""How a model lies on several ranks: below which wrappers, on which ranks, in which parts.

Nothing here imports what a model that is not distributed does not need: who has a DTensor or a `fully_shard`ed
module has imported its module already.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel


def unwrapped(model: nn.Module) -> nn.Module:
    """The model below `DistributedDataParallel` and `torch.compile`'s wrapper: sites have the plain model's names.

    Raises:
        ValueError: the model is, or contains, a wrapper that cannot be observed; the sentence names another.
    """
    flat = _public("torch.distributed.fsdp", "FullyShardedDataParallel")
    for name, module in model.named_modules():
        where = f"model{'.' if name else ''}{name} is"
        if isinstance(module, DataParallel):
            raise ValueError(
                f"{where} a DataParallel, whose replicas run in threads and share one set of hooks; "
                "use torch.nn.parallel.DistributedDataParallel, or give GradScope the plain model"
            )
        if flat is not None and isinstance(module, flat):
            raise ValueError(
                f"{where} a FullyShardedDataParallel (FSDP1), which flattens the parameters of several layers into "
                "one; use torch.distributed.fsdp.fully_shard (FSDP2)"
            )
    while (inner := _inside(model)) is not None:
        model = inner
    return model


def _inside(model: nn.Module) -> nn.Module | None:
    """What a wrapper wraps; torch.compile's is known by its name: to import its class takes a second."""
    if isinstance(model, DistributedDataParallel):
        return model._modules["module"]
    return model._modules.get("_orig_mod") if type(model).__name__ == "OptimizedModule" else None


def wrapped_by_ddp(model: nn.Module) -> bool:
    """Whether the model runs now as the inside of a `DistributedDataParallel`."""
    running = DistributedDataParallel._active_ddp_module
    return running is not None and any(m is model for m in running.modules())


def local_part(tensor: Tensor) -> tuple[Tensor | None, bool]:
    """The entries of a tensor that lie on this rank, and whether this rank contributes them to a merge.

    Of replicas the one whose coordinate is 0 on every replicated dimension of the mesh contributes. A partial sum is
    no value yet: None. Nothing is communicated; a result that is still under way (`AsyncCollectiveTensor`) is
    waited for, as its first reader has to.
    """
    contributes = True
    dtensor = _public("torch.distributed.tensor", "DTensor")
    if dtensor is not None and isinstance(tensor, dtensor):
        if any(placement.is_partial() for placement in tensor.placements):
            return None, False
        coordinate = tensor.device_mesh.get_coordinate()
        contributes = coordinate is not None and not any(
            placement.is_replicate() and at for placement, at in zip(tensor.placements, coordinate, strict=True)
        )
        with torch.no_grad():
            tensor = tensor.to_local().detach()
    if type(tensor).__name__ == "AsyncCollectiveTensor":
        with torch.no_grad():
            tensor = tensor.wait().detach()  # type: ignore[attr-defined]
    return tensor, contributes


def why_partial(tensor: Tensor) -> str | None:
    """Why a tensor has no value yet that some rank could read, None where it has."""
    if any(placement.is_partial() for placement in getattr(tensor, "placements", ())):
        return "a partial sum, which no rank has whole"
    return None


def parameters_at_rest(model: nn.Module) -> Iterator[tuple[str, nn.Module, Tensor]]:
    """Name, owner and value of each parameter as it lies between two passes, each once.

    Within a pass, and after one without gradient, `fully_shard` puts whole parameters in the place of the sharded
    ones. Those must not be kept: their memory is taken away after the pass, and to read it then ends the process.
    """
    sharded: dict[tuple[nn.Module, str], Tensor] = {}
    for group in _fsdp_groups(model):
        for managed in group.fsdp_params:
            info = managed._module_info
            for owner, name in zip(
                (info.module, *info.shared_modules), (info.param_name, *info.shared_param_names), strict=True
            ):
                sharded[owner, name] = managed.sharded_param
    seen: set[int] = set()
    for prefix, module in model.named_modules():
        for name, parameter in module._parameters.items():
            found = sharded.get((module, name), parameter) if sharded else parameter
            if found is not None and id(found) not in seen:
                seen.add(id(found))
                yield f"{prefix}.{name}" if prefix else name, module, found


def shards_parameters(model: nn.Module) -> bool:
    """Whether `fully_shard` exchanges the model's parameters during a pass."""
    return next(iter(_fsdp_groups(model)), None) is not None


def keeps_gradients_back(model: nn.Module) -> bool:
    """Whether `fully_shard` holds gradients that no parameter has yet: it was told not to sum them over ranks now."""
    for group in _fsdp_groups(model):
        if getattr(group, "_partial_reduce_output", None) is not None:
            return True
        for managed in group.fsdp_params:
            whole = getattr(managed, "_unsharded_param", None)  # not there before the first pass
            if managed.unsharded_accumulated_grad is not None or (whole is not None and whole.grad is not None):
                return True
    return False


@dataclass(frozen=True)
class Parallelism:
    """On which ranks a model is trained together.

    Attributes:
        ranks: their global numbers, ascending.
        averaged_over: by how much the gradients are divided when they are summed over ranks: the number of
            data-parallel ranks, unless `set_gradient_divide_factor` says otherwise.
        sharded: parameters lie in parts on several ranks.
    """

    ranks: tuple[int, ...]
    averaged_over: float
    sharded: bool


def parallelism(model: nn.Module, process_group: Any = "auto") -> Parallelism | None:
    """How the model is distributed, None where it is not; see `Ranks.of`."""
    if process_group is None:
        return None
    if process_group != "auto" and not (dist.is_available() and isinstance(process_group, dist.ProcessGroup)):
        raise TypeError(
            f"process_group is of type {type(process_group).__name__}; 'auto', a torch.distributed group "
            "or None is allowed"
        )
    if not dist.is_available() or not dist.is_initialized():
        return None
    replicated = list(_replicated_over(model))
    sharding = list(_fsdp_groups(model))
    placed = list(_placed(model))
    meshes = [group.mesh_info.mesh for group in sharding] + [parameter.device_mesh for parameter in placed]
    factors = [float(dist.get_world_size(group)) for group in replicated]
    factors += [float(group.gradient_divide_factor or _data_parallel_size(group.mesh_info)) for group in sharding]
    if process_group != "auto":
        ranks = set(dist.get_process_group_ranks(process_group))
        if not factors and not placed:  # averaged by the user's own code
            factors = [float(len(ranks))]
    else:
        seen = [dist.get_process_group_ranks(group) for group in replicated]
        seen += [mesh.mesh.flatten().tolist() for mesh in meshes]
        ranks = _connected(seen, meshes)
    members = tuple(sorted(ranks))
    if len(members) < 2 or dist.get_rank() not in members:
        return None
    in_parts = any(not p.is_replicate() and n > 1 for t in placed for p, n in _dimensions(t))
    in_parts = in_parts or any(getattr(group.mesh_info, "shard_mesh_size", 1) > 1 for group in sharding)
    return Parallelism(members, max(factors, default=1.0), in_parts)


def _dimensions(tensor: Any) -> Iterator[tuple[Any, int]]:
    return zip(tensor.placements, tensor.device_mesh.shape, strict=True)


def _replicated_over(model: nn.Module) -> Iterator[Any]:
    """The process groups of the DistributedDataParallels within the model, and of the one whose forward runs now."""
    inner = unwrapped(model)
    running = getattr(DistributedDataParallel, "_active_ddp_module", None)  # so the inner model learns who wraps it
    modules = list(model.modules())
    if running is not None and running not in modules and any(m is inner for m in running.modules()):
        modules.append(running)
    return (module.process_group for module in modules if isinstance(module, DistributedDataParallel))


def _fsdp_groups(model: nn.Module) -> Iterator[Any]:
    """The parameter groups of `fully_shard` and of its sibling `replicate`."""
    sharded_class = _public("torch.distributed.fsdp", "FSDPModule")
    for module in model.modules() if sharded_class is not None else ():
        if isinstance(module, sharded_class):
            state = module._get_fsdp_state()
            groups = getattr(state, "_fsdp_param_groups", None)  # torch before 2.12 has one a module
            yield from [g for g in ([state._fsdp_param_group] if groups is None else groups) if g is not None]


def _data_parallel_size(mesh_info: Any) -> int:
    return math.prod(getattr(mesh_info, f"{kind}_mesh_size", None) or 1 for kind in ("shard", "replicate"))


def _placed(model: nn.Module) -> Iterator[Any]:
    dtensor = _public("torch.distributed.tensor", "DTensor")
    return (p for p in model.parameters() if dtensor is not None and isinstance(p, dtensor))


def _connected(seen: Sequence[Sequence[int]], meshes: Sequence[Any]) -> set[int]:
    """The ranks that belong together, the same on each of them although each sees only its own row and column.

    Each rank sees its slices of one mesh; the dimensions along which they extend span the ranks.
    """
    union = {rank for ranks in seen for rank in ranks}
    roots = {tuple(root.shape): root for mesh in meshes if (root := _root(mesh)) is not None}
    for grid in (root.mesh.numpy() for root in sorted(roots.values(), key=lambda r: -r.mesh.numel())):
        if not union <= set(grid.flatten().tolist()):
            continue
        here = np.argwhere(grid == dist.get_rank())[0]
        spanned = np.zeros(grid.ndim, dtype=bool)
        for ranks in seen:
            places = np.argwhere(np.isin(grid, ranks))
            spanned |= (places != places[0]).any(axis=0)
        row = tuple(slice(None) if along else int(at) for along, at in zip(spanned, here, strict=True))
        return {int(rank) for rank in grid[row].flatten()}
    return union


def _root(mesh: Any) -> Any:
    """The mesh of which this one is a slice."""
    return mesh._get_root_mesh() if hasattr(mesh, "_get_root_mesh") else mesh


def _public(module: str, name: str) -> Any:
    """A class, None where nobody has imported its module, so that there is no object of it."""
    return getattr(sys.modules.get(module), name, None)
