"""PyTorch state dicts <-> model folders, by tables that are read in both directions.

state.py   entries of a table, and how a table is read in both directions
tables.py  which key is which parameter, and how it is transposed
layouts.py the kinds, one entry each, and how a model folder is laid out as one
sizes.py   what a state dict tells of its model
kinds.py   one into the other: what may be left out, what no file tells
beside.py  what JSON files beside a checkpoint tell of it
files.py   reading and writing files, and which of several weights is meant
pickles.py PyTorch's files: no code is ever run from one
"""
