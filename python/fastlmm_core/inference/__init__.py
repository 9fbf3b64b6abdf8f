"""What is asked of a model after the fit, one module a subject."""
