"""BIRD: which sessions a node should have, its configuration as a pure function of a snapshot, its control socket."""
