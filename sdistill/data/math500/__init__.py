"""The data set `math500`."""
