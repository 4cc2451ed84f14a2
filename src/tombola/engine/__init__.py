"""What executes a graph: the stages, and the pools of workers."""
