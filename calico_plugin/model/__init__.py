"""Values only: Calico's resources, keys, names, and what a node should have. No I/O; imports nothing of ours but `errors`."""
