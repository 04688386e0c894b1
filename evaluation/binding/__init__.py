"""The binding report: did each object take its look from its own reference?

binding.py         margins, looks, ranking, from embeddings
findings.py        what happened to each object: exchanged, blended, missing, …
verdict.py         the findings in sentences, with advice
matrix_picture.py  the similarity matrix as a picture
face_report.py     whose face each person wears, as text
report.py          the measurement, and the report as text
"""
