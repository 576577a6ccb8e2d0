"""Stand-ins that the contract suite holds to the real thing."""
