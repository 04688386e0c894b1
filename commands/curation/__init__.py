"""What `python mip.py curate` needs.

read.py   the objects of a training picture, as training sees them
score.py  object quality scores of many pictures
table.py  the table of scores, and the choice of the best
sheet.py  the contact sheet
"""
