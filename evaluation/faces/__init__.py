"""Faces in pictures: found by any face analyser, chosen, aligned and cut out.

find.py        all faces in a picture, those in boxes; the face of one person in each of their pictures
align.py       five points of a face to an upright crop
analyser.py    a face analyser from the ONNX models that InsightFace publishes
onnx_model.py  such a model as a function, within bounds of memory and time
"""
