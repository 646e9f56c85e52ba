"""`promptmill metrics`: the queue and the shared limiters, for Prometheus.

One exporter serves a whole deployment. It reads Redis when it is scraped and at no other time: nothing that it says is
stale, and workers count nothing for it. It changes no key.

- `reading` is what Redis is asked.
- `families` is what is shown: names, labels, help.
- `collector` brings the two together for one scrape.
- `command` is the face: options in, an HTTP server out.
"""
