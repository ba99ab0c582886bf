"""What recording costs, beside what others' recording costs: `python -m benchmarks.overhead`.

The figure is the CPU time of a training step with a tool over that of the bare step. Every tool has a process of its
own, with one thread and one model, to which it is attached for every second block of steps (`measuring`). What each
tool is and records is in `gradscope_modes` and `peers`; the models are in `workloads`.
"""
