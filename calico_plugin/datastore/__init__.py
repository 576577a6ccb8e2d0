"""etcd v3 behind one narrow protocol (`kv.KV`), typed verbs over it (`store`), and list-then-watch (`watch`, `cache`)."""
