"""Data sets: TFDS builders, their catalogue, and the Grain pipelines that read them."""
