"""`calicoctl doctor`: what is wrong with this host and the cluster, what it means, and the command that mends it.

Each check is a short function that takes the `Context` (what the host and etcd look like, read once) and yields
findings; `run.CHECKS` lists them. Nothing is changed by looking.
"""
