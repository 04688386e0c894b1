"""What sampling recorded about the objects' relevance.

observation.py  what a sampling passes to its records
means.py        running means of shares and gates; their evenness
same_run.py     which run a latent or a picture came from
absence.py      why there are no maps, in sentences
record.py       the maps of a run, and a model's record of its runs
maps.py         the maps as masks and coloured overlays
report.py       the maps in words
"""
