"""What to try next on a data set: measured facts, rules on them, and commands to copy."""
