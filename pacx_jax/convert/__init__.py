"""PyTorch state dicts <-> model folders, by tables that are read in both directions.

state.py   entries of a table, and how a table is read in both directions
tables.py  which key is which parameter, and how it is transposed
kinds.py   checkpoint kinds: what their sizes are, what may be left out
files.py   reading and writing files: no code is ever run from one
"""
