"""TFDS builders, one folder each, and the Grain pipelines that read them."""
