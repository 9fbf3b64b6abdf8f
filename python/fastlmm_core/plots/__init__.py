"""Drawings; matplotlib is imported when one is made."""
