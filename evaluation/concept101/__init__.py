"""Concept101, the benchmark of the paper's table.

dataset.py   pairs of concepts, prompts and references, read from disk
schedule.py  the noise levels at which the official code samples
score.py     CLIP-T, CLIP-I and DINO of one pair
table.py     the published table with a new row
"""
