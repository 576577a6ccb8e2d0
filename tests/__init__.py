"""Tests of every part; see docs/lab.md."""
