"""Fixtures that all tests share. The etcd fixture starts a real etcd on a free port of loopback."""
