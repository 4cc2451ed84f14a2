"""A mask and the weights it begins with: files, what they hold, and where they go."""
