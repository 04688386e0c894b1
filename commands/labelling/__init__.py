"""What `python mip.py dataset` needs.

read.py    pictures with captions, lists of chosen ids
words.py   the objects that a caption names
label.py   a picture's boxes and masks, in the training layout
"""
