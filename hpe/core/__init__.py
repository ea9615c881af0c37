"""What everything else uses: labels, angles, numbers, files, processes. It imports nothing of hpe.

In reading order:

    errors.py         UserError, and the exit codes of every command
    labels.py         emotions, directions, angles: their order, words and colours
    geometry.py       Euler angles, rotation matrices, 6D, errors, the mirror
    statistics.py     counts, intervals, tests
    randomness.py     random numbers as pure functions of a key
    nearest.py        what was meant by a path that does not exist
    files.py          files that are either whole or absent; locks
    console.py        messages on stderr and in the log of a run
    notices.py        a word while processes wait, from one process of a node
    progress.py       one progress line, or plain lines where there is no terminal
    table_files.py    tables that users hand over: delimiter, encoding and decimal mark, found out
    ranks.py          this process among those of its job, and how it ends
    devices.py        the GPU, or the cores and threads of the CPU, that this process computes on
    distributed.py    the ranks meet, make the Accelerator, and agree
    heartbeats.py     a rank whose host is gone is noticed within minutes, and named
    precision.py      bf16, fp16 or fp32: one rule for every command
    launch.py         starts a command as several processes
    signals.py        stop signals as a request to stop
    process_pool.py   jobs on worker processes, results in order
    work_queue.py     shares items among ranks, even if a rank dies
    handed_on.py      names of a package, each imported on first use
"""
