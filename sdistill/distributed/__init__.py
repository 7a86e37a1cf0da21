"""Which device holds what, and what the processes of a run exchange."""
