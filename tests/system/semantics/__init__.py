"""The pool's semantics, compared with Celery's own pools.

`app.py`, `bodies.py` and `recording.py` run inside the workers; everything else runs inside pytest.
"""
