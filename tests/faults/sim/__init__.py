"""The control plane in one thread under a virtual clock: the real stores, scheduler, lease monitor and outbox
relay, with a database that fails, a bus that loses, doubles and reorders, and nodes that come and go."""
