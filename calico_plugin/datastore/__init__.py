"""etcd v3 behind one narrow protocol (`kv.KV`), typed verbs over it (`store`), list-then-watch (`watch`).

Import from the modules: `etcd.connect`, `store.Store`, `watch.Watch`. There is no common door, since it would cost a
short command the import of everything.
"""

import os

# gRPC writes what goes wrong to standard error too, beside the errors that it raises; it reads this when imported.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
