"""What a Docker user may type, on every Docker that is supported: the acceptance list and a matrix.

The number of a point of that list (docs/acceptance.md) is in the name of its test: `test_p14_...`.
"""
