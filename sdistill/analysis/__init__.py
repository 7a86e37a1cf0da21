"""What is measured on responses, and how sure the figures are."""
