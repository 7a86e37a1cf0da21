"""The data sets `dapo_math_17k` and `dapo_math_17k_seen`, to train on."""
