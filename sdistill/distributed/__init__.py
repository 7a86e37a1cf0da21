"""Which device holds what."""
