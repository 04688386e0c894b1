"""Research with the miniature. Never part of an installed pack, and never imported by it.

ablation/      which arms, of merge and training bind objects to their references
miniature/     training of the miniature and of its adapters
studies/       steering as pictures; overlap of the relevance maps with the objects
comfy_rows.py  samples several patched models as one batch
"""
