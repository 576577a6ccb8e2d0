"""Measurements on real parts: each module runs alone (`python -m benchmarks.net`) and by `make bench`."""
