"""From a file to rows that are left to do.

source.py       the rows that are left to do, in the input's order
input_file.py   a file's lines, in constant memory
rows.py         what a line asks for
schema_file.py  the JSON Schema of `--schema`
custom_ids.py   which custom ids a file has used already
models.py       whether the models that rows name can be used
"""
