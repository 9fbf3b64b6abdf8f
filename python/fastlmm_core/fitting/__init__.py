"""From a design and options to a fitted model, and what reads off it: labels, modes, predictions, covariances."""
