"""``hpe share``: a trained network in a folder or on a hub that others load by name.

In reading order:

    shared.py    the network with its config, terms and card: `save_pretrained`, `push_to_hub`, `from_pretrained`
    terms.py     may it be published? the datasets that it was trained on, and what they allow
    card.py      the model card, without paths of this machine
    hub.py       names such as hf://org/name, and what is fetched from there
"""

from typing import TYPE_CHECKING

from hpe.core.handed_on import handed_on

if TYPE_CHECKING:
    from hpe.share.hub import local_folder
    from hpe.share.shared import SharedNetwork, share

__all__ = ["SharedNetwork", "local_folder", "share"]
__getattr__ = handed_on(__name__, {"SharedNetwork": "shared", "local_folder": "hub", "share": "shared"})
