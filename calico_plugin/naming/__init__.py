"""Names of containers on all hosts: which a container may ask for, and what DNS says of them. No I/O.

`index` holds what the cluster knows, `answers` speaks DNS, `wire` has the few bytes of both that the kernel compares.
"""
