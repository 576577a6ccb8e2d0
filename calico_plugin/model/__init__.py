"""Values only: resources, keys, names, what a node should have. No I/O; imports nothing of ours but `errors`."""
