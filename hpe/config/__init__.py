"""Strict YAML: the config of a run, and the configs that come with the package.

In reading order:

    run.py           every setting of a run with its type, default and meaning
    strict_yaml.py   YAML and ``--set`` become a typed config, or one error with every mistake and its place
    recipes.py       ``hpe configs``: the configs that come with hpe
"""
