"""The data set `aime25`."""
