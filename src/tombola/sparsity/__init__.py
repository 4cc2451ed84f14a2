"""Which weights stay: masks, criteria, selection, and the files that hold tickets."""
