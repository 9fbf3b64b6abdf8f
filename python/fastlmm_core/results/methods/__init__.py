"""The result's methods, by subject; each is one call into the module that computes."""
