"""One decoder, its configuration and its weights."""
