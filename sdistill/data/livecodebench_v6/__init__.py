"""The data set `livecodebench_v6`."""
