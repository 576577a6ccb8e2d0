"""etcd v3 behind one narrow protocol (`kv.KV`), typed verbs over it (`store`), list-then-watch (`watch`, `cache`)."""
