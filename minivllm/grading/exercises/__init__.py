"""One module for each exercise, `e04_the_clamp`: its parts and their checks."""
