"""Strict YAML: what a run may be told, and the configs that come with the package.

In reading order:

    run.py       the config of a run: schema, every mistake at once, overrides
    recipes.py   ``hpe configs``: the configs that come with hpe
"""
