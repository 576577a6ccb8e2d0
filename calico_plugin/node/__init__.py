"""calico-node: what must be true before the parts of a host start, and the supervision of these parts."""
