"""What is asked for: tables of settings, what they may be, and the names that can be given."""
