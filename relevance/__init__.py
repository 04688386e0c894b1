"""What sampling recorded about the objects' relevance.

record.py   running means of shares and gates, and their confusion
maps.py     the maps as masks and coloured overlays
report.py   the maps in words
"""
