"""How well faults are told, and healthy programs left in peace: GradScope's rules beside those of other tools.

`python -m benchmarks.detection` trains the corpus of `tests/faults` under the recorder, and gives each recording to
every tool. The other tools' rules are written anew from their published thresholds (each file has its table), as
functions of the same recording: so it is rules that are compared, not recorders. What a moment cannot say exactly is
said in `reading.py`.
"""
