"""The sections of the study, one module each: what is run, on what, and which figures come of it."""
