"""Other recorders, one file each, used as their own documentation says, at every step.

A new one is a file with a `PEER` and its name below. Each is imported where it is started, never here; what is not
installed has no figure. `pip install -e .[bench]` installs all; fastai brings a torchvision that does not fit a CPU
build of torch and keeps Lightning from being imported: `pip uninstall torchvision`, which none of them needs here.
"""

from benchmarks.overhead.peers import (
    fastai_stats,
    lightning_grad_norm,
    monitorch_lenses,
    ormas,
    tensorboard_histograms,
    torchlens_watch,
    transformers_debug,
    wandb_watch,
)

PEERS = (
    wandb_watch.PEER,
    tensorboard_histograms.PEER,
    fastai_stats.PEER,
    transformers_debug.PEER,
    lightning_grad_norm.PEER,
    ormas.PEER,
    monitorch_lenses.PEER,
    torchlens_watch.PEER,
)
