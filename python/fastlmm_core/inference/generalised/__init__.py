"""What is asked of a generalised fit that a linear one answers otherwise."""
