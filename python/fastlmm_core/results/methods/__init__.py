"""The methods of a result, named by subject: one line each, that calls a function of `inference`."""
