"""Problems, and the verification of responses to them."""
