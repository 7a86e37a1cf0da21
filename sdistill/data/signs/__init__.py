"""The signs puzzle's data sets: `signs_corpus` to pretrain on, `signs_problems` to train and test on."""
