"""Calico for plain Docker: a libnetwork remote driver, a routing and policy agent, and `calicoctl`.

Importing the package does nothing but define the version.
"""

__version__ = "0.1.0"
