"""Where runs are carried out: in this process, or in workers of this machine."""
