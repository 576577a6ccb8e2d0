"""etcd v3 behind one narrow protocol (`kv.KV`), typed verbs over it (`store`), list-then-watch (`watch`, `cache`)."""

from calico_plugin.datastore.cache import Cache, View
from calico_plugin.datastore.etcd import connect
from calico_plugin.datastore.kv import KV
from calico_plugin.datastore.store import Store
from calico_plugin.datastore.watch import Watch

__all__ = [
    "Cache",
    "KV",
    "Store",
    "View",
    "Watch",
    "connect",
]
