"""The object quality score: do a picture's objects look like their texts, and unlike each other?

score.py   the score, from embeddings
report.py  the score of pictures whose objects were found: numbers, report, picture
"""
