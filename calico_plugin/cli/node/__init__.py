"""`calicoctl node`: calico-node on this very host. All commands need root."""
