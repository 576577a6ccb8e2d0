"""Tests of every part; see docs/testing.md."""
