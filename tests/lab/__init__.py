"""Whole Docker hosts on one machine: network, mount, UTS and PID namespaces around real dockerd, etcd and calico-node.

Used from pytest (``conftest.py``), by the demo (``demo.py``) and by hand (``python -m tests.lab --help``).
The modules, from the ground up:

* ``hostinit``      process 1 of a lab machine: its private mounts, and nothing else
* ``machine``       one machine: made, entered, looked into, switched off
* ``spec``          what a lab consists of: names, addresses, options
* ``state``         where labs live on disk; locks; how leftovers of a crashed lab are found
* ``services``      live control of etcd, dockerd and calico-node on a machine
* ``lab``           brings a whole lab up and down
* ``connectivity``  who reaches whom, and streams that must not break
* ``diagnostics``   writes down all there is to know when something failed
"""
