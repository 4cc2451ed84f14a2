"""What lies on the disk: runs under their names, tables, and tensors without pickle."""
