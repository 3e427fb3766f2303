"""What several test files share: sample data, faults, counting."""
