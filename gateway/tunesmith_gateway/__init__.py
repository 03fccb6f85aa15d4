"""The gateway: one address for people and clients; auth, REST, live streams, the page."""
