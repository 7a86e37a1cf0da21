"""Text in, token ids out, and back."""
