"""The signs puzzle, the embedded default task: put + or - between numbers to reach a target."""
