"""sdistill: self-distillation of reasoning models, in JAX."""
