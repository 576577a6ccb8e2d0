"""The agent: makes the host what the cluster says, and tells the cluster what the host is."""
