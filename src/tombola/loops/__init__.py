"""Tickets in training loops that Tombola does not own: a function of the user's, or a script."""
