"""Nothing is accepted and ignored: each option, setting and key of the catalogue has a test that fails without it.

`names.py` lists the names from the code, `marks.py` the tests that claim them (`@pytest.mark.covers("setting",
"log.json")`), `test_sweep.py` compares the two. `python -m tests.sweep [KIND:NAME ...]` proves the claims: it runs each
name's tests with that name muted (`muted/`), and they have to fail.
"""
