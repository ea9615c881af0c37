"""Head pose and emotion, trained together on many GPUs."""

__version__ = "0.1.0"
