"""``hpe share``: a trained network in a folder or on a hub that others load by name.

In reading order:

    shared.py    the network with its config, terms and card: `save_pretrained`, `push_to_hub`, `from_pretrained`
    terms.py     may it be published? the datasets that it was trained on, and what they allow
    card.py      the model card, without paths of this machine
    hub.py       names such as hf://org/name, and what is fetched from there
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hpe.share.hub import local_folder
    from hpe.share.shared import SharedNetwork, share

__all__ = ["SharedNetwork", "local_folder", "share"]


def __getattr__(name: str) -> object:
    # Imported late, so that importing one file of this package does not import everything that the command needs.
    if name == "local_folder":
        from hpe.share.hub import local_folder

        return local_folder
    if name in __all__:
        from hpe.share import shared

        return getattr(shared, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
