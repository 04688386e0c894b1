"""The object relevance score: does noise by relevance change the picture where the object is?

score.py    the score, its interval and its report
target.py   where the object is, from detections or masks
picture.py  the difference between two pictures, drawn
"""
