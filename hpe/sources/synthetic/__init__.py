"""Rendered heads: people who do not exist, with exact yaw, pitch, roll and emotion, from a seed.

    people.py   a person       person(seed, id) → Head, split_of(id)
    shots.py    a shot         shot(seed, index) → Shot: pose, action units, light, crop, background
    solids.py   geometry       ellipsoids to depth and normals
    anatomy.py  the head       its solids, and the places of its features under an expression
    paint.py    the skin       eyes, brows, mouth, folds
    wild.py     another look   wild_person(), wild_shot(), scene(): as varied as photos
    render.py   the picture    render(head, shot, size), landmarks(head, shot, size)
    heads.py    the dataset    heads(count, seed=…, people=…, size=…)
    sheet.py    a check        contact_sheet(), people_sheet(): to judge the renderer by eye

Every picture is a pure function of its numbers, so any worker can draw any part in any order.
"""

from hpe.sources.synthetic.heads import Cast, Labels, cast, head_at, heads
from hpe.sources.synthetic.people import Head, Split, person, split_of
from hpe.sources.synthetic.render import face_box, landmarks, model_points, project, render
from hpe.sources.synthetic.sheet import contact_sheet, people_sheet
from hpe.sources.synthetic.shots import DIRECTIONS, EMOTIONS, Shot, express, mirrored, shot
from hpe.sources.synthetic.wild import outline

__all__ = [
    "DIRECTIONS",
    "EMOTIONS",
    "Cast",
    "Head",
    "Labels",
    "Shot",
    "Split",
    "cast",
    "contact_sheet",
    "express",
    "face_box",
    "head_at",
    "heads",
    "landmarks",
    "mirrored",
    "model_points",
    "outline",
    "people_sheet",
    "person",
    "project",
    "render",
    "shot",
    "split_of",
]
