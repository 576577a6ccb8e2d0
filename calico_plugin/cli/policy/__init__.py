"""`calicoctl policy`: what decides about a connection, what a change would do, what applies to a container.

`world` reads the cluster once; `places` finds what a user means by an end of a connection; `judge` walks the compiled
rules for one packet; `compare` finds the pairs whose verdict a change turns; `host` looks at this host (counters,
Docker's names, logged packets). All of it only reads.
"""
