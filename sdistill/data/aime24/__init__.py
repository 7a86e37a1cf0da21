"""The data set `aime24`."""
