"""``hpe demo``, ``hpe doctor`` and ``hpe bench``: the whole pipeline in minutes, checks of this machine, and its speed.

In reading order:

    demo.py     the whole pipeline on rendered heads
    doctor.py   checks this machine
    gpucheck/   ``hpe doctor --gpu``: checks the GPUs
    bench/      benchmarks: hpe compared with alternatives
"""
