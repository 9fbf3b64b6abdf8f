"""Pictures of fits: matplotlib is imported when one is drawn; a function returns its Figure and touches no other."""
