"""Networks, and how a run folder becomes one again."""
