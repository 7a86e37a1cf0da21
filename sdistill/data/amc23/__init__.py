"""The data set `amc23`."""
