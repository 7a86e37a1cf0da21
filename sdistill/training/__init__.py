"""The parts of a training run: state, optimizer, steps, checkpoints."""
