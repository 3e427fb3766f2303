"""What can be asked for: every option with its one default, its check and its help."""
