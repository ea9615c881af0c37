"""Networks, and how a run folder becomes one again.

In reading order:

    backbones.py      by name: a picture in, a feature vector out
    multitask.py      the network: a backbone, and a head for each label
    hopenet.py        the released Hopenet
    views.py          predictions in the units of labels, from one view or several
    inference.py      how evaluate and predict run a network: one precision, pieces of one size
    run_folder.py     a run on disk: its config, what it is trained on, who trains in it
    checkpoints.py    its weights and its position: written, found, read
    normalisation.py  the mean and the standard deviation of the pixels that a network learns with
    build.py          the network of a config, and the trained one of a run
"""
