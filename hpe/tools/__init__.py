"""``hpe demo``, ``hpe doctor`` and ``hpe bench``: the whole in a few minutes, this machine, its speed.

In reading order:

    demo.py     the whole pipeline on rendered heads
    doctor.py   checks this machine
    gpucheck/   ``hpe doctor --gpu``: the checks of a GPU machine
    bench/      benchmarks against other tools
"""
