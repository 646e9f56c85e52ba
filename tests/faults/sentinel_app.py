"""`faults.app` on a Redis that is found through Sentinel. The URL comes from FAULTS_SENTINEL_URL."""

from __future__ import annotations

import os

from .app import app

URL = os.environ["FAULTS_SENTINEL_URL"]

app.conf.broker_url = URL
app.conf.broker_transport = "workers.broker:SentinelTransport"
app.conf.broker_transport_options = {**app.conf.broker_transport_options, "master_name": "mill"}
app.conf.result_backend = f"workers.results:SentinelBackend+{URL}"
app.conf.result_backend_transport_options = {"master_name": "mill"}
