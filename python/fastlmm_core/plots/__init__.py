"""Pictures of fits: matplotlib is imported when one is drawn, and pyplot's state is left alone."""
