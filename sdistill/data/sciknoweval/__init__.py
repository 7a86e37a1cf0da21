"""The data set `sciknoweval`, in four domains."""
